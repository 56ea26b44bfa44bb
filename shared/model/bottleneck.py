"""The learned compression bottleneck: encoder on the edge, decoder in the cloud.

NeuCODEX's form: encoder ``LIF(BN(Conv2d))`` reduces channels and space to a binary code, decoder
``S(BN(ConvTranspose2d))`` restores the features. Our deviations, both optional in the spec:
hidden layers on either side (cloud compute is cheap), and a decoder that hands on currents
instead of spikes (``output = "identity"``), which keeps what the decoder knows of a feature's
strength.
"""

from __future__ import annotations

from torch import Tensor, nn

from shared.model.backbones import Chain, ConvLIF, MakeLIF, State, conv_norm, membrane, over_time
from shared.model.spec import BottleneckSpec


def make_encoder(spec: BottleneckSpec, features: int, make_lif: MakeLIF) -> Chain:
    """Return the encoder: spikes ``[T, N, C, H, W]`` to the code ``[T, N, C', H', W']``."""
    layers: dict[str, nn.Module] = {}
    inputs = features
    for index, hidden in enumerate(spec.encoder, start=1):
        layers[f"hidden{index}"] = ConvLIF(conv_norm(inputs, hidden), make_lif)
        inputs = hidden
    # A kernel of stride + 2 with padding 1 covers every feature and divides H and W exactly.
    code = nn.Sequential(
        nn.Conv2d(inputs, spec.channels, spec.stride + 2, spec.stride, padding=1, bias=False),
        nn.BatchNorm2d(spec.channels),
    )
    layers["code"] = ConvLIF(code, make_lif)
    return Chain(layers)


def make_decoder(spec: BottleneckSpec, features: int, make_lif: MakeLIF) -> Chain:
    """Return the decoder: code ``[T, N, C', H', W']`` to features ``[T, N, C, H, W]``."""
    widths = (*spec.decoder, features)
    layers: dict[str, nn.Module] = {}
    inputs = spec.channels
    for index, outputs in enumerate(widths, start=1):
        last = index == len(widths)
        layers[f"up{index}"] = Upsample(
            inputs,
            outputs,
            spec.stride if index == 1 else 1,
            None if last and spec.output == "identity" else make_lif,
        )
        inputs = outputs
    return Chain(layers)


class Upsample(nn.Module):
    """Transposed convolution that multiplies H and W by ``stride``, BatchNorm, optional LIF."""

    def __init__(self, inputs: int, outputs: int, stride: int, make_lif: MakeLIF | None) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, stride + 2, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.lif = None if make_lif is None else make_lif()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map ``[T, N, C, H, W]`` to ``[T, N, C', H*stride, W*stride]``."""
        currents = over_time(self.conv, x)
        if self.lif is None:
            return currents, {}
        spikes, after = self.lif(currents, membrane(state, "lif"))
        return spikes, {"lif": after}
