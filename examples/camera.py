"""Say what a camera sees: ``python -m examples.camera 0``, or a video file instead of the number.

Needs a running edge daemon and OpenCV (``pip install 'neucodex[opencv]'``). Pictures may have any
size: the daemon makes of them what its network wants. The newest is taken; those that come while
an answer is awaited are passed over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import cv2
from PIL import Image

from edge_agent import Edge, InputError, LinkLostError, QueueFullError, SampleError


def pictures(source: str) -> Iterator[Image.Image]:
    """Yield the pictures of a camera, by number or device, or of a video file."""
    camera = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    while True:
        there, blue_green_red = camera.read()
        if not there:
            return
        yield Image.fromarray(blue_green_red[:, :, ::-1])


def main() -> int:
    """Classify until the camera ends; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="number of a camera, its device, or a video file")
    parser.add_argument("--edge", default="unix:/run/neucodex/edge.sock", help="the daemon")
    arguments = parser.parse_args()
    seen = 0
    with Edge(arguments.edge) as edge:
        for picture in pictures(arguments.source):
            seen += 1
            try:
                answer = edge.classify(picture, deadline_seconds=2)
            except (InputError, LinkLostError, QueueFullError, SampleError) as error:
                print(f"no answer: {error}", file=sys.stderr)
                continue
            print(
                f"{answer.name:12} {answer.confidence:6.1%}  {answer.timesteps_used} timesteps  "
                f"{answer.payload_bytes:4d} B  {answer.latency.total_seconds * 1000:6.1f} ms"
            )
    return 0 if seen else 1


if __name__ == "__main__":
    sys.exit(main())
