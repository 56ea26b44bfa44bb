"""The rest of the network on this device: a part run from its input to the exit rule's decision."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from time import perf_counter

import numpy as np

from shared.engine.base import Array, Engine, zero_state
from shared.exit_rule import Confidence, Decision, added, decide
from shared.metrics import EdgeMetrics, EdgeStage, Part
from shared.model.bundle import Calibration

STAGES = {Part.TAIL: EdgeStage.TAIL_LOCAL, Part.WHOLE: EdgeStage.WHOLE_LOCAL}


class LocalNetwork:
    """``tail`` or ``whole`` of the bundle, loaded when first needed.

    Args:
        part: which.
        load: makes its engine.
        calibration: temperature and operation counts.
        metrics: told what was computed.
    """

    def __init__(
        self,
        part: Part,
        load: Callable[[], Engine],
        calibration: Calibration,
        metrics: EdgeMetrics,
    ) -> None:
        self._part = part
        self._load = load
        self._calibration = calibration
        self._metrics = metrics
        self._engine: Engine | None = None
        self._lock = Lock()

    def engine(self) -> Engine:
        """Return the part's engine, loaded now if it is not yet; BundleError if it cannot be."""
        with self._lock:
            if self._engine is None:
                self._engine = self._load()
        return self._engine

    def begin(self, confidence: Confidence) -> LocalRun:
        """Begin a sample; BundleError if the part cannot be loaded."""
        return LocalRun(self.engine(), self._calibration.temperature, confidence, self._count)

    def _count(self, seconds: float) -> None:
        self._metrics.stage(STAGES[self._part], seconds)
        self._metrics.operations(self._part, self._calibration.operations[self._part], 1)


class LocalRun:
    """One sample under way.

    Args:
        engine: of the part.
        temperature: calibrated.
        confidence: which.
        count: told the seconds of every timestep.
    """

    def __init__(
        self,
        engine: Engine,
        temperature: float,
        confidence: Confidence,
        count: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self._temperature = temperature
        self._confidence = confidence
        self._count = count
        self._state = zero_state(engine, 1)
        self.input_shape = engine.input_shape
        """Of one timestep."""
        (classes,) = engine.output_shape
        self._logit_sum = [0.0] * classes
        self.timestep = 0
        """The next timestep."""
        self.seconds = 0.0
        """Spent so far."""

    def step(self, x: Array) -> Decision:
        """Run the next timestep on ``x``, ``[...]`` without N, and judge.

        Raises:
            EngineError: the engine failed, or its logits are not finite.
        """
        began = perf_counter()
        logits, self._state = self._engine.step(x[np.newaxis], self._state)
        self._logit_sum = added(self._logit_sum, logits[0].tolist())
        decision = decide(self._logit_sum, self.timestep, self._temperature, self._confidence)
        self.timestep += 1
        seconds = perf_counter() - began
        self.seconds += seconds
        self._count(seconds)
        return decision
