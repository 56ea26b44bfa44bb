"""Simulated edges: every sample that begins is accounted for, at the time it began."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.fleet import Codes, Level, Measured, Pace, run_level
from benchmarks.load import head_codes, smooth_pictures
from edge_agent.config import EdgeConfig
from examples.pair import Ready, run_cloud
from shared.engine.base import zero_state
from shared.engine.onnx_runtime import load_engine
from shared.errors import LinkLostError
from shared.model.bundle import Bundle

pytestmark = pytest.mark.timeout(300)

FULL = (1.0, 1.0, 1.0)
PACE = Pace(seconds=0.4, windows=2, warm_up_seconds=0.1)
STREAMS = 3
PATIENCE_SECONDS = 2.0
"""Of a sample in a queue, or of an edge without a stream."""


@pytest.fixture(scope="module")
def cloud(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    folder = tmp_path_factory.mktemp("cloud")
    config = folder / "cloud.toml"
    config.write_text(f"max_streams = {STREAMS}\n")
    with run_cloud(folder, tiny_bundle.path, "--config", str(config)) as ready:
        yield ready


@pytest.fixture(scope="module")
def samples(tiny_bundle: Bundle) -> list[Codes]:
    return list(head_codes(tiny_bundle, smooth_pictures(tiny_bundle.spec.input_shape, 4)))


def config_for(bundle: Bundle, address: str) -> EdgeConfig:
    return EdgeConfig(
        bundle=str(bundle.path),
        cloud=address,
        alpha=FULL,
        queue_limit=4,
        deadline_seconds=PATIENCE_SECONDS,
    )


def check(found: Measured) -> None:
    """What begins is answered or has an error, and the figures agree with each other."""
    assert found.answered <= found.begun <= found.answered + sum(found.errors.values())
    assert (
        found.latency_p50_seconds
        <= found.latency_p90_seconds
        <= found.latency_p95_seconds
        <= found.latency_p99_seconds
    )
    mean_rate = np.mean(found.window_answers_per_second)
    assert found.answers_per_second == pytest.approx(mean_rate, rel=0.2)


def test_codes_are_those_of_the_head_on_a_picture_that_stays_or_moves(tiny_bundle: Bundle) -> None:
    (picture,) = smooth_pictures(tiny_bundle.spec.input_shape, 1)
    still, moving = head_codes(
        tiny_bundle, [picture, np.stack([picture, picture, picture * 0, picture])]
    )
    engine = load_engine(tiny_bundle, "head")
    state = zero_state(engine, 1)
    for timestep in range(4):
        code, state = engine.step(picture[None], state)
        assert (still[timestep] == code[0]).all()
    assert (moving[:2] == still[:2]).all()
    assert (moving != still).any()


async def test_a_closed_loop_keeps_every_edge_busy(
    tiny_bundle: Bundle, cloud: Ready, samples: list[Codes]
) -> None:
    level = Level(edges=STREAMS, in_flight=2)
    config = config_for(tiny_bundle, cloud.address)
    found = await run_level(config, tiny_bundle, samples, level, PACE, cloud.metrics)
    check(found)
    assert found.errors == {}
    assert found.edges_refused == 0
    assert found.answered > 2 * STREAMS
    assert found.mean_timesteps == 4
    calls, timesteps = found.cloud["engine_calls"], found.cloud["timesteps"]
    assert sum(found.batch_sizes.values()) == calls
    assert found.cloud["mean_batch_size"] == pytest.approx(timesteps / calls)
    assert timesteps == pytest.approx(4 * found.cloud["samples_answered"], abs=4 * 2 * STREAMS)


async def test_in_an_open_loop_time_runs_from_the_arrival(
    tiny_bundle: Bundle, cloud: Ready, samples: list[Codes]
) -> None:
    # One device needs 0.2 s for a sample: of 25 that arrive per second it can begin five, four
    # may wait, and the others are turned away.
    pace = Pace(seconds=1.0, windows=2, warm_up_seconds=1.0, head_seconds=0.05)
    level = Level(edges=1, rate_per_second=25)
    config = config_for(tiny_bundle, cloud.address)
    found = await run_level(config, tiny_bundle, samples, level, pace)
    check(found)
    assert found.begun == pytest.approx(50, abs=5 * np.sqrt(50))
    assert found.errors["the edge's queue is full"] > found.answered > 0
    assert found.latency_p50_seconds > 3 * 4 * pace.head_seconds
    assert found.cloud == found.batch_sizes == {}


async def test_edges_without_a_stream_are_counted(
    tiny_bundle: Bundle, cloud: Ready, samples: list[Codes]
) -> None:
    # Long enough for a refused edge to ask again, as the server tells it to.
    pace = Pace(seconds=1.5, windows=2)
    level = Level(edges=STREAMS + 2)
    config = config_for(tiny_bundle, cloud.address)
    found = await run_level(config, tiny_bundle, samples, level, pace, cloud.metrics)
    assert found.edges_refused == 2
    assert found.cloud["rejected"] > 0
    assert found.answered > 0
    assert any("RESOURCE_EXHAUSTED" in why for why in found.errors)


async def test_no_cloud_is_an_error(tiny_bundle: Bundle, samples: list[Codes]) -> None:
    config = config_for(tiny_bundle, "127.0.0.1:9")
    with pytest.raises(LinkLostError, match="127.0.0.1:9"):
        await run_level(config, tiny_bundle, samples, Level(edges=2), PACE)
