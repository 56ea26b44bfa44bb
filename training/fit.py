"""Train the networks of a recipe: ``python -m training.fit RECIPE.toml --data DIR --out RUN``.

Writes ``RUN/checkpoint.pt`` after every epoch (``--resume`` goes on from it), ``RUN/log.jsonl``
(a line per epoch) and ``RUN/recipe.toml``. Accuracy in the log is on the held-out training images;
the test set is touched only by ``training.evaluate``.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import snntorch.surrogate
import torch
from torch import Tensor
from torch.nn import functional

from shared.model.backbones import cumulative_mean
from shared.model.split import SplitNetwork
from training.average import mean_weights, measure_statistics
from training.data.cifar10 import Images, load_cifar10
from training.loss import Batch, Loss, RateModel
from training.recipe import Phase, Recipe, load_recipe
from training.teacher import load_teacher, teacher_logits

log = logging.getLogger(__name__)

PADDING = 4
# Per-channel mean and standard deviation of the CIFAR-10 training pixels, as shares of 255.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def normalise(pixels: Tensor) -> Tensor:
    """Map uint8 ``[N, 3, H, W]`` to normalised float32."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


class Batches:
    """Shuffled, randomly shifted and mirrored batches of one data set."""

    def __init__(
        self, images: Images, soft: Tensor | None, batch_size: int, cutout: int = 0
    ) -> None:
        pixels = torch.from_numpy(images.pixels)
        self._padded = functional.pad(pixels.float(), (PADDING,) * 4, mode="reflect").byte()
        self._labels = torch.from_numpy(images.labels)
        self._soft = soft
        self._batch_size = batch_size
        self._cutout = cutout

    def __len__(self) -> int:
        return len(self._labels) // self._batch_size

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """Yield one epoch; the incomplete last batch is left out."""
        order = torch.randperm(len(self._labels), generator=generator)
        offsets = torch.arange(32)
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            chosen = order[start : start + self._batch_size]
            shift = torch.randint(2 * PADDING + 1, (2, len(chosen), 1), generator=generator)
            mirrored = torch.rand(len(chosen), generator=generator) < 0.5
            rows, columns = shift[0] + offsets, shift[1] + offsets
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
            pixels = self._padded[
                chosen[:, None, None, None],
                torch.arange(3)[None, :, None, None],
                rows[:, None, :, None],
                columns[:, None, None, :],
            ]
            soft = None if self._soft is None else self._soft[mirrored.long(), chosen]
            images = normalise(pixels)
            if self._cutout:
                images = self._cut_out(images, generator)
            yield Batch(images, self._labels[chosen], soft)

    def _cut_out(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Set a square around a random pixel of every image to the mean colour."""
        centres = torch.randint(32, (2, len(images), 1), generator=generator)
        offsets = torch.arange(32) - centres + self._cutout // 2
        rows, columns = (offsets >= 0) & (offsets < self._cutout)
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


@torch.no_grad()
def measured(
    network: SplitNetwork, rate: RateModel, images: Images, timesteps: int
) -> dict[str, Any]:
    """Return the accuracy of both networks at each cumulative timestep, and the code's bits.

    In bf16. The bits are those per neuron and timestep that the rate model estimates.
    """
    network.eval()
    bits = 0.0
    correct = {"full": torch.zeros(timesteps), "compressed": torch.zeros(timesteps)}
    for start in range(0, len(images.labels), 250):
        pixels = torch.from_numpy(images.pixels[start : start + 250])
        labels = torch.from_numpy(images.labels[start : start + 250])
        frames = normalise(pixels).expand(timesteps, *pixels.shape)
        with torch.autocast("cpu", torch.bfloat16):
            features, _ = network.backbone_head()(frames)
            full, _ = network.backbone_tail()(features)
            codes, _ = network.encoder(features)
            compressed, _ = network.cloud_tail()(codes)
        bits += float(rate(codes.float())) * len(labels) / len(images.labels)
        for name, logits in (("full", full), ("compressed", compressed)):
            predicted = cumulative_mean(logits.float()).argmax(-1)
            correct[name] += (predicted == labels).float().sum(1)
    network.train()
    shares = {name: (hits / len(images.labels)).tolist() for name, hits in correct.items()}
    return {"holdout_accuracy": shares, "holdout_code_bits": bits}


def one_cycle(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: up over the first 15 %, then down to 0."""
    position, peak = step / steps, 0.15
    return position / peak if position < peak else (1 - position) / (1 - peak)


def begin(phase: Phase, network: SplitNetwork, batches: Batches, run: Path, seed: int) -> None:
    """Give the network the weights that a phase begins with, where it asks for others."""
    if phase.begin_with_mean_of:
        ends = [
            torch.load(run / f"phase{number - 1}.pt", weights_only=True)["network"]
            for number in phase.begin_with_mean_of
        ]
        network.load_state_dict(mean_weights(ends))
        epoch = batches.epoch(torch.Generator().manual_seed(seed))
        measure_statistics(network, (batch.images for batch in epoch))
    if phase.fresh_tail:
        network.tail.load_state_dict(network.backbone_tail().state_dict())


def fit(
    recipe: Recipe,
    data: Path,
    teacher: Path | None,
    out: Path,
    *,
    resume: bool,
    compile_loss: bool = True,
) -> None:
    """Run all phases of a recipe, checkpointing after every epoch.

    Args:
        recipe: what to train, and how.
        data: folder with CIFAR-10.
        teacher: checkpoint to distil from.
        out: run folder, existing.
        resume: go on from ``out / "checkpoint.pt"``, which must exist.
        compile_loss: compile the loss with ``torch.compile``; worth it from a few epochs on.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    everything = load_cifar10(data, train=True)
    cut = len(everything.labels) - recipe.holdout
    training = Images(everything.pixels[:cut], everything.labels[:cut])
    holdout = Images(everything.pixels[cut:], everything.labels[cut:])
    soft = None
    if teacher is not None:
        cache = out / "teacher_logits.npy"
        if not cache.exists():
            np.save(cache, teacher_logits(load_teacher(teacher), training.pixels).numpy())
        soft = torch.from_numpy(np.load(cache))
    batches = Batches(training, soft, recipe.batch_size, recipe.cutout)
    network = SplitNetwork(recipe.network, snntorch.surrogate.atan(alpha=recipe.surrogate_alpha))
    rate = RateModel(recipe.network.bottleneck.channels)
    path = out / "checkpoint.pt"
    saved = torch.load(path, weights_only=True) if resume else None
    if saved is not None:
        network.load_state_dict(saved["network"])
        rate.load_state_dict(saved["rate"])
        generator.set_state(saved["generator"])
    for index, phase in enumerate(recipe.phases):
        if saved is not None and index < saved["phase"]:
            continue
        first_epoch = 0
        if saved is not None and index == saved["phase"]:
            first_epoch = saved["epoch"] + 1
        else:
            begin(phase, network, batches, out, recipe.seed)
        loss = Loss(network, rate, recipe, phase)
        run_loss = torch.compile(loss) if compile_loss else loss
        optimiser = torch.optim.SGD(
            loss.parameter_groups(recipe.weight_decay), lr=1.0, momentum=0.9, nesterov=True
        )
        if saved is not None and first_epoch:
            optimiser.load_state_dict(saved["optimiser"])
        steps = phase.epochs * len(batches)
        for epoch in range(first_epoch, phase.epochs):
            started, total = time.perf_counter(), 0.0
            for number, batch in enumerate(batches.epoch(generator)):
                speed = phase.learning_rate * one_cycle(epoch * len(batches) + number, steps)
                for group in optimiser.param_groups:
                    group["lr"] = speed * group["scale"]
                with torch.autocast("cpu", torch.bfloat16):
                    value = run_loss(batch)
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                optimiser.step()
                total += value.item()
                if number % 50 == 0:
                    log.info("%s epoch %d step %d loss %.4f", phase.name, epoch, number, value)
            record = {
                "phase": phase.name,
                "epoch": epoch,
                "loss": total / len(batches),
                "seconds": time.perf_counter() - started,
                **measured(network, rate, holdout, phase.timesteps),
            }
            log.info("%s", record)
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            state = {
                "network": network.state_dict(),
                "rate": rate.state_dict(),
                "optimiser": optimiser.state_dict(),
                "generator": generator.get_state(),
                "phase": index,
                "epoch": epoch,
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        # A later phase may begin with the mean of some phases' ends.
        shutil.copyfile(path, out / f"phase{index}.pt")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.fit", description=__doc__)
    parser.add_argument("recipe", type=Path, help="recipe file (TOML)")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--teacher", type=Path, help="pytorch_resnet_cifar10 checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="run folder, made if missing")
    parser.add_argument("--resume", action="store_true", help="go on from the last epoch saved")
    parser.add_argument(
        "--no-compile", action="store_true", help="run without torch.compile (for short runs)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(arguments.recipe)
    shutil.copyfile(arguments.recipe, arguments.out / "recipe.toml")
    resume = arguments.resume and (arguments.out / "checkpoint.pt").exists()
    fit(
        recipe,
        arguments.data,
        arguments.teacher,
        arguments.out,
        resume=resume,
        compile_loss=not arguments.no_compile,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
