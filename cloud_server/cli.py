"""``neucodex-cloud``: serve models, or list them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from cloud_server import config as configuration
from cloud_server import server
from protos import co_inference_pb2 as pb
from protos import co_inference_pb2_grpc
from shared import logs, rpc
from shared.errors import LinkLostError, NeucodexError
from shared.model.bundle import Bundle, Calibration, pick_alpha

logger = logging.getLogger(__name__)

DESCRIBE_SECONDS = 10.0
FLAGS = (
    "listen",
    "metrics",
    "bundles",
    "engine",
    "device",
    "threads",
    "slots",
    "log_level",
    "log_format",
)
"""Configuration keys that have a flag."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, or 2 with one line on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except NeucodexError as error:
        print(f"neucodex-cloud: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neucodex-cloud", description="The cloud side of NeuCODEX: decoder and tail."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve models until SIGTERM"))
    _add_models(commands.add_parser("models", help="list models, of bundles or of a server"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve models until SIGTERM, then finish the samples under way."
    parser.set_defaults(command=_serve)
    _add_config(parser)
    _add_bundles(parser)
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="where edges connect: host:port (0: any) or unix:PATH"
    )
    parser.add_argument(
        "--metrics", metavar="ADDRESS", help="where /metrics is served: host:port; '' for nowhere"
    )
    parser.add_argument("--engine", help="onnxruntime or torch")
    parser.add_argument("--device", help="of the torch engine: cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads of one onnxruntime call")
    parser.add_argument("--slots", type=int, help="samples at once, per model")
    parser.add_argument("--log-level", help="debug, info, warning or error")
    parser.add_argument("--log-format", help="text or json")
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="write JSON with pid, address and metrics address there once serving",
    )


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the models of bundles, or those that a running server serves."
    parser.set_defaults(command=_models)
    _add_config(parser)
    _add_bundles(parser)
    parser.add_argument("--server", metavar="ADDRESS", help="ask the server at this address")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file; flags override its values"
    )


def _add_bundles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        dest="bundles",
        action="append",
        metavar="DIR",
        help="directory of a model bundle; may be given several times",
    )


def _load(arguments: argparse.Namespace) -> configuration.CloudConfig:
    flags: dict[str, Any] = {key: getattr(arguments, key, None) for key in FLAGS}
    return configuration.load(arguments.config, flags)


def _serve(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    logs.configure(config.log_level, logs.LogFormat(config.log_format))
    logger.info("configuration: %s", msgspec.json.encode(config).decode())
    asyncio.run(server.run(config, arguments.ready_file))


def _models(arguments: argparse.Namespace) -> None:
    if arguments.server is not None:
        reply = asyncio.run(_describe(arguments.server))
        _print_blocks(_served_block(model) for model in reply.models)
        return
    bundles = [Bundle(Path(path)) for path in _load(arguments).bundles]
    _print_blocks(_bundle_block(bundle) for bundle in bundles)


async def _describe(address: str) -> pb.DescribeReply:
    async with rpc.channel(address) as channel:
        stub = co_inference_pb2_grpc.CoInferenceStub(channel)  # type: ignore[no-untyped-call]
        try:
            reply: pb.DescribeReply = await stub.Describe(
                pb.DescribeRequest(), timeout=DESCRIBE_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise LinkLostError(
                f"{address}: expected a NeuCODEX cloud server: {error.code().name}: "
                f"{error.details()}"
            ) from error
    return reply


Block = list[tuple[str, str]]


def _bundle_block(bundle: Bundle) -> Block:
    manifest, spec = bundle.manifest, bundle.spec
    return [
        ("model", f"{manifest.name} {manifest.version}"),
        ("path", str(bundle.path)),
        ("digest", bundle.digest),
        ("network", f"{spec.backbone_name}, split after {spec.bottleneck.split}"),
        ("input", _dims(spec.input_shape)),
        ("code", _dims(spec.code_shape)),
        ("timesteps", str(spec.timesteps)),
        ("parts", ", ".join(part for part in manifest.parts if bundle.has(part))),
        ("size", f"{_size_bytes(bundle)} bytes"),
        *_alpha_lines(bundle.calibration()),
    ]


def _alpha_lines(calibration: Calibration) -> Block:
    """Return a line per alpha list: what it promises, which a loss budget takes, the default."""
    lists, tests, lines = calibration.alpha, calibration.tests, []
    for name in lists:
        facts = [name]
        if test := tests.get(name):
            facts.append(test.promise)
            if name == pick_alpha(test.points, lists, tests):
                facts.append(f"taken by --loss-budget {test.points:g}")
        if name == calibration.default_alpha:
            facts.append("the default")
        lines.append(("alpha", "; ".join(facts)))
    return lines


def _served_block(model: pb.Model) -> Block:
    return [
        ("model", f"{model.name} {model.version}"),
        ("digest", model.digest.hex()),
        ("input", _dims(model.input_shape)),
        ("code", _dims(model.code_shape)),
        ("timesteps", str(model.timesteps)),
        ("parts", "tail, whole" if model.whole else "tail"),
        ("slots", f"{model.slots_in_use} of {model.slots} in use"),
    ]


def _size_bytes(bundle: Bundle) -> int:
    """Return the bytes of the bundle's files that are on this machine."""
    paths = [bundle.path / name for name in bundle.manifest.files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _dims(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _print_blocks(blocks: Iterable[Block]) -> None:
    text = "\n\n".join("\n".join(f"{key:<10}{value}" for key, value in block) for block in blocks)
    print(text or "no models")


if __name__ == "__main__":
    sys.exit(main())
