"""snnTorch's neurons, and the ordinary layers between them, as layers of an imported backbone.

Only what computes the same here is described: an option that has no place in
:mod:`shared.model.layers` is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import snntorch
import torch
from torch import nn

from shared.model import layers
from shared.model.folding import Norm
from shared.model.neuron import SpikeFunction, heaviside

Dims = tuple[int, ...]
Pair = tuple[int, int]


def describe(layer: nn.Module, shape: Dims) -> layers.AnyLayer:
    """Describe a layer of one of the :data:`DESCRIBERS`' types.

    Args:
        layer: of exactly such a type: a subclass may compute something else.
        shape: of its input, without the batch axis.

    Raises:
        ValueError: it is of another type, or has an option that cannot be described.
    """
    describer = DESCRIBERS.get(type(layer))
    if describer is None:
        raise ValueError(f"expected one of {', '.join(SUPPORTED)}")
    return describer(layer, shape)


def with_norm(layer: layers.AnyLayer | None, norm: Norm) -> layers.AnyLayer:
    """Describe a layer (None: there is none) together with the BatchNorm after it.

    Raises:
        ValueError: no such BatchNorm can come after such a layer.
    """
    kind = layers.Convolution if isinstance(norm, nn.BatchNorm2d) else layers.Linear
    if not isinstance(layer, kind) or layer.norm_epsilon is not None:
        raise ValueError(f"expected it right after a {kind.__name__.lower()}")
    if norm.running_mean is None or not norm.affine:
        raise ValueError("expected running statistics and weights, found none")
    return msgspec.structs.replace(layer, norm_epsilon=norm.eps)


def _convolution(conv: nn.Conv2d, _: Dims) -> layers.Convolution:
    _refuse(padding_mode=conv.padding_mode != "zeros")
    return layers.Convolution(
        inputs=conv.in_channels,
        outputs=conv.out_channels,
        kernel=_pair(conv.kernel_size),
        stride=_pair(conv.stride),
        padding=_conv_padding(conv),
        dilation=_pair(conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def _conv_padding(conv: nn.Conv2d) -> Pair:
    if conv.padding == "valid":
        return 0, 0
    if conv.padding != "same":
        return _pair(conv.padding)
    rows, columns = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if rows % 2 or columns % 2:
        raise ValueError(f"expected an odd kernel for the same padding, got {conv.kernel_size}")
    return rows // 2, columns // 2


def _linear(linear: nn.Linear, _: Dims) -> layers.Linear:
    return layers.Linear(
        inputs=linear.in_features, outputs=linear.out_features, bias=linear.bias is not None
    )


def _max_pool(pool: nn.MaxPool2d, _: Dims) -> layers.Pool:
    _refuse(
        dilation=_pair(pool.dilation) != (1, 1),
        ceil_mode=pool.ceil_mode,
        return_indices=pool.return_indices,
    )
    return layers.Pool(
        kind="max",
        kernel=_pair(pool.kernel_size),
        stride=_pair(pool.stride),
        padding=_pair(pool.padding),
    )


def _average_pool(pool: nn.AvgPool2d, _: Dims) -> layers.Pool:
    padding = _pair(pool.padding)
    _refuse(
        ceil_mode=pool.ceil_mode,
        count_include_pad=padding != (0, 0) and not pool.count_include_pad,
        divisor_override=pool.divisor_override is not None,
    )
    return layers.Pool(
        kind="average",
        kernel=_pair(pool.kernel_size),
        stride=_pair(pool.stride),
        padding=padding,
    )


def _adaptive_pool(pool: nn.AdaptiveAvgPool2d, shape: Dims) -> layers.Pool:
    rows, columns = (
        have // (size or have) if size is None or have % size == 0 else 0
        for size, have in zip(_pair(pool.output_size), shape[-2:], strict=True)
    )
    if not (rows and columns):
        raise ValueError(
            f"expected an output size that divides {list(shape[-2:])}, got {pool.output_size}"
        )
    return layers.Pool(kind="average", kernel=(rows, columns), stride=(rows, columns))


def _flatten(flatten: nn.Flatten, shape: Dims) -> layers.Flatten:
    _refuse(start_dim=flatten.start_dim != 1, end_dim=flatten.end_dim not in (-1, len(shape)))
    return layers.Flatten()


def _leaky(neurons: snntorch.Leaky, shape: Dims) -> layers.Leaky:
    _refuse(
        inhibition=neurons.inhibition,
        state_quant=neurons.state_quant,
        reset_delay=not neurons.reset_delay,
        graded_spikes_factor=bool((neurons.graded_spikes_factor != 1).any()),
        spike_grad=not _fires_above_zero(neurons.spike_grad),
    )
    return layers.Leaky(
        beta=_neuron_shape("beta", neurons, shape),
        threshold=_neuron_shape("threshold", neurons, shape),
        reset=neurons.reset_mechanism,
    )


def _neuron_shape(name: str, neurons: snntorch.Leaky, shape: Dims) -> Dims:
    found = tuple(getattr(neurons, name).shape)
    try:
        torch.empty(found, device="meta").expand(1, *shape)
    except RuntimeError as error:
        raise ValueError(
            f"expected a {name} for neurons {list(shape)}, got {list(found)}"
        ) from error
    return found


def _fires_above_zero(spike: SpikeFunction) -> bool:
    shifted = torch.tensor([-1.0, -1e-6, 0.0, 1e-6, 1.0])
    return torch.equal(spike(shifted), heaviside(shifted))


def _refuse(**differs: object) -> None:
    if names := [name for name, is_so in differs.items() if is_so]:
        raise ValueError(f"expected the default {' and '.join(names)}, got another")


def _pair(value: Any) -> Pair:
    """Return what PyTorch takes for rows and columns as a pair."""
    rows, columns = value if isinstance(value, tuple | list) else (value, value)
    return rows, columns


DESCRIBERS: dict[type[nn.Module], Callable[[Any, Dims], layers.AnyLayer]] = {
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AvgPool2d: _average_pool,
    nn.Conv2d: _convolution,
    nn.Flatten: _flatten,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    snntorch.Leaky: _leaky,
}
NORMS = get_args(Norm)
DROPPED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
"""What does nothing in evaluation mode."""
SUPPORTED = [kind.__name__ for kind in (*DESCRIBERS, *NORMS, *DROPPED)]
