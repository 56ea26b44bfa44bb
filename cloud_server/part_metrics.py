"""What one served part of a model tells the metrics: label, part and operations filled in."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_server.session import Ending
from shared.errors import SampleCode
from shared.metrics import CloudMetrics, CloudStage, Direction, Part, SampleEnd
from shared.model.bundle import Operations

_ENDS = {
    Ending.EXIT: SampleEnd.CONFIDENT,
    Ending.MAX_TIMESTEPS: SampleEnd.MAX_TIMESTEPS,
    Ending.CANCELLED: SampleEnd.CANCELLED,
    Ending.DISCONNECTED: SampleEnd.DISCONNECTED,
}
"""Endings without an error; the others are counted by what went wrong."""
_ENGINE_STAGES = {Part.TAIL: CloudStage.TAIL, Part.WHOLE: CloudStage.WHOLE}


@dataclass(frozen=True)
class PartMetrics:
    """The metrics of one part of one model.

    Attributes:
        metrics: the server's.
        model: value of the ``model`` label.
        part: ``tail`` or ``whole``.
        operations: mean operations per timestep, if the bundle tells.
    """

    metrics: CloudMetrics
    model: str
    part: Part
    operations: Operations | None = None

    def engine_call(self, size: int, engine_seconds: float, exit_rule_seconds: float) -> None:
        """The engine computed one timestep of each of ``size`` samples, and they were judged."""
        self.metrics.batch(self.model, size)
        self.stage(_ENGINE_STAGES[self.part], engine_seconds)
        self.stage(CloudStage.EXIT_RULE, exit_rule_seconds)
        if self.operations is not None:
            self.metrics.operations(self.model, self.part, self.operations, size)

    def stage(self, stage: CloudStage, seconds: float) -> None:
        """One stage took so long."""
        self.metrics.stage(self.model, stage, seconds)

    def slots(self, in_use: int, slot_bytes: int) -> None:
        """So many slots of ``slot_bytes`` each are in use now."""
        self.metrics.slots(self.model, in_use, in_use * slot_bytes)

    def queue_depth(self, timesteps: int) -> None:
        """So many timesteps wait for the engine now."""
        self.metrics.queue_depth(self.model, timesteps)

    def wasted(self, timesteps: int, payload_bytes: int = 0) -> None:
        """Timesteps came, or waited, for a sample that had ended."""
        self.metrics.wasted(self.model, timesteps, payload_bytes)

    def payload(self, payload_bytes: int) -> None:
        """Code bits of one packet arrived."""
        self.metrics.payload(self.model, payload_bytes)

    def message(self, message_bytes: int, direction: Direction) -> None:
        """A serialised message was sent or received."""
        self.metrics.message(self.model, message_bytes, direction)

    def service(self, seconds: float) -> None:
        """A verdict was ready ``seconds`` after its packet arrived."""
        self.metrics.service(self.model, seconds)

    def sample_released(self, ending: Ending) -> None:
        """A sample ended; errors are counted by the two methods below."""
        if ending in _ENDS:
            self.metrics.sample_ended(self.model, _ENDS[ending])

    def samples_broken_off(self, samples: int) -> None:
        """Samples ended because an error ended their stream."""
        for _ in range(samples):
            self.metrics.sample_ended(self.model, SampleEnd.ERROR)

    def sample_failed(self, code: SampleCode) -> None:
        """A sample ended, or did not begin, with an error."""
        self.metrics.sample_ended(self.model, SampleEnd(code.name.lower()))
        self.metrics.error("stream", code.name)
        if code is SampleCode.CHECK_FAILED:
            self.metrics.check_failed(self.model)
