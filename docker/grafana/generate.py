"""Write the Grafana dashboards beside this file; ``--check`` fails if they are stale.

A dashboard is rows of panels, a panel a title, a unit and expressions; the form that Grafana wants
around them is here once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent / "dashboards"
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
Json = dict[str, Any]


class Panel(NamedTuple):
    """One chart."""

    title: str
    unit: str
    """Grafana's name of it."""
    lines: dict[str, str]
    """Expression by legend; ``{{label}}`` there is a label's value."""
    about: str = ""


class Dashboard(NamedTuple):
    """One page."""

    title: str
    rows: tuple[tuple[Panel, ...], ...]
    """Panels side by side."""


def rate(metric: str, by: str, matchers: str = "") -> str:
    """Return the expression of a counter's rate, summed by labels."""
    chosen = f"{{{matchers}}}" if matchers else ""
    return f"sum by ({by}) (rate(neucodex_{metric}{chosen}[1m]))"


def quantile(share: float, metric: str, by: str) -> str:
    """Return the expression of a histogram's quantile, by labels."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le')})"


EDGE = Dashboard(
    "NeuCODEX edge",
    (
        (
            Panel("Samples", "ops", {"{{placement}}": "neucodex:edge_inferences:rate1m"}),
            Panel(
                "Time of a sample",
                "s",
                {
                    "{{placement}} p50": "neucodex:edge_inference_seconds:p50_1m",
                    "{{placement}} p95": "neucodex:edge_inference_seconds:p95_1m",
                },
                "From acceptance to the answer.",
            ),
            Panel(
                "How samples end",
                "ops",
                {"{{exit_reason}}": rate("edge_inferences_total", "exit_reason")},
            ),
        ),
        (
            Panel(
                "Timesteps used",
                "none",
                {"mean": "neucodex:edge_timesteps_used:mean1m"},
            ),
            Panel(
                "Timesteps",
                "ops",
                {"{{outcome}}": rate("edge_timesteps_total", "outcome")},
                "Skipped: saved by an early exit. Wasted: sent and not needed.",
            ),
            Panel(
                "Confidence of the answers",
                "percentunit",
                {
                    "p50": quantile(0.5, "edge_exit_confidence_ratio", "model"),
                    "alpha": "neucodex_edge_exit_threshold_ratio",
                },
            ),
        ),
        (
            Panel(
                "Bytes",
                "Bps",
                {
                    "payload {{direction}}": rate("edge_payload_bytes_total", "direction"),
                    "messages {{direction}}": rate("edge_message_bytes_total", "direction"),
                    "wire {{direction}}": rate("edge_wire_bytes_total", "direction"),
                },
                "Payload: the code. Messages: protobuf. Wire: all of TCP and IP.",
            ),
            Panel(
                "Less than the float32 features of the split",
                "none",
                {
                    "payload": "neucodex:edge_payload_reduction:rate1m",
                    "messages": "neucodex:edge_message_reduction:rate1m",
                    "wire, both directions": "neucodex:edge_wire_reduction:rate1m",
                },
                "How many times.",
            ),
            Panel(
                "Spikes per neuron of the code",
                "percentunit",
                {"{{site}}": "neucodex:edge_firing_ratio:rate1m"},
            ),
        ),
        (
            Panel(
                "Stages, p95",
                "s",
                {"{{stage}}": quantile(0.95, "edge_stage_duration_seconds", "stage")},
            ),
            Panel(
                "Round trip of a packet",
                "s",
                {
                    "p50": quantile(0.5, "edge_roundtrip_seconds", "model"),
                    "p95": quantile(0.95, "edge_roundtrip_seconds", "model"),
                    "transport p50": quantile(0.5, "edge_transport_seconds", "model"),
                    "kernel's shortest": "neucodex_edge_tcp_min_rtt_seconds",
                },
                "Transport: round trip less the service time in the cloud.",
            ),
            Panel(
                "Link and trouble",
                "none",
                {
                    "{{state}}": "neucodex_edge_connection_state",
                    "unanswered": "neucodex:edge_unanswered_ratio:rate1m",
                    "fallbacks": "neucodex:edge_fallback_ratio:rate1m",
                },
            ),
        ),
    ),
)

CLOUD = Dashboard(
    "NeuCODEX cloud",
    (
        (
            Panel("Streams", "none", {"{{rpc}}": "neucodex_cloud_streams"}),
            Panel(
                "Slots",
                "none",
                {
                    "{{model}} in use": "neucodex_cloud_slots_in_use",
                    "{{model}} there are": "neucodex_cloud_slots_limit",
                },
            ),
            Panel("Samples", "ops", {"{{reason}}": rate("cloud_samples_total", "reason")}),
        ),
        (
            Panel(
                "Service of a packet",
                "s",
                {
                    "{{model}} p50": quantile(0.5, "cloud_service_duration_seconds", "model"),
                    "{{model}} p95": "neucodex:cloud_service_seconds:p95_1m",
                },
            ),
            Panel(
                "Stages, p95",
                "s",
                {"{{stage}}": quantile(0.95, "cloud_stage_duration_seconds", "stage")},
            ),
            Panel("Timesteps waiting", "none", {"{{model}}": "neucodex_cloud_queue_depth"}),
        ),
        (
            Panel(
                "Batch size",
                "none",
                {
                    "{{model}} mean": "neucodex:cloud_batch_size:mean1m",
                    "{{model}} p95": quantile(0.95, "cloud_batch_size", "model"),
                },
            ),
            Panel("Timesteps", "ops", {"{{model}}": rate("cloud_timesteps_total", "model")}),
            Panel(
                "Bytes",
                "Bps",
                {
                    "payload": rate("cloud_payload_bytes_total", "direction"),
                    "messages {{direction}}": rate("cloud_message_bytes_total", "direction"),
                    "wire {{direction}}": rate("cloud_wire_bytes_total", "direction"),
                },
            ),
        ),
        (
            Panel(
                "Wasted timesteps",
                "ops",
                {"{{model}}": rate("cloud_wasted_timesteps_total", "model")},
                "Received and not needed.",
            ),
            Panel(
                "Membrane state",
                "bytes",
                {"{{model}}": "neucodex_cloud_session_state_bytes"},
            ),
            Panel(
                "Memory of the process",
                "bytes",
                {"resident": 'process_resident_memory_bytes{job="neucodex-cloud"}'},
            ),
        ),
    ),
)

ENERGY = Dashboard(
    "NeuCODEX energy",
    (
        (
            Panel(
                "Measured power",
                "watt",
                {"{{instance}} {{source}} {{component}}": "neucodex:measured_power_watts:rate1m"},
                "Of the whole machine. total contains the others. No sensor, no line.",
            ),
            Panel(
                "Measured energy per inference, gross",
                "joule",
                {
                    "{{instance}} {{source}}": (
                        "neucodex:edge_measured_gross_joules_per_inference:rate5m"
                    )
                },
                "Idle power and all other programs included. For net energy: measure --energy.",
            ),
        ),
        (
            Panel(
                "MODELLED edge energy per inference",
                "joule",
                {
                    "{{instance}} {{source}}": "neucodex:edge_modelled_joules_per_inference:rate1m",
                    "{{placement}} p95": quantile(
                        0.95, "edge_modelled_inference_energy_joules", "placement"
                    ),
                },
                "Computed from operation counts, never a measurement: a dense engine on a CPU does "
                "not spend it.",
            ),
            Panel(
                "MODELLED energy by part",
                "watt",
                {
                    "{{component}} {{basis}}": rate(
                        "modelled_energy_joules_total", "component, basis"
                    )
                },
                "The same, of edge and cloud.",
            ),
        ),
        (
            Panel(
                "Operations",
                "ops",
                {"{{part}} {{kind}}": rate("synaptic_operations_total", "part, kind")},
            ),
            Panel(
                "Accumulates per membrane update",
                "none",
                {
                    "{{part}} {{source}}": (
                        rate("synaptic_operations_total", "part, source", 'kind="ac"')
                        + " / "
                        + rate("synaptic_operations_total", "part, source", 'kind="neuron"')
                    )
                },
                "Where counted lies above calibrated, inputs fire more than those the bundle was "
                "calibrated on.",
            ),
        ),
        (
            Panel(
                "Time without a reading",
                "percentunit",
                {
                    "{{instance}} {{source}}": rate(
                        "energy_unsampled_seconds_total", "instance, source"
                    )
                },
            ),
            Panel(
                "Readings that failed",
                "ops",
                {"{{source}} {{reason}}": rate("energy_sensor_errors_total", "source, reason")},
            ),
        ),
    ),
)

DASHBOARDS = {"edge": EDGE, "cloud": CLOUD, "energy": ENERGY}


def rendered() -> dict[str, str]:
    """Return the files' contents by name."""
    return {
        f"{name}.json": json.dumps(_dashboard(name, each), indent=1, ensure_ascii=False) + "\n"
        for name, each in DASHBOARDS.items()
    }


def _dashboard(name: str, dashboard: Dashboard) -> Json:
    return {
        "uid": f"neucodex-{name}",
        "title": dashboard.title,
        "tags": ["neucodex"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data"}
            ]
        },
        "panels": list(_panels(dashboard)),
    }


def _panels(dashboard: Dashboard) -> Iterator[Json]:
    number = 0
    for row, panels in enumerate(dashboard.rows):
        width = WIDTH // len(panels)
        for column, panel in enumerate(panels):
            number += 1
            place = {"x": column * width, "y": row * HEIGHT, "w": width, "h": HEIGHT}
            yield _panel(number, panel, place)


def _panel(number: int, panel: Panel, place: Json) -> Json:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {"fillOpacity": 8}},
            "overrides": [],
        },
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATA_SOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
            for index, (legend, expression) in enumerate(panel.lines.items())
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 if stale")
    check = parser.parse_args(argv).check
    code = 0
    for name, content in rendered().items():
        path = FOLDER / name
        if not check:
            path.write_text(content, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            sys.stderr.write(f"{path} is stale: run python docker/grafana/generate.py\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
