"""Modelled energy of the edge: co-inference against the network all on the edge, by bundle.

The two processes run a bundle's test images in lock-step; then an edge daemon by itself runs the
same images with the same exit rule (*edge-only-exit*), and the network before the bottleneck was
inserted, all T timesteps (*edge-only-full*). Everything is read from the edge's ``/metrics``, of
which the energy with the memory term is made from the operations, by the shipped prices. Head
operations are counted in every sample where the bundle can, else the bundle's means are taken:
``basis`` says which. Modelled is not measured: ``docs/energy.md``.

Test images are those of ``benchmarks.pair_accuracy``, and so are the environment variables that
name data sets; ``--quick`` takes the first few. ``--bundle`` may be given several times: the goal
of the best split holds for the best of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import classify
from benchmarks.pair_accuracy import load_samples
from benchmarks.report import DEMO_BUNDLE, Result, figure, tell
from examples.pair import pair, run_edge
from examples.scrape import Scrape, scrape
from shared.energy.config import EnergyConfig
from shared.energy.operations import EnergyModel, load_model
from shared.metrics import Basis, OperationKind
from shared.model.bundle import Bundle, Operations

QUICK_SAMPLES = 64
LAYER1_GOAL, BEST_GOAL = "at least 0.9", "at least 0.95"
# No confidence is greater than 1: every sample takes all timesteps.
MODES = {
    "co_inference": ("--window", "1"),
    "edge_only_exit": ("--placement", "edge_only"),
    "edge_only_full": ("--placement", "edge_only", "--network", "whole", "--alpha", "1"),
}


class Spent(NamedTuple):
    """What the edge spent in the model, per image, in one mode."""

    joules: float
    """Arithmetic alone."""
    memory_joules: float
    """With the memory term."""
    counted_share: float
    """Of the head's membrane updates, those of counted samples."""
    timesteps: float


def run_bundle(
    bundle: Bundle, inputs: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict[str, Spent]:
    """Return what the edge spent in each mode."""
    spent = {}
    for mode, flags in MODES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            config = folder / "edge.toml"
            config.write_text("[energy]\nsensors = false\ncount_every = 1\n")
            edge_flags = (*flags, "--config", str(config))
            if mode == "co_inference":
                with pair(bundle.path, edge_flags=edge_flags, folder=folder) as both:
                    classify(both.edge.address, inputs, labels)
                    found = scrape(both.edge.metrics)
            else:
                with run_edge(folder, bundle.path, *edge_flags) as edge:
                    classify(edge.address, inputs, labels)
                    found = scrape(edge.metrics)
        spent[mode] = spent_by(found, len(labels))
    return spent


def spent_by(edge: Scrape, images: int) -> Spent:
    """Read what was spent per image.

    Raises:
        ValueError: the edge's energy is not that of its operations, or images are missing.
    """
    counts = edge.labels("synaptic_operations_total", "kind")
    operations = Operations(**{str(kind): counts[kind] for kind in OperationKind})
    joules = edge.total("modelled_energy_joules_total")
    if not np.isclose(joules, _model(memory=False).joules(operations, 1)):
        raise ValueError(f"expected {joules} J of {operations} by the shipped prices")
    answered = edge.total("edge_modelled_inference_energy_joules_count")
    if answered != images:
        raise ValueError(f"expected {images} answered images, got {answered:g}")
    head = edge.labels("synaptic_operations_total", "source", part="head", kind="neuron")
    return Spent(
        joules=joules / images,
        memory_joules=_model(memory=True).joules(operations, 1) / images,
        counted_share=head.get(Basis.COUNTED, 0.0) / (sum(head.values()) or 1.0),
        timesteps=edge.total("edge_timesteps_total", outcome="used") / images,
    )


def _model(*, memory: bool) -> EnergyModel:
    return load_model(EnergyConfig(memory=memory))


def savings(spent: dict[str, Spent], memory: bool, mode: str) -> float:
    """Return the share of a mode's energy that co-inference saves on the edge."""
    field = "memory_joules" if memory else "joules"
    here, there = getattr(spent["co_inference"], field), getattr(spent[mode], field)
    return float(1 - here / there)


def figures(name: str, split: str, spent: dict[str, Spent]) -> list[Result]:
    """Return the figures of one bundle."""
    results = [
        figure(f"{name}_mean_timesteps", [spent["co_inference"].timesteps], "timesteps"),
        figure(f"{name}_counted_share", [spent["co_inference"].counted_share], "share"),
    ]
    for memory, suffix in ((False, ""), (True, "_with_memory")):
        field = "memory_joules" if memory else "joules"
        results += [
            figure(f"{name}_{mode}{suffix}", [getattr(each, field)], "modelled joules per image")
            for mode, each in spent.items()
        ]
        goal = LAYER1_GOAL if split == "layer1" and not memory else None
        over_full = savings(spent, memory, "edge_only_full")
        over_exit = savings(spent, memory, "edge_only_exit")
        results += [
            figure(f"{name}_saved_of_edge_only_full{suffix}", [over_full], "share", goal),
            figure(f"{name}_saved_of_edge_only_exit{suffix}", [over_exit], "share"),
        ]
    return results


def measure(bundles: Sequence[Bundle], quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Measure every bundle; the last figures are those of the best."""
    facts: dict[str, Any] = {}
    results: list[Result] = []
    found: dict[str, dict[str, Spent]] = {}
    for bundle in bundles:
        split, name = bundle.spec.bottleneck.split, bundle.manifest.name
        inputs, labels = load_samples(bundle, quick)
        count = QUICK_SAMPLES if quick else len(labels)
        found[name] = run_bundle(bundle, inputs[:count], labels[:count])
        basis = Basis.COUNTED if found[name]["co_inference"].counted_share else Basis.CALIBRATED
        facts[name] = {
            "digest": bundle.digest,
            "split": split,
            "backbone": bundle.spec.backbone_name,
            "width": bundle.spec.width,
            "images": len(labels[:count]),
            "basis": str(basis),
        }
        results += figures(name, split, found[name])
    best = max(found, key=lambda name: savings(found[name], False, "edge_only_full"))
    for mode, goal in (("edge_only_full", BEST_GOAL), ("edge_only_exit", None)):
        value = savings(found[best], False, mode)
        results.append(figure(f"best_saved_of_{mode}", [value], "share", goal))
    return {"bundles": facts, "best": best}, results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.modelled_energy", description=__doc__
    )
    parser.add_argument("--out", type=Path, help="write the report to this JSON file")
    parser.add_argument(
        "--bundle", type=Path, action="append", help="model bundle to use; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SAMPLES} samples of each")
    arguments = parser.parse_args(argv)
    folders = arguments.bundle or [DEMO_BUNDLE]
    bundles = [Bundle(folder) for folder in folders]
    names = [bundle.manifest.name for bundle in bundles]
    if len(set(names)) < len(names):
        parser.error(f"expected bundles of different names, got {', '.join(names)}")
    settings, results = measure(bundles, arguments.quick)
    flags = [f"--bundle {folder}" for folder in arguments.bundle or ()]
    flags += ["--quick"] if arguments.quick else []
    tell("modelled_energy", " ".join(flags), settings, results, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
