from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codec.codecs import NAMES
from shared.codec.context_model import load_tables, save_tables
from shared.errors import BundleError
from shared.model import bundle as bundle_module
from shared.model.bundle import (
    CALIBRATION,
    CODEC_TABLES,
    MANIFEST,
    WEIGHTS,
    BudgetTest,
    Bundle,
    Calibration,
    Manifest,
    PartSpec,
    Preprocessing,
    TensorSpec,
    canonical,
    file_digest,
    pick_alpha,
)
from shared.model.spec import BottleneckSpec, NetworkSpec

MANIFEST_EXAMPLE = Manifest(
    format=1,
    name="example",
    version="1",
    spec=NetworkSpec(
        backbone="vgg16",
        width=0.25,
        input_shape=(3, 32, 32),
        classes=2,
        bottleneck=BottleneckSpec(split="block3", channels=4, stride=2, decoder=(32,)),
    ),
    preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    labels=("cat", "dog"),
    parts={
        "head": PartSpec(
            graph="head.onnx",
            input=TensorSpec(name="input", shape=(3, 32, 32)),
            output=TensorSpec(name="output", shape=(4, 2, 2)),
            states=(TensorSpec(name="a.lif", shape=(16, 32, 32)),),
            next_states=(TensorSpec(name="a.lif.next", shape=(16, 32, 32)),),
        )
    },
    codec="zstd",
    files={"head.onnx": "0" * 64},
)
CANONICAL_EXAMPLE = (
    b'{"codec":"zstd","files":{"head.onnx":'
    b'"0000000000000000000000000000000000000000000000000000000000000000"},"format":1,'
    b'"labels":["cat","dog"],"name":"example","parts":{"head":{"graph":"head.onnx",'
    b'"input":{"name":"input","shape":[3,32,32]},'
    b'"next_states":[{"name":"a.lif.next","shape":[16,32,32]}],'
    b'"output":{"name":"output","shape":[4,2,2]},'
    b'"states":[{"name":"a.lif","shape":[16,32,32]}]}},'
    b'"preprocessing":{"mean":[0.5,0.5,0.5],"std":[0.25,0.25,0.25]},'
    b'"spec":{"backbone":"vgg16","bottleneck":{"channels":4,"decoder":[32],"encoder":[],'
    b'"output":"identity","split":"block3","stride":2},"classes":2,"input_kind":"static",'
    b'"input_shape":[3,32,32],"neuron":{"beta":0.5,"reset":"subtract","threshold":1.0},'
    b'"timesteps":4,"width":0.25},"version":"1"}'
)


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def edit_manifest(path: Path, **changes: object) -> None:
    content = msgspec.json.decode((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(msgspec.json.encode(content | changes))


def test_canonical_manifest_is_these_bytes() -> None:
    assert canonical(MANIFEST_EXAMPLE) == CANONICAL_EXAMPLE


def test_digest_is_the_hash_of_the_canonical_manifest_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(msgspec.json.format(CANONICAL_EXAMPLE, indent=4))

    assert Bundle(tmp_path).digest == hashlib.sha256(CANONICAL_EXAMPLE).hexdigest()


def test_a_default_left_out_of_the_manifest_does_not_change_the_digest(tmp_path: Path) -> None:
    shorter = CANONICAL_EXAMPLE.replace(b'"input_kind":"static",', b"")
    (tmp_path / MANIFEST).write_bytes(shorter)

    assert Bundle(tmp_path).digest == hashlib.sha256(CANONICAL_EXAMPLE).hexdigest()


def test_any_change_changes_the_digest(tiny_bundle: Bundle, copy: Path) -> None:
    edit_manifest(copy, version="changed")

    assert Bundle(copy).digest != tiny_bundle.digest


def test_listed_files_are_read_back(tiny_bundle: Bundle) -> None:
    for name, digest in tiny_bundle.manifest.files.items():
        assert file_digest(tiny_bundle.read(name)) == digest
    assert tiny_bundle.calibration().default_alpha in tiny_bundle.calibration().alpha


def test_a_tampered_file_is_refused(copy: Path) -> None:
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS).write_bytes(content)

    with pytest.raises(BundleError, match="expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        Bundle(copy).read(WEIGHTS)


def test_a_file_beside_the_manifest_is_not_served(copy: Path) -> None:
    (copy / "other.txt").write_text("unlisted")

    with pytest.raises(BundleError, match=r"other\.txt is not listed"):
        Bundle(copy).read("other.txt")


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/hosts", "sub/file.onnx", "..", ".hidden", "a\\b.onnx", "", "x"]
)
def test_a_file_name_that_could_leave_the_directory_is_refused(copy: Path, name: str) -> None:
    edit_manifest(copy, files={name: "0" * 64})

    with pytest.raises(BundleError, match="files"):
        Bundle(copy)


def test_a_graph_name_that_could_leave_the_directory_is_refused(copy: Path) -> None:
    content = msgspec.json.decode((copy / MANIFEST).read_bytes())
    content["parts"]["head"]["graph"] = "../head.onnx"
    (copy / MANIFEST).write_bytes(msgspec.json.encode(content))

    with pytest.raises(BundleError, match="graph"):
        Bundle(copy)


def test_a_bundle_without_its_tail_is_valid_under_the_same_digest(
    tiny_bundle: Bundle, copy: Path
) -> None:
    (copy / "tail.onnx").unlink()

    bundle = Bundle(copy)

    assert bundle.digest == tiny_bundle.digest
    assert bundle.has("head")
    assert not bundle.has("tail")
    with pytest.raises(BundleError, match=r"tail\.onnx: No such file"):
        bundle.read("tail.onnx")


def test_a_part_that_is_not_described_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(CANONICAL_EXAMPLE)

    bundle = Bundle(tmp_path)

    assert not bundle.has("whole")
    with pytest.raises(BundleError, match="no part 'whole', only head"):
        bundle.part("whole")


def test_an_oversized_file_is_refused_unread(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(copy)
    monkeypatch.setattr(bundle_module, "MAX_FILE_BYTES", 1000)

    with pytest.raises(BundleError, match="expected at most 1000 bytes, got"):
        bundle.read(WEIGHTS)


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        Bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
        ({"name": "../up"}, "name"),
        ({"files": {"head.onnx": "short"}}, "files"),
        ({"parts": {"middle": {}}}, "parts"),
        ({"labels": [1]}, "labels"),
        ({"labels": ["cat"]}, "expected 10 labels, got 1"),
        ({"preprocessing": {"mean": [0.5], "std": [1, 1, 1]}}, "expected 3 numbers for mean"),
    ],
)
def test_a_manifest_of_another_form_is_refused(
    copy: Path, changes: dict[str, object], named: str
) -> None:
    edit_manifest(copy, **changes)

    with pytest.raises(BundleError, match=named):
        Bundle(copy)


def test_a_part_whose_shapes_are_not_those_of_the_spec_is_refused(copy: Path) -> None:
    content = msgspec.json.decode((copy / MANIFEST).read_bytes())
    content["parts"]["head"]["output"]["shape"] = [1 << 20, 8, 8]
    (copy / MANIFEST).write_bytes(msgspec.json.encode(content))

    with pytest.raises(BundleError, match="expected head to map"):
        Bundle(copy)

    content["parts"]["head"]["output"]["shape"] = [4, 8, 8]
    content["parts"]["tail"]["states"][0]["shape"] = [1]
    (copy / MANIFEST).write_bytes(msgspec.json.encode(content))

    with pytest.raises(BundleError, match="expected tail to hand on states"):
        Bundle(copy)


def test_a_spec_that_cannot_be_built_is_refused(copy: Path) -> None:
    content = msgspec.json.decode((copy / MANIFEST).read_bytes())
    content["spec"]["bottleneck"]["split"] = "block9"
    (copy / MANIFEST).write_bytes(msgspec.json.encode(content))

    with pytest.raises(BundleError, match=r"stem, .* got 'block9'"):
        Bundle(copy)


def test_a_malformed_calibration_is_refused(copy: Path) -> None:
    (copy / CALIBRATION).write_bytes(b'{"temperature": -1}')
    files = Bundle(copy).manifest.files | {CALIBRATION: file_digest(b'{"temperature": -1}')}
    edit_manifest(copy, files=files)

    with pytest.raises(BundleError, match=CALIBRATION):
        Bundle(copy).calibration()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alpha": {"full": [1, 1]}}, "expected 3 numbers of 0 to 1 for alpha full"),
        ({"alpha": {"full": [1, 1, 1.5]}}, "expected 3 numbers of 0 to 1 for alpha full"),
        ({"default_alpha": "none"}, "expected a default_alpha of full"),
        ({"exit_distribution": [0.5, 0.5]}, "expected 4 shares of exits"),
        ({"exit_distribution": [2, 0, 0, -1]}, "expected 4 shares of exits"),
        ({"operations": {}}, "expected operations of head, tail, whole"),
        ({"temperature": 0}, "temperature"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_calibration_of_another_network_is_refused(
    copy: Path, changes: dict[str, object], complaint: str
) -> None:
    content = msgspec.json.decode((copy / CALIBRATION).read_bytes()) | changes
    rewrite(copy, CALIBRATION, msgspec.json.encode(content))

    with pytest.raises(BundleError, match=complaint):
        Bundle(copy).calibration()


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, CALIBRATION, "head.onnx"])
def test_a_link_out_of_the_bundle_is_not_followed(copy: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)

    with pytest.raises(BundleError, match="expected a file of the bundle, got a link out of it"):
        Bundle(copy).read(name)


def test_links_within_the_bundle_and_to_it_are_followed(copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).rename(copy / "other")
    (copy / WEIGHTS).symlink_to("other")
    (tmp_path / "link").symlink_to(copy)

    assert Bundle(tmp_path / "link").read(WEIGHTS)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_what_is_no_file_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(BundleError, match="expected a regular file"):
        Bundle(copy).read(name)
    (copy / name).unlink()
    (copy / name).symlink_to(name)
    with pytest.raises(BundleError, match=f"{name}: "):
        Bundle(copy).read(name)
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(BundleError, match=f"{name}: "):
        Bundle(copy).read(name)


def test_an_oversized_manifest_is_refused_unread(copy: Path) -> None:
    with (copy / MANIFEST).open("r+b") as file:
        file.truncate(bundle_module.MAX_MANIFEST_BYTES + 1)

    with pytest.raises(BundleError, match="expected at most 4194304 bytes, got 4194305"):
        Bundle(copy)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("spec", "input_shape"), [3, 1 << 20, 1 << 20], "an input of at most"),
        (("spec", "input_shape"), [3, 1, 1 << 23], "a code of 1 to|stride that divides"),
        (("spec", "classes"), 1 << 30, "classes"),
        (("spec", "timesteps"), 1 << 30, "timesteps"),
        (("parts", "tail", "states", 0, "shape"), [1 << 40], "shape"),
        (("parts", "tail", "states", 0, "shape"), [0], "shape"),
        (("parts", "tail", "states", 0, "shape"), [1] * 9, "shape"),
        (("files",), {"head.onnx\n": "0" * 64}, "files"),
        (("files",), {"head.onnx": "0" * 64 + "\n"}, "files"),
    ],
)
def test_sizes_and_names_beyond_reason_are_refused(
    copy: Path, path: tuple[str | int, ...], value: object, complaint: str
) -> None:
    content = inner = msgspec.json.decode((copy / MANIFEST).read_bytes())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (copy / MANIFEST).write_bytes(msgspec.json.encode(content))

    with pytest.raises(BundleError, match=complaint):
        Bundle(copy)


def test_a_state_too_large_for_any_machine_is_refused(copy: Path) -> None:
    content = msgspec.json.decode((copy / MANIFEST).read_bytes())
    for states in ("states", "next_states"):
        content["parts"]["tail"][states][0]["shape"] = [1 << 20, 1 << 10]
    (copy / MANIFEST).write_bytes(msgspec.json.encode(content))

    with pytest.raises(BundleError, match="at most 67108864 membrane potentials in tail"):
        Bundle(copy)


def exits(*distribution: float) -> BudgetTest:
    return BudgetTest(
        points=1,
        delta=0.05,
        images=1000,
        observed_risk=0.004,
        accuracy=0.9,
        exit_distribution=distribution,
    )


@pytest.mark.parametrize(
    ("single", "by_timestep", "picked"),
    [
        (exits(0.5, 0.5, 0), exits(0.6, 0.2, 0.2), "loss_budget_1.0_points"),
        (exits(0.5, 0.1, 0.4), exits(0.6, 0.2, 0.2), "loss_budget_1.0_points_by_timestep"),
        (exits(0.5, 0.1, 0.4), exits(0.5, 0.1, 0.4), "loss_budget_1.0_points"),
        (exits(0.5, 0.1, 0.4), None, "loss_budget_1.0_points"),
        (None, exits(0.5, 0.1, 0.4), "loss_budget_1.0_points_by_timestep"),
    ],
)
def test_a_loss_budget_takes_the_list_with_fewer_timesteps(
    single: BudgetTest | None, by_timestep: BudgetTest | None, picked: str
) -> None:
    names = ("loss_budget_1.0_points", "loss_budget_1.0_points_by_timestep")
    alpha = {"full": (1.0, 1.0)} | dict.fromkeys(names, (0.9, 0.8))
    tests = {n: t for n, t in zip(names, (single, by_timestep), strict=True) if t is not None}

    assert pick_alpha(1, alpha, tests) == picked
    with pytest.raises(
        ValueError, match=r"got 0.5 points; its alpha lists are full, loss_budget_1"
    ):
        pick_alpha(0.5, alpha, tests)


def test_a_test_of_an_alpha_says_what_it_promises() -> None:
    test = msgspec.structs.replace(exits(0.5, 0.1, 0.4), points=0.5, images=5000)

    assert test.promise == (
        "at most 0.5 points lost with 95 % certainty on inputs like its 5,000 held-out images, "
        "1.90 timesteps expected"
    )


def test_a_calibration_need_not_tell_of_tests(tiny_bundle: Bundle) -> None:
    content = msgspec.to_builtins(tiny_bundle.calibration())
    del content["tests"]
    del content["alpha"]["loss_budget_1.0_points_by_timestep"]

    calibration = msgspec.convert(content, Calibration)

    assert pick_alpha(1, calibration.alpha, calibration.tests) == "loss_budget_1.0_points"


@given(content=st.binary(max_size=200))
def test_no_bytes_break_the_reader(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any", numbered=True)
    (folder / MANIFEST).write_bytes(content)

    with pytest.raises(BundleError):
        Bundle(folder)


@given(
    start=st.integers(0, len(CANONICAL_EXAMPLE) - 1),
    length=st.integers(1, 40),
    filler=st.binary(max_size=6),
)
def test_a_damaged_manifest_is_refused_or_has_another_digest(
    start: int, length: int, filler: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    damaged = CANONICAL_EXAMPLE[:start] + filler + CANONICAL_EXAMPLE[start + length :]
    (folder / MANIFEST).write_bytes(damaged)
    try:
        bundle = Bundle(folder)
    except BundleError:
        return
    same = bundle.manifest == MANIFEST_EXAMPLE
    assert (bundle.digest == hashlib.sha256(CANONICAL_EXAMPLE).hexdigest()) is same


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replace a listed file, its hash included."""
    files = msgspec.json.decode((path / MANIFEST).read_bytes())["files"]
    (path / name).write_bytes(content)
    edit_manifest(path, files=files | {name: hashlib.sha256(content).hexdigest()})


def test_a_bundle_with_tables_has_every_codec(tiny_bundle: Bundle) -> None:
    assert set(tiny_bundle.codecs) == set(NAMES)


def test_a_bundle_without_tables_has_the_codecs_that_need_none(copy: Path) -> None:
    files = msgspec.json.decode((copy / MANIFEST).read_bytes())["files"]
    del files[CODEC_TABLES]
    edit_manifest(copy, files=files)

    assert set(Bundle(copy).codecs) == {"raw", "zstd"}


def test_damaged_codec_tables_are_refused(copy: Path) -> None:
    rewrite(copy, CODEC_TABLES, b"no tables")

    with pytest.raises(BundleError, match=r"codec\.npz: expected codec tables"):
        _ = Bundle(copy).codecs


def test_codec_tables_of_another_code_are_refused(copy: Path) -> None:
    tables = load_tables((copy / CODEC_TABLES).read_bytes())
    rewrite(copy, CODEC_TABLES, save_tables(tables._replace(shape=(4, 4, 8), mixing=None)))

    with pytest.raises(BundleError, match=r"codes of \[4, 8, 8\], got \[4, 4, 8\]"):
        _ = Bundle(copy).codecs
