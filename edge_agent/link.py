"""The way to the rest of the network, wherever it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from msgspec.structs import replace

from shared.errors import RefusedError
from shared.messages import CloudMessage, EdgeMessage, Open, Opened


class CloudFullError(RefusedError):
    """The cloud has no room for another stream now.

    Args:
        message: what it said.
        retry_after_seconds: how long it asks to be left alone.
    """

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CloudLink(Protocol):
    """One stream. Reading never waits for writing."""

    async def open(self, request: Open) -> Opened:
        """Open the stream; called once, first.

        Raises:
            RefusedError: the cloud said no.
            LinkLostError: the cloud cannot be reached.
            ProtocolError: what came is not an answer to Open.
        """
        ...

    def send(self, message: EdgeMessage) -> None:
        """Hand over a message; never waits, never fails: a lost stream shows when reading."""
        ...

    def messages(self) -> AsyncIterator[CloudMessage]:
        """Yield what comes, until the cloud ends the stream in good order.

        Raises:
            RefusedError: the cloud ended the stream and said why.
            LinkLostError: the stream broke.
            ProtocolError: malformed values came.
        """
        ...

    async def close(self) -> None:
        """Leave the stream; harmless when called again."""
        ...


def merge(first: EdgeMessage, then: EdgeMessage) -> EdgeMessage | None:
    """Return one message that says the same as two, or nothing where one cannot.

    The parts of a message take effect in the order settings, traces, packets, cancels; a trace may
    come earlier than it would have.
    """
    settings_too_late = then.settings is not None and bool(first.packets or first.cancels)
    packets_too_early = bool(then.packets and first.cancels)
    if then.open is not None or settings_too_late or packets_too_early:
        return None
    return replace(
        first,
        settings=then.settings or first.settings,
        packets=first.packets + then.packets,
        cancels=first.cancels + then.cancels,
        traces=first.traces + then.traces,
    )
