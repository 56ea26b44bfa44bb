"""Who may open a stream: how many at once, and not while the server drains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import RefusedError
from shared.metrics import CloudMetrics, RejectReason, Rpc


class AdmissionError(RefusedError):
    """A stream is refused or ended by the server.

    Args:
        reason: gives status and metric label.
        message: what was expected and what came.
        retry_after_seconds: when to ask again; None to say nothing about it.
    """

    def __init__(
        self, reason: RejectReason, message: str, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class Admission:
    """Counts the open streams.

    Args:
        max_streams: most streams at once, over all calls.
        overload_retry_seconds: what one more is told to wait.
        metrics: the server's.
    """

    def __init__(
        self, max_streams: int, overload_retry_seconds: float, metrics: CloudMetrics
    ) -> None:
        self._max_streams = max_streams
        self._overload_retry_seconds = overload_retry_seconds
        self._metrics = metrics
        self._streams = 0
        self._draining = False

    @property
    def streams(self) -> int:
        """Streams that are open now."""
        return self._streams

    def drain(self) -> None:
        """Refuse every stream from now on."""
        self._draining = True

    def check_draining(self) -> None:
        """Raise AdmissionError if the server is draining."""
        if self._draining:
            raise AdmissionError(
                RejectReason.DRAINING, "the server is draining: connect to another"
            )

    @contextmanager
    def stream(self, rpc: Rpc) -> Iterator[None]:
        """Hold one stream's place.

        Raises:
            AdmissionError: all places are taken, or the server is draining.
        """
        self.check_draining()
        if self._streams >= self._max_streams:
            raise AdmissionError(
                RejectReason.OVERLOAD,
                f"expected at most {self._max_streams} streams at once, got another",
                self._overload_retry_seconds,
            )
        self._streams += 1
        self._metrics.stream_opened(rpc)
        try:
            yield
        finally:
            self._streams -= 1
            self._metrics.stream_closed(rpc)
