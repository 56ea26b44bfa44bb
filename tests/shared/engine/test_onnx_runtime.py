from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from shared.engine.onnx_runtime import load_engine
from shared.errors import BundleError
from shared.model.bundle import MANIFEST, WEIGHTS, Bundle, file_digest


@pytest.fixture
def rewritten(tiny_bundle: Bundle, tmp_path: Path) -> Callable[..., Bundle]:
    """Replaces files of a copy of the tiny bundle and lists them under their new digests."""
    path = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))

    def replace(**files: bytes) -> Bundle:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes())
        for name, content in files.items():
            (path / name).write_bytes(content)
            manifest["files"][name] = file_digest(content)
        (path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        return Bundle(path)

    return replace


def test_bytes_that_are_no_graph_are_refused(rewritten: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleError, match=r"head\.onnx"):
        load_engine(rewritten(**{"head.onnx": b"not a graph"}), "head")


def test_a_graph_of_another_part_is_refused(
    tiny_bundle: Bundle, rewritten: Callable[..., Bundle]
) -> None:
    bundle = rewritten(**{"head.onnx": tiny_bundle.read("whole.onnx")})

    with pytest.raises(BundleError, match="expected inputs"):
        load_engine(bundle, "head")


def test_a_graph_with_a_fixed_batch_is_refused(
    tiny_bundle: Bundle, rewritten: Callable[..., Bundle]
) -> None:
    model = onnx.load_model_from_string(tiny_bundle.read("tail.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(BundleError, match="dynamic batch"):
        load_engine(rewritten(**{"tail.onnx": model.SerializeToString()}), "tail")


def test_a_graph_cannot_read_a_file_that_is_not_listed(
    tiny_bundle: Bundle, rewritten: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(tiny_bundle.read("head.onnx"))
    for initialiser in model.graph.initializer:
        for entry in initialiser.external_data:
            if entry.key == "location":
                entry.value = "other.bin"
    bundle = rewritten(**{"head.onnx": model.SerializeToString()})
    (bundle.path / "other.bin").write_bytes(bundle.read(WEIGHTS))
    monkeypatch.chdir(bundle.path)  # where a path without a directory would be looked up

    with pytest.raises(BundleError, match=r"other\.bin"):
        load_engine(bundle, "head")


def test_weights_too_short_for_the_graph_are_refused(
    tiny_bundle: Bundle, rewritten: Callable[..., Bundle]
) -> None:
    short = tiny_bundle.read(WEIGHTS)[:5000]

    with pytest.raises(BundleError, match=r"head\.onnx"):
        load_engine(rewritten(**{WEIGHTS: short}), "head")


def test_a_session_needs_a_thread(tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        load_engine(tiny_bundle, "head", threads=0)
