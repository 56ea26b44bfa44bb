"""Train the networks of a recipe.

Writes ``RUN/checkpoint.pt`` and ``RUN/curves.png`` after every epoch, a line per epoch to
``RUN/log.jsonl``, and ``RUN/phase<n>.pt`` at every phase's end. Accuracy in the log is on the
held-out training samples; the test set is touched only by :mod:`training.evaluate`.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import snntorch.surrogate
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from shared.errors import ConfigError
from shared.model.backbones import cumulative_mean
from shared.model.bundle import MANIFEST, WEIGHTS, Bundle
from shared.model.split import SplitNetwork
from training.average import STATISTICS_BATCHES, mean_weights, measure_statistics
from training.batches import Batches, Normaliser
from training.curves import LOG, draw_curves
from training.data.labelled import LabelledData
from training.loss import Batch, Loss, RateModel, frozen, over_timesteps
from training.progress import SILENT, Progress
from training.recipe import Phase, Recipe
from training.recipe_data import TrainingData
from training.teacher import TEACHER_LOGITS, load_teacher, teacher_logits
from training.unfold import unfold

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
MEASURED_SAMPLES = 250
"""Held-out samples that go through the network at once."""


class FitOptions(NamedTuple):
    """How to run a recipe; the result does not depend on it, but for rounding."""

    resume: bool = False
    """Go on from the checkpoint in the run folder, which must be there."""
    teacher: Path | None = None
    """Checkpoint to distil from (CIFAR-10 only)."""
    device: str = "cpu"
    """A device of PyTorch's, e.g. ``cuda``."""
    compile_loss: bool = True
    """Compile the loss with ``torch.compile``; worth it from a few epochs on."""
    backbone: Path | None = None
    """Run folder or bundle whose network without the bottleneck this run begins with."""


class Training:
    """What lives as long as a run: the networks, the random numbers, the data.

    Args:
        recipe: what to train, and how.
        data: of the recipe.
        soft: a teacher's logits, float32 ``[2, N, K]``, of the training samples and their mirror
            images.
        device: on which to train.
    """

    def __init__(
        self, recipe: Recipe, data: TrainingData, soft: Tensor | None, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.held_out = data.held_out
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.normalise = Normaliser(data.preprocessing, device)
        self.batches = Batches(data.training, self.normalise, soft, recipe, device)
        surrogate = snntorch.surrogate.atan(alpha=recipe.surrogate_alpha)
        self.network = SplitNetwork(recipe.network, surrogate).to(device)
        # As convolutions like it best: an epoch of ResNet-18 takes 30 % less on a CPU.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rate = RateModel(recipe.network.bottleneck.channels).to(device)

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to where :meth:`state` was taken."""
        self.network.load_state_dict(saved["network"])
        self.rate.load_state_dict(saved["rate"])
        self.generator.set_state(saved["generator"])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this."""
        return {
            "network": self.network.state_dict(),
            "rate": self.rate.state_dict(),
            "generator": self.generator.get_state(),
        }

    def take_backbone(self, source: Path) -> None:
        """Begin with the network without the bottleneck of another run, or of a bundle.

        Raises:
            ConfigError: neither is there, or its network has another form.
            BundleError: the bundle is damaged.
        """
        try:
            if (source / MANIFEST).exists():
                folded = load_safetensors(Bundle(source).read(WEIGHTS))
                unfold(self.network.backbone, _of_backbone(folded), self.some_frames())
            else:
                saved = load_checkpoint(source / CHECKPOINT)["network"]
                self.network.backbone.load_state_dict(_of_backbone(saved))
        except (OSError, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"expected a run or a bundle with such a backbone at {source}: {error}"
            ) from error

    def some_frames(self) -> Iterator[Tensor]:
        """Yield training samples as the network reads them, the same ones every time."""
        epoch = self.batches.epoch(torch.Generator().manual_seed(self.recipe.seed))
        for batch in itertools.islice(epoch, STATISTICS_BATCHES):
            yield over_timesteps(batch.images, self.recipe.network.timesteps)

    def begin(self, phase: Phase, run: Path) -> None:
        """Give the network the weights that a phase begins with, where it asks for others."""
        network = self.network
        if phase.begin_with_mean_of:
            ends = [
                load_checkpoint(run / f"phase{number - 1}.pt")["network"]
                for number in phase.begin_with_mean_of
            ]
            network.load_state_dict(mean_weights(ends))
            measure_statistics(network, self.some_frames(), frozen(network, phase))
        if phase.fresh_tail:
            network.tail.load_state_dict(network.backbone_tail().state_dict())

    @torch.no_grad()
    def measured(self, timesteps: int) -> dict[str, Any]:
        """Return both networks' held-out accuracy at each cumulative timestep, and the code's bits.

        In bf16. The bits are those per neuron and timestep that the rate model estimates.
        """
        network, data = self.network.eval(), self.held_out
        bits = 0.0
        correct = {"full": torch.zeros(timesteps), "compressed": torch.zeros(timesteps)}
        for start in range(0, len(data), MEASURED_SAMPLES):
            part = data.part(slice(start, start + MEASURED_SAMPLES))
            samples = torch.from_numpy(part.inputs).to(self.device)
            frames = over_timesteps(self.normalise(samples), timesteps)
            with torch.autocast(self.device.type, torch.bfloat16):
                features, _ = network.backbone_head()(frames)
                full, _ = network.backbone_tail()(features)
                codes, _ = network.encoder(features)
                compressed, _ = network.cloud_tail()(codes)
            bits += float(self.rate(codes.float())) * len(part) / len(data)
            for name, logits in (("full", full), ("compressed", compressed)):
                predicted = cumulative_mean(logits.float()).argmax(-1).cpu()
                correct[name] += (predicted == torch.from_numpy(part.labels)).float().sum(1)
        shares = {name: (hits / len(data)).tolist() for name, hits in correct.items()}
        return {"holdout_accuracy": shares, "holdout_code_bits": bits}


def _of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a network's state holds of the backbone, under the backbone's own names."""
    prefix = "backbone."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def one_cycle(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: up over the first 15 %, then down to 0."""
    position, peak = step / steps, 0.15
    return position / peak if position < peak else (1 - position) / (1 - peak)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as plain tensors on the CPU; no code is run."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def soft_targets(teacher: Path | None, data: LabelledData, run: Path) -> Tensor | None:
    """Return a teacher's logits of the training samples, ``[2, N, K]``, computed once per run.

    Raises:
        ConfigError: there is a teacher, but the data is not CIFAR-10.
    """
    if teacher is None:
        return None
    if data.name != "cifar10":
        raise ConfigError(f"expected no teacher, they know only cifar10; got one for {data.name}")
    cache = run / TEACHER_LOGITS
    if not cache.exists():
        np.save(cache, teacher_logits(load_teacher(teacher), data.inputs).numpy())
    return torch.from_numpy(np.load(cache))


def fit(
    recipe: Recipe,
    data: TrainingData,
    run: Path,
    options: FitOptions,
    progress: Progress = SILENT,
) -> None:
    """Run all phases of a recipe, checkpointing after every epoch.

    Args:
        recipe: what to train, and how.
        data: of the recipe.
        run: run folder, existing.
        options: how to run it.
        progress: hears of every epoch and step.

    Raises:
        ConfigError: a teacher for another set than CIFAR-10, no such device, or a backbone that
            is missing or of another form.
    """
    keep_freed_memory()
    torch.manual_seed(recipe.seed)
    device = checked_device(options.device)
    soft = soft_targets(options.teacher, data.training, run)
    training = Training(recipe, data, soft, device)
    saved = load_checkpoint(run / CHECKPOINT) if options.resume else None
    if saved is not None:
        training.restore(saved)
    elif options.backbone is not None:
        training.take_backbone(options.backbone)
    elif recipe.needs_backbone:
        raise ConfigError(
            "expected a backbone to begin with (--backbone): the first phase trains none, or it "
            "was imported"
        )
    begun = -1 if saved is None else saved["phase"]
    for index, phase in enumerate(recipe.phases):
        if index < begun:
            continue
        unfinished = saved if index == begun else None
        if unfinished is None:
            training.begin(phase, run)
        run_phase(training, index, unfinished, run, options, progress)
        # A later phase may begin with the mean of some phases' ends.
        shutil.copyfile(run / CHECKPOINT, run / f"phase{index}.pt")


def run_phase(
    training: Training,
    index: int,
    unfinished: dict[str, Any] | None,
    run: Path,
    options: FitOptions,
    progress: Progress,
) -> None:
    """Run one phase, or what is left of it.

    Args:
        training: as the phase before left it, or as restored.
        index: of the phase, from 0.
        unfinished: the checkpoint, if it is of this phase.
        run: run folder.
        options: how to run it.
        progress: hears of every epoch and step.
    """
    phase = training.recipe.phases[index]
    loss = Loss(training.network, training.rate, training.recipe, phase)
    groups = loss.parameter_groups(training.recipe.weight_decay)
    optimiser = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    first_epoch = 0
    if unfinished is not None:
        optimiser.load_state_dict(unfinished["optimiser"])
        first_epoch = unfinished["epoch"] + 1
    run_loss = torch.compile(loss) if options.compile_loss else loss
    for epoch in range(first_epoch, phase.epochs):
        started = time.perf_counter()
        loss.prepare()
        mean_loss = run_epoch(training, phase, epoch, run_loss, optimiser, progress)
        record = {
            "phase": phase.name,
            "epoch": epoch,
            "loss": mean_loss,
            "seconds": time.perf_counter() - started,
            **training.measured(phase.timesteps),
        }
        log.info("%s", record)
        with (run / LOG).open("a") as file:
            file.write(json.dumps(record) + "\n")
        state = training.state() | {
            "optimiser": optimiser.state_dict(),
            "phase": index,
            "epoch": epoch,
        }
        save_checkpoint(state, run / CHECKPOINT)
        draw_curves(run)


def run_epoch(
    training: Training,
    phase: Phase,
    epoch: int,
    loss: Callable[[Batch], Tensor],
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> float:
    """Run one epoch of a phase; returns the mean loss."""
    batches, total = training.batches, 0.0
    progress.begin(f"{phase.name}, epoch {epoch + 1} of {phase.epochs}", len(batches))
    for number, batch in enumerate(batches.epoch(training.generator)):
        share = one_cycle(epoch * len(batches) + number, phase.epochs * len(batches))
        for group in optimiser.param_groups:
            group["lr"] = phase.learning_rate * share * group["scale"]
        with torch.autocast(training.device.type, torch.bfloat16):
            value = loss(batch)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        last = value.item()
        total += last
        progress.advance(f"loss {last:.4f}")
    return total / len(batches)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step (glibc; elsewhere nothing happens).

    Every step frees hundreds of MB and wants them again; given back to the system each time, they
    cost page faults: 15 to 25 % of an epoch of ResNet-18 on 2 CPU cores.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1)):
        mallopt(parameter, value)


def checked_device(name: str) -> torch.device:
    """Return the device of that name; ConfigError if there is none here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"expected a device that is here, got {name!r}: {error}") from error
    return device
