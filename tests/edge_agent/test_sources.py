from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from edge_agent.config import EdgeConfig
from edge_agent.daemon import running
from edge_agent.source_config import (
    AnySource,
    ArraySource,
    CameraSource,
    EventsSource,
    FolderSource,
    HttpSource,
    VideoSource,
)
from edge_agent.sources import open_source
from edge_agent.sources.base import Item, Surroundings
from edge_agent.sources.folder import watch_folder
from edge_agent.sources.http import parts
from edge_agent.sources.run import SourceTask, Waiting, on_a_thread, pass_over
from shared.errors import ConfigError, InputError
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import PATIENCE_SECONDS, Edges, Results, picture, png, until
from tests.shared.events.test_files import dat


def around(bundle: Bundle) -> Surroundings:
    return Surroundings(current=lambda: bundle.manifest, stop=Event())


async def told_of(edges: Edges, bundle: Bundle, config: AnySource) -> list[dict[str, Any]]:
    """Run a source to its end on a loop of its own; return its results."""
    results, metrics = Results(), EdgeMetrics(CollectorRegistry(), model="tiny")
    async with edges(placement="edge_only") as edge:
        task = SourceTask(config, edge.loop, results, metrics, pass_over)
        await task.run(on_a_thread(open_source(config, around(bundle)), config.label))
    return results.told


# Folders and arrays.


def test_a_folder_yields_its_images_by_name_and_passes_over_the_rest(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.webp", ".d.png"):
        (tmp_path / name).write_bytes(name.encode())
    items = open_source(FolderSource(path=str(tmp_path)), around(tiny_bundle))
    found = [(item.name, item.data) for item in items]
    assert found == [("a.jpg", b"a.jpg"), ("b.PNG", b"b.PNG"), ("c.webp", b"c.webp")]


def test_a_file_that_cannot_be_read_is_an_item_with_the_error(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "c.png").write_bytes(b"c")
    items = list(open_source(FolderSource(path=str(tmp_path)), around(tiny_bundle)))
    assert [isinstance(item.data, InputError) for item in items] == [True, True, False]


class Watch:
    """A folder watched from a thread."""

    def __init__(self, path: Path) -> None:
        self.path, self.stop = path, Event()
        self.items: list[Item] = []
        reading = watch_folder(path, 0.1, self.stop)
        self._thread = threading.Thread(target=lambda: self.items.extend(reading))
        self._thread.start()

    def wait_for(self, count: int) -> list[str]:
        waited = Event()
        for _ in range(int(PATIENCE_SECONDS / 0.01)):
            if len(self.items) >= count:
                break
            waited.wait(0.01)
        return [item.name for item in self.items]

    def close(self) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_SECONDS)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    folder = tmp_path / "watched"
    folder.mkdir()
    watch = Watch(folder)
    yield watch
    watch.close()


def test_a_watched_folder_gives_what_comes_oldest_first_and_what_changes_again(
    watch: Watch,
) -> None:
    for name, age in (("b.png", 20), ("a.png", 10)):
        part = watch.path / f".{name}"
        part.write_bytes(name.encode())
        os.utime(part, (1000 - age, 1000 - age))
        part.rename(watch.path / name)
    assert watch.wait_for(2) == ["b.png", "a.png"]
    (watch.path / "a.png").write_bytes(b"other")
    assert watch.wait_for(3) == ["b.png", "a.png", "a.png"]
    assert watch.items[2].data == b"other"


def test_a_file_that_is_still_being_written_is_waited_for(watch: Watch) -> None:
    with (watch.path / "slow.png").open("wb") as file:
        for _ in range(6):
            file.write(b"x" * 1000)
            file.flush()
            assert watch.items == []
            watch.stop.wait(0.04)
    assert watch.wait_for(1) == ["slow.png"]
    assert watch.items[0].data == b"x" * 6000


def test_arrays_yield_their_samples_with_name_and_index(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    one = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1)
    two = np.zeros((1, 4, 2, 1, 1), np.float32)
    np.save(tmp_path / "one.npy", one)
    np.savez(tmp_path / "both.npz", first=one, second=two)
    item, *_ = open_source(ArraySource(path=str(tmp_path / "one.npy")), around(tiny_bundle))
    assert item.name == "one[0]"
    np.testing.assert_array_equal(item.data, one[0])
    items = open_source(ArraySource(path=str(tmp_path / "both.npz")), around(tiny_bundle))
    assert [each.name for each in items] == ["first[0]", "first[1]", "second[0]"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((1, 3, 32, 32), np.float64),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_an_array_of_another_shape_or_kind_is_refused(
    tmp_path: Path, array: np.ndarray, tiny_bundle: Bundle
) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match="source"):
        open_source(ArraySource(path=str(tmp_path / "bad.npy")), around(tiny_bundle))


@pytest.mark.parametrize(
    "config",
    [
        FolderSource(path="/no/such"),
        FolderSource(path="/no/such", watch=True),
        ArraySource(path="/no/such"),
        VideoSource(path="/no/such"),
        HttpSource(url="http://127.0.0.1:1/", credentials="/no/such"),
    ],
)
def test_a_source_that_is_not_there_is_refused(config: AnySource, tiny_bundle: Bundle) -> None:
    if isinstance(config, VideoSource):
        pytest.importorskip("cv2", reason="reads videos")
    with pytest.raises(ConfigError, match="source: expected a"):
        open_source(config, around(tiny_bundle))


# From inputs to results.


async def test_results_are_told_in_order_and_a_bad_file_does_not_stop_the_rest(
    edges: Edges, image_files: list[Path], tiny_bundle: Bundle
) -> None:
    folder = image_files[0].parent
    (folder / "1b.png").write_bytes(b"no image")
    (folder / "1c.png").symlink_to(folder / "gone.png")
    (folder / "1d.jpg").write_bytes(png(0)[:500])
    async with edges(placement="edge_only") as edge:
        expected = [(await edge.loop.submit(png(seed))).label for seed in range(3)]
    lines = await told_of(edges, tiny_bundle, FolderSource(path=str(folder)))
    names = ["0.png", "1.png", "1b.png", "1c.png", "1d.jpg", "2.png"]
    assert [line["input"] for line in lines] == names
    assert {line["source"] for line in lines} == {"folder"}
    assert "expected an image file" in lines[2]["error"]
    assert "No such file" in lines[3]["error"]
    assert "damaged" in lines[4]["error"]
    assert [lines[index]["label"] for index in (0, 1, 5)] == expected


async def test_a_closing_loop_ends_the_source(
    tmp_path: Path, edges: Edges, tiny_bundle: Bundle
) -> None:
    np.save(tmp_path / "many.npy", np.stack([picture(0)] * 50))
    config = ArraySource(path=str(tmp_path / "many.npy"))
    results, metrics = Results(), EdgeMetrics(CollectorRegistry(), model="tiny")
    async with edges(placement="edge_only") as edge:
        await edge.loop.close()
        task = SourceTask(config, edge.loop, results, metrics, pass_over)
        await task.run(on_a_thread(open_source(config, around(tiny_bundle)), "array"))
    (line,) = results.told
    assert "shutting down" in line["error"]


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [("drop_oldest", ["2", "3"], ["0", "1"]), ("drop_newest", ["0", "1"], ["2", "3"])],
)
async def test_of_too_many_inputs_the_policy_s_are_dropped(
    policy: Any, kept: list[str], dropped: list[str]
) -> None:
    gone: list[str] = []
    waiting = Waiting(2, policy, lambda item: gone.append(item.name))
    for name in "0123":
        await waiting.put(Item(name, b""))
    await waiting.end()
    taken = [item.name for item in [await waiting.take(), await waiting.take()] if item]
    assert (taken, gone, await waiting.take()) == (kept, dropped, None)


async def test_a_source_that_waits_is_read_no_further_than_there_is_room() -> None:
    read: list[int] = []

    def items() -> Iterator[Item]:
        for number in range(10):
            read.append(number)
            yield Item(str(number), b"")

    waiting = Waiting(2, "wait", pass_over)

    async def fill() -> None:
        async for item in on_a_thread(items(), "test"):
            await waiting.put(item)
        await waiting.end()

    filling = asyncio.create_task(fill())
    await until(lambda: read == [0, 1, 2])
    names = []
    while (item := await waiting.take()) is not None:
        names.append(item.name)
    assert names == [str(number) for number in range(10)]
    await filling


async def test_what_a_source_raises_is_what_its_reader_gets() -> None:
    def items() -> Iterator[Item]:
        yield Item("0", b"")
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        async for _ in on_a_thread(items(), "test"):
            pass


async def test_pace_is_kept(tmp_path: Path, edges: Edges, tiny_bundle: Bundle) -> None:
    np.save(tmp_path / "some.npy", np.stack([picture(0)] * 4))
    config = ArraySource(path=str(tmp_path / "some.npy"), most_per_second=20)
    began = asyncio.get_running_loop().time()
    assert len(await told_of(edges, tiny_bundle, config)) == 4
    assert asyncio.get_running_loop().time() - began >= 3 / 20


# Videos, cameras and event files.


async def test_a_video_is_classified_picture_by_picture(
    tmp_path: Path, edges: Edges, tiny_bundle: Bundle
) -> None:
    cv2 = pytest.importorskip("cv2", reason="reads videos")
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for seed in range(4):
        writer.write(np.full((48, 64, 3), (60 * seed, 0, 200), np.uint8))
    writer.release()
    pixels = [item.data for item in open_source(VideoSource(path=str(path)), around(tiny_bundle))]
    assert [each.shape for each in pixels] == [(3, 32, 32)] * 4  # type: ignore[union-attr]
    red, blue = np.asarray(pixels[2])[0], np.asarray(pixels[2])[2]
    assert abs(int(red.mean()) - 200) < 12 and abs(int(blue.mean()) - 120) < 12
    lines = await told_of(edges, tiny_bundle, VideoSource(path=str(path), every=2))
    assert [line["input"] for line in lines] == ["film.avi[0]", "film.avi[2]"]
    assert all("label" in line for line in lines)


def test_a_file_that_is_no_video_is_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    pytest.importorskip("cv2", reason="reads videos")
    (tmp_path / "film.avi").write_bytes(b"RIFF but no more")
    with pytest.raises(ConfigError, match="expected a video that OpenCV reads"):
        open_source(VideoSource(path=str(tmp_path / "film.avi")), around(tiny_bundle))


def test_a_camera_that_is_not_there_is_an_error_and_asked_for_again(tiny_bundle: Bundle) -> None:
    pytest.importorskip("cv2", reason="reads cameras")
    surroundings = around(tiny_bundle)
    surroundings.stop.wait = lambda timeout=None: False  # type: ignore[method-assign]
    items = open_source(CameraSource(device="/dev/no-such-video"), surroundings)
    for _ in range(2):
        item = next(items)
        assert isinstance(item.data, InputError)
        assert "/dev/no-such-video" in str(item.data)


def test_event_files_become_frames_as_the_bundle_says(tmp_path: Path, event_bundle: Bundle) -> None:
    rows = [(time, 1, 2, 1) for time in (0, 49_999, 50_000, 199_999, 200_000)]
    (tmp_path / "b.dat").write_bytes(dat(rows, b"% Width 16\n% Height 16\n"))
    (tmp_path / "a.bin").write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("no recording")
    torn, whole = open_source(EventsSource(path=str(tmp_path)), around(event_bundle))
    assert isinstance(torn.data, InputError) and "a.bin" in str(torn.data)
    frames = np.asarray(whole.data)
    assert frames.shape == (4, 2, 16, 16)
    assert frames[:, 1, 2, 1].tolist() == [2, 1, 0, 1]
    assert frames.sum() == 4


def test_events_for_a_network_of_pictures_or_framed_twice_are_refused(
    tmp_path: Path, tiny_bundle: Bundle, event_bundle: Bundle
) -> None:
    config = EventsSource(path=str(tmp_path))
    with pytest.raises(ConfigError, match="reads pictures"):
        open_source(config, around(tiny_bundle))
    own = event_bundle.manifest.preprocessing.framing
    with pytest.raises(ConfigError, match="the bundle says how"):
        twice = msgspec.structs.replace(config, framing=own)
        open_source(twice, around(event_bundle))


# Cameras on the network.


class Camera:
    """An HTTP server whose answers are given by path."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.asked.append(self.headers.get("Authorization", ""))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    camera.answers[self.path](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def camera() -> Iterator[Camera]:
    camera = Camera()
    yield camera
    camera.close()


def respond(content: bytes, kind: str = "image/png") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def mjpeg(*pictures: bytes, length: bool = True) -> bytes:
    told = [f"Content-Length: {len(each)}\r\n" if length else "" for each in pictures]
    joined = [
        f"--edge\r\nContent-Type: image/jpeg\r\n{head}\r\n".encode() + each + b"\r\n"
        for each, head in zip(pictures, told, strict=True)
    ]
    return b"".join(joined) + b"--edge--\r\n"


def first(config: HttpSource, bundle: Bundle, count: int) -> list[Item]:
    items = open_source(config, around(bundle))
    return [next(items) for _ in range(count)]


def test_snapshots_are_asked_for_again_and_again(
    camera: Camera, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("me:word\n")
    camera.answers["/one"] = respond(png(0))
    config = HttpSource(
        url=camera.url("/one"), interval_seconds=0.01, credentials=str(tmp_path / "secret")
    )
    items = first(config, tiny_bundle, 3)
    assert [(item.name, item.data) for item in items] == [
        (f"http[{number}]", png(0)) for number in range(3)
    ]
    assert camera.asked[-1] == "Basic bWU6d29yZA=="


@pytest.mark.parametrize("length", [True, False])
def test_a_stream_of_pictures_is_read_as_it_comes(
    camera: Camera, tiny_bundle: Bundle, length: bool
) -> None:
    kind = "multipart/x-mixed-replace; boundary=edge"
    camera.answers["/many"] = respond(mjpeg(b"one", b"two\r\n\r\n", length=length), kind)
    config = HttpSource(url=camera.url("/many"), interval_seconds=0.01)
    found = [item.data for item in first(config, tiny_bundle, 4)]
    assert found == [b"one", b"two\r\n\r\n"] * 2


def test_a_camera_that_fails_is_an_error_each_time_and_then_goes_on(
    camera: Camera, tiny_bundle: Bundle
) -> None:
    answers = iter([lambda handler: handler.send_error(503), respond(png(1))])
    camera.answers["/late"] = lambda handler: next(answers)(handler)
    config = HttpSource(url=camera.url("/late"), interval_seconds=0.01)
    failed, came = first(config, tiny_bundle, 2)
    assert isinstance(failed.data, InputError) and "503" in str(failed.data)
    assert came.data == png(1)


def test_a_camera_that_trickles_or_floods_is_given_up(
    camera: Camera, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        respond(b"")(handler)
        while not closed.wait(0.02):
            handler.wfile.write(b"x")

    camera.answers["/slow"] = trickle
    camera.answers["/huge"] = respond(bytes(5000))
    monkeypatch.setattr("edge_agent.sources.http.MAX_INPUT_BYTES", 4096)
    try:
        slow = HttpSource(url=camera.url("/slow"), timeout_seconds=0.3)
        (item,) = first(slow, tiny_bundle, 1)
        assert isinstance(item.data, InputError) and "within 0.3 s" in str(item.data)
    finally:
        closed.set()
    (item,) = first(HttpSource(url=camera.url("/huge")), tiny_bundle, 1)
    assert isinstance(item.data, InputError) and "at most 4096 bytes" in str(item.data)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.data())
def test_parts_come_back_however_the_stream_is_cut(
    pictures: list[bytes], data: st.DataObject
) -> None:
    stream = mjpeg(*pictures)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [
        chunk
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        if (chunk := stream[start:stop])
    ]
    assert list(parts(chunks, b"edge")) == pictures
    assert list(parts(chunks, b"--edge")) == pictures


@given(st.binary(max_size=200))
def test_a_stream_of_noise_gives_parts_or_an_error_and_nothing_else(noise: bytes) -> None:
    for stream in (noise, b"--edge\r\n" + noise, mjpeg(b"x")[:30] + noise):
        with contextlib.suppress(InputError):
            list(parts([stream] if stream else [], b"edge"))


@pytest.mark.parametrize("length", [b"-1", b"1e9", b"99999999999", b""])
def test_an_impossible_length_is_refused(length: bytes) -> None:
    with pytest.raises(InputError, match="expected a length"):
        list(parts([b"--edge\r\nContent-Length: " + length + b"\r\n\r\nx"], b"edge"))


async def test_the_daemon_counts_what_became_of_each_source(
    edge_config: Callable[..., EdgeConfig], image_files: list[Path], tmp_path: Path
) -> None:
    import urllib.request

    (image_files[0].parent / "bad.png").write_bytes(b"no image")
    results = tmp_path / "results.jsonl"
    source = FolderSource(name="door", path=str(image_files[0].parent), results=str(results))
    config = edge_config(
        placement="edge_only",
        listen=f"unix:{tmp_path / 'edge.sock'}",
        metrics="127.0.0.1:0",
        sources=(source,),
    )
    async with running(config) as daemon:
        await until(lambda: results.exists() and len(results.read_text().splitlines()) == 4)
        url = f"http://{daemon.facts['metrics']}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())).decode()
    assert all(json.loads(line)["source"] == "door" for line in results.read_text().splitlines())
    for expected in (
        'neucodex_edge_source_inputs_total{outcome="answered",source="door"} 3.0',
        'neucodex_edge_source_inputs_total{outcome="invalid",source="door"} 1.0',
        'neucodex_edge_results_total{outcome="delivered",source="door"} 4.0',
        'neucodex_edge_source_age_seconds_count{source="door"} 4.0',
    ):
        assert expected in text
