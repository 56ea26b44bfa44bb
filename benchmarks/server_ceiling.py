"""What a message costs the server beside the network: null tail against a plain gRPC echo.

Lock-step streams, one timestep of the bundle's raw code per message up, one verdict down. The
baseline is a grpc.aio server with the same options that answers bytes of the same sizes without
parsing them. Server on one core, load on the other; figures are the server process's CPU time.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks import load
from benchmarks.report import Result, figure, run
from shared.model.bundle import Bundle

STREAMS = (1, 8, 32)


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure both servers in turn at every number of streams."""
    rounds, seconds = (2, 1.5) if quick else (7, 4.0)
    recorded = load.record(bundle)
    opening = load.open_message(bundle)
    request = recorded[0][0].to_bytes(0) + bytes(2)  # a protobuf field adds a tag and a length
    results = []
    with (
        load.server_process(["benchmarks.servers", "null", "--bundle", str(bundle.path)]) as null,
        load.server_process(["benchmarks.servers", "echo"]) as plain,
    ):
        play = partial(load.play, null[1], opening, recorded)
        ping = partial(load.echo, plain[1], request)
        for streams in STREAMS:
            pairs = [
                (
                    asyncio.run(load.drive(play, streams, seconds, null[0])),
                    asyncio.run(load.drive(ping, streams, seconds, plain[0])),
                )
                for _ in range(rounds)
            ]
            results += figures(streams, pairs)
    settings = {"rounds": rounds, "seconds": seconds, "request_bytes": len(request)}
    return settings, results


def figures(streams: int, pairs: Sequence[tuple[load.Measured, load.Measured]]) -> list[Result]:
    """Return the figures for one number of streams."""
    ours = [a.server_cpu_seconds / a.messages for a, _ in pairs]
    echo = [b.server_cpu_seconds / b.messages for _, b in pairs]
    ratios = [a / b for a, b in zip(ours, echo, strict=True)]
    return [
        figure(f"cpu_per_message_over_echo_{streams}_streams", ratios, "ratio", "at most 1.7"),
        figure(f"cpu_per_message_{streams}_streams", ours, "CPU seconds"),
        figure(f"echo_cpu_per_message_{streams}_streams", echo, "CPU seconds"),
        figure(
            f"messages_per_second_{streams}_streams",
            [a.messages / a.seconds for a, _ in pairs],
            "messages/s",
        ),
        figure(
            f"echo_messages_per_second_{streams}_streams",
            [b.messages / b.seconds for _, b in pairs],
            "messages/s",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("server_ceiling", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
