"""Write the bundle of a training run.

Folds BatchNorm, exports the graphs, calibrates on the held-out training images through the very
graphs just written, and writes the manifest last. The same run gives the same bytes and digest.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_safetensors
from torch import Tensor

from shared.codec.context_model import ContextTables, save_tables
from shared.errors import BundleError, ConfigError
from shared.model.bundle import (
    CALIBRATION,
    CODEC_TABLES,
    HEAD_INT8,
    HEAD_OPERATIONS,
    MANIFEST,
    WEIGHTS,
    Bundle,
    Calibration,
    Manifest,
    PartName,
    PartSpec,
    Preprocessing,
    canonical,
    file_digest,
)
from shared.model.folding import fold
from shared.model.split import Part, SplitNetwork
from training.calibrate import LabelledFrames, calibrate, head_codes
from training.card import card, card_with_int8, read_history, recalibrated_card
from training.evaluate import Evaluation
from training.fit import CHECKPOINT, load_checkpoint
from training.fit_codec import fit_tables
from training.graphs import Border, ExportError, Slice, part_graph, refer_to_weights
from training.operations import counting_graph
from training.progress import SILENT, Progress
from training.quantise import RANGE_SAMPLES, Comparison, check, compare, int8_head, int8_section
from training.recipe import RECIPE, load_recipe
from training.recipe_data import TrainingData

CARD_FILE = "CARD.md"
CODEC = "ctx"
CODEC_SAMPLES = 2500
"""Samples wanted behind the codec tables. On N-MNIST's codes ``ctx-max`` fitted to 1,000 takes 6 %
fewer bytes than fitted to the 150 held out."""
EXAMPLE_SAMPLES = 2
"""Batch size of the traced example; the exporter would take 1 for a constant."""


class Description(NamedTuple):
    """What a manifest says beside the network itself."""

    name: str
    version: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]


class Measured(NamedTuple):
    """What is measured on a bundle whose graphs are written."""

    calibration: Calibration
    tables: ContextTables


def measure(
    bundle: Bundle,
    held_out: LabelledFrames,
    codec_inputs: NDArray[np.uint8],
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Measured:
    """Calibrate a bundle and fit its codec tables.

    Args:
        bundle: with its graphs.
        held_out: samples that no training phase has seen, for the calibration.
        codec_inputs: the inputs behind the codec tables, as :func:`codec_inputs` gives them.
        threads: CPU threads.
        progress: hears of the calibration's batches.
    """
    calibration = calibrate(bundle, held_out, threads=threads, progress=progress)
    return Measured(calibration, fit_tables(head_codes(bundle, codec_inputs, threads)))


def codec_inputs(data: TrainingData) -> NDArray[np.uint8]:
    """Return what codec tables are fitted to: the held-out inputs, and more where those are few.

    A lossless code changes no answer, so it may look at the samples that test alpha, and at those
    that trained the network, whose codes serve as well as others.
    """
    missing = max(0, CODEC_SAMPLES - len(data.held_out))
    return np.concatenate([data.held_out.inputs, data.training.inputs[:missing]])


def write_bundle(
    network: SplitNetwork,
    description: Description,
    measurer: Callable[[Bundle], Measured],
    describe: Callable[[Manifest, Calibration], str],
    out: Path,
    *,
    half: bool = True,
) -> Bundle:
    """Export, calibrate and write a bundle; an older bundle at ``out`` is replaced.

    Args:
        network: trained, not folded.
        description: for the manifest.
        measurer: measures what is still missing, on a bundle that has only graphs and weights.
        describe: writes the text of ``CARD.md``.
        out: directory to write.
        half: store weights as float16 (biases stay float32).

    Raises:
        BundleError: ``out`` is something else than a bundle.
        ExportError: a weight does not fit float16, or the graph cannot be simplified.
    """
    with _written(out) as work:
        parts, files = export_network(network, half=half)
        manifest = _manifest(network, description, parts)
        _fill(work, manifest, files, measurer, describe)
    return Bundle(out)


def recalibrate(
    bundle: Bundle,
    version: str,
    data: TrainingData,
    out: Path,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Bundle:
    """Write a bundle with the graphs and weights of another, calibrated and its codec fitted anew.

    The card keeps what it says before its section of calibration; what followed was of the old
    alphas.

    Args:
        bundle: to take over.
        version: of the new one.
        data: held-out samples as :func:`measure` wants them, and more for the codec tables.
        out: directory to write; an older bundle there is replaced.
        threads: CPU threads.
        progress: hears of the calibration's batches.

    Raises:
        BundleError: ``out`` is something else than a bundle, or ``bundle`` is damaged.
    """
    names = {WEIGHTS, *(part.graph for part in bundle.manifest.parts.values())}
    before = msgspec.structs.replace(bundle.manifest, version=version)
    held_out = LabelledFrames.of(data.held_out)
    text = bundle.read(CARD_FILE).decode()
    with _written(out) as work:
        _fill(
            work,
            before,
            {name: bundle.read(name) for name in sorted(names)},
            lambda found: measure(
                found, held_out, codec_inputs(data), threads=threads, progress=progress
            ),
            lambda manifest, calibration: recalibrated_card(text, manifest, calibration),
        )
    return Bundle(out)


def quantise(
    bundle: Bundle,
    version: str,
    data: TrainingData,
    out: Path,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Comparison:
    """Write a bundle that has an int8 head besides all that another has; return how it does.

    Args:
        bundle: to take over.
        version: of the new one.
        data: training samples for the ranges, held-out ones for the comparison.
        out: directory to write; an older bundle there is replaced.
        threads: CPU threads.
        progress: hears of the comparison's batches.

    Raises:
        ConfigError: the int8 head loses too much; nothing is written.
        BundleError: ``out`` is something else than a bundle, or ``bundle`` is damaged.
    """
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    inputs = data.training.inputs
    # From all over the set: some are sorted by class.
    ranges = inputs[:: max(1, len(inputs) // RANGE_SAMPLES)][:RANGE_SAMPLES]
    with _written(out) as work:
        files[HEAD_INT8] = int8_head(bundle, ranges)
        before = msgspec.structs.replace(bundle.manifest, version=version)
        manifest = _write(work, before, files)
        held_out = LabelledFrames.of(data.held_out)
        comparison = compare(Bundle(work), held_out, threads=threads, progress=progress)
        check(comparison)
        text = files[CARD_FILE].decode()
        files[CARD_FILE] = card_with_int8(text, manifest, int8_section(comparison)).encode()
        _write(work, manifest, files)
    return comparison


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``out``, in place of an older bundle, if nothing goes wrong."""
    if out.exists() and not (out / MANIFEST).is_file():
        raise BundleError(f"expected nothing or an older bundle at {out}, got something else")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        work = Path(scratch) / out.name
        work.mkdir()
        yield work
        shutil.rmtree(out, ignore_errors=True)
        work.replace(out)


def _fill(
    folder: Path,
    manifest: Manifest,
    files: dict[str, bytes],
    measurer: Callable[[Bundle], Measured],
    describe: Callable[[Manifest, Calibration], str],
) -> None:
    """Write graphs and weights, measure what is still missing, write that and the manifest."""
    files[HEAD_OPERATIONS] = counting_graph(files[manifest.parts["head"].graph])
    manifest = _write(folder, manifest, files)
    calibration, tables = measurer(Bundle(folder))
    files[CODEC_TABLES] = save_tables(tables)
    files[CALIBRATION] = (
        msgspec.json.format(msgspec.json.encode(calibration, order="sorted")) + b"\n"
    )
    files[CARD_FILE] = describe(manifest, calibration).encode()
    _write(folder, manifest, files)


def export_network(
    network: SplitNetwork, *, half: bool
) -> tuple[dict[PartName, PartSpec], dict[str, bytes]]:
    """Return the three parts' descriptions, and the content of their graphs and weights by name."""
    folded = fold(network).requires_grad_(False)
    tensors = stored_weights(folded, half=half)
    weights = save_safetensors(tensors)
    slices = tensor_slices(weights, tensors)
    names = {id(tensor): name for name, tensor in folded.state_dict(keep_vars=True).items()}
    spec = network.spec
    picture = torch.zeros(EXAMPLE_SAMPLES, *spec.input_shape)
    code = torch.zeros(EXAMPLE_SAMPLES, *spec.code_shape, dtype=torch.uint8)
    files = {WEIGHTS: weights}
    parts: dict[PartName, PartSpec] = {}
    borders: tuple[tuple[PartName, Part, Border], ...] = (
        ("head", folded.head(), Border(picture, torch.uint8)),
        ("tail", folded.cloud_tail(), Border(code, torch.float32)),
        ("whole", folded.whole(), Border(picture, torch.float32)),
    )
    for name, part, border in borders:
        model, parts[name] = part_graph(part, name, border, names)
        refer_to_weights(model, slices, WEIGHTS)
        files[parts[name].graph] = model.SerializeToString(deterministic=True)
    return parts, files


def tensor_slices(safetensors: bytes, tensors: Mapping[str, Tensor]) -> dict[str, Slice]:
    """Return where each tensor's bytes lie in a safetensors file."""
    (header_length,) = struct.unpack_from("<Q", safetensors)
    start = 8 + header_length
    header: dict[str, Any] = json.loads(safetensors[8:start])
    slices = {}
    for name, tensor in tensors.items():
        begin, end = header[name]["data_offsets"]
        slices[name] = Slice(tensor.dtype, start + begin, end - begin)
    return slices


def stored_weights(folded: SplitNetwork, *, half: bool) -> dict[str, Tensor]:
    """Return a folded network's tensors as the weights file holds them.

    Args:
        folded: in folded form.
        half: weights as float16, but not biases, leaks and thresholds, which are few and shift
            every spike.

    Raises:
        ExportError: a weight does not fit float16.
    """
    stored = {}
    for name, tensor in folded.state_dict().items():
        dtype = torch.float16 if half and name.endswith("weight") else torch.float32
        stored[name] = tensor.to(dtype).contiguous()
        if not stored[name].isfinite().all():
            raise ExportError(f"expected {name} finite as {dtype}, got {tensor.abs().max():g}")
    return stored


def _manifest(
    network: SplitNetwork, description: Description, parts: dict[PartName, PartSpec]
) -> Manifest:
    return Manifest(
        format=1,
        name=description.name,
        version=description.version,
        spec=network.spec,
        preprocessing=description.preprocessing,
        labels=description.labels,
        parts=parts,
        codec=CODEC,
        files={},
    )


def _write(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    digests = {name: file_digest(content) for name, content in files.items()}
    manifest = msgspec.structs.replace(manifest, files=digests)
    (folder / MANIFEST).write_bytes(msgspec.json.format(canonical(manifest)) + b"\n")
    return manifest


class ExportOptions(NamedTuple):
    """What a bundle says and holds beside the network."""

    version: str = "1"
    half: bool = True
    """Store weights as float16."""
    evaluation: Evaluation | None = None
    """Of the same weights, for the card."""


def export_run(
    run: Path,
    data: TrainingData,
    out: Path,
    options: ExportOptions,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Bundle:
    """Write the bundle of the training run in folder ``run``; see :func:`write_bundle`.

    Args:
        run: holds ``checkpoint.pt`` and ``recipe.toml``.
        data: of that recipe.
        out: directory to write.
        options: what else to write.
        threads: CPU threads of the calibration.
        progress: hears of the calibration's batches.

    Raises:
        ConfigError: there is no checkpoint or recipe.
    """
    recipe = load_recipe(run / RECIPE)
    if not (run / CHECKPOINT).is_file():
        raise ConfigError(f"expected a checkpoint at {run / CHECKPOINT}, found none")
    network = SplitNetwork(recipe.network)
    network.load_state_dict(load_checkpoint(run / CHECKPOINT)["network"])
    held_out, history = LabelledFrames.of(data.held_out), read_history(run, recipe)
    labels = data.training.classes
    return write_bundle(
        network,
        Description(recipe.name, options.version, data.preprocessing, labels),
        lambda bundle: measure(
            bundle, held_out, codec_inputs(data), threads=threads, progress=progress
        ),
        lambda manifest, calibration: card(manifest, calibration, history, options.evaluation),
        out,
        half=options.half,
    )
