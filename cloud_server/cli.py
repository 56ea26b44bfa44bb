"""``neucodex-cloud``: serve models, or list them."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from cloud_server import admin_cli, certs, server
from cloud_server import config as configuration
from cloud_server.blocks import Block, dims, print_blocks, served_block
from protos import co_inference_pb2 as pb
from protos import co_inference_pb2_grpc
from shared import logs, rpc, tokens
from shared.credentials import ClientCredentials, ClientFiles, add_client_flags
from shared.errors import ConfigError, LinkLostError, NeucodexError
from shared.live import client
from shared.model.bundle import Bundle, Calibration, pick_alpha
from shared.web import add_access_flags

logger = logging.getLogger(__name__)

DESCRIBE_SECONDS = 10.0
FLAGS = (
    "listen",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "tokens_file",
    "insecure",
    "metrics",
    "metrics_certificate",
    "metrics_key",
    "metrics_client_ca",
    "metrics_users",
    "live_page",
    "bundles",
    "admin",
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
    _add_token(commands.add_parser("token", help="make a token for an edge"))
    _add_top(commands.add_parser("top", help="show what a running server does"))
    _add_certs(commands.add_parser("certs", help="make certificates for a server and edges"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.description = "Serve models until SIGTERM, then finish the samples under way."
    parser.set_defaults(command=_serve)
    _add_config(parser)
    _add_bundles(parser)
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="where edges connect: host:port (0: any) or unix:PATH"
    )
    parser.add_argument("--tls-certificate", metavar="FILE", help="serve with TLS; PEM certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="its PEM private key")
    parser.add_argument(
        "--tls-client-ca",
        metavar="FILE",
        help="let in only edges with a certificate; PEM certificates of who may have signed it",
    )
    parser.add_argument(
        "--tokens-file", metavar="FILE", help="let in only edges with a token that is in it"
    )
    parser.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="listen to others even without TLS, or without knowing who they are",
    )
    parser.add_argument(
        "--metrics", metavar="ADDRESS", help="where /metrics is served: host:port; '' for nowhere"
    )
    add_access_flags(parser)
    parser.add_argument(
        "--admin",
        metavar="ADDRESS",
        help="where models are loaded and unloaded meanwhile: unix:PATH; '' for nowhere",
    )
    parser.add_argument("--engine", help="onnxruntime or torch")
    parser.add_argument("--device", help="of the torch engine: cpu, cuda, cuda:N or auto")
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
    parser.description = (
        "List the models of bundles, or those that a running server serves; or change, with one of "
        "the commands, those of a server on this machine."
    )
    parser.set_defaults(command=_models)
    _add_config(parser)
    _add_bundles(parser)
    parser.add_argument("--server", metavar="ADDRESS", help="ask the server at this address")
    add_client_flags(parser)
    admin_cli.add_commands(parser)


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show what a running server's live page shows: streams, slots, batches, queue. Ends with "
        "Ctrl-C."
    )
    parser.set_defaults(command=_top)
    client.add_flags(parser, configuration.DEFAULT_METRICS)


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a token and say it once, on standard output or into a file of its bearer's; the "
        "server's file gets its hash alone."
    )
    parser.set_defaults(command=_token)
    parser.add_argument("name", metavar="NAME", help="of the bearer: an edge, or who reads metrics")
    parser.add_argument(
        "--tokens-file", type=Path, metavar="FILE", help="add its line here (default: say it too)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a new file for the token (default: say it)"
    )


def _add_certs(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make an authority (once; its key stays in ca.key) and certificates that it signs, for "
        "tests and small installations. Certificates that are there already are made anew."
    )
    parser.set_defaults(command=_certs)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    parser.add_argument(
        "--server-name",
        action="append",
        default=[],
        metavar="NAME",
        help="host name or IP address of the server; may be given several times",
    )
    parser.add_argument(
        "--edge", action="append", default=[], metavar="NAME", help="of an edge; several times"
    )
    parser.add_argument(
        "--days", type=_days, default=365, help="how long they are valid (default: 365)"
    )


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= 36500:
        raise argparse.ArgumentTypeError(f"expected 1 to 36500 days, got {days}")
    return days


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


def _token(arguments: argparse.Namespace) -> None:
    token = tokens.make_token()
    line = tokens.token_line(arguments.name, token)
    if arguments.out is None:
        print(token)
    else:
        tokens.write_token(arguments.out, token)
    if arguments.tokens_file is None:
        print(line)
    else:
        tokens.add_line(arguments.tokens_file, line)


def _certs(arguments: argparse.Namespace) -> None:
    made = certs.make_certificates(
        arguments.out, arguments.server_name, arguments.edge, arguments.days
    )
    for path in made:
        print(f"{path}, key in {path.with_suffix('.key')}")


def _models(arguments: argparse.Namespace) -> None:
    if arguments.server is not None:
        reply = asyncio.run(_describe(arguments.server, _client(arguments)))
        print_blocks(served_block(model) for model in reply.models)
        return
    bundles = [Bundle(Path(path)) for path in _load(arguments).bundles]
    print_blocks(_bundle_block(bundle) for bundle in bundles)


def _client(arguments: argparse.Namespace) -> ClientCredentials:
    """Return what to show to another server."""
    names = (field.name for field in dataclasses.fields(ClientFiles))
    files = ClientFiles(**{name: getattr(arguments, name) for name in names})
    try:
        files.check(arguments.server, insecure=bool(arguments.insecure))
    except ValueError as error:
        raise ConfigError(f"flag: {error}") from error
    return files.read()


async def _describe(address: str, credentials: ClientCredentials) -> pb.DescribeReply:
    async with rpc.channel(address, credentials) as channel:
        stub = co_inference_pb2_grpc.CoInferenceStub(channel)  # type: ignore[no-untyped-call]
        try:
            reply: pb.DescribeReply = await stub.Describe(
                pb.DescribeRequest(),
                timeout=DESCRIBE_SECONDS,
                metadata=rpc.metadata(credentials),
            )
        except grpc.aio.AioRpcError as error:
            raise LinkLostError(
                f"{address}: expected a NeuCODEX cloud server: {error.code().name}: "
                f"{error.details()}"
            ) from error
    return reply


def _bundle_block(bundle: Bundle) -> Block:
    manifest, spec = bundle.manifest, bundle.spec
    return [
        ("model", f"{manifest.name} {manifest.version}"),
        ("path", str(bundle.path)),
        ("digest", bundle.digest),
        ("network", f"{spec.backbone_name}, split after {spec.bottleneck.split}"),
        ("input", dims(spec.input_shape)),
        ("code", dims(spec.code_shape)),
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


def _top(arguments: argparse.Namespace) -> None:
    # Only here: what draws takes a while to load.
    from cloud_server.top import CloudScreen
    from shared.live import terminal

    terminal.run(arguments, CloudScreen())


def _size_bytes(bundle: Bundle) -> int:
    """Return the bytes of the bundle's files that are on this machine."""
    paths = [bundle.path / name for name in bundle.manifest.files]
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
