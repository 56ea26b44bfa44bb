"""Say what an event camera sees, while it still records.

``python -m examples.event_camera udp:127.0.0.1:7000 --sensor 34 34`` waits for recordings, which
something sends with :class:`edge_agent.EventSender`, or in its packets. Needs a running edge daemon
whose network reads events. How events become timesteps is the bundle's business.
"""

from __future__ import annotations

import argparse
import sys
import time

from edge_agent import Edge, EventReceiver, NeucodexError


def main() -> int:
    """Classify recordings; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen", help="udp:HOST:PORT or unix:PATH, where events come in")
    parser.add_argument("--sensor", type=int, nargs=2, required=True, metavar=("H", "W"))
    parser.add_argument("--edge", default="unix:/run/neucodex/edge.sock", help="the daemon")
    parser.add_argument("--recordings", type=int, help="stop after so many (default: never)")
    arguments = parser.parse_args()
    height, width = arguments.sensor
    answered = 0
    with (
        Edge(arguments.edge) as edge,
        EventReceiver(arguments.listen, (height, width)) as camera,
    ):
        print(f"listening at {camera.address}", flush=True)
        for number, recording in enumerate(camera.recordings(), start=1):
            began = time.perf_counter()
            try:
                # Returns as soon as the answer is certain enough: the rest is not waited for.
                answer = edge.classify_events(recording)
            except NeucodexError as error:
                print(f"no answer: {error}", file=sys.stderr)
            else:
                answered += 1
                print(
                    f"{answer.name:12} {answer.confidence:6.1%}  {answer.timesteps_used} timesteps"
                    f"  {answer.payload_bytes:4d} B  {time.perf_counter() - began:.3f} s",
                    flush=True,
                )
            if number == arguments.recordings:
                break
    return 0 if answered else 1


if __name__ == "__main__":
    sys.exit(main())
