"""What training minimises: classification at every timestep, distillation, and the code's bits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.codec.context_model import LAGS, PAST_SIDE, causal
from shared.model.backbones import cumulative_mean
from shared.model.split import SplitNetwork
from training.recipe import Phase, Recipe

LN_2 = math.log(2)
RATE_MODEL_SPEED = 10.0
"""Learning rate of the rate model over that of the network; our choice, no other was tried."""


class Batch(NamedTuple):
    """One augmented batch."""

    images: Tensor  # float32 [N, C, H, W], or events [N, T, 2, H, W]; normalised
    labels: Tensor  # int64 [N]
    soft: Tensor | None  # float32 [N, K], the teacher's logits


def over_timesteps(samples: Tensor, timesteps: int) -> Tensor:
    """Return what a network reads at each timestep, ``[timesteps, N, C, H, W]``.

    Args:
        samples: images ``[N, C, H, W]``, the same at every timestep, or events ``[N, T, C, H, W]``.
        timesteps: of events the first so many, T at most.
    """
    if samples.ndim == 4:
        return samples.expand(timesteps, *samples.shape)
    return samples[:, :timesteps].transpose(0, 1)


class RateModel(nn.Module):
    """Estimates the bits that ``ctx-max`` will spend on a code, differentiably.

    Logistic regression on most of what that codec looks at (:mod:`shared.codec.context_model`):
    over all channels, the 3x3 surroundings one and two timesteps ago and what of this timestep has
    been coded before; neither places nor hidden units. It is trained together with the network, as
    the entropy models of learned image coding are (Balle et al. 2018, "Variational Image
    Compression with a Scale Hyperprior"). Its gradient reaches the encoder both through the spikes
    that are coded and through those that are context.

    Args:
        channels: C of the code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.past = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(LAGS)
        )
        self.current = nn.Parameter(torch.zeros(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(LAGS + 1, channels, 1, 1))
        mask = torch.from_numpy(causal(channels, PAST_SIDE)).float()
        self.register_buffer("mask", mask.permute(3, 0, 1, 2).contiguous())

    def forward(self, codes: Tensor) -> Tensor:
        """Return the mean bits per neuron and timestep (scalar) of spikes ``[T, N, C, H, W]``."""
        logits = self.logits(codes)
        return (functional.softplus(logits) - codes * logits).mean() / LN_2

    def logits(self, codes: Tensor) -> Tensor:
        """Return the log odds that each neuron spikes, ``[T, N, C, H, W]``."""
        mask: Tensor = self.mask  # type: ignore[assignment]
        now = functional.conv2d(codes.flatten(0, 1), self.current * mask, padding=1)
        logits = []
        for timestep, seen in enumerate(now.view_as(codes)):
            known = min(timestep, LAGS)
            value = seen + self.bias[known]
            for lag, past in enumerate(self.past):
                if lag < known:
                    value = value + past(codes[timestep - 1 - lag])
            logits.append(value)
        return torch.stack(logits)


class Loss(nn.Module):
    """The training loss of one phase; compiled as a whole.

    Only what the phase trains is a part of it that learns; the rest is :attr:`frozen`.

    Args:
        network: to be trained.
        rate: trained beside it where the phase weighs the code's bits.
        recipe: of the run.
        phase: of the recipe.
    """

    def __init__(
        self, network: SplitNetwork, rate: RateModel, recipe: Recipe, phase: Phase
    ) -> None:
        super().__init__()
        self.head, self.tail = network.backbone_head(), network.backbone_tail()
        self.encoder, self.cloud_tail = network.encoder, network.cloud_tail()
        self.frozen = nn.ModuleList(frozen(network, phase))
        self.requires_grad_()
        self.frozen.requires_grad_(False)
        self.trains_backbone = phase.train in ("backbone", "joint")
        self.trains_code = phase.train != "backbone"
        self.rate = rate if self.trains_code and phase.rate_weight else None
        self.rate_weight = phase.rate_weight
        self.timesteps = phase.timesteps
        self.weight = recipe.distillation
        self.temperature = recipe.distillation_temperature

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss of the batch (scalar)."""
        frames = over_timesteps(batch.images, self.timesteps).contiguous()
        with torch.set_grad_enabled(self.trains_backbone):
            features, _ = self.head(frames)
            if self.trains_backbone or batch.soft is None:
                full, _ = self.tail(features)
        losses = [self.of_logits(full, batch)] if self.trains_backbone else []
        if self.trains_code:
            if not self.trains_backbone and batch.soft is None:
                batch = batch._replace(soft=full.float().mean(0))
            codes, _ = self.encoder(features)
            losses.append(self.of_logits(self.cloud_tail(codes)[0], batch))
            if self.rate is not None:
                losses.append(self.rate_weight * self.rate(codes))
        return torch.stack(losses).sum()

    def prepare(self) -> None:
        """Put what learns into training mode and the rest, BatchNorm with it, into evaluation."""
        self.train()
        self.frozen.eval()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameters for an optimiser, with ``scale``, a factor of the learning rate.

        The rate model learns as if its bits were the whole loss, and a good deal faster: it has to
        keep up with a code that changes.
        """
        of_rate = [] if self.rate is None else list(self.rate.parameters())
        others = {id(each) for each in (*of_rate, *self.frozen.parameters())}
        of_network = [each for each in self.parameters() if id(each) not in others]
        groups = [{"params": of_network, "weight_decay": weight_decay, "scale": 1.0}]
        if of_rate:
            scale = RATE_MODEL_SPEED / self.rate_weight
            groups.append({"params": of_rate, "weight_decay": 0.0, "scale": scale})
        return groups

    def of_logits(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the cumulative outputs of every timestep."""
        outputs = cumulative_mean(logits.float()).flatten(0, 1)
        repeats = self.timesteps
        hard = functional.cross_entropy(outputs, batch.labels.repeat(repeats))
        if batch.soft is None:
            return hard
        target = (batch.soft / self.temperature).softmax(-1).repeat(repeats, 1)
        student = (outputs / self.temperature).log_softmax(-1)
        divergence = functional.kl_div(student, target, reduction="batchmean")
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * divergence


def frozen(network: SplitNetwork, phase: Phase) -> list[nn.Module]:
    """Return what a phase leaves as it is."""
    compressed: list[nn.Module] = [network.encoder, network.decoder, network.tail]
    by_what_trains: dict[str, list[nn.Module]] = {
        "backbone": compressed,
        "bottleneck": [network.backbone, network.tail],
        "cloud": [network.backbone],
        "joint": [],
    }
    return by_what_trains[phase.train]
