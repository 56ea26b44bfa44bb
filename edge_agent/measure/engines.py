"""Engines for measuring: loaded once for all modes, slowed down where a slow device is meant."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from numpy.typing import NDArray

from edge_agent.assembly import load_engine
from edge_agent.config import EdgeConfig
from shared.engine.base import Engine, Shape, State
from shared.model.bundle import Bundle, PartName


class SlowEngine:
    """An engine on a device that is ``factor`` times slower.

    Every call of duration d is followed by a wait of (factor - 1) d, in which the processor is
    free for others. Nothing but engine calls is slowed down.
    """

    def __init__(self, engine: Engine, factor: float) -> None:
        self._engine = engine
        self._factor = factor

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample's input, without N."""
        return self._engine.input_shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one sample's output, without N."""
        return self._engine.output_shape

    @property
    def state_shapes(self) -> tuple[Shape, ...]:
        """Shape of each membrane array, without N."""
        return self._engine.state_shapes

    def step(self, x: NDArray[Any], state: State) -> tuple[NDArray[Any], State]:
        """Run one timestep; see :meth:`shared.engine.base.Engine.step`."""
        began = time.perf_counter()
        result = self._engine.step(x, state)
        time.sleep((self._factor - 1) * (time.perf_counter() - began))
        return result


class Engines:
    """Loads each part once.

    Args:
        config: says which engine.
        bundle: the model.
        slow_edge: how many times slower the device is to be; 1 leaves it as it is.
    """

    def __init__(self, config: EdgeConfig, bundle: Bundle, slow_edge: float) -> None:
        self._config = config
        self._bundle = bundle
        self._slow_edge = slow_edge
        self.load = cache(self._load)
        """Returns the engine of a part; errors as :func:`edge_agent.assembly.load_engine`."""

    def _load(self, part: PartName) -> Engine:
        engine = load_engine(self._config, self._bundle, part)
        return engine if self._slow_edge == 1 else SlowEngine(engine, self._slow_edge)
