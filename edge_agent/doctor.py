"""``neucodex-edge doctor``: is everything there that a daemon with this configuration needs?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edge_agent.alpha import choose_alpha
from edge_agent.config import EdgeConfig
from edge_agent.describe import describing
from protos import co_inference_pb2 as pb
from shared.codec import native
from shared.energy.meter import Finding, Source
from shared.energy.sensors import find_sensors
from shared.errors import BundleError, ConfigError, LinkLostError
from shared.messages import PROTOCOL_VERSION
from shared.model.bundle import Bundle, Calibration

RTT_CALLS = 11
"""Odd, so that the median is one of them."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    found: str


async def examine(config: EdgeConfig, root: Path = Path("/")) -> list[Check]:
    """Return what was found.

    Args:
        config: of the daemon.
        root: where the system's files are.
    """
    bundle, checks = _check_bundle(config)
    if config.placement != "edge_only":
        checks += await _check_cloud(config, bundle)
    return [*checks, _codec(), *_check_engine(config), *_check_sensors(config, root)]


def _check_bundle(config: EdgeConfig) -> tuple[Bundle | None, list[Check]]:
    path = Path(config.bundle)
    try:
        bundle = Bundle(path)
        for part in _parts(config):
            bundle.read(bundle.part(part).graph)
        for name in bundle.manifest.files:
            if (path / name).is_file():
                bundle.read(name)
        calibration = bundle.calibration()
    except BundleError as error:
        return None, [Check("bundle", False, str(error))]
    manifest = bundle.manifest
    return bundle, [
        Check("bundle", True, f"{manifest.name} {manifest.version} at {path}, files verified"),
        Check("digest", True, bundle.digest),
        _check_alpha(config, calibration, bundle.spec.timesteps),
    ]


def _check_alpha(config: EdgeConfig, calibration: Calibration, timesteps: int) -> Check:
    try:
        name, values = choose_alpha(config, calibration, timesteps)
    except ConfigError as error:
        return Check("alpha", False, str(error))
    found = f"{name}: {', '.join(f'{value:.6g}' for value in values) or 'none, T = 1'}"
    is_tested_network = config.network == "split" and config.placement != "cloud_only"
    if is_tested_network and name in calibration.tests:
        found += f"; {calibration.tests[name].promise}"
    return Check("alpha", True, found)


def _codec() -> Check:
    if native.AVAILABLE:
        return Check("codec", True, "in C")
    found = "in Python, slower: the package was installed without a compiler"
    return Check("codec", True, found)


def _check_engine(config: EdgeConfig) -> list[Check]:
    if config.engine != "onnxruntime":
        return []
    from shared.engine.onnx_runtime import available_providers

    available = available_providers()
    missing = [each for each in config.providers if each not in available]
    found = f"ONNX Runtime with {', '.join(available)}"
    if missing:
        return [Check("engine", False, f"expected {', '.join(missing)}, got {found}")]
    return [Check("engine", True, found)]


def _parts(config: EdgeConfig) -> Iterator[Any]:
    """Yield the parts of the bundle that the configuration needs on this device."""
    if config.network == "whole":
        yield "whole"
    elif config.placement != "cloud_only":
        yield "head"
        if config.placement == "edge_only" or config.fallback == "local":
            yield "tail"


async def _check_cloud(config: EdgeConfig, bundle: Bundle | None) -> list[Check]:
    try:
        credentials = config.credentials.watched()
    except ConfigError as error:
        return [Check("credentials", False, str(error))]
    async with describing(config.cloud, credentials) as describe:
        try:
            reply = await describe.reply()
            seconds = [await describe.round_trip() for _ in range(RTT_CALLS)]
        except LinkLostError as error:
            return [Check("cloud", False, str(error))]
    return [
        Check("cloud", True, f"{config.cloud}, version {reply.server_version}"),
        Check("security", True, config.credentials.told),
        _check_version(reply),
        _check_digest(reply, bundle),
        Check("rtt", True, f"{median(seconds) * 1000:.2f} ms, median of {RTT_CALLS} calls"),
    ]


def _check_version(reply: pb.DescribeReply) -> Check:
    versions = list(reply.protocol_versions)
    if PROTOCOL_VERSION in versions:
        return Check("protocol", True, f"version {PROTOCOL_VERSION}")
    return Check("protocol", False, f"expected version {PROTOCOL_VERSION}, got {versions}")


def _check_digest(reply: pb.DescribeReply, bundle: Bundle | None) -> Check:
    served = [model.digest.hex() for model in reply.models]
    if bundle is None:
        return Check("cloud digest", False, f"the cloud serves {', '.join(served)}")
    if bundle.digest in served:
        return Check("cloud digest", True, "the cloud serves this bundle")
    found = ", ".join(served) or "nothing"
    return Check("cloud digest", False, f"expected {bundle.digest}, the cloud serves {found}")


def _check_sensors(config: EdgeConfig, root: Path) -> list[Check]:
    findings = find_sensors(config.energy, root)
    for finding in findings:
        if finding.sensor is not None:
            finding.sensor.close()
    checks = [_check_sensor(finding) for finding in findings]
    if all(finding.sensor is None for finding in findings):
        found = "none can be read: energy is modelled, not measured"
        checks.append(Check("sensors", True, found))
    return checks


def _check_sensor(finding: Finding) -> Check:
    """Fail for the meter that the configuration names alone: without others a daemon can do."""
    ok = finding.sensor is not None or finding.source is not Source.EXTERNAL_METER
    found = finding.found if finding.sensor is not None else f"not usable: {finding.found}"
    return Check("sensor", ok, f"{finding.source}: {found}")


def run(config: EdgeConfig) -> list[Check]:
    """Return what :func:`examine` found."""
    return asyncio.run(examine(config))
