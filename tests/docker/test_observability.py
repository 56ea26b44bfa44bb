"""Rules and dashboards: by promtool, by the metrics there are, and against a real Prometheus."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent import Edge
from examples.pair import run_cloud, run_edge
from shared.metrics import INFO_FAMILIES, NAMESPACE, Histogram
from shared.metrics_page import tables
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import picture

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "docker" / "prometheus"
GRAFANA = ROOT / "docker" / "grafana"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
PATIENCE_SECONDS = 60.0
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)"
)


def promtool(*arguments: object) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", *RULES)


@needs_promtool
def test_rules_and_alerts_give_what_they_should() -> None:
    promtool("test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml")))


def test_every_alert_is_seen_to_fire_in_a_test() -> None:
    alerts = re.findall(r"- alert: (\w+)", (PROMETHEUS / "rules" / "alerts.yml").read_text())
    tests = (PROMETHEUS / "tests" / "rules.yml").read_text()
    fired = re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n", tests)
    assert len(alerts) == len(set(alerts)) > 0
    assert set(fired) == set(alerts)


def expressions() -> dict[str, str]:
    """Return every expression of the dashboards by where it stands."""
    return {
        f"{path.stem}: {panel['title']}: {target['legendFormat']}": target["expr"]
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    }


def recorded() -> set[str]:
    """Return the names of the recording rules."""
    return set(re.findall(r"- record: (\S+)", "".join(path.read_text() for path in RULES)))


def exported() -> set[str]:
    """Return the names of all series that the daemons may show."""
    names = {f"{NAMESPACE}_{name}_info" for name in INFO_FAMILIES}
    for families in tables().values():
        for name, family in families.items():
            suffixes = ("_bucket", "_sum", "_count") if family.kind is Histogram else ("",)
            names |= {name + suffix for suffix in suffixes}
    return names


def test_rules_and_dashboards_ask_only_for_what_there_is() -> None:
    rules = "".join(path.read_text() for path in RULES)
    asked = "".join(re.findall(r"expr:(.*?)(?=\n +(?:- |for:|labels:)|\Z)", rules, re.DOTALL))
    asked += " ".join(expressions().values())
    names = set(re.findall(rf"\b{NAMESPACE}_\w+", asked))
    assert len(names) > 30
    assert names <= exported()
    assert set(re.findall(rf"\b{NAMESPACE}:[\w:]+", asked)) <= recorded()


def test_the_dashboards_are_those_of_their_generator() -> None:
    command = (sys.executable, str(GRAFANA / "generate.py"), "--check")
    assert subprocess.run(command, check=False).returncode == 0
    assert len(DASHBOARDS) == 3
    uids = {json.loads(path.read_text())["uid"] for path in DASHBOARDS}
    assert uids == {"neucodex-edge", "neucodex-cloud", "neucodex-energy"}


class Server:
    """A running Prometheus."""

    def __init__(self, address: str) -> None:
        self._address = address

    def query(self, expression: str) -> list[float]:
        """Return the values of all series that an expression gives now."""
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://{self._address}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return [float(each["value"][1]) for each in found["data"]["result"]]

    def has_data(self, expression: str) -> bool:
        """Say whether it gives a number."""
        return any(map(math.isfinite, self.query(expression)))

    def is_ready(self) -> bool:
        """Say whether it answers."""
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=10) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, edge: str, cloud: str) -> Iterator[Server]:
    """Run Prometheus with the shipped configuration, at a quicker pace, on these daemons."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    for old, new in (("127.0.0.1:9465", edge), ("127.0.0.1:9464", cloud), (": 5s", ": 500ms")):
        assert old in text
        text = text.replace(old, new)
    (folder / "prometheus.yml").write_text(text)
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Server(address)
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def load(edge: str, meter: Path) -> Iterator[None]:
    """Keep the pair busy, and a meter telling."""
    stop = threading.Event()

    def classify() -> None:
        with Edge(edge) as client:
            while not stop.is_set():
                client.classify(picture(0))
                client.classify(picture(1))

    def measure() -> None:
        with meter.open("a", buffering=1) as file:
            while not stop.wait(0.1):
                file.write(f'{{"watts": 5, "time_seconds": {time.monotonic()}}}\n')

    threads = [threading.Thread(target=each) for each in (classify, measure)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_expression_has_data_while_the_pair_is_scraped(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    meter, config = tmp_path / "meter.jsonl", tmp_path / "energy.toml"
    meter.touch()
    config.write_text(f"[energy]\nsensors = false\nexternal_meter = '{meter}'\ncount_every = 2\n")
    flags = ("--config", str(config))
    wanted = expressions() | {name: name for name in recorded()}
    with (
        run_cloud(tmp_path, tiny_bundle.path, *flags) as cloud,
        run_edge(tmp_path, tiny_bundle.path, "--cloud", cloud.address, *flags) as edge,
        load(edge.address, meter),
        prometheus(tmp_path, edge.metrics, cloud.metrics) as server,
    ):
        deadline = time.monotonic() + PATIENCE_SECONDS
        missing = dict(wanted)
        while missing and time.monotonic() < deadline:
            if server.is_ready():
                missing = {k: each for k, each in missing.items() if not server.has_data(each)}
            time.sleep(0.5)
        log = (tmp_path / "prometheus.log").read_text()
        assert not missing, f"{missing}\n{log[-2000:]}"
        assert server.query('ALERTS{alertname!="NeucodexWastedTimesteps"}') == []
        name = "neucodex_measured_power_watts"
        assert server.query(f'{name}{{job="neucodex-edge", component="total"}}') == [5]
        assert server.query(f'{name}{{job="neucodex-cloud", component="total"}}') == [5]
