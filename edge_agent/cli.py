"""``neucodex-edge``: run the daemon, classify images, look for what is wrong."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent import config as configuration
from edge_agent.answers import Answer
from edge_agent.client import Edge
from edge_agent.config import DEFAULT_LISTEN, DEFAULT_METRICS, EdgeConfig
from edge_agent.measure import command
from shared import logs
from shared.config import rewrite
from shared.credentials import add_client_flags
from shared.errors import ConfigError, InputError, LinkLostError, NeucodexError, RefusedError
from shared.live import client
from shared.web import add_access_flags

if TYPE_CHECKING:
    from edge_agent.loop import EdgeLoop

log = logging.getLogger(__name__)

FLAGS = tuple(EdgeConfig.__struct_fields__)
Outcome = Answer | NeucodexError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 2, with one line on stderr, where it cannot run."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except NeucodexError as error:
        print(f"neucodex-edge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neucodex-edge", description="The edge side of NeuCODEX: head and encoder."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run the daemon until SIGTERM"))
    _add_classify(commands.add_parser("classify", help="classify image files"))
    _add_doctor(commands.add_parser("doctor", help="look for what is missing or wrong"))
    _add_plan(commands.add_parser("plan", help="say where the network is best split"))
    _add_measure(commands.add_parser("measure", help="compare the ways to run the network"))
    _add_pull(commands.add_parser("pull", help="bring a model from the cloud"))
    _add_top(commands.add_parser("top", help="show what a running daemon does"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the daemon until SIGTERM, then answer the samples in hand. Exit code 2 if the "
        "configuration or the bundle is wrong."
    )
    parser.set_defaults(command=_run)
    add_config(parser)
    _add_placement(parser)
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="where applications connect: unix:PATH or loopback"
    )
    parser.add_argument(
        "--metrics", metavar="ADDRESS", help="where /metrics is served: host:port; '' for nowhere"
    )
    add_access_flags(parser)
    parser.add_argument("--log-level", help="debug, info, warning or error")
    parser.add_argument("--log-format", help="text or json")
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="write JSON with pid, address and metrics address there once serving",
    )


def _add_classify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Classify image files: ask the running daemon, or, given a bundle, compute in this "
        "process, with the cloud if one is given. Exit code 1 if an image has no answer."
    )
    parser.set_defaults(command=_classify)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--edge",
        metavar="ADDRESS",
        help=f"where the daemon listens (default: {DEFAULT_LISTEN}); not with --bundle or --config",
    )
    add_config(parser)
    _add_placement(parser)
    parser.add_argument("--json", action="store_true", help="print JSON lines, not a table")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say whether the bundle is readable, what its digest is and which alpha it gives, whether "
        "the cloud is reachable and serves the same, which power sensors there are, and the round "
        "trip time. Exit code 1 if something is wrong."
    )
    parser.set_defaults(command=_doctor)
    add_config(parser)
    _add_placement(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Try every bundle for a moment on this device and, where the cloud serves it, over the "
        "link as it is now; print what to expect of every placement, and name the best for the "
        "objective. Exit code 1 if no bundle could be run with the cloud."
    )
    parser.set_defaults(command=_plan)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file; flags override its values"
    )
    parser.add_argument(
        "--bundle",
        action="append",
        metavar="DIR",
        help="directory of a model bundle; may be given several times (default: the file's)",
    )
    add_cloud(parser)
    _add_objective(parser)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="a folder of images, or a .npy or .npz file, like those to come (default: made up)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument(
        "--apply", action="store_true", help="write the best into the file given with --config"
    )


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run the same images with everything on this device, with everything in the cloud, and "
        "split, in several ways, over the network as it is; write a report with figures. Exit "
        "code 1 if an image has no answer."
    )
    parser.set_defaults(command=_measure)
    add_config(parser)
    add_cloud(parser)
    command.add_images(parser, required=True)
    command.add_plan(parser)
    add_model(parser)


def _add_pull(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Bring a model that the cloud serves and put it in place: the bundle's path becomes a link "
        "to it, every file verified before. What was cut off goes on where it stopped. A daemon "
        "that runs on that path changes over between two samples."
    )
    parser.set_defaults(command=_pull)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="NAME, NAME@VERSION or the first digits of a digest (default: the only one served)",
    )
    add_config(parser)
    add_cloud(parser)
    parser.add_argument(
        "--with-tail",
        action="store_true",
        help="bring the tail, too (done anyway where the file says edge_only, or fallback local)",
    )


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show what a running daemon's live page shows: the latest sample, bytes and time saved so "
        "far, link and policy. Ends with Ctrl-C; exit code 2 if the daemon cannot be reached."
    )
    parser.set_defaults(command=_top)
    client.add_flags(parser, DEFAULT_METRICS)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a configuration file and the bundle."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file; flags override its values"
    )
    parser.add_argument("--bundle", metavar="DIR", help="directory of the model bundle")


def add_cloud(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the cloud is, and how to connect."""
    parser.add_argument(
        "--cloud", metavar="ADDRESS", help="host:port of the cloud server, or servers"
    )
    add_client_flags(parser)


def _add_placement(parser: argparse.ArgumentParser) -> None:
    add_cloud(parser)
    parser.add_argument("--placement", help="co_inference, edge_only or cloud_only")
    parser.add_argument("--network", help="with edge_only: split or whole")
    parser.add_argument("--fallback", help="none or local")
    add_pipelining(parser)
    add_model(parser)


def add_pipelining(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how much is under way at once."""
    _add_objective(parser)
    parser.add_argument(
        "--choose-local",
        action="store_const",
        const=True,
        help="let the policy also run samples wholly here; with --fallback local",
    )
    parser.add_argument(
        "--window", type=int, metavar="W", help="timesteps without their verdict; not chosen then"
    )
    parser.add_argument(
        "--steps-per-packet", type=int, metavar="K", help="most timesteps in one packet"
    )
    parser.add_argument("--reply-mode", help="step or exit")
    parser.add_argument(
        "--samples-in-flight", type=int, metavar="S", help="samples begun and not ended, 1 to 3"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the network is run, wherever it is."""
    parser.add_argument(
        "--alpha", type=_alpha, metavar="A[,A...]", help="exit thresholds: one, or T - 1 of them"
    )
    parser.add_argument(
        "--loss-budget",
        type=_points_or_name,
        metavar="POINTS",
        help="points of accuracy that early exits may lose, of those the bundle is calibrated "
        "for (neucodex-cloud models lists them); or the name of one of its alpha lists",
    )
    parser.add_argument("--confidence", help="max_softmax, entropy or margin")
    parser.add_argument("--checksum", help="none or crc16 (default: crc16 without TLS)")
    parser.add_argument("--codec", help="ctx, ctx-max, raw or zstd")
    parser.add_argument(
        "--deadline-seconds", type=float, metavar="SECONDS", help="a sample's time, then it fails"
    )
    parser.add_argument("--engine", help="onnxruntime or torch")
    parser.add_argument("--device", help="of the torch engine: cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads of one onnxruntime call")
    parser.add_argument(
        "--providers",
        type=_names,
        metavar="NAME[,NAME...]",
        help="of ONNX Runtime, the first one first (doctor lists those there are)",
    )
    parser.add_argument("--head", help="float or int8")
    parser.add_argument(
        "--trace-ratio",
        type=float,
        metavar="SHARE",
        help="share of the samples traced with OpenTelemetry, 0 to 1 (default: 0)",
    )


def _add_objective(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objective", help="what is to be low: latency, bytes or energy")
    parser.add_argument(
        "--deadline-target-seconds",
        type=float,
        metavar="SECONDS",
        help="bytes or energy are to be low as far as answers come within this time",
    )


def _points_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _alpha(text: str) -> float | tuple[float, ...]:
    values = tuple(float(value) for value in text.split(","))
    return values if len(values) > 1 else values[0]


def load_config(arguments: argparse.Namespace, **more: Any) -> EdgeConfig:
    """Return the configuration that the arguments ask for; see :func:`shared.config.load`."""
    flags = {key: getattr(arguments, key, None) for key in FLAGS}
    return configuration.load(arguments.config, flags | more)


def _run(arguments: argparse.Namespace) -> int:
    from edge_agent import daemon

    config = load_config(arguments)
    logs.configure(config.log_level, logs.LogFormat(config.log_format))
    log.info("configuration: %s", msgspec.json.encode(config).decode())
    asyncio.run(daemon.run(config, arguments.ready_file))
    return 0


def _classify(arguments: argparse.Namespace) -> int:
    own = arguments.bundle is not None or arguments.config is not None
    if own and arguments.edge is not None:
        raise ConfigError("expected --edge, or --bundle or --config; got both")
    if own:
        outcomes = asyncio.run(_classify_here(arguments))
    else:
        with Edge(arguments.edge or DEFAULT_LISTEN) as edge:
            outcomes = [_ask(edge, image) for image in arguments.images]
    _print_outcomes(arguments.images, outcomes, as_json=arguments.json)
    return 1 if any(isinstance(outcome, NeucodexError) for outcome in outcomes) else 0


def _read(image: str) -> bytes | InputError:
    try:
        return Path(image).read_bytes()
    except OSError as error:
        return InputError(f"{image}: {error.strerror}")


def _ask(edge: Edge, image: str) -> Outcome:
    data = _read(image)
    if isinstance(data, InputError):
        return data
    try:
        return edge.classify(data)
    except (LinkLostError, RefusedError):
        raise  # There is no use in asking for the next.
    except NeucodexError as error:
        return error


async def _classify_here(arguments: argparse.Namespace) -> list[Outcome]:
    """Run a loop in this process for as long as it takes."""
    from prometheus_client import CollectorRegistry

    from edge_agent.assembly import build_loop
    from shared.metrics import EdgeMetrics
    from shared.model.bundle import Bundle

    no_cloud = arguments.config is None and arguments.cloud is None
    placement = "edge_only" if no_cloud and arguments.placement is None else arguments.placement
    config = load_config(arguments, placement=placement).uncounted
    bundle = Bundle(Path(config.bundle))
    loop = build_loop(config, bundle, EdgeMetrics(CollectorRegistry(), model=bundle.manifest.name))
    loop.start()
    try:
        return [await _submit(loop, image) for image in arguments.images]
    finally:
        await loop.close()


async def _submit(loop: EdgeLoop[Any], image: str) -> Outcome:
    data = _read(image)
    if isinstance(data, InputError):
        return data
    try:
        return await loop.submit(data)
    except (LinkLostError, RefusedError):
        raise  # There is no use in asking for the next.
    except NeucodexError as error:
        return error


def _print_outcomes(images: Sequence[str], outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    if not as_json:
        _print_table(images, outcomes)
        return
    for image, outcome in zip(images, outcomes, strict=True):
        print(msgspec.json.encode({"input": image} | _facts(outcome)).decode())


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {"error": str(outcome)} if isinstance(outcome, NeucodexError) else asdict(outcome)


def _print_table(images: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    rows: list[tuple[str, ...]] = [
        ("image", "class", "confidence", "timesteps", "placement", "ms", "payload bytes")
    ]
    rows += [_row(image, outcome) for image, outcome in zip(images, outcomes, strict=True)]
    _print_columns(rows)


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(image: str, outcome: Outcome) -> tuple[str, ...]:
    if isinstance(outcome, NeucodexError):
        return (image, f"error: {outcome}", *("",) * 5)
    return (
        image,
        outcome.name,
        f"{outcome.confidence:.4f}",
        str(outcome.timesteps_used),
        outcome.placement,
        f"{outcome.latency.total_seconds * 1000:.1f}",
        str(outcome.payload_bytes),
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from edge_agent import doctor

    checks = doctor.run(load_config(arguments))
    for check in checks:
        print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<13} {check.found}")
    return 0 if all(check.ok for check in checks) else 1


def _plan(arguments: argparse.Namespace) -> int:
    from edge_agent import plan as planning

    if arguments.apply and arguments.config is None:
        raise ConfigError("expected --config with --apply, got none")
    bundles = arguments.bundle or [None]
    configs = [load_config(arguments, bundle=bundle) for bundle in bundles]
    plan = asyncio.run(planning.make_plan(configs, arguments.images))
    if arguments.json:
        print(msgspec.json.encode(plan).decode())
    else:
        _print_columns(planning.table(plan))
        print(f"* best for {plan.objective}")
        for note in plan.notes:
            print(f"  {note}")
    if arguments.apply:
        rewrite(arguments.config, planning.settings_of(plan))
    return 0 if plan.cloud_used else 1


def _pull(arguments: argparse.Namespace) -> int:
    from edge_agent import pull

    config = load_config(arguments)
    logs.configure(config.log_level, logs.LogFormat(config.log_format))
    cloud = pull.Cloud(address=config.cloud, credentials=config.credentials.watched())
    needs_tail = config.placement == "edge_only" or config.fallback == "local"
    with_tail = arguments.with_tail or needs_tail
    path = Path(config.bundle)
    pulled = asyncio.run(pull.pull(cloud, arguments.model, path, with_tail=with_tail))
    print(f"{pulled.title}, digest {pulled.digest}, at {pulled.path}")
    print(f"{pulled.fetched_bytes} bytes fetched; {'new' if pulled.changed else 'as before'}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    return command.run(load_config(arguments), arguments)


def _top(arguments: argparse.Namespace) -> int:
    # Only here: what draws takes a while to load.
    from edge_agent.top import EdgeScreen
    from shared.live import terminal

    terminal.run(arguments, EdgeScreen())
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
