"""Average the weights of several phases' ends, as a recipe may ask for.

Stochastic weight averaging (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
Better Generalization"): the ends of learning-rate cycles lie around a better point than each of
them. BatchNorm statistics are measured anew, in float32, on training images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from shared.model.folding import Norm
from shared.model.split import SplitNetwork

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
def measure_statistics(
    network: SplitNetwork, batches: Iterable[Tensor], frozen: Sequence[nn.Module] = ()
) -> None:
    """Set every BatchNorm's running statistics to the mean over batches of images.

    Args:
        network: its BatchNorms keep their momentum.
        batches: normalised inputs, float ``[T, N, C, H, W]``.
        frozen: parts of the network that stay as they are.
    """
    kept = {norm for part in frozen for norm in norms_of(part)}
    norms = [norm for norm in norms_of(network) if norm not in kept]
    momentums = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for part in frozen:
        part.eval()
    for frames in batches:
        features, _ = network.backbone_head()(frames)
        network.backbone_tail()(features)
        network.cloud_tail()(network.encoder(features)[0])
    for norm, momentum in zip(norms, momentums, strict=True):
        norm.momentum = momentum


def norms_of(module: nn.Module) -> list[Norm]:
    """Return the BatchNorms in a module."""
    return [each for each in module.modules() if isinstance(each, Norm)]
