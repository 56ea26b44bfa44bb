"""The report for people: Markdown with tables, and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.measure.charts import Line, Row, bar_chart, line_chart
from edge_agent.measure.energy import EnergyReport, Spread
from edge_agent.measure.report import ModeReport, Report

BASELINES = ("edge_only_full", "edge_only_exit")
COMPUTED = {
    "float32_features_full_t": "features at the split as float32, all timesteps",
    "packed_features_full_t": "features at the split, one bit each, all timesteps",
    "packed_code_full_t": "code, one bit per neuron, all timesteps",
    "raw_input": "the input, a byte per value",
}
FIGURES = {
    "latency": "How many images have their answer after some time",
    "split": "Where the time of an image goes",
    "bytes": "What an image takes on its way",
    "timesteps": "How many timesteps the images take",
    "energy": "Modelled energy on the device",
    "accuracy": "Accuracy",
}


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and the figures into a folder, made if need be.

    Raises:
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(report)
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    (folder / "report.md").write_text(markdown(report, list(drawn)), encoding="utf-8")
    json = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (folder / "report.json").write_bytes(json + b"\n")


def markdown(report: Report, drawn: Sequence[str]) -> str:
    """Return the text, with links to the figures ``drawn``."""
    model = report.model
    parts = [
        f"# {model['name']} measured on {report.machine['processor']}",
        f"{report.measured_at}, {report.images} images, spiking network ({model['backbone']}, "
        f"width {model['width']:g}) split after `{model['split']}`, T = {model['timesteps']}.",
        "## Results",
        _table(_results(report)),
        *_skipped(report),
        *(f"![{FIGURES[name]}]({name}.svg)" for name in drawn),
        "## Latency below the baselines",
        "Median latency of the baseline over that of the mode; above 1 the mode is faster.",
        _table(_ratios(report)),
        "## Where the time goes",
        "Means per image. *Waiting*: nothing to do on the device for this image, handing over "
        "between its threads included. *Cloud* (by its own clock) and *transport* (round trips "
        "less that: both directions and both gRPC stacks, not a one-way delay) make up the "
        "waiting where one timestep is under way at a time; where several are, the device works "
        "during a part of them.",
        _table(_split(report)),
        "## Bytes per image",
        "*Payload* is the code after the codec (of a cloud-only mode, the input as it was sent), "
        "*message* the serialised protobuf, *wire* IP and TCP headers and payload, pure "
        "acknowledgements and retransmissions included, no Ethernet. Opening a stream is counted "
        "apart, once per stream.",
        _table(_bytes(report)),
        "Computed, not sent:",
        _table(_computed(report)),
        *_measured_energy(report),
        "## The modes",
        _list(f"**{_words(name)}**: {mode.what}." for name, mode in report.modes.items()),
        "The bottleneck is part of every co-inference mode: without it the cloud could not read "
        "what it gets. *No compression* therefore leaves out the codec alone; what the features "
        "themselves would take is computed above.",
        "## How it was measured",
        _list(_method(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _method(report: Report) -> Iterator[str]:
    plan, network = report.plan, report.network
    yield (
        f"{report.images} images in each mode, in {plan.rounds} rounds; in each round every mode "
        f"runs a block of them on a stream of its own, in another order each time. The first "
        f"{plan.warm_up} of a block are run before, too, and not counted."
    )
    yield (
        "One image at a time, from the array in memory (uint8 as the network's input, or as "
        "it was given) to its answer, on this device's monotonic clock; the cloud's own time is by "
        "the cloud's. The clocks are never compared."
    )
    yield (
        "Encoding a PNG or WebP is part of the time. The daemon's service for applications is not: "
        "the measuring program runs the daemon's loop itself."
    )
    yield (
        "Modelled energy is counted operations of this device at the prices of the configuration "
        "(if not set otherwise 45 nm arithmetic, no memory), never a measurement. Idle power is "
        "left out, and so is the radio where no profile is set: cloud-only then shows 0."
    )
    if plan.slow_edge != 1:
        yield (
            f"**Slow device emulated**: each call of an engine on this device, of duration d, was "
            f"followed by a wait of {plan.slow_edge - 1:g} d, in the edge-only modes too; nothing "
            "else was slowed down."
        )
    yield f"Cloud: `{network['cloud']}`{_rtt(network)}."
    yield _emulation(network)
    yield f"Device: {report.machine['processor']}, {report.machine['cores']} cores, " + ", ".join(
        f"{name} {version}" for name, version in report.versions.items()
    )
    yield f"Model digest `{report.model['digest']}`. All settings are in `report.json`."


def _rtt(network: dict[str, Any]) -> str:
    text = ""
    if "tcp_min_rtt_seconds" in network:
        shortest = _ms(network["tcp_min_rtt_seconds"])
        text += f", shortest round trip of TCP {shortest} (to the first hop, behind a proxy)"
    if "tcp_congestion_control" in network:
        text += f", congestion control {network['tcp_congestion_control']}"
    return text


def _emulation(network: dict[str, Any]) -> str:
    if "emulated" not in network:
        return "The network was the real one."
    link = dict(network["emulated"])
    facts = ", ".join(f"{name} {value}" for name, value in link.pop("profile").items())
    reason = f" ({link['reason']})" if "reason" in link else ""
    return f"**The network was emulated** by {link['method']}{reason}: {facts}."


def _results(report: Report) -> Iterator[list[str]]:
    yield [
        "mode",
        "answered",
        "accuracy",
        "p50",
        "p95",
        "p99",
        "mean",
        "timesteps",
        "wasted",
        "modelled energy",
        *(["modelled radio"] if _has_radio(report) else []),
    ]
    for name, mode in report.modes.items():
        latency = mode.latency
        yield [
            _words(name),
            f"{mode.answered} of {mode.images}",
            "" if mode.accuracy is None else f"{100 * mode.accuracy:.1f} %",
            _ms(latency.p50_seconds),
            _ms(latency.p95_seconds),
            _ms(latency.p99_seconds),
            _ms(latency.mean_seconds),
            f"{mode.mean_timesteps:.2f}",
            f"{mode.wasted_timesteps:.2f}",
            f"{1e6 * mode.modelled_edge_joules:.1f} µJ",
            *([f"{1e6 * (mode.modelled_radio_joules or 0):.1f} µJ"] if _has_radio(report) else []),
        ]


def _has_radio(report: Report) -> bool:
    return any(mode.modelled_radio_joules is not None for mode in report.modes.values())


def _ratios(report: Report) -> Iterator[list[str]]:
    baselines = [name for name in BASELINES if name in report.modes]
    yield ["mode", *(f"below {_words(name)}" for name in baselines)]
    for name, mode in report.modes.items():
        if name not in baselines:
            yield [_words(name), *(_ratio(report.modes[each], mode) for each in baselines)]


def _ratio(baseline: ModeReport, mode: ModeReport) -> str:
    if not mode.answered:
        return ""
    return f"{baseline.latency.p50_seconds / mode.latency.p50_seconds:.2f}x"


def _split(report: Report) -> Iterator[list[str]]:
    stages = list(next(iter(report.modes.values())).stage_seconds)
    yield ["mode", *stages, "cloud", "transport"]
    for name, mode in report.modes.items():
        times = [mode.stage_seconds[stage] for stage in stages]
        times += [mode.service_seconds, mode.transport_seconds]
        yield [_words(name), *map(_ms, times)]


def _bytes(report: Report) -> Iterator[list[str]]:
    yield [
        "mode",
        "payload",
        "message up",
        "message down",
        "wire up",
        "wire down",
        "wire",
        "float32 features over wire",
        "opening",
    ]
    features = report.computed_bytes["float32_features_full_t"]
    for name, mode in report.modes.items():
        sizes = mode.bytes
        wire = sizes.wire
        yield [
            _words(name),
            *map(_size, (sizes.payload, sizes.message_sent, sizes.message_received)),
            *map(_size, (sizes.wire_sent, sizes.wire_received, wire)),
            f"{features / wire:,.0f}x" if wire else "",
            _size(sizes.opening),
        ]


def _computed(report: Report) -> Iterator[list[str]]:
    yield ["what", "bytes per image"]
    for name, size in report.computed_bytes.items():
        yield [COMPUTED[name], _size(size)]


def _measured_energy(report: Report) -> list[str]:
    if report.energy is None:
        return []
    return [
        "## Measured energy of this device",
        _table(_energies(report.energy)),
        _list(_energy_method(report.energy)),
    ]


def _energies(energy: EnergyReport) -> Iterator[list[str]]:
    yield ["mode", "source", "repeats", "gross per image", "net per image", "load", "idle"]
    for name, sources in energy.modes.items():
        for source, each in sources.items():
            joules = [_spread(each.gross_joules, 1e3, "mJ"), _spread(each.net_joules, 1e3, "mJ")]
            watts = [_spread(each.load_watts, 1, "W"), _spread(each.idle_watts, 1, "W")]
            yield [_words(name), source, str(each.repeats), *joules, *watts]


def _energy_method(energy: EnergyReport) -> Iterator[str]:
    plan = energy.plan
    yield (
        f"Idle {plan.idle_seconds:g} s, load {plan.load_seconds:g} s, idle, {plan.repeats} times "
        "for each mode; within a load one image follows the other. *Gross* is all that the device "
        "drew, *net* what it drew above the mean of the idle times before and after; each with "
        "the standard deviation of a single repeat. The cloud's energy is not in it."
    )
    yield (
        "Idle: engines loaded, no stream open. Repeats in which a sensor told too little are left "
        "out."
    )
    for source, found in energy.sensors.items():
        yield f"Sensor `{source}`: {found}."
    yield f"Frequency governor: {', '.join(energy.governors) or 'not told'}."
    hottest = energy.hottest_celsius
    if hottest is not None:
        yield f"Hottest zone: {hottest.least:.1f} to {hottest.most:.1f} degrees Celsius."
    else:
        yield "Temperature: not told."


def _spread(spread: Spread, factor: float, unit: str) -> str:
    return f"{factor * spread.mean:.3g} ± {factor * spread.deviation:.2g} {unit}"


def _skipped(report: Report) -> list[str]:
    if not report.skipped:
        return []
    return [_list(f"not run: **{_words(name)}**: {why}" for name, why in report.skipped.items())]


def figures(report: Report) -> dict[str, str]:
    """Return the figures as SVG, by the names of :data:`FIGURES`."""
    modes = {_words(name): mode for name, mode in report.modes.items() if mode.answered}
    if not modes:
        return {}
    stages = list(next(iter(modes.values())).stage_seconds)
    steps = [str(step + 1) for step in range(report.model["timesteps"])]
    drawn = {
        "latency": line_chart(
            FIGURES["latency"],
            "milliseconds from the image to its answer",
            "share of images",
            [Line(name, _cumulative(mode)) for name, mode in modes.items()],
            log_x=True,
        ),
        "split": bar_chart(
            FIGURES["split"],
            "milliseconds, mean",
            stages,
            [
                Row(name, [1e3 * max(0.0, mode.stage_seconds[stage]) for stage in stages])
                for name, mode in modes.items()
            ],
        ),
        "bytes": bar_chart(
            FIGURES["bytes"],
            "bytes, both directions",
            ["payload", "message", "wire"],
            _byte_rows(report, modes),
            stacked=False,
            log=True,
        ),
        "timesteps": bar_chart(
            FIGURES["timesteps"],
            "share of images by timesteps used",
            steps,
            [
                Row(name, [mode.timesteps.get(int(step), 0) / mode.answered for step in steps])
                for name, mode in modes.items()
            ],
            totals=False,
        ),
        "energy": bar_chart(
            FIGURES["energy"],
            "microjoules per image, modelled; no radio, no memory",
            ["energy"],
            [Row(name, [1e6 * mode.modelled_edge_joules]) for name, mode in modes.items()],
        ),
    }
    if report.labels:
        drawn["accuracy"] = bar_chart(
            FIGURES["accuracy"],
            "% of images",
            ["accuracy"],
            [Row(name, [100 * (mode.accuracy or 0.0)]) for name, mode in modes.items()],
        )
    return drawn


def _byte_rows(report: Report, modes: dict[str, ModeReport]) -> list[Row]:
    rows = [
        Row(name, [mode.bytes.payload, mode.bytes.message, mode.bytes.wire])
        for name, mode in modes.items()
        if mode.bytes.message
    ]
    features = report.computed_bytes["float32_features_full_t"]
    return [*rows, Row("float32 features", [features])]


def _cumulative(mode: ModeReport) -> list[tuple[float, float]]:
    """Return the share of images answered by time, in milliseconds, as the corners of steps."""
    times = sorted(mode.samples["total_seconds"])
    corners = []
    for index, seconds in enumerate(times):
        corners += [(1e3 * seconds, index / len(times)), (1e3 * seconds, (index + 1) / len(times))]
    return corners


def _table(rows: Iterator[list[str]]) -> str:
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _list(items: Iterator[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _words(name: str) -> str:
    return name.replace("_", "-")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _size(size: float | None) -> str:
    return "not told" if size is None else f"{size:,.0f}"
