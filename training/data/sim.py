"""Simulated events: what an event camera on a shaking mount would see of a still picture.

Never a recording: data made here is called ``sim`` wherever it is named.

The motion is that of N-MNIST and N-Caltech101 (Orchard, Jayawant, Cohen and Thakor 2015,
"Converting static image datasets to spiking neuromorphic datasets using saccades"): three saccades
of 100 ms at constant speed along a triangle, back to where it began. The pixel is that of a dynamic
vision sensor (Lichtsteiner, Posch and Delbruck 2008): it stores the logarithm of its light, sends
ON or OFF each time the light has moved one contrast threshold away, and then stores the new level.
Between two points of the path the logarithm is taken as linear in time, as in ESIM (Rebecq, Gehrig
and Scaramuzza 2018). Thresholds differ from pixel to pixel, the stored level at the start is
unknown, and there are a few background events (as in v2e: Hu, Liu and Delbruck 2021). Left out:
refractory time, limited bandwidth of the pixel, arbitration of the readout, a monitor's flicker.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from shared.events.framing import ByTime, Counts, Framing, frame_events, saturated
from shared.events.recording import Events, Ints

Floats = NDArray[np.float32]
AtLeastZero = Annotated[float, msgspec.Meta(ge=0)]
AboveZero = Annotated[float, msgspec.Meta(gt=0)]

SACCADES = 3
CHUNK_PIXELS = 65536
"""Pixels worked on at once: their arrays of float32 stay in a core's cache."""


class Saccades(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The simulated camera and its motion.

    Raises:
        ValueError: the steps do not fit three saccades or whole microseconds.
    """

    travel_pixels: AboveZero = 4.0
    """Longest side of the triangle; N-MNIST's is 7 of 34 pixels."""
    duration_microseconds: Annotated[int, msgspec.Meta(ge=1)] = 300_000
    """Length of a recording: three saccades."""
    steps: Annotated[int, msgspec.Meta(ge=SACCADES)] = 120
    """Points of the path at which light is computed; frames end at such a point."""
    threshold: AboveZero = 0.2
    """Mean contrast threshold, in natural logarithm of light; 0.15 to 0.3 in real sensors."""
    threshold_deviation: AtLeastZero = 0.03
    """Standard deviation of the thresholds over the pixels of the one simulated sensor."""
    stray_light: AboveZero = 0.02
    """Added to the picture's linear light (0 black, 1 white): screen black, lens, dark current."""
    noise_hertz: AtLeastZero = 0.1
    """Background events per pixel and second."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Decides thresholds, starting levels and background events; a picture's events depend on it
    and on the picture's number."""

    def __post_init__(self) -> None:
        if self.steps % SACCADES or self.duration_microseconds % self.steps:
            raise ValueError(
                f"expected steps that are a multiple of {SACCADES} and divide the duration of "
                f"{self.duration_microseconds} microseconds, got {self.steps}"
            )

    @property
    def step_microseconds(self) -> int:
        """Time between two points of the path."""
        return self.duration_microseconds // self.steps


class _Picture(NamedTuple):
    """What chance decides of one picture's recording."""

    start: Floats
    """float32, ``[H, W]``, stored minus true level at the start, in thresholds, within +-1."""
    noise: Events
    """Background events."""


class _Step(NamedTuple):
    """One step along the path, valid until the next; float32 ``[N, H, W]``, in thresholds."""

    before: Floats
    """Level of light at its start."""
    after: Floats
    """Level at its end."""
    stored: Floats
    """The pixel's stored level at its start."""
    crossed: Floats
    """Whole thresholds crossed: ON events if positive, OFF if negative."""


def simulate_frames(
    pixels: NDArray[np.uint8], saccades: Saccades, framing: Framing
) -> NDArray[np.uint8]:
    """Return the event frames of many pictures: exactly those of :func:`simulate_events`.

    Works on all cores; the result does not depend on their number. It may differ in single events
    between processor types, whose logarithms round differently.

    Args:
        pixels: pictures in sRGB, uint8 ``[N, C, H, W]``, C = 3, or 1 (grey).
        saccades: camera and motion.
        framing: by time. Windows must be whole steps; without a window T windows share the
            recording.

    Returns:
        Event counts, uint8 ``[N, T, 2, H, W]``; a cell with more than 255 holds 255.

    Raises:
        ValueError: the pictures have another number of channels, the framing is not by time, or
            its windows are not whole steps.
    """
    steps_per_frame = _steps_per_frame(saccades, framing)
    count, _, height, width = pixels.shape
    _check_channels(pixels)
    frames = np.empty((count, framing.timesteps, 2, height, width), np.uint8)
    sharpness = np.float32(1) / _thresholds(saccades, height, width)
    chunk = max(1, CHUNK_PIXELS // (height * width))

    def work(start: int) -> None:
        part = slice(start, min(start + chunk, count))
        chance = [_picture(saccades, index, height, width) for index in range(*part.indices(count))]
        counts = np.zeros((len(chance), framing.timesteps, 2, height, width), np.uint32)
        _add_moved(counts, pixels[part], sharpness, chance, saccades, steps_per_frame)
        window = ByTime(
            timesteps=framing.timesteps,
            window_microseconds=steps_per_frame * saccades.step_microseconds,
        )
        for picture, into in zip(chance, counts, strict=True):
            into += frame_events(picture.noise, window)
        frames[part] = saturated(counts)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, range(0, count, chunk)):
            pass
    return frames


def simulate_events(picture: NDArray[np.uint8], index: int, saccades: Saccades) -> Events:
    """Return the recording of one picture.

    Args:
        picture: in sRGB, uint8 ``[C, H, W]``, C = 3, or 1 (grey).
        index: the picture's number in its data set.
        saccades: camera and motion.

    Raises:
        ValueError: the picture has another number of channels.
    """
    _check_channels(picture[None])
    _, height, width = picture.shape
    sharpness = np.float32(1) / _thresholds(saccades, height, width)
    chance = _picture(saccades, index, height, width)
    steps = _steps(picture[None], sharpness, chance.start[None], saccades)
    found = [_events_of(step, number, saccades) for number, step in enumerate(steps)]
    noise = chance.noise
    found.append(np.stack([noise.microseconds, noise.y, noise.x, noise.polarity]))
    times, y, x, polarity = np.concatenate(found, axis=1)
    order = np.argsort(times, kind="stable")
    return Events(times[order], x[order], y[order], polarity[order], (height, width))


def _check_channels(pixels: NDArray[np.uint8]) -> None:
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"expected pictures [N, 1 or 3, H, W], got {list(pixels.shape)}")


def _steps_per_frame(saccades: Saccades, framing: Framing) -> int:
    if not isinstance(framing, ByTime):
        raise ValueError(f"expected simulated events to be framed by time, got {framing}")
    window, rest = framing.window_microseconds, 0
    if window is None:
        window, rest = divmod(saccades.duration_microseconds, framing.timesteps)
    if rest or window % saccades.step_microseconds:
        raise ValueError(
            f"expected frames of whole steps of {saccades.step_microseconds} microseconds "
            f"({saccades.steps} in a recording), got {framing}"
        )
    return window // saccades.step_microseconds


def _thresholds(saccades: Saccades, height: int, width: int) -> Floats:
    """Return the sensor's thresholds, float32 ``[H, W]``; none below a quarter of the mean."""
    generator = np.random.default_rng([saccades.seed, 0])
    drawn = generator.normal(saccades.threshold, saccades.threshold_deviation, (height, width))
    return np.maximum(drawn, saccades.threshold / 4).astype(np.float32)


def _picture(saccades: Saccades, index: int, height: int, width: int) -> _Picture:
    generator = np.random.default_rng([saccades.seed, 1 + index])
    start = generator.random((height, width), np.float32) * 2 - 1
    duration = saccades.duration_microseconds
    count = generator.poisson(saccades.noise_hertz * duration / 1e6 * height * width)
    cell = generator.integers(0, height * width, count)
    times = np.sort(generator.integers(0, duration, count))
    polarity = generator.integers(0, 2, count)
    return _Picture(start, Events(times, cell % width, cell // width, polarity, (height, width)))


def _path(saccades: Saccades) -> Iterator[tuple[float, float]]:
    """Yield rows and columns of displacement at the ends of all steps, the start first.

    The triangle of N-MNIST, as its authors' stabilising code describes it: (0, 0), half the side
    right and a side down, a side right, and back; here around its middle.
    """
    side = saccades.travel_pixels
    turn = np.arange(saccades.steps + 1) / (saccades.steps // SACCADES)
    rows = np.interp(turn, range(4), (0, side, 0, 0)) - side / 2
    columns = np.interp(turn, range(4), (0, side / 2, side, 0)) - side / 2
    return zip(rows.tolist(), columns.tolist(), strict=True)


def _light(pixels: NDArray[np.uint8]) -> Floats:
    """Return linear light, 0 to 1, float32 ``[N, H, W]``: sRGB undone, BT.709 weights."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    weights = (0.2126, 0.7152, 0.0722) if pixels.shape[1] == 3 else (1.0,)
    tables = [(linear * weight).astype(np.float32) for weight in weights]
    light = tables[0][pixels[:, 0]]
    for channel, table in enumerate(tables[1:], 1):
        light += table[pixels[:, channel]]
    return light


def _steps(
    pixels: NDArray[np.uint8], sharpness: Floats, start: Floats, saccades: Saccades
) -> Iterator[_Step]:
    """Move the pictures along the path and yield what each step does to the pixels.

    Beyond its border a picture goes on with its last pixel. Between pixels light is interpolated
    bilinearly.
    """
    margin = math.ceil(saccades.travel_pixels / 2) + 1
    light = _light(pixels) + np.float32(saccades.stray_light)
    light = np.pad(light, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    path = _path(saccades)
    before = _level(light, next(path), margin, sharpness)
    stored = before + start
    for place in path:
        after = _level(light, place, margin, sharpness)
        crossed = np.trunc(after - stored)
        yield _Step(before, after, stored, crossed)
        stored += crossed
        before = after


def _level(light: Floats, place: tuple[float, float], margin: int, sharpness: Floats) -> Floats:
    """Return the logarithm of displaced light in thresholds, float32 ``[N, H, W]``."""
    (row, down), (column, right) = (
        (math.floor(shift), shift - math.floor(shift)) for shift in place
    )
    height, width = sharpness.shape
    upper = light[:, margin + row :, margin + column :][:, : height + 1, : width + 1]
    rows = upper[:, 1:] - upper[:, :-1]
    rows *= down
    rows += upper[:, :-1]
    level = rows[:, :, 1:] - rows[:, :, :-1]
    level *= right
    level += rows[:, :, :-1]
    np.log(level, out=level)
    level *= sharpness
    return level


def _add_moved(
    counts: Counts,
    pixels: NDArray[np.uint8],
    sharpness: Floats,
    chance: Sequence[_Picture],
    saccades: Saccades,
    steps_per_frame: int,
) -> None:
    """Add the events of motion to ``counts``, uint32 ``[N, T, 2, H, W]``."""
    start = np.stack([picture.start for picture in chance])
    steps = _steps(pixels, sharpness, start, saccades)
    for frame in range(counts.shape[1]):
        on, both = np.zeros_like(start), np.zeros_like(start)
        for step in islice(steps, steps_per_frame):
            both += step.crossed
            on += np.maximum(step.crossed, 0)
        counts[:, frame, 1] += on.astype(np.uint32)
        counts[:, frame, 0] += (on - both).astype(np.uint32)


def _events_of(step: _Step, number: int, saccades: Saccades) -> Ints:
    """Return the events of one picture's step, int64 ``[4, E]``: time, y, x, polarity."""
    _, y, x = np.nonzero(step.crossed)
    before, after, stored, crossed = (values[0, y, x] for values in step)
    times = np.abs(crossed).astype(np.int64)
    which = np.repeat(np.arange(len(times)), times)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times) + 1
    sign = np.sign(crossed)[which]
    way, whole = stored[which] + sign * nth - before[which], (after - before)[which]
    share = np.divide(way, whole, out=np.zeros_like(way), where=whole != 0)
    length = saccades.step_microseconds
    inside = np.clip(np.floor(share * length), 0, length - 1).astype(np.int64)
    polarity = (sign > 0).astype(np.int64)
    return np.stack([number * length + inside, y[which], x[which], polarity])
