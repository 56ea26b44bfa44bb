"""Unix sockets that only their owner may open."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ConfigError

UNIX = "unix:"


@contextlib.contextmanager
def private_socket(path: Path, key: str) -> Iterator[None]:
    """Let a socket be made at a path within the block, with mode 0600.

    A socket left by a program that is gone is removed before.

    Args:
        path: of the socket.
        key: the configuration key that names it, for messages.

    Raises:
        ConfigError: a program answers there, the file is no socket, or there is no such folder.
    """
    _remove_stale(path, key)
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale(path: Path, key: str) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"{key}: expected an existing folder, got {str(path.parent)!r}")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{key}: expected a socket or nothing at {path}, got another file")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise ConfigError(f"{key}: {path}: {error.strerror}") from error
        else:
            raise ConfigError(f"{key}: expected {path} to be free, another daemon answers there")
