"""The int8 head of the shipped network: written, judged, refused where it is not good enough."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from examples.demo import BUNDLE
from examples.pictures import load_pictures
from shared.engine.base import zero_state
from shared.engine.onnx_runtime import available_providers, load_engine
from shared.errors import ConfigError, EngineError
from shared.metrics import EdgeMetrics
from shared.model.bundle import HEAD_INT8, Bundle
from training.card import INT8_HEADING
from training.data.labelled import LabelledData
from training.export import quantise
from training.quantise import Comparison, Through, check
from training.recipe_data import TrainingData

PICTURES, HELD_OUT = load_pictures(104), 40
DEMO = Bundle(BUNDLE)


def part(begin: int, end: int) -> LabelledData:
    labels = PICTURES.labels[begin:end].astype(np.int64)
    classes = DEMO.manifest.labels
    return LabelledData("cifar10", PICTURES.pixels[begin:end], labels, classes, "train")


DATA = TrainingData(
    part(HELD_OUT, len(PICTURES.labels)), part(0, HELD_OUT), DEMO.manifest.preprocessing
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Comparison]]:
    with pytest.MonkeyPatch.context() as patch:
        # One of 40 samples is 2.5 points.
        patch.setattr("training.quantise.MOST_LOST_POINTS", 10.0)
        out = tmp_path_factory.mktemp("int8") / "bundle"
        compared = quantise(DEMO, "int8", DATA, out)
    yield Bundle(out), compared


def test_the_bundle_is_the_old_one_with_an_int8_head_and_its_figures(
    made: tuple[Bundle, Comparison],
) -> None:
    bundle, compared = made
    added = {HEAD_INT8, "CARD.md"}
    kept = {name: digest for name, digest in bundle.manifest.files.items() if name not in added}
    assert kept.items() <= DEMO.manifest.files.items()
    assert bundle.digest != DEMO.digest
    card = bundle.read("CARD.md").decode()
    assert card.startswith(f"# {DEMO.manifest.name} int8\n")
    assert "## Calibration" in card
    assert card.count(INT8_HEADING) == 1
    assert f"It loses {compared.lost_points:.2f} points" in card
    assert f"{100 * compared.int8_head.accuracy:.2f} %" in card
    assert compared.samples == HELD_OUT
    # Int8 arithmetic for certain, and the same network for certain.
    assert 0 < compared.flipped < 0.2
    assert compared.int8_head.accuracy > 0.7


def test_a_device_runs_it_and_its_codes_are_those_compared(
    made: tuple[Bundle, Comparison],
) -> None:
    bundle, compared = made

    async def answers(**keys: Any) -> list[str]:
        config = EdgeConfig(bundle=str(bundle.path), placement="edge_only", metrics="", **keys)
        loop = build_loop(config, bundle, EdgeMetrics(CollectorRegistry(), model="any"))
        loop.start()
        try:
            return [(await loop.submit(each)).name for each in DATA.held_out.inputs]
        finally:
            await loop.close()

    labels = bundle.manifest.labels
    named = [labels[label] for label in DATA.held_out.labels]
    found = asyncio.run(answers(head="int8"))
    right = sum(one == other for one, other in zip(found, named, strict=True))
    assert right == round(compared.int8_head.accuracy * HELD_OUT)

    engine = load_engine(bundle, "head", graph=HEAD_INT8, providers=["CPUExecutionProvider"])
    frame = np.zeros((1, *bundle.spec.input_shape), np.float32)
    code, _ = engine.step(frame, zero_state(engine, 1))
    assert code.shape == (1, *bundle.spec.code_shape)


def test_a_head_that_loses_too_much_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.quantise.MOST_LOST_POINTS", -101.0)
    few = DATA._replace(held_out=part(0, 4))
    with pytest.raises(ConfigError, match=r"loses at most -101.0 points on 4 held-out samples"):
        quantise(DEMO, "int8", few, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("after", "refused"), [(0.895, False), (0.894, True), (0.91, False)])
def test_half_a_point_is_what_may_be_lost(after: float, refused: bool) -> None:
    code = np.zeros((1, 1, 1, 1, 1), np.uint8)
    float_head, int8_head = (Through(each, 1.0, 1.0, code) for each in (0.9, after))
    compared = Comparison(float_head, int8_head, 1000)
    if refused:
        with pytest.raises(ConfigError, match=r"this one loses 0.60 \(90.00 to 89.40 %\)"):
            check(compared)
    else:
        check(compared)


def test_what_a_bundle_or_a_runtime_lacks_is_named() -> None:
    metrics = EdgeMetrics(CollectorRegistry(), model="any")
    keys: dict[str, Any] = {"bundle": str(DEMO.path), "placement": "edge_only", "metrics": ""}
    with pytest.raises(ConfigError, match=r"head: expected head_int8.onnx in .* there is none"):
        build_loop(EdgeConfig(**keys, head="int8"), DEMO, metrics)
    there = ", ".join(available_providers())
    with pytest.raises(EngineError, match=f"providers: expected some of {there}, which .*'Other'"):
        build_loop(EdgeConfig(**keys, providers=("Other",)), DEMO, metrics)
