"""The model bundle: one trained network as a directory that is safe to load from a stranger.

::

    manifest.json        spec, preprocessing, labels, parts, codec, SHA-256 of every other file
    head.onnx            edge: input to code              tail.onnx   cloud: code to logits
    whole.onnx           optional: the network before the bottleneck was inserted
    head_operations.onnx optional: head.onnx that counts its operations, too
    head_int8.onnx       optional: head.onnx with int8 convolutions, their weights in it
    weights.safetensors  all weights, once (the graphs refer into it), float16 or float32
    codec.npz            optional: integer tables of the context codecs
    calibration.json     temperature, alpha, exit distribution, firing rates, operation counts
    CARD.md              data, accuracy, bytes, how it was trained

The **digest** is the SHA-256 of the canonical manifest (:func:`canonical`); it names the network,
and both sides of a stream must hold the same. A device may hold only some of the files: a bundle
without its tail is valid under the same digest. No file is ever unpickled or executed, none
outside the directory is read, and sizes are checked before anything is allocated for them.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec

from shared.codec.codecs import CODECS, Codec, codecs_with
from shared.codec.context_model import load_tables
from shared.errors import BundleError, CodecError
from shared.events.framing import Framing
from shared.model.spec import NetworkSpec

PartName = Literal["head", "tail", "whole"]
FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.json"
CODEC_TABLES = "codec.npz"
HEAD_OPERATIONS = "head_operations.onnx"
"""Its outputs are those of the head, and ``operations``, see :mod:`shared.engine.onnx_runtime`."""
HEAD_INT8 = "head_int8.onnx"
"""Its inputs and outputs are the head's; its codes differ where potentials are near threshold."""
MAX_FILE_BYTES = 1 << 30
"""A bundle file larger than this is refused unread."""

MAX_MANIFEST_BYTES = 4 << 20
"""So is a manifest."""
MAX_STATE_VALUES = 1 << 26
"""Most membrane potentials of one sample in one part: 256 MiB, once per slot."""

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+\Z")]
Dims = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 26)], ...], msgspec.Meta(max_length=8)
]


class Preprocessing(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How what a sensor gives becomes a network input.

    A picture is resized, or events are counted into frames; then ``(value / 255 - mean) / std``.
    Keys that are absent are not written, so that they do not change a bundle's digest.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["stretch", "crop"] = "stretch"
    """How a picture takes the network's size: both sides as they need be, or, after its middle has
    been cut out in the network's proportions."""
    framing: Framing | None = None
    """Of events: how a recording was cut into timesteps; absent where nobody said."""

    def check_channels(self, channels: int) -> None:
        """Check that there are a mean and a deviation per channel; ValueError if not."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(f"expected {channels} numbers for {name}, got {len(values)}")


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph input or output: its name and its shape without the batch axis."""

    name: str
    shape: Dims


class PartSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One exported graph.

    The graph's inputs are ``input`` and ``states``; its outputs ``output`` and, in the same
    order, ``next_states``. All have a dynamic batch axis in front.
    """

    graph: FileName
    input: TensorSpec
    output: TensorSpec
    states: tuple[TensorSpec, ...]
    next_states: tuple[TensorSpec, ...]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that names a network; its canonical form gives the digest."""

    format: Literal[1]
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
    version: str
    spec: NetworkSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    parts: dict[PartName, PartSpec]
    codec: str
    files: dict[FileName, Sha256]

    def __post_init__(self) -> None:
        spec = self.spec
        self.preprocessing.check_channels(spec.input_shape[0])
        framing = self.preprocessing.framing
        if framing is not None and (
            spec.input_kind != "events" or framing.timesteps != spec.timesteps
        ):
            raise ValueError(
                f"expected a framing into {spec.timesteps} timesteps of a network for events, got "
                f"{framing.timesteps} of one for {spec.input_kind}"
            )
        if len(self.labels) != spec.classes:
            raise ValueError(f"expected {spec.classes} labels, got {len(self.labels)}")
        borders: dict[PartName, tuple[Dims, Dims]] = {
            "head": (spec.input_shape, spec.code_shape),
            "tail": (spec.code_shape, (spec.classes,)),
            "whole": (spec.input_shape, (spec.classes,)),
        }
        for part, described in self.parts.items():
            found = described.input.shape, described.output.shape
            if found != borders[part]:
                raise ValueError(f"expected {part} to map {borders[part]}, got {found}")
            if shapes(described.states) != shapes(described.next_states):
                raise ValueError(f"expected {part} to hand on states of the shapes it reads")
            values = sum(math.prod(shape) for shape in shapes(described.states))
            if values > MAX_STATE_VALUES:
                raise ValueError(
                    f"expected at most {MAX_STATE_VALUES} membrane potentials in {part}, "
                    f"got {values}"
                )


def shapes(tensors: tuple[TensorSpec, ...]) -> tuple[Dims, ...]:
    """Return the shape of each tensor."""
    return tuple(tensor.shape for tensor in tensors)


class Operations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Effective operations of one part, mean per timestep of one sample.

    A synaptic operation is a multiply-accumulate (``mac``) where the input is not binary, an
    accumulate (``ac``) where it is; only non-zero inputs count. ``neuron`` counts membrane
    updates.
    """

    mac: float
    ac: float
    neuron: float


class BudgetTest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The loss budget that an alpha list keeps, and what it gave on the held-out images.

    It keeps the budget for inputs like those images alone: of other inputs the test says nothing.
    """

    points: Annotated[float, msgspec.Meta(gt=0, lt=100)]
    """Percentage points: of 100 inputs at most so many are right after all T timesteps and wrong at
    their exit, which bounds the accuracy lost."""
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    """Probability, over the draw of the images, that not all lists of this budget keep it."""
    images: int
    """Number of held-out images it was tested on."""
    observed_risk: float
    """Share of them that are right after all T timesteps and wrong at their exit."""
    accuracy: float
    """Share of them that are right at their exit."""
    exit_distribution: tuple[float, ...]
    """Share of them that exit at t = 0..T-1."""

    @property
    def mean_timesteps(self) -> float:
        """Timesteps used, mean over the images."""
        return sum(share * steps for steps, share in enumerate(self.exit_distribution, start=1))

    @property
    def promise(self) -> str:
        """What it comes to, for people."""
        return (
            f"at most {self.points:g} points lost with {100 - 100 * self.delta:g} % certainty on "
            f"inputs like its {self.images:,} held-out images, {self.mean_timesteps:.2f} timesteps "
            "expected"
        )


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured on held-out training images."""

    temperature: Annotated[float, msgspec.Meta(gt=0)]
    confidence: Literal["max_softmax", "entropy", "margin"] = "max_softmax"
    alpha: dict[str, tuple[float, ...]]
    """Alpha lists (T - 1 numbers) by name: ``full`` and those of :func:`alpha_names`."""
    tests: dict[str, BudgetTest] = {}
    """By name of the alpha list; not every list needs to have one."""
    default_alpha: str
    """The entry of ``alpha`` used when the user sets none."""
    exit_distribution: tuple[float, ...]
    """Share of samples that exit at t = 0..T-1 under the default alpha."""
    firing_rates: dict[str, float]
    """Mean spikes per neuron and timestep, by LIF layer; ``code`` is the code's."""
    operations: dict[str, Operations]
    """By part: ``head`` (encoder included), ``tail``, ``whole``."""
    images: int
    """Number of held-out images behind these figures, but for the temperature."""
    fitting_images: int
    """Number of other held-out images, behind the temperature and how the alphas of the timesteps
    are to one another."""

    def check(self, manifest: Manifest) -> None:
        """Check that it fits the network; ValueError if not."""
        timesteps = manifest.spec.timesteps
        for name, values in self.alpha.items():
            if len(values) != timesteps - 1 or not all(0 <= value <= 1 for value in values):
                raise ValueError(
                    f"expected {timesteps - 1} numbers of 0 to 1 for alpha {name}, got {values}"
                )
        if self.default_alpha not in self.alpha:
            raise ValueError(
                f"expected a default_alpha of {', '.join(self.alpha)}, got {self.default_alpha!r}"
            )
        tests = {name: test.exit_distribution for name, test in self.tests.items()}
        for name, shares in ({self.default_alpha: self.exit_distribution} | tests).items():
            if len(shares) != timesteps or min(shares) < 0:
                raise ValueError(f"expected {timesteps} shares of exits of {name}, got {shares}")
        missing = {"head", "tail", *manifest.parts} - self.operations.keys()
        if missing:
            raise ValueError(f"expected operations of {', '.join(sorted(missing))}, got none")


def alpha_names(budget_points: float) -> tuple[str, str]:
    """Return the names of a budget's alpha lists: the same alpha at every t, and one for each t."""
    name = f"loss_budget_{float(budget_points)}_points"
    return name, f"{name}_by_timestep"


def pick_alpha(
    budget_points: float, alpha: Mapping[str, tuple[float, ...]], tests: Mapping[str, BudgetTest]
) -> str:
    """Return the name of the alpha list that a loss budget stands for.

    It is the one that took fewer timesteps on the held-out images, all T where that is not known;
    if both took as many, the one with the same alpha at every t.

    Args:
        budget_points: percentage points of accuracy that may be lost.
        alpha: as in :class:`Calibration`.
        tests: as in :class:`Calibration`.

    Raises:
        ValueError: there is no list for this budget.
    """

    def timesteps(name: str) -> float:
        return tests[name].mean_timesteps if name in tests else len(alpha[name]) + 1

    names = [name for name in alpha_names(budget_points) if name in alpha]
    if not names:
        raise ValueError(
            f"expected a loss budget that the bundle is calibrated for, got {budget_points:g} "
            f"points; its alpha lists are {', '.join(alpha)}"
        )
    return min(names, key=timesteps)


class Bundle:
    """A bundle on disk whose manifest has been read and whose files are verified when opened.

    Args:
        path: the bundle's directory.

    Raises:
        BundleError: no readable manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.manifest = parse_manifest(self._read_bytes(MANIFEST))
        except ValueError as error:
            raise BundleError(f"{path / MANIFEST}: {error}") from error
        self.digest = manifest_digest(self.manifest)

    @property
    def spec(self) -> NetworkSpec:
        """The network's description."""
        return self.manifest.spec

    def has(self, part: PartName) -> bool:
        """Say whether the part is described and its graph is on this machine."""
        described = self.manifest.parts.get(part)
        return described is not None and (self.path / described.graph).is_file()

    def has_file(self, name: str) -> bool:
        """Say whether a file is listed in the manifest and on this machine."""
        return name in self.manifest.files and (self.path / name).is_file()

    def part(self, part: PartName) -> PartSpec:
        """Return the description of a part; BundleError if there is none."""
        try:
            return self.manifest.parts[part]
        except KeyError:
            present = ", ".join(self.manifest.parts)
            raise BundleError(f"bundle has no part {part!r}, only {present}") from None

    def read(self, name: str) -> bytes:
        """Return a file's verified bytes.

        Raises:
            BundleError: not listed in the manifest, absent, too large or not the listed content.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BundleError(f"{self.path}: {name} is not listed in the manifest")
        content = self._read_bytes(name)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise BundleError(f"{self.path / name}: expected SHA-256 {expected}, got {found}")
        return content

    def open(self, name: str) -> BinaryIO:
        """Open the manifest or a file listed in it; what is read from it is not verified.

        Raises:
            BundleError: not of the bundle, absent, too large or no regular file.
        """
        if name != MANIFEST and name not in self.manifest.files:
            raise BundleError(f"{self.path}: {name} is not listed in the manifest")
        return self._open(name)

    @cached_property
    def codecs(self) -> Mapping[str, Codec]:
        """The codecs for this bundle's codes, by name; BundleError if its tables are damaged."""
        if CODEC_TABLES not in self.manifest.files:
            return CODECS
        try:
            tables = load_tables(self.read(CODEC_TABLES))
        except CodecError as error:
            raise BundleError(f"{self.path / CODEC_TABLES}: {error}") from error
        if tables.shape != self.spec.code_shape:
            raise BundleError(
                f"{self.path / CODEC_TABLES}: expected tables for codes of "
                f"{list(self.spec.code_shape)}, got {list(tables.shape)}"
            )
        return codecs_with(tables)

    def calibration(self) -> Calibration:
        """Return the calibration; BundleError if absent, malformed or another network's."""
        try:
            found = msgspec.json.decode(self.read(CALIBRATION), type=Calibration)
            found.check(self.manifest)
        except (msgspec.DecodeError, ValueError) as error:
            raise BundleError(f"{self.path / CALIBRATION}: {error}") from error
        return found

    def _read_bytes(self, name: str) -> bytes:
        path = self.path / name
        try:
            with self._open(name) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                content = file.read(size_bytes + 1)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from error
        if len(content) != size_bytes:
            raise BundleError(f"{path}: expected {size_bytes} bytes, it changed while it was read")
        return content

    def _open(self, name: str) -> BinaryIO:
        path = self.path / name
        try:
            if path.resolve().parent != self.path.resolve():
                raise BundleError(f"{path}: expected a file of the bundle, got a link out of it")
            # A pipe must not keep us waiting until it is known to be none.
            file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise BundleError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            _check_regular(file, MAX_MANIFEST_BYTES if name == MANIFEST else MAX_FILE_BYTES)
        except ValueError as error:
            file.close()
            raise BundleError(f"{path}: {error}") from error
        return file


def _check_regular(file: BinaryIO, most_bytes: int) -> None:
    """Raise ValueError where an open file is too large, or no regular one."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("expected a regular file")
    if found.st_size > most_bytes:
        raise ValueError(f"expected at most {most_bytes} bytes, got {found.st_size}")


def parse_manifest(raw: bytes) -> Manifest:
    """Return what a manifest's bytes say; ValueError if they are none."""
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


def manifest_digest(manifest: Manifest) -> str:
    """Return the digest of the bundle with this manifest, in hexadecimal."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def canonical(manifest: Manifest) -> bytes:
    """Return the bytes that are hashed for the digest: JSON, keys sorted, no white space."""
    return msgspec.json.encode(msgspec.to_builtins(manifest), order="sorted")


def file_digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
