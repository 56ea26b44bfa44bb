"""An untrained bundle that behaves like a trained one: for tests and dry runs.

Its weights are random, its BatchNorm statistics those of its own input, so that every layer fires;
its labels are drawn from its own class probabilities, and its default alpha makes some samples exit
at every timestep.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.events.framing import ByTime
from shared.model.backbones import Chain, Classifier
from shared.model.bundle import Bundle, Preprocessing
from shared.model.folding import fold, folded_network
from shared.model.preprocessing import prepare
from shared.model.spec import NetworkSpec
from shared.model.split import SplitNetwork
from training.calibrate import (
    LabelledFrames,
    distribution,
    exit_timesteps,
    judge,
    named_engine,
    run_engines,
)
from training.card import calibration_section
from training.export import Description, Measured, measure, stored_weights, write_bundle

EVENT_WINDOW_MICROSECONDS = 50_000
"""Length of a timestep of networks that read events."""
LOGIT_SPREAD = 2.0
"""Standard deviation the final mean logits are scaled to."""


def make_untrained_bundle(
    path: Path, spec: NetworkSpec, *, samples: int = 128, seed: int = 0, half: bool = True
) -> Bundle:
    """Write a bundle of a random network.

    Args:
        path: directory to write.
        spec: the network.
        samples: synthetic samples for BatchNorm statistics and calibration.
        seed: of weights, samples and labels.
        half: store weights as float16.
    """
    frames = synthetic_frames(spec, samples, seed)
    preprocessing = neutral_preprocessing(spec)
    network, labels = random_network(spec, frames, preprocessing, seed, half=half)
    return write_bundle(
        network,
        Description(
            name="untrained",
            version="0",
            preprocessing=preprocessing,
            labels=tuple(f"class{number}" for number in range(spec.classes)),
        ),
        lambda bundle: measure_to_medians(bundle, LabelledFrames(frames, labels)),
        lambda _, calibration: f"# Untrained network\n\n{calibration_section(calibration)}",
        path,
        half=half,
    )


def synthetic_frames(spec: NetworkSpec, samples: int, seed: int) -> NDArray[np.uint8]:
    """Return smooth random pictures ``[N, C, H, W]``, or binary frames ``[N, T, C, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = spec.input_shape
    if spec.input_kind == "events":
        shape = (samples, spec.timesteps, channels, height, width)
        events: NDArray[np.uint8] = (torch.rand(shape, generator=generator) < 0.2).byte().numpy()
        return events
    coarse = torch.rand(samples, channels, 4, 4, generator=generator)
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear")
    pixels: NDArray[np.uint8] = (smooth * 255).byte().numpy()
    return pixels


def measure_to_medians(bundle: Bundle, data: LabelledFrames) -> Measured:
    """Measure, with a default alpha under which half of the samples exit at each timestep."""
    calibration, tables = measure(bundle, data, data.frames)
    engines = [named_engine(bundle, "head"), named_engine(bundle, "tail")]
    run = run_engines(engines, data.frames, bundle.spec, bundle.manifest.preprocessing)
    decisions = judge(run.logits, calibration.temperature)
    alpha = tuple(float(np.median(step)) for step in decisions.confidences[:-1])
    exit_at = exit_timesteps(decisions, alpha)
    calibration = msgspec.structs.replace(
        calibration,
        alpha=calibration.alpha | {"median": alpha},
        default_alpha="median",
        exit_distribution=distribution(exit_at, bundle.spec.timesteps),
    )
    return Measured(calibration, tables)


def neutral_preprocessing(spec: NetworkSpec) -> Preprocessing:
    """Return a normalisation that centres pixels, or that leaves event counts as they are."""
    channels = spec.input_shape[0]
    if spec.input_kind == "static":
        return Preprocessing(mean=(0.5,) * channels, std=(0.25,) * channels)
    framing = ByTime(timesteps=spec.timesteps, window_microseconds=EVENT_WINDOW_MICROSECONDS)
    return Preprocessing(mean=(0.0,) * channels, std=(1 / 255,) * channels, framing=framing)


def random_network(
    spec: NetworkSpec,
    frames: NDArray[np.uint8],
    preprocessing: Preprocessing,
    seed: int,
    *,
    half: bool,
) -> tuple[SplitNetwork, NDArray[np.int64]]:
    """Return a network whose layers fire on ``frames``, and labels drawn from what it says."""
    prepared = np.stack([prepare(frame, spec, preprocessing) for frame in frames])
    x = torch.from_numpy(prepared)
    x = x.expand(spec.timesteps, *x.shape) if x.ndim == 4 else x.transpose(0, 1)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = SplitNetwork(spec)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # running statistics become those of this one batch
        both_logits(network, x)
        network.eval()
        for chain, logits in zip(
            (network.backbone, network.tail), both_logits(network, x), strict=True
        ):
            _spread(chain, logits.mean(0))
        # Rounded weights are another random network: the labels must be those of what is written.
        rounded = folded_network(spec, stored_weights(fold(network), half=half))
        _, compressed = both_logits(rounded, x)
        drawn = torch.multinomial(compressed.mean(0).softmax(-1), 1)[:, 0]
    return network, drawn.numpy().astype(np.int64)


def both_logits(network: SplitNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits ``[T, N, K]`` without and with bottleneck, for ``x [T, N, C, H, W]``."""
    features, _ = network.backbone_head()(x)
    whole, _ = network.backbone_tail()(features)
    compressed, _ = network.cloud_tail()(network.encoder(features)[0])
    return whole, compressed


def _spread(chain: Chain, logits: Tensor) -> None:
    """Centre and scale the classifier whose mean logits ``[N, K]`` are given."""
    linear = cast("Classifier", chain["classifier"]).linear
    scale = LOGIT_SPREAD / (logits - logits.mean(0)).std().clamp(min=1e-6)
    linear.bias.copy_((linear.bias - logits.mean(0)) * scale)
    linear.weight.mul_(scale)
