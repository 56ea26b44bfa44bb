"""A backbone cut at a split point: head and encoder on the edge, decoder and tail in the cloud.

:class:`SplitNetwork` is what training works on; :class:`Part` is one side of it (or the whole
network before the bottleneck was inserted) as a pure ``step(x, state) -> (y, state)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from shared.model.backbones import Backbone, Chain, State
from shared.model.bottleneck import make_decoder, make_encoder
from shared.model.imported import make_imported
from shared.model.neuron import LIF, SpikeFunction, heaviside
from shared.model.spec import NetworkSpec


class SplitNetwork(nn.Module):
    """All parts of one spec: ``backbone``, ``encoder``, ``decoder`` and the compressed ``tail``.

    ``backbone`` is the network before the bottleneck was inserted. ``tail`` has the form of its
    stages after the split point but its own weights, fitted to what the decoder delivers.

    Args:
        spec: what to build.
        spike: step function of every LIF layer; training passes a surrogate.
    """

    def __init__(self, spec: NetworkSpec, spike: SpikeFunction = heaviside) -> None:
        super().__init__()
        self.spec = spec

        def make_lif() -> LIF:
            neuron = spec.neuron
            return LIF(neuron.beta, neuron.threshold, neuron.reset, spike)

        def make_backbone() -> Chain:
            if not isinstance(spec.backbone, str):
                return make_imported(spec.backbone, spike)
            return Backbone(
                spec.backbone,
                inputs=spec.input_shape[0],
                classes=spec.classes,
                width=spec.width,
                make_lif=make_lif,
            )

        features = spec.feature_shape[0]
        self.backbone = make_backbone()
        self.encoder = make_encoder(spec.bottleneck, features, make_lif)
        self.decoder = make_decoder(spec.bottleneck, features, make_lif)
        names = list(self.backbone)
        self._cut = names.index(spec.bottleneck.split) + 1
        whole = make_backbone()
        self.tail = Chain({name: whole[name] for name in names[self._cut :]})

    def backbone_head(self) -> Chain:
        """Return the backbone's stages up to the split point (shared modules)."""
        return Chain(dict(list(self.backbone.items())[: self._cut]))

    def backbone_tail(self) -> Chain:
        """Return the backbone's stages after the split point (shared modules)."""
        return Chain(dict(list(self.backbone.items())[self._cut :]))

    def head(self) -> Part:
        """Return the edge's part: image or frame to code."""
        return Part({"head": self.backbone_head(), "encoder": self.encoder})

    def cloud_tail(self) -> Part:
        """Return the cloud's part: code to this timestep's logits."""
        return Part({"decoder": self.decoder, "tail": self.tail})

    def whole(self) -> Part:
        """Return the network before the bottleneck was inserted: image to logits."""
        return Part({"head": self.backbone_head(), "tail": self.backbone_tail()})


class Part(nn.Module):
    """A run of chains as one pure step.

    Args:
        chains: named chains, run one after the other.
    """

    def __init__(self, chains: dict[str, Chain]) -> None:
        super().__init__()
        self.chains = Chain(cast("dict[str, nn.Module]", chains))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run T timesteps: ``x`` float ``[T, N, ...]``, state as in :mod:`backbones`."""
        return cast("tuple[Tensor, State]", self.chains(x, state))

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run one timestep: ``x`` float ``[N, ...]``; returns ``(y [N, ...], state)``."""
        y, after = self(x[None], state)
        return y[0], after


def flatten_state(state: State, prefix: str = "") -> dict[str, Tensor]:
    """Return the membrane potentials of a nested state by dotted path, in the order they run."""
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            flat[prefix + name] = value
        elif value is not None:
            flat |= flatten_state(value, f"{prefix}{name}.")
    return flat


def nest_state(flat: Mapping[str, Tensor], like: State, prefix: str = "") -> State:
    """Return the state of the form of ``like`` that :func:`flatten_state` flattens to ``flat``."""
    return {
        name: nest_state(flat, value, f"{prefix}{name}.")
        if isinstance(value, dict)
        else flat[prefix + name]
        for name, value in like.items()
    }
