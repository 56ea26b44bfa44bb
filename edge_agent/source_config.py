"""Inputs that the daemon classifies by itself: a table ``[[sources]]`` each."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from shared.credentials import File
from shared.events.framing import Framing

Text = Annotated[str, msgspec.Meta(min_length=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=1 << 14)]
Sensor = tuple[Pixels, Pixels]
Full = Literal["wait", "drop_oldest", "drop_newest"]
HTTP = ("http", "https")
MQTT = ("mqtt", "mqtts")


class Source(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What all sources have."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")] | None = None
    """By which results and metrics tell it apart; absent: its kind."""
    results: Text = "-"
    """Where results go, a JSON object each: ``-`` for standard output, a file, which is added to,
    ``mqtt://HOST:PORT/TOPIC`` (``mqtts`` with TLS), or a URL that takes POSTs."""
    results_credentials: File | None = None
    """File with ``user:password`` for the broker, or with a token for the URL."""
    results_ca: File | None = None
    """PEM certificates of who may have signed theirs; absent: the system's authorities."""
    ahead: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Inputs read and not yet answered."""
    when_full: Full | None = None
    """What becomes of one more: its source waits, or the oldest that has not begun or the newest is
    dropped; absent: files wait, what is live drops its oldest."""
    most_per_second: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    """Pace: inputs begun per second at most."""

    def __post_init__(self) -> None:
        check_url("results", self.results, (*HTTP, *MQTT))

    @property
    def label(self) -> str:
        """Its name, or its kind."""
        return self.name or str(type(self).__struct_config__.tag)

    @property
    def policy(self) -> Full:
        """What becomes of one input more than there is room for."""
        return self.when_full or ("drop_oldest" if isinstance(self, LIVE) else "wait")


class FolderSource(Source, frozen=True, kw_only=True, tag="folder"):
    """Image files."""

    path: Text
    """The folder."""
    watch: bool = False
    """Whether to go on with files that come later, oldest first; else once, by name."""
    settle_seconds: Seconds = 0.5
    """With ``watch``: a file is whole when it has not changed for so long."""


class ArraySource(Source, frozen=True, kw_only=True, tag="array"):
    """Arrays of the network's own shape."""

    path: Text
    """A .npy or .npz file, ``[N, C, H, W]`` or ``[N, T, C, H, W]``."""


class VideoSource(Source, frozen=True, kw_only=True, tag="video"):
    """The pictures of a video file."""

    path: Text
    """Any file that OpenCV's FFmpeg reads."""
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Of so many pictures one is taken."""


class CameraSource(Source, frozen=True, kw_only=True, tag="camera"):
    """A camera of this machine (V4L2)."""

    device: Text = "/dev/video0"
    """Its device, or its number."""
    size: Sensor | None = None
    """``[height, width]`` asked of it."""
    frames_per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] | None = None
    """Asked of it."""


class HttpSource(Source, frozen=True, kw_only=True, tag="http"):
    """A camera on the network: a picture per request, or a stream of JPEGs (MJPEG)."""

    url: Text
    interval_seconds: Seconds = 1.0
    """From one request to the next; a stream is read as it comes."""
    timeout_seconds: Seconds = 10.0
    """Time for one picture."""
    credentials: File | None = None
    """File with ``user:password`` (basic authentication)."""
    ca: File | None = None
    """PEM certificates of who may have signed its; absent: the system's authorities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_url("url", self.url, HTTP) not in HTTP:
            raise ValueError(f"url: expected http:// or https://, got {self.url!r}")


class EventsSource(Source, frozen=True, kw_only=True, tag="events"):
    """Files of event recordings."""

    path: Text
    """A file, or a folder of them, taken by name (formats: :mod:`shared.events.files`)."""
    sensor: Sensor | None = None
    """``[H, W]`` of the camera, where files do not tell; absent: the network's own."""
    framing: Framing | None = None
    """How events become timesteps, where the bundle does not say."""


class EventStreamSource(Source, frozen=True, kw_only=True, tag="event_stream"):
    """A live event camera (packets: :mod:`edge_agent.event_packets`)."""

    listen: Text
    """``udp:HOST:PORT`` or ``unix:PATH``."""
    sensor: Sensor
    """``[H, W]`` of the camera."""
    continuous: bool = True
    """Whether a recording is cut into samples, one after the other; else it is one sample."""
    silence_seconds: Seconds = 1.0
    """A recording ends when nothing has come for so long."""
    framing: Framing | None = None
    """As of :class:`EventsSource`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.when_full == "wait":
            raise ValueError("when_full: expected a camera's samples to be dropped, got 'wait'")


AnySource = (
    FolderSource
    | ArraySource
    | VideoSource
    | CameraSource
    | HttpSource
    | EventsSource
    | EventStreamSource
)
LIVE = (CameraSource, HttpSource, EventStreamSource)


def check_url(key: str, url: str, schemes: tuple[str, ...]) -> str:
    """Return a URL's scheme, or nothing; ValueError where it has no host or holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in schemes:
        return ""
    if not parts.hostname:
        raise ValueError(f"{key}: expected a host in {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{key}: expected a URL without user and password, which belong in a file")
    if parts.scheme in MQTT and len(parts.path) < 2:
        raise ValueError(f"{key}: expected {parts.scheme}://HOST:PORT/TOPIC, got {url!r}")
    return parts.scheme


def check_names(sources: tuple[Source, ...]) -> None:
    """Check that names tell sources apart; ValueError if not."""
    labels = [source.label for source in sources]
    if len(set(labels)) < len(labels):
        raise ValueError(f"sources: expected a name of its own for each, got {', '.join(labels)}")
