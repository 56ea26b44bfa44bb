"""What a training recipe (TOML) may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shared.model.spec import NetworkSpec

Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training phase with its own one-cycle learning-rate schedule."""

    name: str
    train: Literal["backbone", "joint"]
    """``backbone``: the network without the bottleneck; ``joint``: one shared head, both the
    uncompressed tail and encoder, decoder and compressed tail (which starts as a copy of the
    uncompressed one if ``fresh_tail``)."""
    epochs: Count
    timesteps: Count
    """T; the loss is the mean over the cumulative logits of every t < T."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    fresh_tail: bool = False
    rate_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Loss per estimated bit of the code, as a mean over its neurons and timesteps: 0 lets the code
    be as large as it likes."""
    begin_with_mean_of: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()
    """Begin with the mean weights of these phases' ends (1 is the first), see
    :mod:`training.average`."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole training run."""

    name: str
    network: NetworkSpec
    phases: tuple[Phase, ...]
    holdout: Count = 2500
    """Training images (the last ones) that no phase sees; calibration uses them."""
    batch_size: Count = 128
    cutout: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Side of the square of pixels that is blanked out at a random place of every training image
    (DeVries and Taylor 2017); 0 for none."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 5e-4
    distillation: Share = 0.5
    """Weight of the teacher's soft targets against the labels; without a teacher, 0."""
    distillation_temperature: Annotated[float, msgspec.Meta(gt=0)] = 3.0
    surrogate_alpha: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Slope of the arctangent surrogate gradient (``snntorch.surrogate.atan``)."""
    seed: int = 1


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; raises ``msgspec.ValidationError`` naming the key that is wrong."""
    return msgspec.toml.decode(path.read_bytes(), type=Recipe)
