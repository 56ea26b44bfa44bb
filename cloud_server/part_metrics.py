"""What one served part of a model tells the metrics: label, part and operations filled in."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cloud_server.session import Ending
from shared.errors import SampleCode
from shared.metrics import CloudMetrics, CloudStage, Direction, Part, SampleEnd, Tell
from shared.model.bundle import Operations

logger = logging.getLogger(__name__)

_ENDS = {
    Ending.EXIT: SampleEnd.CONFIDENT,
    Ending.MAX_TIMESTEPS: SampleEnd.MAX_TIMESTEPS,
    Ending.CANCELLED: SampleEnd.CANCELLED,
    Ending.DISCONNECTED: SampleEnd.DISCONNECTED,
}
"""Endings without an error; the others are counted by what went wrong."""
_ENGINE_STAGES = {Part.TAIL: CloudStage.TAIL, Part.WHOLE: CloudStage.WHOLE}


class PartMetrics:
    """The metrics of one part of one model.

    Args:
        metrics: the server's.
        model: value of the ``model`` label.
        part: ``tail`` or ``whole``.
        operations: mean operations per timestep, if the bundle tells.

    Attributes:
        model: value of the ``model`` label.
        decoded, input_decoded, queued, replied: take in the seconds of those stages.
        served: takes in the seconds from a packet's arrival to its verdict.
        payload: takes in the bytes of code bits of one packet.
        received, sent: take in the bytes of one serialised message.
    """

    def __init__(
        self, metrics: CloudMetrics, model: str, part: Part, operations: Operations | None = None
    ) -> None:
        self.model = model
        self.decoded = metrics.stage(model, CloudStage.DECODE)
        self.input_decoded = metrics.stage(model, CloudStage.DECODE_INPUT)
        self.queued = metrics.stage(model, CloudStage.QUEUE)
        self.replied = metrics.stage(model, CloudStage.REPLY)
        self.served = metrics.service(model)
        self.payload = metrics.payload(model)
        self.received = metrics.message(model, Direction.RECEIVED)
        self.sent = metrics.message(model, Direction.SENT)
        self._metrics = metrics
        self._engine = metrics.stage(model, _ENGINE_STAGES[part])
        self._exit_rule = metrics.stage(model, CloudStage.EXIT_RULE)
        self._batch = metrics.batch(model)
        self._operations: Tell | None = None
        if operations is not None:
            self._operations = metrics.operations(model, part, operations)

    def watch(
        self, *, slots_in_use: Callable[[], int], slot_bytes: int, queue_depth: Callable[[], int]
    ) -> None:
        """Show at every scrape the slots in use, and the timesteps that wait for the engine."""
        self._metrics.watch(
            self.model, slots_in_use=slots_in_use, slot_bytes=slot_bytes, queue_depth=queue_depth
        )

    def engine_call(self, size: int, engine_seconds: float, exit_rule_seconds: float) -> None:
        """The engine computed one timestep of each of ``size`` samples, and they were judged."""
        self._batch(size)
        self._engine(engine_seconds)
        self._exit_rule(exit_rule_seconds)
        if self._operations is not None:
            self._operations(size)

    def engine_restarted(self) -> None:
        """The engine was loaded anew."""
        self._metrics.engine_restarted(self.model)

    def wasted(self, timesteps: int, payload_bytes: int = 0) -> None:
        """Timesteps came, or waited, for a sample that had ended."""
        self._metrics.wasted(self.model, timesteps, payload_bytes)

    def sample_released(self, ending: Ending) -> None:
        """A sample ended; errors are counted by the two methods below."""
        logger.debug("a sample of %s ended: %s", self.model, ending.name)
        if ending in _ENDS:
            self._metrics.sample_ended(self.model, _ENDS[ending])

    def samples_broken_off(self, samples: int) -> None:
        """Samples ended because an error ended their stream."""
        for _ in range(samples):
            self._metrics.sample_ended(self.model, SampleEnd.ERROR)

    def sample_failed(self, code: SampleCode) -> None:
        """A sample ended, or did not begin, with an error."""
        logger.debug("a sample of %s failed: %s", self.model, code.name)
        self._metrics.sample_ended(self.model, SampleEnd(code.name.lower()))
        self._metrics.error("stream", code.name)
        if code is SampleCode.CHECK_FAILED:
            self._metrics.check_failed(self.model)
