"""Write ``docs/protocol.md`` from the comments of the ``.proto`` files; ``--check`` if stale."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "protocol.md"
COMMAND = "python -m protos.page"
FILES = ("protos/co_inference.proto", "protos/edge_service.proto", "protos/model_admin.proto")
HEAD = f"""# Protocol

Made from the `.proto` files by `{COMMAND}`; do not edit.

The gRPC services of package `neucodex.v1`: `CoInference`, between edge and cloud; `EdgeService`,
between programs on a device and its edge daemon; and those by which a server is looked after. How
an edge and a cloud use the first is told in [Concepts](concepts.md) and [Latency](latency.md); how
packets are coded, in [Codec](codec.md).
"""
_BLOCK = re.compile(r"^(service|message|enum) (\w+) \{(\})?")
_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")
_FIELD = re.compile(r"(repeated |optional )?(\w+) (\w+) = (\d+)(?: \[[^\]]*\])?;")
_VALUE = re.compile(r"(\w+) = (\d+);")


def page() -> str:
    """Return the text."""
    return HEAD + "".join(_section(ROOT / file, file) for file in FILES)


def _section(path: Path, name: str) -> str:
    return f"\n## `{name}`\n\n" + "\n".join(_blocks(path.read_text(encoding="utf-8"))) + "\n"


def _blocks(text: str) -> Iterator[str]:
    comment: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        found = _BLOCK.match(line)
        if found is None:
            comment = [*comment, _said(line)] if line.startswith("//") else []
            continue
        kind, name, empty = found.groups()
        yield f"### {kind} {name}\n"
        if comment:
            yield " ".join(comment) + "\n"
        comment = []
        rows = [] if empty else list(_rows(lines))
        if rows:
            head = "rpc | takes | returns" if kind == "service" else "field | type | number"
            yield f"| {head} | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _rows(lines: Iterator[str]) -> Iterator[str]:
    """Yield a table row for each member of a block, with the comment before, behind or below it."""
    comment: list[str] = []
    row = ""
    depth = 1
    for line in lines:
        code, slashes, behind = line.partition("//")
        stripped = code.strip()
        depth += code.count("{") - code.count("}")
        if depth == 0:
            break
        if not stripped:
            # A comment of its own: of the member before, if it hangs below that one's.
            if slashes and row and line.index("//") > 6:
                row += " " + _said(line)
            elif slashes:
                comment.append(_said(line))
            continue
        cells = _cells(stripped)
        if cells is not None:
            if row:
                yield row + " |"
            said = " ".join([*comment, _clean(behind)] if slashes else comment)
            row, comment = f"| {' | '.join(cells)} | {said}", []
    if row:
        yield row + " |"


def _cells(code: str) -> tuple[str, str, str] | None:
    if found := _RPC.search(code):
        name, up, takes, down, returns = found.groups()
        return f"`{name}`", f"{up or ''}`{takes}`", f"{down or ''}`{returns}`"
    if found := _FIELD.match(code):
        label, kind, name, number = found.groups()
        return f"`{name}`", f"{label or ''}`{kind}`", number
    if found := _VALUE.match(code):
        return f"`{found[1]}`", "value", found[2]
    return None


def _said(line: str) -> str:
    return _clean(line.partition("//")[2])


def _clean(text: str) -> str:
    return text.strip().replace("|", "\\|")


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
