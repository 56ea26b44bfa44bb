"""Fold BatchNorm into the convolution before it: the form in which a network is shipped and run.

In a folded :class:`SplitNetwork` every ``Sequential(convolution, BatchNorm)`` is one convolution
with a bias, so a parameter is called e.g. ``backbone.stem.conv.conv.weight``; these are the names
in a bundle's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.model.spec import NetworkSpec
from shared.model.split import SplitNetwork


def fold(network: SplitNetwork) -> SplitNetwork:
    """Return a copy of the network in evaluation mode with every BatchNorm folded away.

    It computes the same function up to float32 rounding; the original is left as it is.
    """
    folded = copy.deepcopy(network).eval()
    _fold_children(folded)
    return folded


def folded_network(spec: NetworkSpec, weights: Mapping[str, Tensor]) -> SplitNetwork:
    """Build a network in folded form around the given weights.

    Args:
        spec: what to build.
        weights: every parameter by its name in the folded network; converted to float32.

    Raises:
        RuntimeError: a parameter is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        network = fold(SplitNetwork(spec))
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return network.requires_grad_(False)


def _fold_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            setattr(module, name, _fold_pair(child))
        else:
            _fold_children(child)


def _fold_pair(pair: nn.Sequential) -> nn.Module:
    convolution, norm = pair
    if not isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
        raise TypeError(f"expected a convolution before BatchNorm, got {type(convolution)}")
    if not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"expected BatchNorm2d after a convolution, got {type(norm)}")
    return fuse_conv_bn_eval(
        convolution, norm, transpose=isinstance(convolution, nn.ConvTranspose2d)
    )
