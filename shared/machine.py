"""What a measurement says about the machine it was made on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from shared.energy.files import text

PACKAGES = ("numpy", "onnxruntime", "grpcio", "protobuf", "torch", "snntorch", "zstandard")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, kernel."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def governors(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the frequency governors of the processor's cores; none where there is no choice."""
    files = root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    return tuple(sorted({text(file) for file in files} - {""}))


def hottest_celsius(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest zone that the system shows, if it shows any."""
    shown = (text(file) for file in root.glob("sys/class/thermal/thermal_zone*/temp"))
    degrees = [int(each) / 1000 for each in shown if each.lstrip("-").isdigit()]
    return max(degrees, default=None)
