"""Bring your own snnTorch network: find it, take it over, and make sure that it is the same.

The result is a folder that ``fit --backbone`` begins with, and a recipe that describes the network
layer by layer: from here on nobody needs the network's own code.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.model.bundle import Preprocessing
from shared.model.layers import AnyLayer, ImportedBackbone
from shared.model.spec import Positive
from shared.model.split import SplitNetwork
from training.batches import Normaliser
from training.data.labelled import LabelledData
from training.fit import CHECKPOINT, save_checkpoint
from training.loss import over_timesteps
from training.recipe import Recipe, decode_recipe, read_recipe
from training.snntorch_network import Readout, convert, original_logits

COMPARED_SAMPLES, SAMPLES_AT_ONCE = 256, 16
"""Samples on which a network and what was made of it are compared, at most."""
SAME = 1e-4
"""Logits are the same if they differ by no more than this share of the largest."""
MOST_DIFFERENT = 0.01
"""Share of the logits that may differ all the same: rounding now and then moves a spike."""


def load_network(place: str) -> nn.Module:
    """Import a network, in evaluation mode and float32 on the CPU.

    Args:
        place: ``package.module:object``, found from the working folder too; the object is a torch
            module or makes one when called without arguments.

    Raises:
        ConfigError: there is no such object, or it neither is nor makes a torch module.
    """
    name, _, attribute = place.partition(":")
    if not name or not attribute:
        raise ConfigError(f"expected a network as package.module:object, got {place!r}")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found = attrgetter(attribute)(importlib.import_module(name))
        if not isinstance(found, nn.Module) and callable(found):
            found = found()
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"expected a network as {place}: {error}") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(found, nn.Module):
        raise ConfigError(f"expected an nn.Module as {place}, got {type(found).__name__}")
    return found.eval().cpu().float()


def load_weights(network: nn.Module, path: Path) -> None:
    """Give a network its weights; no code in the file is run.

    Args:
        network: takes them.
        path: a safetensors file, or a PyTorch checkpoint with a state dict, by itself or under
            ``state_dict``.

    Raises:
        ConfigError: no such file, something else in it, or weights that do not fit.
    """
    try:
        if path.suffix == ".safetensors":
            saved: Any = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"expected weights in {path}: {_line(error)}") from error
    if isinstance(saved, Mapping):
        saved = saved.get("state_dict", saved)
    if not isinstance(saved, Mapping) or not all(isinstance(v, Tensor) for v in saved.values()):
        raise ConfigError(f"expected a state dict in {path}, got {type(saved).__name__}")
    try:
        network.load_state_dict(saved)
    except RuntimeError as error:
        raise ConfigError(f"expected the network's weights in {path}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Network(msgspec.Struct, frozen=True, kw_only=True):
    """What must be known of a recipe's network before it is complete."""

    input_shape: tuple[Positive, Positive, Positive]
    classes: int
    backbone: object = None


class _Template(msgspec.Struct, frozen=True, kw_only=True):
    network: _Network
    preprocessing: Preprocessing


class Imported(NamedTuple):
    """A network taken over for a recipe."""

    recipe: Recipe
    recipe_text: bytes
    """The given recipe, with the description of the backbone behind it."""
    network: SplitNetwork
    """With the network as its backbone; encoder, decoder and tail are random."""
    original: nn.Module
    readout: Readout


def import_network(place: str, weights: Path, template: Path, readout: Readout) -> Imported:
    """Take a network over for a recipe.

    Args:
        place: see :func:`load_network`.
        weights: see :func:`load_weights`.
        template: a recipe without ``network.backbone``; ``preprocessing`` is that with which the
            network was trained.
        readout: see :func:`training.snntorch_network.convert`.

    Raises:
        ConfigError: one of them cannot be used, or there is no such split point.
    """
    original = load_network(place)
    load_weights(original, weights)
    return adopt(original, place, template, readout)


def adopt(original: nn.Module, place: str, template: Path, readout: Readout) -> Imported:
    """Take a network over that is already in memory, with its weights.

    Args:
        original: see :func:`training.snntorch_network.named_stages`.
        place: where it came from.
        template: see :func:`import_network`.
        readout: see :func:`import_network`.

    Raises:
        ConfigError: as :func:`import_network`.
    """
    content = read_recipe(template)
    try:
        wanted = msgspec.toml.decode(content, type=_Template)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{template}: {error}") from error
    if wanted.network.backbone is not None:
        raise ConfigError(f"{template}: expected no network.backbone, which is imported")
    spec = wanted.network
    description, backbone = convert(original, spec.input_shape, spec.classes, readout)
    text = content.rstrip() + f"\n\n# The layers of {place}.\n{backbone_toml(description)}".encode()
    recipe = decode_recipe(text, template)
    if not all(phase.fresh_tail for phase in recipe.phases[:1]):
        raise ConfigError(
            f"{template}: expected fresh_tail of the first phase, whose tail is random"
        )
    network = SplitNetwork(recipe.network).eval()
    network.backbone.load_state_dict(backbone.state_dict())
    return Imported(recipe, text, network, original, readout)


def backbone_toml(backbone: ImportedBackbone) -> str:
    """Return the tables of a recipe that describe a backbone, a line per layer."""
    tables = [f"[network.backbone]\nclassifier = {_layers_toml(backbone.classifier)}\n"]
    for stage in backbone.stages:
        tables.append(
            f"[[network.backbone.stages]]\nname = {_toml(stage.name)}\n"
            f"features = {_toml(stage.features)}\nlayers = {_layers_toml(stage.layers)}\n"
        )
    return "\n".join(tables)


def _layers_toml(described: Sequence[AnyLayer]) -> str:
    lines = [f"  {_toml(msgspec.to_builtins(layer))},\n" for layer in described]
    return f"[\n{''.join(lines)}]"


def _toml(value: object) -> str:
    """Return a value in TOML, which knows no null: a key without a value is left out."""
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml(each)}" for key, each in value.items() if each is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # Strings, numbers and booleans are written as in JSON.
    return json.dumps(value)


class Comparison(NamedTuple):
    """What a network taken over does on some samples."""

    samples: int
    accuracy: float
    """After all timesteps."""
    firing_rate: float
    """Mean spikes per neuron and timestep at the split point."""


def compare(imported: Imported, data: LabelledData, preprocessing: Preprocessing) -> Comparison:
    """Run a network and what was made of it on the same samples.

    Args:
        imported: the network.
        data: the first samples of it are used.
        preprocessing: of the samples.

    Raises:
        ConfigError: they give different logits, or nothing fires at the split point.
    """
    part = data.part(slice(COMPARED_SAMPLES))
    normalise = Normaliser(preprocessing, torch.device("cpu"))
    runs = [
        _run_both(imported, normalise(samples))
        for samples in torch.split(torch.from_numpy(part.inputs), SAMPLES_AT_ONCE)
    ]
    expected, logits, firing_rates = (torch.cat(each) for each in zip(*runs, strict=True))
    differ = (logits - expected).abs() > SAME * expected.abs().max()
    if (share := float(differ.float().mean())) > MOST_DIFFERENT:
        raise ConfigError(f"expected the logits of the network itself, got others in {share:.1%}")
    if not firing_rates.any():
        raise ConfigError(
            f"expected spikes at {imported.recipe.network.bottleneck.split}, got none in "
            f"{len(part)} samples; are weights and preprocessing those of the network?"
        )
    right = logits.mean(1).argmax(-1) == torch.from_numpy(part.labels)
    return Comparison(len(part), float(right.float().mean()), float(firing_rates.mean()))


@torch.inference_mode()
def _run_both(imported: Imported, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both networks' logits ``[N, T, K]``, and the firing rates at the split ``[N]``."""
    network = imported.network
    frames = over_timesteps(samples, network.spec.timesteps)
    expected = original_logits(imported.original, frames, imported.readout)
    features, _ = network.backbone_head()(frames)
    logits, _ = network.backbone_tail()(features)
    rates = features.mean(dim=(0, 2, 3, 4))
    return expected.transpose(0, 1), logits.transpose(0, 1), rates


def save_backbone(network: SplitNetwork, folder: Path) -> None:
    """Write what ``fit --backbone`` begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint({"network": network.state_dict()}, folder / CHECKPOINT)
