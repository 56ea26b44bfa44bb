"""Inputs for the tiny bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.engine.base import DTYPES, Array, Engine
from shared.model.bundle import Bundle, PartName


@pytest.fixture(scope="session")
def inputs(tiny_bundle: Bundle) -> dict[PartName, Array]:
    """32 samples for each part, of its dtype."""
    generator = np.random.default_rng(5)
    spec = tiny_bundle.spec
    pictures = generator.normal(size=(32, *spec.input_shape)).astype(np.float32)
    codes: NDArray[np.uint8] = (generator.random((32, *spec.code_shape)) < 0.2).astype(np.uint8)
    return {"head": pictures, "tail": codes, "whole": pictures}


@pytest.fixture
def random_state() -> Any:
    """Makes membranes around the threshold for N samples of an engine."""

    def make(engine: Engine, samples: int) -> tuple[NDArray[np.float32], ...]:
        generator = np.random.default_rng(6)
        return tuple(
            generator.normal(0.3, 0.6, (samples, *shape)).astype(np.float32)
            for shape in engine.state_shapes
        )

    return make


@pytest.fixture(params=sorted(DTYPES))
def part(request: pytest.FixtureRequest) -> PartName:
    """Each part in turn."""
    name: PartName = request.param
    return name
