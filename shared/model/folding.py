"""Fold BatchNorm into the layer before it: the form in which a network is shipped and run.

In a folded :class:`SplitNetwork` every ``Sequential(layer, BatchNorm)`` is one convolution or
linear layer with a bias, so a parameter is called e.g. ``backbone.stem.conv.conv.weight``; these
are the names in a bundle's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from shared.model.spec import NetworkSpec
from shared.model.split import SplitNetwork

Norm = nn.BatchNorm1d | nn.BatchNorm2d


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
    layer, norm = pair
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
        return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d))
    raise TypeError(f"expected a layer and its BatchNorm, got {type(layer)} and {type(norm)}")
