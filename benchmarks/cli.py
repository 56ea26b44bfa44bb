"""``neucodex-bench``: load a cloud, emulate a link, measure over one.

What starts a cloud or takes pictures of its own belongs to a clone of the repository, whose
examples do both; they are not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from benchmarks.links import PROFILES, Link, Profile, emulated, enter_private_network
from benchmarks.report import DEMO_BUNDLE, LOAD_CORE, SERVER_CORE, pin
from edge_agent import cli as edge_cli
from edge_agent.measure import command
from edge_agent.measure.inputs import Inputs, read_inputs
from shared.errors import ConfigError, NeucodexError
from shared.model.bundle import Bundle
from shared.model.preprocessing import prepare

if TYPE_CHECKING:
    from benchmarks.fleet import Level, Measured

T = TypeVar("T")
CUSTOM = {
    "rate_bits_per_second": "bits per second, both directions",
    "delay_seconds": "one way",
    "jitter_seconds": "how far a packet's delay may lie from that",
    "loss": "share of packets lost",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 2, with one line on stderr, where it cannot run."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except NeucodexError as error:
        print(f"neucodex-bench: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "examples":
            raise
        print("neucodex-bench: expected a clone, installed with pip's --editable", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="neucodex-bench", description="Measure NeuCODEX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_load(commands.add_parser("load", help="many simulated edges against one cloud"))
    _add_links(commands.add_parser("links", help="list emulated links, or run one"))
    _add_measure(commands.add_parser("measure", help="compare the ways to run, over such a link"))
    return parser


# Load.


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulated edges ask a cloud: in a closed loop (one level for each number of edges), or in "
        "an open one (one level for each rate of arrivals). Without --cloud a server is started "
        "for the time. Exit code 1 if a sample has no answer."
    )
    parser.set_defaults(command=_load)
    _add_edge(parser)
    edge_cli.add_pipelining(parser)
    edge_cli.add_cloud(parser)
    parser.add_argument(
        "--cloud-metrics", metavar="ADDRESS", help="host:port of its /metrics, for batch sizes"
    )
    parser.add_argument(
        "--edges", type=_numbers(int), default=[8], metavar="N[,N...]", help="how many (default: 8)"
    )
    parser.add_argument(
        "--in-flight", type=int, default=1, metavar="N", help="samples each has unanswered"
    )
    parser.add_argument(
        "--rate",
        type=_numbers(float),
        metavar="R[,R...]",
        help="open loop instead: samples per second, over all edges (one number of them)",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of one window (default: 5)")
    parser.add_argument("--windows", type=int, default=3, help="of one level (default: 3)")
    parser.add_argument("--warm-up-seconds", type=float, default=1.0, help="not counted")
    parser.add_argument(
        "--head-seconds", type=float, default=0.0, help="what a timestep takes on each device"
    )
    parser.add_argument("--samples", type=int, default=64, help="different ones (default: 64)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")


def _add_edge(parser: argparse.ArgumentParser) -> None:
    edge_cli.add_config(parser)
    parser.set_defaults(bundle=str(DEMO_BUNDLE))
    edge_cli.add_model(parser)
    command.add_images(parser, required=False)


def _numbers(kind: type[int] | type[float]) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def _load(arguments: argparse.Namespace) -> int:
    from benchmarks import fleet, load
    from benchmarks.fleet import Pace

    levels = _levels(arguments)
    pace = _converted({name: getattr(arguments, name) for name in Pace.__struct_fields__}, Pace)
    bundle = Bundle(Path(arguments.bundle))
    with _cloud(arguments) as (address, metrics):
        config = edge_cli.load_config(arguments, cloud=address)
        inputs = _inputs(arguments, bundle, arguments.samples)
        preprocessing = bundle.manifest.preprocessing
        prepared = (prepare(array, bundle.spec, preprocessing) for array in inputs.arrays)
        codes = list(load.head_codes(bundle, prepared))
        found = []
        for level in levels:
            found.append(asyncio.run(fleet.run_level(config, bundle, codes, level, pace, metrics)))
            print(_told(found[-1]))
    if arguments.out is not None:
        report = {"config": config, "pace": pace, "levels": found}
        json = msgspec.json.format(msgspec.json.encode(report), indent=2)
        arguments.out.write_bytes(json + b"\n")
    return 1 if any(each.errors for each in found) else 0


def _levels(arguments: argparse.Namespace) -> list[Level]:
    from benchmarks.fleet import Level

    rates = arguments.rate or [None]
    if arguments.rate and len(arguments.edges) > 1:
        raise ConfigError(f"edges: expected one number with --rate, got {arguments.edges}")
    given = [
        {"edges": edges, "in_flight": arguments.in_flight, "rate_per_second": rate}
        for rate in rates
        for edges in arguments.edges
    ]
    return [_converted(each, Level) for each in given]


def _converted(given: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def _told(found: Measured) -> str:
    level = found.level
    if level.rate_per_second is None:
        what = f"{level.edges} edges, {level.in_flight} in flight each"
    else:
        what = f"{level.edges} edges, {level.rate_per_second:g} arrivals/s"
    times = (
        found.latency_p50_seconds,
        found.latency_p90_seconds,
        found.latency_p95_seconds,
        found.latency_p99_seconds,
    )
    lines = [
        f"{what}{'' if found.steady else ' (not steady)'}",
        f"  answers/s {found.answers_per_second:.1f}, of {found.begun} begun {found.answered} "
        f"answered, {found.mean_timesteps:.2f} timesteps each",
        "  latency ms p50 {:.2f}, p90 {:.2f}, p95 {:.2f}, p99 {:.2f}".format(
            *(1e3 * seconds for seconds in times)
        ),
        f"  generator CPU {found.generator_cpu_share:.0%}",
    ]
    if found.cloud:
        sizes = ", ".join(f"{size}: {calls}" for size, calls in found.batch_sizes.items())
        lines.append(
            f"  cloud: mean batch {found.cloud['mean_batch_size']:.2f} (up to {sizes}), rejected "
            f"{found.cloud['rejected']:.0f}, without slot {found.cloud['samples_without_slot']:.0f}"
        )
    lines += [f"  no answer: {number} x {why}" for why, number in found.errors.items()]
    if found.edges_refused:
        lines.append(f"  {found.edges_refused} edges were refused a stream")
    return "\n".join(lines)


# Links.


def _add_links(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the profiles; with --target, run one in the foreground until Ctrl-C: whoever "
        "connects to the address it prints reaches the target over the link."
    )
    parser.set_defaults(command=_links)
    parser.add_argument("--target", metavar="ADDRESS", help="host:port of a TCP server")
    parser.add_argument("--method", choices=("tun", "relay"), help="default: tun if possible")
    _add_profile(parser)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", choices=tuple(PROFILES), default="lan", help="a link (default: lan)"
    )
    for name, what in CUSTOM.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=float, metavar="X", help=f"instead of the profile's: {what}")


def _profile(arguments: argparse.Namespace) -> Profile:
    changes = {name: getattr(arguments, name) for name in CUSTOM}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        changes["name"] = f"{arguments.profile}, changed"
    try:
        return msgspec.structs.replace(PROFILES[arguments.profile], **changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _links(arguments: argparse.Namespace) -> int:
    if arguments.target is None:
        for profile in PROFILES.values():
            print(_described(profile))
        return 0
    with emulated(_profile(arguments), arguments.target, method=arguments.method) as link:
        print(f"{link.address} {_described(link.profile)}\n{_how(link)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            signal.pause()
        print(msgspec.json.encode(link.traffic()).decode())
    return 0


def _described(profile: Profile) -> str:
    rate = profile.rate_bits_per_second
    return (
        f"{profile.name:<10} {'any rate' if rate is None else f'{rate / 1e6:g} Mbit/s'}, "
        f"{1e3 * profile.delay_seconds:g} ms one way (+- {1e3 * profile.jitter_seconds:g}), "
        f"{100 * profile.loss:g} % lost"
    )


def _how(link: Link) -> str:
    return f"by {link.facts['method']}" + (f" ({link.reason})" if link.reason else "")


# Measuring.


def _add_measure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a cloud and an emulated link to it, and run neucodex-edge measure over it; on the "
        "examples' pictures if there are no --images."
    )
    parser.set_defaults(command=_measure, cloud=None, cloud_metrics=None)
    _add_edge(parser)
    command.add_plan(parser)
    _add_profile(parser)


def _measure(arguments: argparse.Namespace) -> int:
    profile, bundle = _profile(arguments), Bundle(Path(arguments.bundle))
    enter_private_network()
    inputs = _inputs(arguments, bundle, arguments.count)
    with _cloud(arguments) as (address, _), emulated(profile, address) as link:
        # Into a network that this process has made, over an address that is not loopback's.
        config = edge_cli.load_config(arguments, cloud=link.address, insecure=True)
        return command.run(config, arguments, inputs, link.facts)


# What both need.


def _inputs(arguments: argparse.Namespace, bundle: Bundle, count: int) -> Inputs:
    if arguments.images is not None:
        return read_inputs(arguments.images, arguments.labels, bundle.manifest, count)
    from examples.pictures import load_pictures

    pictures = load_pictures()
    return Inputs(list(pictures.pixels[:count]), pictures.labels[:count].tolist())


@contextlib.contextmanager
def _cloud(arguments: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Yield address and metrics address of the cloud asked for, or of one started here."""
    if arguments.cloud is not None:
        yield arguments.cloud, arguments.cloud_metrics
        return
    from examples.pair import run_cloud

    with tempfile.TemporaryDirectory(prefix="neucodex-") as folder:
        flags = ("--log-level", "warning")
        pin(SERVER_CORE)  # a child inherits its parent's cores
        with run_cloud(Path(folder), Path(arguments.bundle), *flags) as ready:
            pin(LOAD_CORE)
            yield ready.address, ready.metrics


if __name__ == "__main__":
    sys.exit(main())
