"""The files for Kubernetes: valid by its own schemas, and true of the server they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import ROOT
from cloud_server import config
from cloud_server.server import SERVICE
from cloud_server.servicer import ABORT_SECONDS
from shared.metrics import CLOUD_FAMILIES, NAMESPACE

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="has the schemas")
yaml = pytest.importorskip("yaml", reason="reads the files")

FOLDER = ROOT / "docker" / "kubernetes"
SPARE_SECONDS = 5.0
"""After draining: engines, meter and metrics are closed."""


def objects(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / file).read_text()))


@pytest.fixture(scope="module")
def cloud() -> dict[str, dict[str, Any]]:
    """The objects of the servers, by kind."""
    return {each["kind"]: each for each in objects("cloud.yaml")}


@pytest.fixture(scope="module")
def pod(cloud: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = cloud["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def settings(
    cloud: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> config.CloudConfig:
    """What the servers are told, as they read it."""
    path: Path = tmp_path_factory.mktemp("config") / "cloud.toml"
    path.write_text(cloud["ConfigMap"]["data"]["cloud.toml"])
    return config.load(path, {})


@pytest.mark.parametrize("file", ["cloud.yaml", "autoscaler.yaml"])
def test_the_files_are_valid(file: str) -> None:
    for each in objects(file):
        kubernetes_validate.validate(each, "1.35", strict=True)
    each["spec"]["replicaz"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(each, "1.35", strict=True)


def test_everything_means_the_same_pods(cloud: dict[str, dict[str, Any]]) -> None:
    labels = cloud["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert cloud["Service"]["spec"]["selector"] == labels
    assert cloud["Service"]["spec"]["clusterIP"] == "None"
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert cloud[kind]["spec"]["selector"]["matchLabels"] == labels
    (scaler,) = objects("autoscaler.yaml")
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (
        "Deployment",
        cloud["Deployment"]["metadata"]["name"],
    )


def test_a_drain_fits_into_the_time_before_the_kill(
    pod: dict[str, Any], settings: config.CloudConfig
) -> None:
    (container,) = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + settings.drain_seconds + ABORT_SECONDS + SPARE_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= needed


def test_probes_and_ports_are_those_of_the_server(
    cloud: dict[str, dict[str, Any]], pod: dict[str, Any], settings: config.CloudConfig
) -> None:
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.listen == f"0.0.0.0:{ports['grpc']}"
    assert settings.health == f"0.0.0.0:{ports['health']}"
    assert settings.metrics == f"0.0.0.0:{ports['metrics']}"
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["grpc"]["port"] == ports["health"]
    assert container["readinessProbe"]["grpc"]["service"] == SERVICE
    annotations = cloud["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["metrics"])


def test_the_server_is_nobody_and_writes_only_its_socket(
    pod: dict[str, Any], settings: config.CloudConfig
) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] != 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert writable == [str(Path(settings.admin.removeprefix("unix:")).parent)]
    assert settings.tls_client_ca is not None


def test_the_autoscaler_asks_for_a_metric_that_there_is() -> None:
    (scaler,) = objects("autoscaler.yaml")
    (values,) = objects("prometheus-adapter.yaml")
    (rule,) = values["rules"]["custom"]
    asked = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert asked == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(f"{asked}{{")
    assert asked.removeprefix(f"{NAMESPACE}_") in CLOUD_FAMILIES
