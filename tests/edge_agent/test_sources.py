from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.config import SourceConfig
from edge_agent.sources import open_source
from edge_agent.sources.classify import classify_items, open_results
from shared.errors import ConfigError, InputError
from shared.metrics import EdgeMetrics
from tests.edge_agent.conftest import Edges, picture, png


def source(kind: str, path: Path, results: str = "-") -> SourceConfig:
    return SourceConfig(kind=kind, path=str(path), results=results)  # type: ignore[arg-type]


def test_a_folder_yields_its_images_by_name_and_passes_over_the_rest(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.webp"):
        (tmp_path / name).write_bytes(name.encode())
    items = list(open_source(source("folder", tmp_path)))
    assert items == [("a.jpg", b"a.jpg"), ("b.PNG", b"b.PNG"), ("c.webp", b"c.webp")]


def test_a_file_that_cannot_be_read_is_an_item_with_the_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "c.png").write_bytes(b"c")
    items = list(open_source(source("folder", tmp_path)))
    assert [isinstance(item.data, InputError) for item in items] == [True, True, False]


def test_arrays_yield_their_samples_with_name_and_index(tmp_path: Path) -> None:
    one = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1)
    two = np.zeros((1, 4, 2, 1, 1), np.float32)
    np.save(tmp_path / "one.npy", one)
    np.savez(tmp_path / "both.npz", first=one, second=two)
    (name, data), *_ = open_source(source("array", tmp_path / "one.npy"))
    assert name == "one[0]"
    np.testing.assert_array_equal(data, one[0])
    names = [item.name for item in open_source(source("array", tmp_path / "both.npz"))]
    assert names == ["first[0]", "first[1]", "second[0]"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((1, 3, 32, 32), np.float64),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_an_array_of_another_shape_or_kind_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match="source"):
        open_source(source("array", tmp_path / "bad.npy"))


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_a_source_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="source: expected a"):
        open_source(source(kind, tmp_path / "none"))


async def test_results_are_told_in_order_and_a_bad_file_does_not_stop_the_rest(
    tmp_path: Path, edges: Edges, image_files: list[Path]
) -> None:
    folder = image_files[0].parent
    (folder / "1b.png").write_bytes(b"no image")
    (folder / "1c.png").symlink_to(folder / "gone.png")
    results = tmp_path / "results.jsonl"
    config = source("folder", folder, str(results))
    async with edges(placement="edge_only") as edge:
        expected = [await edge.loop.submit(png(seed)) for seed in range(3)]
        metrics = EdgeMetrics(CollectorRegistry(), model="tiny")
        with open_results(config.results) as out:
            await classify_items(edge.loop, open_source(config), out, metrics)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["input"] for line in lines] == ["0.png", "1.png", "1b.png", "1c.png", "2.png"]
    assert "expected an image file" in lines[2]["error"]
    assert "No such file" in lines[3]["error"]
    answered = [lines[index]["label"] for index in (0, 1, 4)]
    assert answered == [answer.label for answer in expected]


def test_results_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="results"), open_results(str(tmp_path)):
        pass


async def test_a_closing_loop_ends_the_source(tmp_path: Path, edges: Edges) -> None:
    np.save(tmp_path / "many.npy", np.stack([picture(0)] * 50))
    results = tmp_path / "results.jsonl"
    config = source("array", tmp_path / "many.npy", str(results))
    async with edges(placement="edge_only") as edge:
        await edge.loop.close()
        metrics = EdgeMetrics(CollectorRegistry(), model="tiny")
        with open_results(config.results) as out:
            await classify_items(edge.loop, open_source(config), out, metrics)
    (line,) = results.read_text().splitlines()
    assert "shutting down" in json.loads(line)["error"]
