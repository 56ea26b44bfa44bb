"""Files of event recordings as a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_agent.source_config import EventsSource
from edge_agent.sources.base import Item, Surroundings
from shared.errors import ConfigError, InputError
from shared.events.files import READERS, read_events
from shared.events.framing import Framing, frame_events, saturated


def read_event_files(config: EventsSource, around: Surroundings) -> Iterator[Item]:
    """Return the recordings of a file or folder, by name, as frames of the network.

    Raises:
        ConfigError: neither a file nor a readable folder, or it is not known how events become
            frames.
    """
    path = Path(config.path)
    try:
        framing = around.framing(config.framing, "sources")
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        if not files and not path.is_dir():
            raise ConfigError(f"source: expected event recordings at {path}, found nothing")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"source: {path}: {error.strerror}") from error
    files = [file for file in files if file == path or file.suffix.lower() in READERS]
    return (_item(file, config, framing, around) for file in files)


def _item(file: Path, config: EventsSource, framing: Framing, around: Surroundings) -> Item:
    base = Path(config.path)
    name = file.name if file == base else file.relative_to(base).as_posix()
    size = around.manifest.spec.input_shape[1:]
    try:
        events = read_events(file, config.sensor or size)
    except (InputError, ConfigError) as error:
        return Item(name, InputError(str(error)))
    return Item(name, saturated(frame_events(events.resized(size), framing)))
