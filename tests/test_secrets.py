"""What is secret is in no log and no metric, whatever the two daemons are told to log."""

from __future__ import annotations

import base64
import ssl
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from cloud_server.cli import main
from edge_agent import Edge
from examples.pair import pair
from shared.model.bundle import Bundle
from tests.conftest import Certificates


def secrets_of(folder: Path) -> set[str]:
    """Return what must not show: tokens, and every line of every private key."""
    tokens = {path.read_text().strip() for path in folder.glob("*.token")}
    keys = "\n".join(path.read_text() for path in folder.glob("*.key"))
    return tokens | {line for line in keys.splitlines() if line and not line.startswith("-----")}


def scrape(address: str, certificates: Certificates, authorization: str) -> str:
    """Return the metrics and the first event of the live page."""
    context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
    texts: list[bytes] = []
    for path, lines in (("metrics", -1), ("events", 2)):
        request = urllib.request.Request(
            f"https://{address}/{path}", headers={"Authorization": authorization}
        )
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            texts += reply.readlines() if lines < 0 else [reply.readline() for _ in range(lines)]
    return b"".join(texts).decode()


def config(path: Path, keys: dict[str, str]) -> tuple[str, str]:
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in keys.items()))
    return "--config", str(path)


@pytest.mark.timeout(300)
def test_secrets_are_in_no_log_and_no_metric(
    tiny_bundle: Bundle, certificates: Certificates, tmp_path: Path
) -> None:
    folder = certificates.folder
    for name, known in (("edge", "tokens"), ("scraper", "users"), ("stranger", "others")):
        files = ["--tokens-file", str(folder / known), "--out", str(folder / f"{name}.token")]
        assert main(["token", name, *files]) == 0
    metrics = {
        "metrics_certificate": certificates.path("server.pem"),
        "metrics_key": certificates.path("server.key"),
        "metrics_users": str(folder / "users"),
    }
    access = certificates.server(mutual=True) | {"tokens_file": str(folder / "tokens")}
    cloud = config(tmp_path / "cloud.toml", metrics | access)
    shown = certificates.edge("one") | {"token_file": str(folder / "edge.token")}
    edge = config(tmp_path / "edge.toml", {"bundle": str(tiny_bundle.path)} | metrics | shown)
    loud = ("--log-level", "debug")
    scraper = (folder / "scraper.token").read_text().strip()
    with pair(
        tiny_bundle.path, cloud_flags=(*cloud, *loud), edge_flags=(*edge, *loud), folder=tmp_path
    ) as both:
        with Edge(both.edge.address) as asked:
            answer = asked.classify(np.zeros((3, 32, 32), np.uint8))
        assert answer.placement == "co_inference"
        ask = ["models", "--server", both.cloud.address]
        for key, value in (certificates.edge("two") | {"token_file": ""}).items():
            ask += [f"--{key.replace('_', '-')}", value or str(folder / "stranger.token")]
        assert main(ask) == 2  # Refused, and logged as such.
        texts = [
            scrape(address, certificates, "Basic " + _encoded(f"scraper:{scraper}"))
            for address in (both.cloud.metrics, both.edge.metrics)
        ]
    logs = [(tmp_path / f"{name}.log").read_text() for name in ("cloud", "edge")]
    assert all("DEBUG" in log for log in logs)
    assert "UNAUTHENTICATED" in logs[0]
    assert all("neucodex_build_info" in text and "event: " in text for text in texts)
    secrets = secrets_of(folder)
    assert len(secrets) > 10
    for text in [*logs, *texts]:
        assert not [secret for secret in secrets if secret in text]


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
