"""Generate the Python modules beside the .proto files; ``--check`` fails if they are stale."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = (
    "protos/co_inference.proto",
    "protos/edge_service.proto",
    "protos/model_admin.proto",
)


def generate(out: Path) -> list[Path]:
    """Write all generated modules below ``out`` and return their paths relative to it."""
    # Imported here so that the runtime packages do not need the compiler.
    from grpc_tools import protoc

    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "pyi")]
    if protoc.main(["protoc", f"-I{ROOT}", *flags, *PROTOS]) != 0:
        raise SystemExit("protoc failed")
    return sorted(path.relative_to(out) for path in (out / "protos").glob("*_pb2*.py*"))


def stale(root: Path = ROOT) -> list[Path]:
    """Return the generated files under ``root`` that differ from a fresh generation."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        return [
            path
            for path in generate(fresh)
            if not (root / path).is_file()
            or (root / path).read_bytes() != (fresh / path).read_bytes()
        ]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 if stale")
    if not parser.parse_args(argv).check:
        generate(ROOT)
        return 0
    paths = stale()
    for path in paths:
        sys.stderr.write(f"{path} is stale: run `make protos`\n")
    return 1 if paths else 0


if __name__ == "__main__":
    sys.exit(main())
