"""The ways to run the network that are compared."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from PIL import Image

from edge_agent.config import EdgeConfig
from edge_agent.inputs import Array, Data
from shared.messages import MAX_SAMPLES_IN_FLIGHT
from shared.model.bundle import Bundle
from shared.model.preprocessing import MODES as PICTURE_MODES
from shared.model.spec import NetworkSpec

WEBP_QUALITY = 75
MAX_WINDOW = 16
"""The largest window that servers allow if not told otherwise."""

LOCK_STEP: Mapping[str, Any] = {
    "placement": "co_inference",
    "network": "split",
    "window": 1,
    "steps_per_packet": 1,
    "reply_mode": "step",
    "samples_in_flight": 1,
    "fallback": "none",
    "choose_local": False,
    "sources": (),
}
"""What the modes start from, whatever the configuration says."""
NO_EXIT: Mapping[str, Any] = {"alpha": 1.0, "loss_budget": None}
"""No confidence is above 1."""


def as_it_is(array: Array) -> Data:
    """Return the array."""
    return array


def png(array: Array) -> bytes:
    """Return a picture ``[C, H, W]`` as a PNG file."""
    return _file(array, format="PNG", optimize=True)


def webp(array: Array) -> bytes:
    """Return a picture ``[C, H, W]`` as a WebP file, with losses."""
    return _file(array, format="WebP", quality=WEBP_QUALITY)


def _file(array: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    # A grey picture has no axis of colours in Pillow.
    Image.fromarray(array.transpose(1, 2, 0).squeeze()).save(file, **options)
    return file.getvalue()


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way."""

    name: str
    what: str
    """In words."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """To the configuration, after :data:`LOCK_STEP`."""
    encode: Callable[[Array], Data] = as_it_is
    """What the device does to an input before it is handed over; counts as its work."""
    in_flight: int = 1
    """Inputs handed over and not answered; 1 waits for each answer."""

    def config(self, config: EdgeConfig) -> EdgeConfig:
        """Return the configuration it runs with."""
        changes = dict(LOCK_STEP) | dict(self.changes)
        return msgspec.structs.replace(config.uncounted, **changes)


def all_modes(spec: NetworkSpec) -> tuple[Mode, ...]:
    """Return every mode, for a network of some T."""
    window = min(spec.timesteps, MAX_WINDOW)
    return (
        Mode(
            name="edge_only_full",
            what="the network before the bottleneck was inserted, on the device, all timesteps",
            changes={"placement": "edge_only", "network": "whole", **NO_EXIT},
        ),
        Mode(
            name="edge_only_exit",
            what="the same network and exit rule as co-inference, all on the device",
            changes={"placement": "edge_only"},
        ),
        Mode(
            name="cloud_only_raw",
            what="the input sent as an array; the network before the bottleneck was inserted, "
            "in the cloud, with the same exit rule",
            changes={"placement": "cloud_only"},
        ),
        Mode(
            name="cloud_only_png",
            what="the same, the input sent as a PNG file; encoding it is part of the time",
            changes={"placement": "cloud_only"},
            encode=png,
        ),
        Mode(
            name="cloud_only_webp",
            what=f"the same, the input sent as a WebP file of quality {WEBP_QUALITY}, with losses",
            changes={"placement": "cloud_only"},
            encode=webp,
        ),
        Mode(
            name="no_exit",
            what="co-inference in lock-step over all timesteps",
            changes=NO_EXIT,
        ),
        Mode(
            name="no_compression",
            what="co-inference in lock-step, the code's bits packed but not coded",
            changes={"codec": "raw"},
        ),
        Mode(
            name="lock_step",
            what="co-inference, the next timestep begun when the verdict is there",
        ),
        Mode(
            name="pipelined",
            what=f"co-inference, up to {window} timesteps under way without their verdict",
            changes={"window": window},
        ),
        Mode(
            name="policy",
            what="co-inference, the window, the timesteps per packet and the reply mode chosen for "
            "the objective from what is measured on the way",
            changes={"window": None, "steps_per_packet": None, "reply_mode": None},
        ),
        Mode(
            name="interleaved",
            what=f"co-inference in lock-step, {MAX_SAMPLES_IN_FLIGHT} inputs under way at once on "
            "one stream: an input waits for others, so that its time is longer and all are done "
            "sooner",
            changes={"samples_in_flight": MAX_SAMPLES_IN_FLIGHT},
            in_flight=MAX_SAMPLES_IN_FLIGHT,
        ),
    )


def obstacle(mode: Mode, bundle: Bundle, arrays: list[Array]) -> str | None:
    """Say why a mode cannot be run here, if it cannot."""
    if mode.changes.get("network") == "whole" and not bundle.has("whole"):
        return "the bundle does not hold the network before the bottleneck was inserted"
    if mode.name == "edge_only_exit" and not bundle.has("tail"):
        return "the bundle on this device has no tail"
    if mode.encode is not as_it_is and not all(map(is_picture, arrays)):
        return "the inputs are no pictures of 8-bit grey or colour"
    return None


def is_picture(array: Array) -> bool:
    """Say whether an input is a picture of 8-bit grey or colour."""
    return array.ndim == 3 and array.dtype.name == "uint8" and array.shape[0] in PICTURE_MODES
