"""Write ``docs/metrics.md`` from the tables of :mod:`shared.metrics`; ``--check`` if stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shared.metrics import (
    CLOUD_FAMILIES,
    EDGE_FAMILIES,
    GRPC_FAMILIES,
    IDLE_FAMILIES,
    INFO_FAMILIES,
    MAX_NAMES,
    MEASURED_FAMILIES,
    NAMESPACE,
    OTHER,
    SHARED_FAMILIES,
    WIRE_FAMILIES,
    Family,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
COMMAND = "python -m shared.metrics_page"


def tables() -> dict[str, dict[str, Family]]:
    """Return every family by full name, under the heading that it stands below."""

    def own(side: str, families: Mapping[str, Family]) -> dict[str, Family]:
        wire = {f"{side}_{name}": family for name, family in WIRE_FAMILIES.items()}
        others = {name: each for name, each in families.items() if name not in SHARED_FAMILIES}
        return _full(others | wire)

    return {
        "Edge": own("edge", EDGE_FAMILIES),
        "Cloud": own("cloud", CLOUD_FAMILIES),
        "Both": _full({**SHARED_FAMILIES, **MEASURED_FAMILIES, **IDLE_FAMILIES}),
        "gRPC": {
            f"{prefix}{name}": family
            for prefix, families in GRPC_FAMILIES.items()
            for name, family in families.items()
        },
    }


def _full(families: Mapping[str, Family]) -> dict[str, Family]:
    return {f"{NAMESPACE}_{name}": family for name, family in families.items()}


def page() -> str:
    """Return the text."""
    parts = [
        "# Metrics",
        f"Made from `shared/metrics.py` by `{COMMAND}`; do not edit.",
        "The edge daemon serves these at `127.0.0.1:9465/metrics`, the cloud server at "
        "`127.0.0.1:9464/metrics`, if not configured otherwise. Counters count from the start of "
        "the process. Durations are of the clock of one machine. What cannot be measured has no "
        "series, never a zero. *Measured* and *modelled* energy are never the same metric "
        "([energy](energy.md)). The usual `process_*` figures come besides.",
    ]
    for heading, families in tables().items():
        parts += [f"## {heading}", _table(families)]
    parts += [
        "## Facts",
        "Always 1; what they say is in their labels.",
        "\n".join(
            ["| metric | label | meaning |", "|---|---|---|"]
            + [
                f"| `{NAMESPACE}_{name}_info` | `{label}` | {text} |"
                for name, (label, text) in INFO_FAMILIES.items()
            ]
        ),
        "## Values of labels",
        f"Any other value shows as `{OTHER}`. `model` is the name of a bundle, `peer` that of the "
        f"other side in the configuration, `source` that of an input there; at most {MAX_NAMES} of "
        "them are told apart. Of gRPC only methods that exist are told, with the status names that "
        "go-grpc-prometheus uses.",
        "\n".join(_label_lines()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(families: Mapping[str, Family]) -> str:
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for name, family in families.items():
        kind = family.kind.__name__.lower()
        if family.buckets:
            low, high = family.buckets[0], family.buckets[-1]
            kind += f", {len(family.buckets)} buckets from {low:g} to {high:g}"
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{name}` | {kind} | {labels} | {family.help} |")
    return "\n".join(lines)


def _label_lines() -> Iterator[str]:
    """Yield one line for each list of values, with the metrics it holds for."""
    holders: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for families in tables().values():
        for name, family in families.items():
            for label, values in family.labels.items():
                if values:
                    holders.setdefault((label, tuple(values)), []).append(name)
    for (label, values), names in sorted(holders.items()):
        listed = ", ".join(f"`{value}`" for value in values)
        of = ", ".join(f"`{name}`" for name in names)
        yield f"- `{label}` of {of}: {listed}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 if stale")
    if not parser.parse_args(argv).check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    sys.stderr.write(f"{PAGE} is stale: run `{COMMAND}`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
