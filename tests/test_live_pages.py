"""The live pages in a real browser: the numbers on them are those of the metrics."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge_agent import Answer, Edge
from examples import screens
from examples.chromium import Browser, Page, chromium, find_chromium
from examples.pair import Pair, pair
from examples.scrape import Scrape, scrape
from shared.codec.bitpack import unpack
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import picture
from tests.edge_agent.test_live import codes_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed (Debian)"),
]

HOSTILE = "<img src=x onerror=\"document.title='run'\"> & {}"
"""Class names that a page must show as they are."""
SAMPLES = 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def both(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A pair that has answered some samples in lock-step, over all timesteps."""
    path = tmp_path_factory.mktemp("live") / "bundle"
    shutil.copytree(tiny_bundle.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["labels"] = [HOSTILE.format(index) for index in range(len(manifest["labels"]))]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pair(path, edge_flags=("--window", "1", "--alpha", "1")) as both:
        classify(both, SAMPLES)
        yield both


def classify(both: Pair, count: int = 1) -> Answer:
    with Edge(both.edge.address) as edge:
        for seed in range(count):
            answer = edge.classify(picture(seed))
    return answer


@contextmanager
def looking(
    browser: Browser, address: str, *, width: int = 1100, dark: bool = False
) -> Iterator[Page]:
    """Show a daemon's page, its figures there."""
    with browser.page(f"http://{address}/", width=width, height=900, dark=dark) as page:
        page.until("document.readyState === 'complete'")
        page.until("[...document.querySelectorAll('[data-at]')].every((each) => each.value !== '')")
        yield page


def figures(page: Page) -> dict[str, Any]:
    """Return the exact values of all numbers on a page, by their path."""
    script = (
        "JSON.stringify(Object.fromEntries([...document.querySelectorAll('[data-at]')]"
        ".map((each) => [each.dataset.at, each.value])))"
    )
    return {path: _parsed(value) for path, value in json.loads(page.value(script)).items()}


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def text(page: Page, path: str) -> str:
    return str(page.value(f"document.querySelector('[data-at=\"{path}\"]').textContent"))


def expected_of_edge(metrics: Scrape) -> dict[str, float]:
    """Return what the metrics say of numbers on the edge's page."""
    total = metrics.total
    features = total("edge_baseline_bytes_total", baseline="float32_features")
    payload = total("edge_payload_bytes_total", direction="sent")
    answered = total("edge_inference_duration_seconds_count")
    trips = total("edge_roundtrip_seconds_count")
    return {
        "samples.answered": answered,
        "samples.timesteps_used": total("edge_timesteps_total", outcome="used"),
        "samples.timesteps_skipped": total("edge_timesteps_total", outcome="skipped"),
        "samples.timesteps_wasted": total("edge_timesteps_total", outcome="wasted"),
        "bytes.features": features,
        "bytes.payload": payload,
        "bytes.payload_ratio": features / payload,
        "bytes.messages": total("edge_message_bytes_total"),
        "bytes.messages_ratio": features / total("edge_message_bytes_total"),
        "bytes.wire": total("edge_wire_bytes_total"),
        "time.sample": total("edge_inference_duration_seconds_sum") / answered,
        "link.round_trips": trips,
        "link.round_trip_seconds": total("edge_roundtrip_seconds_sum") / trips,
        "link.min_rtt_seconds": total("edge_tcp_min_rtt_seconds"),
        "link.retries": total("edge_retries_total"),
        "policy.window": total("edge_setting_window_timesteps"),
        "policy.expected_seconds": total("edge_expected_latency_seconds"),
        "modelled_joules": total("modelled_energy_joules_total"),
    }


def expected_of_cloud(metrics: Scrape) -> dict[str, float]:
    """Return what the metrics say of numbers on the cloud's page."""
    total = metrics.total
    calls = total("cloud_batch_size_count")
    return {
        "streams": total("cloud_streams", rpc="infer"),
        "wire_bytes": total("cloud_wire_bytes_total"),
        "slots_in_use": total("cloud_slots_in_use"),
        "slots_limit": total("cloud_slots_limit"),
        "queue": total("cloud_queue_depth"),
        "computed": total("cloud_timesteps_total"),
        "batch_size": total("cloud_batch_size_sum") / calls,
        "service_seconds": total("cloud_service_duration_seconds_sum")
        / total("cloud_service_duration_seconds_count"),
        "payload_bytes": total("cloud_payload_bytes_total"),
        "modelled_joules": total("modelled_energy_joules_total"),
    }


def test_the_numbers_on_the_edges_page_are_those_of_the_metrics(
    browser: Browser, both: Pair
) -> None:
    with looking(browser, both.edge.metrics) as page:
        expected = expected_of_edge(scrape(both.edge.metrics))
        shown = figures(page)
        assert {path: shown[path] for path in expected} == pytest.approx(expected)
        assert text(page, "samples.answered") == str(SAMPLES)
        assert text(page, "bytes.payload") == f"{expected['bytes.payload']:.0f} B"
        assert text(page, "time.saved_by_cloud") == "–"
        # And they follow.
        classify(both, 2)
        answered = "document.querySelector('[data-at=\"samples.answered\"]').value"
        page.until(f"{answered} == {SAMPLES + 2}")
        expected = expected_of_edge(scrape(both.edge.metrics))
        shown = figures(page)
        assert {path: shown[path] for path in expected} == pytest.approx(expected)


LIT = """[...document.querySelectorAll('canvas.code')].map((canvas) => {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const on = live.colour('one').slice(1).match(/../g).map((hex) => parseInt(hex, 16));
    const found = [];
    for (let pixel = 0; pixel < canvas.width * canvas.height; pixel += 1)
        if (on.every((value, part) => data[4 * pixel + part] === value))
            found.push([pixel % canvas.width, Math.floor(pixel / canvas.width)]);
    return found;
})"""
"""The pixels, x and y, of all codes on the page that show a spike."""


def expected_pixels(bundle: Bundle, pixels: NDArray[np.uint8]) -> list[list[list[int]]]:
    """Return the same, the channels of a code side by side in rows, a pixel between them."""
    channels, height, width = bundle.spec.code_shape
    columns = math.ceil(math.sqrt(2 * channels))
    shown = []
    for packed in codes_of(bundle, pixels):
        code = unpack(packed, channels * height * width).reshape(channels, height, width)
        at = [
            [c % columns * (width + 1) + x, c // columns * (height + 1) + y]
            for c, y, x in np.argwhere(code).tolist()
        ]
        shown.append(sorted(at, key=lambda place: place[::-1]))
    return shown


def test_the_sample_on_the_edges_page_is_the_one_that_was_answered(
    browser: Browser, both: Pair, tiny_bundle: Bundle
) -> None:
    with looking(browser, both.edge.metrics) as page:
        page.until("document.getElementById('state').textContent === 'live'")
        answer = classify(both)
        page.until("document.querySelector('figure.exit') !== null")
        headline = page.value("document.getElementById('headline').textContent")
        assert f"{answer.name}, confidence {answer.confidence:.3f} at the last" in headline
        assert page.value("[picture.naturalWidth, picture.naturalHeight]") == [32, 32]
        assert page.value(LIT) == expected_pixels(tiny_bundle, picture(0))
        assert page.value("document.querySelectorAll('.uplot').length") == 3
        # What a stranger wrote is text.
        assert HOSTILE.format(answer.label) == answer.name
        assert page.value("document.images.length") == 1
        assert page.value("document.title") == "NeuCODEX edge"


def test_the_numbers_on_the_clouds_page_are_those_of_the_metrics(
    browser: Browser, both: Pair
) -> None:
    with looking(browser, both.cloud.metrics) as page:
        page.until("document.querySelector('.model [data-at=computed]') !== null")
        expected = expected_of_cloud(scrape(both.cloud.metrics))
        shown = figures(page)
        assert {path: shown[path] for path in expected} == pytest.approx(expected)
        ended = scrape(both.cloud.metrics).total("cloud_samples_total", reason="max_timesteps")
        assert shown["samples"] == {"max_timesteps": ended}
        assert page.value("document.querySelectorAll('.uplot').length") == 3


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_pages_fit_a_phone_know_the_dark_and_load_nothing_from_elsewhere(
    browser: Browser, both: Pair, side: str
) -> None:
    address = getattr(both, side).metrics
    background = "getComputedStyle(document.body).backgroundColor"
    with looking(browser, address, width=390, dark=True) as page:
        classify(both, 2)
        page.until("document.querySelector('.uplot') !== null")
        assert page.value("document.documentElement.scrollWidth") <= 390
        dark = page.value(background)
        loaded = page.value("performance.getEntriesByType('resource').map((each) => each.name)")
    assert {urlsplit(url).netloc for url in loaded} == {address}
    with looking(browser, address) as page:
        assert page.value(background) != dark


@pytest.mark.timeout(300)
def test_the_pictures_in_the_docs_can_be_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screens, "SECONDS", 1.0)
    assert screens.main(["--out", str(tmp_path)]) == 0
    taken = {path.name for path in tmp_path.iterdir()}
    assert taken == {path.name for path in screens.FOLDER.iterdir()}
    assert sum(path.stat().st_size for path in screens.FOLDER.iterdir()) < 300_000
    for name, width in (("edge-light.webp", 1100), ("cloud-phone.webp", 390)):
        with Image.open(tmp_path / name) as image:
            assert image.width == width
            assert len(image.convert("RGB").getcolors(1 << 16) or ()) > 50
