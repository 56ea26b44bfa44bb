"""The edge's live page: what its events say is what the metrics and the samples say."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge_agent.config import EdgeConfig
from edge_agent.daemon import Daemon, running
from edge_agent.live import Figures, Sample
from edge_agent.onlooker import View
from edge_agent.picture import MAX_SIDE_PIXELS, to_png
from examples.scrape import Scrape, scrape
from shared.codec.bitpack import pack
from shared.engine import onnx_runtime
from shared.engine.base import zero_state
from shared.model.bundle import Bundle, Preprocessing
from shared.model.preprocessing import prepare
from shared.model.spec import NetworkSpec
from tests.conftest import TINY_SPEC
from tests.edge_agent.conftest import PATIENCE_SECONDS, Clouds, Edges, picture, png, until

T = TypeVar("T")
E = TypeVar("E", Figures, Sample)
Daemons = Callable[..., Any]


@pytest.fixture
def daemons(edge_config: Callable[..., EdgeConfig], tmp_path: Path) -> Daemons:
    """Run edge daemons in this process; keywords are configuration keys."""

    @asynccontextmanager
    async def run(**values: Any) -> AsyncIterator[Daemon]:
        listen = f"unix:{tmp_path / 'edge.sock'}"
        config = edge_config(listen=listen, metrics="127.0.0.1:0", **values)
        async with running(config) as daemon:
            yield daemon

    return run


class Events:
    """The events of a daemon's page."""

    def __init__(self, address: str) -> None:
        url = f"http://{address}/events"
        self._reply = urllib.request.urlopen(url, timeout=PATIENCE_SECONDS)
        self.close = self._reply.close

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while name := self._reply.readline():
            data = self._reply.readline()
            self._reply.readline()
            yield name.removeprefix(b"event: ").strip().decode(), data.removeprefix(b"data: ")

    def next(self, kind: type[E], wanted: Callable[[E], object] = lambda _: True) -> E:
        """Return the next event of a kind that is wanted."""
        wanted_name = "edge" if issubclass(kind, Figures) else "sample"
        for name, data in self:
            if name == wanted_name:
                event = msgspec.json.decode(data, type=kind)
                if wanted(event):
                    return event
        raise AssertionError("the events ended")


async def aside(work: Callable[[], T]) -> T:
    """Do something that waits on a thread, as the daemon runs on this one."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.to_thread(work)


def codes_of(bundle: Bundle, pixels: NDArray[np.uint8]) -> list[bytes]:
    """Run the head by itself and return the packed codes of all timesteps."""
    engine = onnx_runtime.load_engine(bundle, "head")
    x = prepare(pixels, bundle.spec, bundle.manifest.preprocessing)[np.newaxis]
    state, codes = zero_state(engine, 1), []
    for _ in range(bundle.spec.timesteps):
        code, state = engine.step(x, state)
        codes.append(pack(code.reshape(-1)))
    return codes


def decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1)


def assert_equal_to_metrics(figures: Figures, metrics: Scrape) -> None:
    """Compare every figure that the metrics have, too."""
    timesteps = metrics.labels("edge_timesteps_total", "outcome")
    samples = figures.samples
    assert samples.answered == metrics.total("edge_inference_duration_seconds_count")
    assert samples.early == metrics.total("edge_inferences_total", exit_reason="confident")
    assert samples.timesteps_used == timesteps["used"]
    assert samples.timesteps_skipped == timesteps["skipped"]
    assert samples.timesteps_wasted == timesteps["wasted"]
    assert samples.waiting == metrics.total("edge_queue_depth")
    features = metrics.total("edge_baseline_bytes_total", baseline="float32_features")
    payload = metrics.total("edge_payload_bytes_total", direction="sent")
    assert figures.bytes.payload == payload
    assert figures.bytes.features == features
    assert figures.bytes.payload_ratio == pytest.approx(features / payload)
    assert figures.bytes.messages == metrics.total("edge_message_bytes_total")
    assert figures.bytes.wire == metrics.total("edge_wire_bytes_total")
    assert figures.bytes.raw_input == metrics.total(
        "edge_baseline_bytes_total", baseline="raw_input"
    )
    seconds = metrics.total("edge_inference_duration_seconds_sum")
    queued = metrics.total("edge_stage_duration_seconds_sum", stage="queue")
    assert figures.time.sample == pytest.approx(seconds / samples.answered)
    assert figures.time.saved_by_exits == pytest.approx(
        timesteps["skipped"] * (seconds - queued) / timesteps["used"]
    )
    assert figures.link.round_trips == metrics.total("edge_roundtrip_seconds_count")
    assert figures.link.round_trip_sum_seconds == metrics.total("edge_roundtrip_seconds_sum")
    states = metrics.labels("edge_connection_state", "state")
    assert states[figures.link.state] == 1
    assert metrics.labels("edge_breaker_state", "state")[figures.link.breaker] == 1
    assert metrics.labels("edge_setting_mode", "mode")[figures.policy.mode] == 1
    assert figures.policy.window == metrics.total("edge_setting_window_timesteps")
    assert figures.modelled_joules == metrics.total("modelled_energy_joules_total")
    info = metrics.info("model")
    assert figures.about.digest == info["digest"]
    assert "x".join(map(str, figures.about.code_shape)) == info["code_shape"]


async def test_events_say_what_the_metrics_say(
    clouds: Clouds, daemons: Daemons, tiny_bundle: Bundle
) -> None:
    async with clouds() as cloud, daemons(cloud=cloud.address, alpha=(0.0, 1.0, 1.0)) as daemon:
        for seed in range(3):
            await daemon.loop.submit(picture(seed))
        address = daemon.facts["metrics"]
        with closing(await aside(lambda: Events(address))) as events:
            figures = await aside(lambda: events.next(Figures))
            metrics = await aside(lambda: scrape(address))
    assert figures.samples.answered == figures.samples.early == 3
    assert (figures.samples.timesteps_used, figures.samples.timesteps_skipped) == (3, 9)
    assert_equal_to_metrics(figures, metrics)
    assert figures.about.cloud == cloud.address
    assert figures.policy.why.startswith(
        "configured: window; for low latency, of 1 way(s): lock-step"
    )
    assert (figures.time.tail, figures.time.saved_by_cloud) == (None, None)
    assert figures.watts == {}
    assert figures.link.trouble == ""


async def test_a_sample_is_shown_as_it_was(
    clouds: Clouds, daemons: Daemons, tiny_bundle: Bundle
) -> None:
    async with clouds() as cloud, daemons(cloud=cloud.address, reply_mode="step") as daemon:
        address = daemon.facts["metrics"]
        with closing(await aside(lambda: Events(address))) as events:
            await until(lambda: daemon.loop.onlooker.looking)
            answer = await daemon.loop.submit(png(7))
            sample = await aside(lambda: events.next(Sample, lambda each: each.end is not None))
    assert sample.end is not None
    assert (sample.end.name, sample.end.confidence) == (answer.name, answer.confidence)
    assert sample.end.timesteps_used == answer.timesteps_used == sample.timesteps == 4
    assert sample.end.total_seconds == answer.latency.total_seconds
    assert sample.end.payload_bytes == answer.payload_bytes
    assert sum(packet.payload_bytes for packet in sample.packets) == answer.payload_bytes
    assert [verdict.timestep for verdict in sample.verdicts] == [0, 1, 2, 3]
    assert sample.verdicts[-1].confidence == answer.confidence
    assert sample.alpha == (1.0, 1.0, 1.0)
    assert sample.code_shape == tiny_bundle.spec.code_shape
    assert [decoded(code) for code in sample.codes] == codes_of(tiny_bundle, picture(7))
    assert (pixels_of(decoded(sample.picture)) == picture(7)).all()


async def test_a_sample_that_takes_long_is_shown_under_way(
    clouds: Clouds, daemons: Daemons, relay: Any
) -> None:
    async with clouds() as cloud:
        relay.target = cloud.address
        async with daemons(cloud=relay.address) as daemon:
            address = daemon.facts["metrics"]
            await until(lambda: daemon.loop.connected)
            with closing(await aside(lambda: Events(address))) as events:
                await until(lambda: daemon.loop.onlooker.looking)
                relay.hold()
                answer = daemon.loop.submit(picture(0))
                sample = await aside(lambda: events.next(Sample))
                relay.let_go()
                await answer
    assert (sample.end, len(sample.codes), sample.verdicts) == (None, 1, ())
    assert [packet.timestep for packet in sample.packets] == [0]


async def test_what_the_cloud_saves_is_told_once_the_tail_was_timed_here(
    clouds: Clouds, daemons: Daemons
) -> None:
    async with (
        clouds() as cloud,
        daemons(cloud=cloud.address, fallback="local", choose_local=True) as daemon,
    ):
        await until(lambda: daemon.loop.tuner.observer.estimates().get("tail_local"))
        for seed in range(3):
            await daemon.loop.submit(picture(seed))
        address = daemon.facts["metrics"]
        with closing(await aside(lambda: Events(address))) as events:
            time = (await aside(lambda: events.next(Figures))).time
            metrics = await aside(lambda: scrape(address))
    count = metrics.total("edge_inference_duration_seconds_count", placement="co_inference")
    assert time.head is not None
    assert time.tail is not None
    assert time.sample is not None
    queued = metrics.total("edge_stage_duration_seconds_sum", stage="queue") / 3
    expected = count * (4 * (time.head + time.tail) - (time.sample - queued))
    assert time.saved_by_cloud == pytest.approx(expected)


@pytest.mark.parametrize("network", ["split", "whole"])
async def test_without_a_cloud_there_is_no_link_to_show(daemons: Daemons, network: str) -> None:
    async with daemons(placement="edge_only", network=network) as daemon:
        address = daemon.facts["metrics"]
        with closing(await aside(lambda: Events(address))) as events:
            await until(lambda: daemon.loop.onlooker.looking)
            await daemon.loop.submit(picture(1))
            sample = await aside(lambda: events.next(Sample, lambda each: each.end is not None))
            figures = await aside(lambda: events.next(Figures, lambda each: each.samples.answered))
    assert len(sample.codes) == (4 if network == "split" else 0)
    assert (pixels_of(decoded(sample.picture)) == picture(1)).all()
    assert len(sample.verdicts) == 4
    assert (figures.bytes.payload, figures.bytes.payload_ratio) == (0, None)
    assert figures.bytes.wire is None
    assert figures.time.saved_by_cloud is None
    assert figures.about.cloud == ""
    assert figures.policy.why == "placement edge_only: nothing is left to choose"
    assert figures.policy.mode == ""


async def test_another_model_is_shown_once_it_is_in_use(
    daemons: Daemons, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    other, link, later = tmp_path / "other", tmp_path / "bundle", tmp_path / "later"
    shutil.copytree(tiny_bundle.path, other)
    manifest = json.loads((other / "manifest.json").read_text())
    labels = [f"other {label}" for label in manifest["labels"]]
    (other / "manifest.json").write_text(json.dumps(manifest | {"name": "other", "labels": labels}))
    link.symlink_to(tiny_bundle.path)
    later.symlink_to(other)
    async with daemons(placement="edge_only", bundle=str(link)) as daemon:
        await daemon.loop.submit(picture(0))
        with closing(await aside(lambda: Events(daemon.facts["metrics"]))) as events:
            before = await aside(lambda: events.next(Figures))
            later.replace(link)
            await until(lambda: daemon.loop.bundle.path == other)
            await daemon.loop.submit(picture(0))
            sample = await aside(lambda: events.next(Sample, lambda each: each.end is not None))
            after = await aside(
                lambda: events.next(Figures, lambda each: each.samples.answered > 1)
            )
    assert sample.end is not None
    assert sample.end.name.startswith("other ")
    assert (before.about.digest, after.about.model) == (tiny_bundle.digest, "other")
    assert after.about.digest == Bundle(other).digest
    # Counts are of the daemon, times of the model.
    assert after.samples.answered == 2
    assert after.time.sample == sample.end.total_seconds


async def test_trouble_is_told(daemons: Daemons) -> None:
    async with daemons(cloud="127.0.0.1:1") as daemon:
        address = daemon.facts["metrics"]
        with closing(await aside(lambda: Events(address))) as events:
            link = (
                await aside(
                    lambda: events.next(
                        Figures, lambda each: each.link.retries and each.link.trouble
                    )
                )
            ).link
    assert link.trouble.startswith("127.0.0.1:1: UNAVAILABLE")


async def test_without_a_page_nobody_is_shown_anything(daemons: Daemons) -> None:
    async with daemons(placement="edge_only", live_page=False) as daemon:
        assert not daemon.loop.onlooker.looking
        address = daemon.facts["metrics"]
        with pytest.raises(OSError, match="HTTP Error 404"):
            await aside(lambda: Events(address))


async def test_no_view_is_made_while_nobody_looks(clouds: Clouds, edges: Edges) -> None:
    class Spy:
        looking = False
        seen: list[View] = []

        def see(self, view: View) -> None:
            self.seen.append(view)

    async with clouds() as cloud, edges(cloud=cloud.address) as edge:
        spy = edge.loop.onlooker = Spy()
        await edge.loop.submit(picture(0))
        assert spy.seen == []
        spy.looking = True
        answer = await edge.loop.submit(picture(0))
        assert spy.seen[-1].answer == answer


def preprocessing(channels: int) -> Preprocessing:
    return Preprocessing(mean=(0.4,) * channels, std=(0.2,) * channels)


def spec_of(*shape: int) -> NetworkSpec:
    return msgspec.structs.replace(TINY_SPEC, input_shape=shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_that_of_the_pixels_before_they_were_normalised(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 16, 24), dtype=np.uint8)
    spec, how = spec_of(channels, 16, 24), preprocessing(channels)
    for frame in (pixels, prepare(pixels, spec, how), np.stack([np.zeros_like(pixels), pixels])):
        data = to_png(frame, spec, how)
        assert data is not None
        assert (pixels_of(data)[:channels] == pixels).all()


def test_events_are_shown_in_two_colours() -> None:
    counts = np.zeros((2, 16, 16), np.uint8)
    counts[0, 0, 0], counts[1, 3, 3] = 2, 1
    data = to_png(counts, spec_of(2, 16, 16), preprocessing(2))
    assert data is not None
    shown = pixels_of(data)
    assert shown[:, 0, 0].tolist() == [0, 0, 255]
    assert shown[:, 3, 3].tolist() == [127, 0, 0]


def test_a_large_picture_is_made_small_and_what_is_none_is_left_out() -> None:
    large = np.zeros((3, 512, 256), np.uint8)
    data = to_png(large, spec_of(3, 512, 256), preprocessing(3))
    assert data is not None
    assert pixels_of(data).shape == (3, MAX_SIDE_PIXELS, MAX_SIDE_PIXELS // 2)
    assert to_png(b"no picture", TINY_SPEC, preprocessing(3)) is None
    assert to_png(large, TINY_SPEC, preprocessing(3)) is None
