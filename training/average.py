"""Average the weights of several phases' ends: ``python -m training.average RUN --data DIR``.

Stochastic weight averaging (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
Better Generalization"): the ends of learning-rate cycles lie around a better point than each of
them. BatchNorm statistics are measured anew, in float32, on training images. Reads
``RUN/phaseN.pt``, writes ``RUN/checkpoint.pt`` and a line to ``RUN/log.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from shared.model.split import SplitNetwork
from training.data.cifar10 import Images, load_cifar10
from training.fit import Batches, accuracy
from training.recipe import load_recipe

log = logging.getLogger(__name__)

STATISTICS_BATCHES = 60
"""Batches behind the new BatchNorm statistics."""


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of every floating-point tensor; the rest is the last state's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if last.is_floating_point()
        else last
        for name, last in states[-1].items()
    }


@torch.no_grad()
def measure_statistics(network: SplitNetwork, batches: Batches, seed: int) -> None:
    """Set every BatchNorm's running statistics to the mean over augmented training batches."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    epoch = batches.epoch(torch.Generator().manual_seed(seed))
    for batch, _ in zip(epoch, range(STATISTICS_BATCHES), strict=False):
        images = batch.images.expand(network.spec.timesteps, *batch.images.shape)
        features, _ = network.backbone_head()(images)
        network.backbone_tail()(features)
        network.cloud_tail()(network.encoder(features)[0])


def average(run: Path, data: Path, phases: Sequence[int]) -> None:
    """Average the named phases (0-based) of a run and make the result its checkpoint."""
    recipe = load_recipe(run / "recipe.toml")
    saved = [torch.load(run / f"phase{phase}.pt", weights_only=True) for phase in phases]
    network = SplitNetwork(recipe.network)
    network.load_state_dict(mean_weights([each["network"] for each in saved]))
    everything = load_cifar10(data, train=True)
    cut = len(everything.labels) - recipe.holdout
    training = Images(everything.pixels[:cut], everything.labels[:cut])
    holdout = Images(everything.pixels[cut:], everything.labels[cut:])
    measure_statistics(network, Batches(training, None, recipe.batch_size), recipe.seed)
    record = {
        "phase": f"mean weights of the ends of phases {', '.join(str(p + 1) for p in phases)}",
        "epoch": 0,
        "holdout_accuracy": accuracy(network, holdout, recipe.network.timesteps),
    }
    log.info("%s", record)
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    torch.save(saved[-1] | {"network": network.state_dict()}, run / "checkpoint.pt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__)
    parser.add_argument("run", type=Path, help="folder written by training.fit")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument(
        "--phases", type=int, nargs="+", required=True, help="phases to average, 0 is the first"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    average(arguments.run, arguments.data, arguments.phases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
