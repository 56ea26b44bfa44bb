"""What a training recipe (TOML) may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shared.errors import ConfigError
from shared.model.bundle import Preprocessing
from shared.model.spec import NetworkSpec
from training.data.sets import Options, check_options

RECIPE = "recipe.toml"
"""Name of a run folder's copy of its recipe."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Phase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training phase with its own one-cycle learning-rate schedule."""

    name: str
    train: Literal["backbone", "bottleneck", "cloud", "joint"]
    """What learns. ``backbone``: the network without the bottleneck; ``bottleneck``: encoder and
    decoder alone; ``cloud``: encoder, decoder and the compressed tail, so that the head stays as it
    is; ``joint``: one shared head, both the uncompressed tail and encoder, decoder and compressed
    tail. The compressed tail starts as a copy of the uncompressed one if ``fresh_tail``."""
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


class DataChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set and how to read it.

    Raises:
        ValueError: there is no such data set, or it has no such option.
    """

    name: str = "cifar10"
    """A key of :data:`training.data.sets.DATA_SETS`."""
    options: Options = Options()

    def __post_init__(self) -> None:
        check_options(self.name, self.options)


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole training run.

    Raises:
        ValueError: a phase wants more event frames than there are or trains before a random tail,
            the shift is as large as the samples, or the normalisation is for another number of
            channels.
    """

    name: str
    network: NetworkSpec
    phases: tuple[Phase, ...]
    data: DataChoice = DataChoice()
    preprocessing: Preprocessing | None = None
    """How samples are normalised; None: as :mod:`training.recipe_data` measures it."""
    holdout: Count = 2500
    """Training samples that no phase sees; calibration uses them. Of CIFAR-10 the last ones, of
    sets sorted by class random ones (by ``seed``)."""
    batch_size: Count = 128
    shift: Annotated[int, msgspec.Meta(ge=0)] = 4
    """Pixels by which every training sample is shifted at most, in both directions. Images are
    continued by reflection, events by silence."""
    mirror: bool | None = None
    """Mirror every other training sample left to right; None mirrors images, not events."""
    rotation_degrees: Annotated[float, msgspec.Meta(ge=0, lt=180)] = 0.0
    """Angle by which every training sample is turned at most, either way."""
    zoom: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share by which every training sample is enlarged or made smaller at most. What comes into
    view is as with ``shift``."""
    cutout: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Side of the square of pixels that is blanked out at a random place of every training sample
    (DeVries and Taylor 2017), the same at all timesteps; 0 for none."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 5e-4
    distillation: Share = 0.5
    """Weight of the soft targets against the labels. They are the teacher's; without a teacher,
    phases that leave the head alone take the uncompressed network's own logits at full T, others
    none."""
    distillation_temperature: Annotated[float, msgspec.Meta(gt=0)] = 3.0
    surrogate_alpha: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Slope of the arctangent surrogate gradient (``snntorch.surrogate.atan``)."""
    seed: int = 1

    def __post_init__(self) -> None:
        smallest = min(self.network.input_shape[1:])
        if self.shift >= smallest:
            raise ValueError(f"expected a shift below {smallest} pixels, got {self.shift}")
        if self.preprocessing is not None:
            self.preprocessing.check_channels(self.network.input_shape[0])
        self._check_tail()
        if self.network.input_kind == "static":
            return
        for phase in self.phases:
            if phase.timesteps > self.network.timesteps:
                raise ValueError(
                    f"expected at most the network's {self.network.timesteps} timesteps of events "
                    f"in phase {phase.name!r}, got {phase.timesteps}"
                )

    def _check_tail(self) -> None:
        """Refuse to train a bottleneck alone before a tail that has learnt nothing."""
        for phase in self.phases:
            if phase.fresh_tail or phase.train in ("cloud", "joint"):
                return
            if phase.train == "bottleneck":
                raise ValueError(
                    f"expected fresh_tail of phase {phase.name!r}, whose tail is random"
                )

    @property
    def mirrors(self) -> bool:
        """Whether training samples are mirrored."""
        return self.network.input_kind == "static" if self.mirror is None else self.mirror

    @property
    def needs_backbone(self) -> bool:
        """Whether a run cannot begin without a trained backbone."""
        is_imported = not isinstance(self.network.backbone, str)
        return is_imported or any(p.train in ("bottleneck", "cloud") for p in self.phases[:1])


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: not there, no TOML, or a key is wrong: says which, what was expected and what
            came.
    """
    return decode_recipe(read_recipe(path), path)


def read_recipe(path: Path) -> bytes:
    """Return the content of a recipe; ConfigError if it is not there."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"expected a recipe at {path}: {error.strerror}") from error


def decode_recipe(content: bytes, path: Path) -> Recipe:
    """Return the recipe of a file's content; errors as of :func:`load_recipe`."""
    try:
        return msgspec.toml.decode(content, type=Recipe)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
