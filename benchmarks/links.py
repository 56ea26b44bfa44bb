"""Emulated links: a network's rate, delay, jitter and loss between two programs of one machine.

::

    with run_cloud(folder, bundle) as cloud, emulated(PROFILES["4g"], cloud.address) as link:
        with run_edge(folder, bundle, "--cloud", link.address) as edge:
            ...
            link.change(PROFILES["wifi"])

Whoever connects to ``link.address`` reaches the target over the link. With root rights, and a
target on this machine, every packet really travels it (a TUN device); else bytes do, through a
TCP relay that cannot lose any: ``link.method`` says which, ``link.facts`` is for reports. The
emulator is a process of its own (:mod:`benchmarks.emulator`) that ends with its ``with`` block, or
with this process, and leaves nothing behind.

A benchmark calls :func:`enter_private_network` first, so that its device, and all that it sends, is
in a network namespace of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from benchmarks.emulator import Method, Profile, Started, Traffic, set_loopback_up
from benchmarks.report import ROOT
from shared.addresses import parse_address
from shared.errors import ConfigError, LinkLostError

__all__ = ["PROFILES", "Link", "Profile", "Traffic", "emulated", "enter_private_network"]

STOP_SECONDS = 5.0
"""Time to end once its input has; then the emulator is killed."""
_CLONE_NEWNET = 0x40000000

PROFILES = {
    profile.name: profile
    for profile in (
        # Our choice: a wired gigabit network of a few switches.
        Profile("lan", 1e9, 0.00025, 0.00005),
        # Our choice: a good indoor connection shared with others. Radio losses are made good by the
        # link layer and show as jitter; the few that are not are the loss.
        Profile("wifi", 50e6, 0.002, 0.001, 0.001),
        # Round trip: the median ping over LTE, 55 ms (Catchpoint, in Web Performance Calendar 2013,
        # "Network Latency in 4G"). Upward rate and jitter: our choice.
        Profile("4g", 12e6, 0.0275, 0.005),
        # Upward rate: 17 % of a mean download of 210 Mbit/s; round trip: about 10 ms outdoors, up
        # to 15 ms more indoors (Cellsmart survey, IEEE ComSoc Technology Blog, May 2023), of which
        # we take 20 ms. Jitter: our choice.
        Profile("5g", 36e6, 0.010, 0.002),
        # Round trip: about 600 ms over a geostationary satellite, 477 ms of it distance (APNIC
        # blog, "Testing LEO and GEO satellite services in Australia", 2022). The rest: our choice.
        Profile("satellite", 3e6, 0.300, 0.010, 0.005),
    )
}
"""By name. One rate for both directions: that of the upward one, which carries the data here."""


class Link:
    """A running link; made by :func:`emulated`."""

    def __init__(self, process: subprocess.Popen[bytes], started: Started, profile: Profile):
        self._process = process
        self.address = started.address
        """Where to connect instead of to the target, ``host:port``."""
        self.method: Method = started.method
        """``tun``: packets travel the link; ``relay``: bytes do."""
        self.reason = started.reason
        """Why a relay is used."""
        self.profile = profile
        """As it is now."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a report has to say about the link."""
        how = {"tun": "packets, through a TUN device", "relay": "a TCP relay, which loses nothing"}
        facts = {"method": how[self.method], "profile": msgspec.to_builtins(self.profile)}
        return facts | ({"reason": self.reason} if self.reason else {})

    def change(self, profile: Profile) -> None:
        """Behave otherwise from now on; what is under way arrives as it was to arrive.

        Raises:
            LinkLostError: the emulator has ended.
        """
        self._ask(msgspec.json.encode(profile))
        self.profile = profile

    def traffic(self) -> Traffic:
        """Return what the link has carried so far; LinkLostError if the emulator has ended."""
        return self._ask(b"")

    def _ask(self, command: bytes) -> Traffic:
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("expected a process with pipes")
        try:
            self._process.stdin.write(command + b"\n")
            self._process.stdin.flush()
            return msgspec.json.decode(self._process.stdout.readline(), type=Traffic)
        except (OSError, msgspec.DecodeError) as error:
            raise LinkLostError("expected the link emulator to answer, it has ended") from error


@contextlib.contextmanager
def emulated(
    profile: Profile, target_address: str, *, method: Method | None = None
) -> Iterator[Link]:
    """Run a link to a TCP server for the length of a block.

    Args:
        profile: how it behaves; see :data:`PROFILES`.
        target_address: ``host:port`` of the server, which need not run yet.
        method: ``tun`` or ``relay``; None for the first, if it is possible, else the second.

    Raises:
        ConfigError: no such address, or packets were asked for and cannot be had.
    """
    parse_address(target_address)
    flags = [target_address, "--profile", msgspec.json.encode(profile).decode()]
    flags += [] if method is None else ["--method", method]
    # In a session of its own: Ctrl-C reaches us alone. The end of its input ends it in every case.
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.emulator", *flags],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Link(process, _started(process, target_address), profile)
    finally:
        _stop(process)


def _started(process: subprocess.Popen[bytes], target: str) -> Started:
    if process.stdout is None:
        raise ValueError("expected a process with pipes")
    line = process.stdout.readline()
    try:
        return msgspec.json.decode(line, type=Started)
    except msgspec.DecodeError as error:
        why = line.decode().strip() or f"it ended with status {process.wait()}"
        raise ConfigError(f"expected a link to {target}: {why}") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        if process.stdout is not None:
            process.stdout.close()
        process.wait()


def enter_private_network() -> bool:
    """Give this thread a network of its own, with a loopback interface and nothing else.

    Processes and threads that it starts from now on are in it too, those there already are not: a
    benchmark calls it first of all. It goes when the last of them ends.

    Returns:
        Whether it is so; where the system refuses (root is needed), nothing has changed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        return False
    set_loopback_up()
    return True
