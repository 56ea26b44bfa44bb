"""Bytes per image of co-inference, counted three ways, and of an image upload as accurate.

Through the two running processes, on the whole CIFAR-10 test set (``NEUCODEX_CIFAR10`` names its
folder; ``--quick`` takes a few of the images shipped). *Payload* is the code after the codec,
*message* the serialised protobuf, *wire* everything in IP packets, both directions. Each stands
against three references: the features at the split as float32 over all T timesteps, which a run
without compression and early exit would send, the same bit-packed, and the image's pixels.

The rival sends the image itself. Test images are written at falling quality and read by the
network before the bottleneck was inserted, over all T timesteps, until it is no longer as accurate
as co-inference (by bisection: accuracy falls with quality, but for noise). The smallest files that
are as accurate are then uploaded through a pair in placement ``cloud_only``, and their bytes
counted on that stream.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.images import classify, load_test_images
from benchmarks.report import Result, figure, run
from edge_agent import Picture
from examples.pair import Ready, pair
from examples.scrape import scrape
from shared.model.bundle import Bundle
from shared.model.preprocessing import decode_image
from training.calibrate import judge, named_engine, run_engines
from training.data.cifar10 import Images

QUICK_IMAGES = 100
PATIENT = ("--deadline-seconds", "120")
"""A slow machine is no failure: the images wait in the edge's queue."""
CLOUD_ONLY = (*PATIENT, "--placement", "cloud_only", "--alpha", "1")
"""Over all T timesteps."""
SIDE = 32
"""Pixels of an image in each direction."""
BEST_QUALITY = 100
REFERENCES = ("float32_features", "packed_features", "raw_input")
"""As in the edge's metric of baselines."""
WAYS = ("payload", "message", "wire")
GOALS = {("webp", "wire"): "below 1"}
"""Of co-inference over an upload, by format and way."""


class FileSetting(NamedTuple):
    """How Pillow is asked to write an image, but for the quality."""

    name: str
    options: dict[str, Any]
    side: int = SIDE
    """Pixels in each direction; the server scales what is smaller."""


WEBP = {"format": "WebP", "method": 6}
JPEG = {"format": "JPEG", "optimize": True}
SETTINGS = {
    "webp": (FileSetting("webp", WEBP), FileSetting("webp_28px", WEBP, side=28)),
    "jpeg": (
        FileSetting("jpeg_420", JPEG),
        FileSetting("jpeg_444", JPEG | {"subsampling": 0}),
    ),
}
"""By format; the setting with the smallest files stands for it."""
LOSSLESS = FileSetting("webp_lossless", WEBP | {"lossless": True})
"""Sent where no quality is accurate enough."""


class Traffic(NamedTuple):
    """Means over the images of a run through a pair, and what it sent per image."""

    accuracy: float
    timesteps: float
    sizes: dict[str, float]
    """Bytes by way, both directions, and ``*_sent``, edge to cloud."""
    references: dict[str, float]
    """Bytes by name."""


class Upload(NamedTuple):
    """Files that are to be sent."""

    setting: FileSetting
    quality: int | None
    """None is without loss."""
    files: list[bytes]

    @property
    def mean_bytes(self) -> float:
        """Mean size of a file."""
        return mean_bytes(self.files)


class Rival:
    """Image files for the network before the bottleneck was inserted, over all T timesteps.

    Args:
        bundle: the network.
        images: the test images.
    """

    def __init__(self, bundle: Bundle, images: Images) -> None:
        self._bundle = bundle
        self._images = images
        self._engine = named_engine(bundle, "whole", threads=os.cpu_count() or 1)
        self.tried: dict[str, dict[str, tuple[float, float]]] = {}
        """Mean bytes and accuracy, by setting and quality."""

    def accuracy(self, files: Sequence[bytes]) -> float:
        """Return the share of the images that are recognised from their files."""
        spec = self._bundle.spec
        fit = self._bundle.manifest.preprocessing.fit
        pixels = np.stack([decode_image(file, spec.input_shape, fit) for file in files])
        ran = run_engines([self._engine], pixels, spec, self._bundle.manifest.preprocessing)
        decisions = judge(ran.logits, self._bundle.calibration().temperature)
        return float((decisions.labels[-1] == self._images.labels).mean())

    def upload(self, setting: FileSetting, quality: int | None) -> Upload:
        """Write the images."""
        return Upload(setting, quality, write(self._images.pixels, setting, quality))

    def smallest(self, settings: Iterable[FileSetting], target: float) -> Upload | None:
        """Return the smallest files that reach an accuracy; nothing where no setting does."""
        found = []
        for setting in settings:
            quality = lowest_quality(partial(self._try, setting), target)
            if quality is not None:
                found.append(self.upload(setting, quality))
        return min(found, key=lambda upload: upload.mean_bytes, default=None)

    def _try(self, setting: FileSetting, quality: int) -> float:
        upload = self.upload(setting, quality)
        accuracy = self.accuracy(upload.files)
        curve = self.tried.setdefault(setting.name, {})
        curve[str(quality)] = upload.mean_bytes, accuracy
        return accuracy


def write(pixels: NDArray[np.uint8], setting: FileSetting, quality: int | None) -> list[bytes]:
    """Return images ``[N, 3, H, W]`` as files."""
    options = setting.options if quality is None else setting.options | {"quality": quality}
    files = []
    for picture in pixels:
        image = Image.fromarray(picture.transpose(1, 2, 0))
        if setting.side != SIDE:
            image = image.resize((setting.side, setting.side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, **options)
        files.append(buffer.getvalue())
    return files


def mean_bytes(files: Sequence[bytes]) -> float:
    """Return the mean size of files."""
    return float(np.mean([len(file) for file in files]))


def lowest_quality(accuracy: Callable[[int], float], target: float) -> int | None:
    """Return the lowest quality, 1 to 100, whose accuracy is at least ``target``, by bisection.

    Args:
        accuracy: of a quality; does not fall as quality rises.
        target: to reach.

    Returns:
        Nothing where not even the best quality reaches it.
    """
    if accuracy(BEST_QUALITY) < target:
        return None
    too_low, enough = 0, BEST_QUALITY
    while enough - too_low > 1:
        middle = (too_low + enough) // 2
        if accuracy(middle) >= target:
            enough = middle
        else:
            too_low = middle
    return enough


def traffic(
    edge: Ready, inputs: Iterable[Picture], labels: NDArray[np.int64], payload: float | None = None
) -> Traffic:
    """Have a pair classify images and read off what its edge daemon sent.

    Args:
        edge: the daemon.
        inputs: the images.
        labels: theirs, int64 ``[N]``.
        payload: mean bytes of what is sent, where that is no code.

    Raises:
        RuntimeError: an image got no answer.
        LookupError: the system does not tell wire bytes.
    """
    found = classify(edge.address, inputs, labels)
    scraped, count = scrape(edge.metrics), len(labels)
    sizes = {"payload": found.payload_bytes if payload is None else payload}
    for way in ("message", "wire"):
        name = f"edge_{way}_bytes_total"
        sizes[way] = scraped.total(name) / count
        sizes[f"{way}_sent"] = scraped.total(name, direction="sent") / count
    references = {
        name: scraped.total("edge_baseline_bytes_total", baseline=name) / count
        for name in REFERENCES
    }
    return Traffic(found.accuracy, found.timesteps, sizes, references)


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run co-inference, look for image files as accurate, and upload those."""
    if bundle.spec.input_shape != (3, SIDE, SIDE) or bundle.spec.input_kind != "static":
        raise SystemExit(f"expected a bundle for CIFAR-10, got one for {bundle.spec.input_shape}")
    images = load_test_images(QUICK_IMAGES if quick else None)
    with pair(bundle.path, edge_flags=PATIENT) as both:
        ours = traffic(both.edge, images.pixels, images.labels)
    rival = Rival(bundle, images)
    original = rival.upload(LOSSLESS, None)
    full = rival.accuracy(original.files)
    results = [
        figure("accuracy_full", [full], "share"),
        figure("accuracy_lost", [100 * (full - ours.accuracy)], "points"),
        *figures_of("co_inference", ours),
        *reductions(ours),
    ]
    settings: dict[str, Any] = {"images": len(images.labels)}
    for name, file_settings in SETTINGS.items():
        upload = rival.smallest(file_settings, ours.accuracy) or original
        with pair(bundle.path, edge_flags=CLOUD_ONLY) as both:
            theirs = traffic(both.edge, upload.files, images.labels, upload.mean_bytes)
        settings[name] = {"setting": upload.setting.name, "quality": upload.quality}
        results += [*figures_of(f"{name}_upload", theirs), *ratios(name, ours, theirs)]
    return settings | {"tried": rival.tried}, results


def figures_of(name: str, sent: Traffic) -> list[Result]:
    """Return the figures of one run."""
    return [
        figure(f"{name}_accuracy", [sent.accuracy], "share"),
        figure(f"{name}_timesteps", [sent.timesteps], "timesteps"),
        *(
            figure(f"{name}_{way}_bytes_per_image", [size], "bytes")
            for way, size in sent.sizes.items()
        ),
    ]


def reductions(sent: Traffic) -> list[Result]:
    """Return the references, and how many times what was sent they are, counted in each way."""
    results = []
    for name, size in sent.references.items():
        results.append(figure(f"{name}_bytes_per_image", [size], "bytes"))
        results += [figure(f"{name}_over_{way}", [size / sent.sizes[way]], "ratio") for way in WAYS]
    return results


def ratios(name: str, ours: Traffic, theirs: Traffic) -> list[Result]:
    """Return what co-inference sends over what an upload of a format sends."""
    return [
        figure(
            f"{way}_over_{name}_{way}",
            [ours.sizes[way] / theirs.sizes[way]],
            "ratio",
            GOALS.get((name, way)),
        )
        for way in WAYS
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run("data_reduction", __doc__, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
