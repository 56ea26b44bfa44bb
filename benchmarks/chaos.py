"""Break everything at random while callers ask, and hold every answer against its own reference.

Two servers and three edge daemons, each behind an emulated link, with callers that never stop.
Meanwhile processes are killed (SIGKILL), stopped and continued, told to end and started again,
some with a full disk for their log; links lose packets and are cut for seconds; all speak mutual
TLS, and certificates are replaced, now and then their authority, too. Every call must end, once, in
an answer or an error; every answer must be its input's; at the end everything must work as if
nothing had happened, and no slot be held. ``FAULTS`` is the list of what can happen.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.links import Link, Profile, emulated, enter_private_network
from benchmarks.report import ROOT, Result, figure, run
from cloud_server.certs import make_certificates
from edge_agent import Answer, Edge
from examples.pair import Ready
from examples.scrape import scrape
from shared.errors import LinkLostError, NeucodexError
from shared.model.bundle import Bundle

SECONDS, QUICK_SECONDS = 600.0, 60.0
SERVERS, EDGES = 2, 3
PICTURES = 24
TOLERANCE = 1e-4
"""A confidence this near to alpha may fall on either side of it, by the rounding of a batch."""
START_SECONDS = 120.0
CALL_SECONDS = 30.0
"""A call that has not ended by then has no outcome; three times what a sample may take."""
RECOVERY_SECONDS = 60.0
IDLE_SECONDS = 3.0
"""The servers' idle limit: a killed edge's slots must be back by then."""
CALM = Profile("calm", 50e6, 0.001)
FULL_DISK = Path("/dev/full")
EDGE_CONFIG = """
deadline_seconds = 6.0
timestep_deadline_seconds = 1.0
reconnect_max_seconds = 1.0
breaker_failures = 4
breaker_probe_seconds = 2.0
samples_in_flight = 2
"""
CLOUD_CONFIG = f"""
packet_idle_seconds = {IDLE_SECONDS}
drain_seconds = 3.0
"""
SERVER_NAME = "localhost"
"""In the servers' certificate, whatever address a link gives them."""
CERTIFICATE_DAYS = 1


class Daemon:
    """A process that is killed and started again in the same place.

    Args:
        name: of its files.
        folder: for them.
        module: what to run, with its flags.
    """

    def __init__(self, name: str, folder: Path, module: Sequence[str]) -> None:
        self.name = name
        self._folder = folder
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, log: Path | None = None) -> Ready:
        """Start it and wait until it serves.

        Raises:
            NeucodexError: it does not.
        """
        ready = self._folder / f"{self.name}.ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", *self._module, *flags, "--ready-file", str(ready)]
        with (log or self._folder / f"{self.name}.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_SECONDS
        while not ready.is_file():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NeucodexError(f"{self.name}: expected it to start: {self._process.poll()}")
            time.sleep(0.02)
        return msgspec.json.decode(ready.read_bytes(), type=Ready)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        """End it with a signal, and wait until it has ended."""
        self.send(number)
        if self._process is None:
            return
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Certificates:
    """Those of all servers and of all edges, and what both sides trust.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trusted = folder / "trusted.pem"
        self.renew()
        self._trust(self._authority)

    @property
    def _authority(self) -> bytes:
        return (self._folder / "ca.pem").read_bytes()

    def renew(self) -> None:
        """Replace all certificates and keys by new ones of the authority in the folder."""
        make_certificates(self._folder, [SERVER_NAME], ["device"], CERTIFICATE_DAYS)

    def renew_authority(self, pause: Callable[[], None]) -> None:
        """Replace the authority as it is done in the field: for a time both are trusted."""
        before, following = self._authority, self._folder / "next"
        make_certificates(following, [], [], CERTIFICATE_DAYS)
        self._trust(before + (following / "ca.pem").read_bytes())
        pause()
        for name in ("ca.key", "ca.pem"):
            (following / name).replace(self._folder / name)
        self.renew()
        pause()
        self._trust(self._authority)

    def _trust(self, authorities: bytes) -> None:
        unfinished = self._folder / "trusted.new"
        unfinished.write_bytes(authorities)
        unfinished.replace(self._trusted)

    def server_config(self) -> str:
        """Return a server's configuration keys."""
        return self._config(tls_client_ca="trusted.pem", **_files("server"))

    def edge_config(self) -> str:
        """Return an edge's configuration keys."""
        keys = self._config(tls_ca="trusted.pem", **_files("edge-device"))
        return f'{keys}tls_server_name = "{SERVER_NAME}"\n'

    def _config(self, **files: str) -> str:
        return "".join(f'{key} = "{self._folder / name}"\n' for key, name in files.items())


def _files(stem: str) -> dict[str, str]:
    return {"tls_certificate": f"{stem}.pem", "tls_key": f"{stem}.key"}


@dataclass
class World:
    """Everything that runs."""

    certificates: Certificates
    servers: list[Daemon] = field(default_factory=list)
    edges: list[Daemon] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    """Where each daemon is scraped, since it was started last."""
    addresses: dict[str, str] = field(default_factory=dict)

    def start(self, daemon: Daemon, log: Path | None = None) -> None:
        """Start a daemon in its place."""
        listen = self.addresses.get(daemon.name)
        ready = daemon.start(*(() if listen is None else ("--listen", listen)), log=log)
        self.addresses[daemon.name] = ready.address
        self.metrics[daemon.name] = ready.metrics

    def slots_in_use(self) -> float:
        """Return the slots held on all servers."""
        return sum(
            scrape(self.metrics[server.name]).total("cloud_slots_in_use") for server in self.servers
        )


# What can happen. Each takes the world and a source of chance, and sets right what it broke; how
# long it lasts is a matter of chance, too.


def kill(world: World, chance: random.Random) -> str:
    """Kill a process without warning and start it again."""
    return _end(world, chance, signal.SIGKILL)


def terminate(world: World, chance: random.Random) -> str:
    """Tell a process to end, which drains, and start it again."""
    return _end(world, chance, signal.SIGTERM)


def _end(world: World, chance: random.Random, number: signal.Signals) -> str:
    daemon = chance.choice([*world.servers, *world.edges])
    daemon.end(number)
    time.sleep(chance.uniform(0, 2))
    log = FULL_DISK if chance.random() < 0.3 and FULL_DISK.exists() else None
    world.start(daemon, log)
    return f"{number.name} {daemon.name[:-1]}" + (", log on a full disk" if log else "")


def stop(world: World, chance: random.Random) -> str:
    """Stop a process for seconds and let it go on."""
    daemon = chance.choice([*world.servers, *world.edges])
    daemon.send(signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 6))
    daemon.send(signal.SIGCONT)
    return f"SIGSTOP {daemon.name[:-1]}"


def rotate(world: World, chance: random.Random) -> str:
    """Replace everybody's certificates while they are in use, sometimes the authority's, too."""
    if chance.random() < 0.5:
        world.certificates.renew()
        return "certificates replaced"
    # So long both authorities are trusted: whoever connects meanwhile shows old or new.
    world.certificates.renew_authority(lambda: time.sleep(chance.uniform(0, 1)))
    return "authority replaced"


def lose(world: World, chance: random.Random) -> str:
    """Let a link lose some packets for a while; where bytes are relayed, only delay them."""
    link = chance.choice(world.links)
    loss = chance.uniform(0.01, 0.05) if link.method == "tun" else 0.0
    return _degrade(link, chance, Profile("lossy", 20e6, 0.01, 0.005, loss))


def cut(world: World, chance: random.Random) -> str:
    """Cut a link for seconds."""
    link = chance.choice(world.links)
    dead = Profile("cut", None, 0.0, 0.0, 0.999)
    if link.method == "relay":
        dead = Profile("held up", None, 5.0)
    return _degrade(link, chance, dead)


def _degrade(link: Link, chance: random.Random, profile: Profile) -> str:
    link.change(profile)
    time.sleep(chance.uniform(1, 5))
    link.change(CALM)
    return f"link {profile.name}"


PROCESS_FAULTS = (kill, terminate, stop, rotate)
LINK_FAULTS = (lose, cut)
FAULTS = PROCESS_FAULTS + LINK_FAULTS
Fault = Callable[[World, random.Random], str]


@dataclass
class Tally:
    """What the callers saw."""

    accepted: int = 0
    answered: int = 0
    fallbacks: int = 0
    deviations: int = 0
    """Another exit step, its confidence within the tolerance of alpha."""
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unended: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Reference:
    """One picture and what the network says of it."""

    pixels: NDArray[np.uint8]
    answer: Answer


class Callers:
    """Ask each edge without pause.

    Args:
        world: whom to ask.
        references: what to ask, and the answers.
        alpha: of the edges; one number.
    """

    def __init__(self, world: World, references: Sequence[Reference], alpha: float) -> None:
        self.tally = Tally()
        self._world = world
        self._references = references
        self._alpha = alpha
        self._stop = threading.Event()
        # Two each, so that samples overlap and answers could be mixed up.
        self._threads = [
            threading.Thread(target=self._ask_on, args=(socket, seed), daemon=True)
            for seed, socket in enumerate(2 * world.sockets)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask no more, and wait for the last outcomes."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * CALL_SECONDS)
            self.tally.unended += thread.is_alive()

    def _ask_on(self, socket: str, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            with Edge(socket, timeout_seconds=CALL_SECONDS) as edge:
                while not self._stop.is_set():
                    if not self.ask(edge, chance.choice(self._references)):
                        self._stop.wait(0.05)
                        break  # by a connection of its own again: the daemon may be another

    def ask(self, edge: Edge, reference: Reference) -> bool:
        """Ask once; say whether there was an answer."""
        with self.tally.lock:
            self.tally.accepted += 1
        began, answer, error = time.monotonic(), None, ""
        try:
            answer = edge.classify(reference.pixels)
        except NeucodexError as raised:
            error = type(raised).__name__
            if time.monotonic() - began > CALL_SECONDS - 1:
                error = "the daemon did not answer in time"
        with self.tally.lock:
            if answer is None:
                self.tally.errors[error] += 1
            else:
                self._compare(answer, reference.answer)
        return answer is not None

    def _compare(self, answer: Answer, expected: Answer) -> None:
        tally = self.tally
        tally.answered += 1
        tally.fallbacks += answer.placement == "fallback"
        if answer.timesteps_used == expected.timesteps_used:
            near = abs(answer.confidence - expected.confidence) < TOLERANCE
            if answer.label != expected.label or not near:
                tally.wrong.append(f"expected {expected}, got {answer}")
        elif abs(min(answer.confidence, expected.confidence) - self._alpha) < TOLERANCE:
            tally.deviations += 1
        else:
            tally.wrong.append(f"expected {expected}, got {answer}")


def measure(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
    """Run it; the report's format is that of every benchmark."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neucodex-")))
        pixels = np.random.default_rng(0).integers(
            0, 256, (PICTURES, *bundle.spec.input_shape), dtype=np.uint8
        )
        alpha, references = _references(folder, bundle, pixels)
        world = stack.enter_context(_running(folder, bundle, alpha))
        callers = Callers(world, references, alpha)
        callers.start()
        happened = _break(world, seconds)
        callers.stop()
        recovered = _recovers(world, callers, references)
        slots_seconds = _slots_after_killed_edges(world, references)
        settings = {
            "seconds": seconds,
            "link": world.links[0].method,
            "faults": dict(happened),
            "errors": dict(callers.tally.errors),
        }
    return settings, _results(callers.tally, recovered, slots_seconds)


def _references(
    folder: Path, bundle: Bundle, pixels: NDArray[np.uint8]
) -> tuple[float, list[Reference]]:
    """Return an alpha at which some exit early, and what one device alone answers with it."""
    flags = ("--placement", "edge_only", "--listen", f"unix:{folder}/alone.sock", "--metrics", "")
    module = ("edge_agent.cli", "run", "--bundle", str(bundle.path), *flags)

    def ask(alpha: float) -> list[Answer]:
        daemon = Daemon("alone0", folder, (*module, "--alpha", str(alpha)))
        try:
            with Edge(daemon.start().address) as edge:
                return [edge.classify(each) for each in pixels]
        finally:
            daemon.end(signal.SIGTERM)

    confidences = sorted(answer.confidence for answer in ask(0.0))
    middle = len(confidences) // 2
    alpha = round((confidences[middle - 1] + confidences[middle]) / 2, 6)
    return alpha, [Reference(*each) for each in zip(pixels, ask(alpha), strict=True)]


@contextlib.contextmanager
def _running(folder: Path, bundle: Bundle, alpha: float) -> Iterator[World]:
    """Run servers, links and edges."""
    certificates = Certificates(folder / "certificates")
    world = World(certificates)
    cloud_toml, edge_toml = folder / "cloud.toml", folder / "edge.toml"
    cloud_toml.write_text(CLOUD_CONFIG + certificates.server_config())
    edge_toml.write_text(EDGE_CONFIG + certificates.edge_config())
    common = ("--bundle", str(bundle.path), "--metrics", "127.0.0.1:0")
    with ExitStack() as stack:
        for number in range(SERVERS):
            serve = ("cloud_server.cli", "serve", "--config", str(cloud_toml), *common)
            world.servers.append(Daemon(f"server{number}", folder, serve))
            world.addresses[world.servers[-1].name] = "127.0.0.1:0"
            stack.callback(world.servers[-1].end, signal.SIGKILL)
            world.start(world.servers[-1])
        for number in range(EDGES):
            target = world.addresses[world.servers[number % SERVERS].name]
            world.links.append(stack.enter_context(emulated(CALM, target)))
            # The last one has no way out but an error.
            fallback = "none" if number == EDGES - 1 else "local"
            socket = f"unix:{folder}/edge{number}.sock"
            where = ("--cloud", world.links[-1].address, "--fallback", fallback)
            module = ("edge_agent.cli", "run", "--config", str(edge_toml), *common, *where)
            daemon = Daemon(f"edge{number}", folder, (*module, "--alpha", str(alpha)))
            world.edges.append(daemon)
            world.addresses[daemon.name] = socket
            world.sockets.append(socket)
            stack.callback(daemon.end, signal.SIGKILL)
            world.start(daemon)
        yield world


def _break(world: World, seconds: float) -> Counter[str]:
    """Let faults of processes and of links happen, both at once, for so long."""
    happened: Counter[str] = Counter()
    failures: list[BaseException] = []
    deadline = time.monotonic() + seconds

    def go_on(faults: Sequence[Fault], seed: int) -> None:
        chance = random.Random(seed)
        try:
            while time.monotonic() < deadline and not failures:
                happened[chance.choice(faults)(world, chance)] += 1
                time.sleep(chance.uniform(0.2, 2))
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=go_on, args=(faults, seed))
        for seed, faults in enumerate((PROCESS_FAULTS, LINK_FAULTS))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return happened


def _recovers(world: World, callers: Callers, references: Sequence[Reference]) -> int:
    """Return how many edges are connected again and answer everything by co-inference."""
    fallbacks, errors = callers.tally.fallbacks, callers.tally.errors.total()
    recovered = 0
    for socket in world.sockets:
        with Edge(socket, timeout_seconds=CALL_SECONDS) as edge:
            if not _within(RECOVERY_SECONDS, partial(_is_connected, edge)):
                continue
            recovered += all([callers.ask(edge, reference) for reference in references])
    calm = (callers.tally.fallbacks, callers.tally.errors.total()) == (fallbacks, errors)
    return recovered if calm and world.slots_in_use() == 0 else 0


def _is_connected(edge: Edge) -> bool:
    return bool(edge.status()["connected"])


def _slots_after_killed_edges(world: World, references: Sequence[Reference]) -> float:
    """Kill all edges in the middle of samples; return the seconds until no slot is held."""

    def ask(socket: str) -> None:
        with contextlib.suppress(LinkLostError), Edge(socket) as edge:
            for reference in references:
                edge.classify(reference.pixels)

    threads = [threading.Thread(target=ask, args=(socket,)) for socket in world.sockets]
    for thread in threads:
        thread.start()
    _within(RECOVERY_SECONDS, lambda: world.slots_in_use() > 0)
    for edge in world.edges:
        edge.send(signal.SIGKILL)
    began = time.monotonic()
    _within(RECOVERY_SECONDS, lambda: world.slots_in_use() == 0)
    for thread in threads:
        thread.join()
    return time.monotonic() - began


def _within(seconds: float, condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(NeucodexError, OSError):
            if condition():
                return True
        time.sleep(0.02)
    return False


def _results(tally: Tally, recovered: int, slots_seconds: float) -> list[Result]:
    for text in tally.wrong[:10]:
        sys.stderr.write(f"wrong: {text}\n")
    outcomes = tally.answered + tally.errors.total()
    return [
        figure("accepted", [tally.accepted], "samples"),
        figure("without_one_outcome", [tally.accepted - outcomes], "samples", "0"),
        figure("answered", [tally.answered], "samples"),
        figure("answered_on_the_device", [tally.fallbacks], "samples"),
        figure("errors", [tally.errors.total()], "samples"),
        figure("wrong_answers", [len(tally.wrong)], "samples", "0"),
        figure("deviations", [tally.deviations], "samples"),
        figure("callers_stuck", [tally.unended], "callers", "0"),
        figure("edges_recovered", [recovered], "edges", str(EDGES)),
        figure("slots_returned", [slots_seconds], "seconds", f"at most {IDLE_SECONDS}"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 1 if a goal was missed."""
    enter_private_network()
    found: list[Result] = []

    def measured(bundle: Bundle, quick: bool) -> tuple[dict[str, Any], list[Result]]:
        settings, results = measure(bundle, quick)
        found.extend(results)
        return settings, results

    run("chaos", __doc__, measured, argv)
    value = {result.name: result.value for result in found}
    zero = ("without_one_outcome", "wrong_answers", "callers_stuck")
    good = not any(value[name] for name in zero) and value["answered"] > 0
    in_time = value["slots_returned"] <= IDLE_SECONDS
    return 0 if good and in_time and value["edges_recovered"] == EDGES else 1


if __name__ == "__main__":
    sys.exit(main())
