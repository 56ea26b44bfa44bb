"""Emulated links: what goes in comes out late, slowly, or not at all, as the profile says."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import links
from benchmarks.emulator import QUEUE_SECONDS, Direction, readdress, word_sum
from benchmarks.links import PROFILES, Link, Profile, emulated, enter_private_network
from shared.errors import ConfigError, LinkLostError
from shared.tcp_info import read_totals

R = TypeVar("R")
ROOT = Path(__file__).resolve().parents[2]
DELAY_SECONDS = 0.02
QUICK = Profile("quick", None, 0.0)
LATE_SECONDS = 0.05
"""A busy machine may be late by so much; never early."""

seconds = st.floats(0, 1)
sizes = st.integers(20, 1500)


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    """Run a TCP server that sends back what it gets; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        host, port = server.getsockname()
        yield f"{host}:{port}"


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(65536):
            connection.sendall(data)


def connect(address: str) -> socket.socket:
    """Connect as gRPC does."""
    host, _, port = address.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, data: bytes) -> float:
    """Send data, wait for the same back, return the seconds it took."""
    began = time.perf_counter()
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        received += connection.recv(65536)
    assert received == data
    return time.perf_counter() - began


def in_private_network(work: Callable[[], R]) -> R:
    """Do something on a thread with a network of its own."""

    def there() -> R:
        if not enter_private_network():
            pytest.skip("network namespaces need root")
        return work()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(there).result()


def gone(pid: int) -> bool:
    """Say whether a process has ended (a zombie has)."""
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


# The model of a link.


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0, 0.1, 0.0, 0.0),
        (-1.0, 0.1, 0.0, 0.0),
        (math.nan, 0.1, 0.0, 0.0),
        (1e6, -0.1, 0.0, 0.0),
        (1e6, math.nan, 0.0, 0.0),
        (1e6, 0.1, 0.2, 0.0),
        (1e6, 0.1, 0.0, 1.0),
        (1e6, 0.1, 0.0, -0.1),
    ],
)
def test_a_link_that_cannot_be_is_refused(wrong: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Profile("wrong", *wrong)


def test_profiles_are_found_by_their_names() -> None:
    assert list(PROFILES) == ["lan", "wifi", "4g", "5g", "satellite"]
    assert all(name == profile.name for name, profile in PROFILES.items())


@given(st.lists(st.tuples(sizes, st.floats(0, 0.1)), min_size=1), seconds, st.floats(1e4, 1e9))
def test_packets_are_serialised_delayed_and_never_overtake(
    packets: list[tuple[int, float]], delay_seconds: float, rate: float
) -> None:
    profile = Profile("any", rate, delay_seconds, delay_seconds / 3)
    direction, now, busy_until, last = Direction(profile, 1), 0.0, 0.0, 0.0
    for size, pause_seconds in packets:
        now += pause_seconds
        busy_until = max(now, busy_until) + 8 * size / rate
        due = direction.due(size, now)
        assert due >= max(last, busy_until + 2 * delay_seconds / 3 - 1e-9)
        assert due <= max(last, busy_until + 4 * delay_seconds / 3 + 1e-9)
        assert direction.backlog_seconds(now) == pytest.approx(busy_until - now)
        last = due


def test_the_share_of_lost_packets_is_the_asked_one() -> None:
    direction = Direction(Profile("lossy", None, 0.0, 0.0, 0.1), 1)
    lost = sum(direction.drops(0.0) for _ in range(10_000))
    assert lost == direction.counts.lost
    assert lost == pytest.approx(1000, abs=5 * math.sqrt(900))


def test_a_full_queue_drops() -> None:
    rate = 10e6
    direction = Direction(Profile("slow", rate, 0.0), 1)
    taken = 0
    while not direction.drops(0.0):
        direction.due(1500, 0.0)
        taken += 1
    assert taken * 1500 * 8 / rate == pytest.approx(QUEUE_SECONDS, rel=0.01)
    assert direction.counts.overflowed == 1
    assert not direction.drops(0.1)


def checksum(data: bytes | bytearray) -> int:
    """Return the Internet checksum (RFC 1071) of data that contains one: 0 where it is right."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def tcp_packet(ends: bytes, options: bytes, segment: bytes) -> bytearray:
    """Return an IPv4 packet with right checksums."""
    header = bytearray(struct.pack("!BBHHHBBH", 0, 0, 0, 7, 0, 64, 6, 0) + ends + options)
    header[0] = 0x40 | len(header) // 4
    struct.pack_into("!H", header, 2, len(header) + len(segment))
    struct.pack_into("!H", header, 10, checksum(header))
    body = bytearray(segment)
    pseudo = ends + struct.pack("!BBH", 0, 6, len(body))
    struct.pack_into("!H", body, 16, 0)
    struct.pack_into("!H", body, 16, checksum(pseudo + body))
    return header + body


@given(
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 10).map(lambda words: b"\1" * 4 * words),
    st.binary(min_size=20, max_size=100),
)
def test_a_readdressed_packet_has_right_checksums(
    before: bytes, after: bytes, options: bytes, segment: bytes
) -> None:
    packet = tcp_packet(before, options, segment)
    readdress(packet, after, word_sum(after) - word_sum(before))
    header, body = packet[: 20 + len(options)], packet[20 + len(options) :]
    assert header[12:20] == after
    assert checksum(header) == 0
    assert checksum(after + struct.pack("!BBH", 0, 6, len(body)) + body) == 0


# The relay.


def test_a_relay_delays_both_ways_and_follows_its_profile() -> None:
    slow = Profile("slow", 8e6, DELAY_SECONDS)
    with (
        echo_server() as target,
        emulated(slow, target, method="relay") as link,
        connect(link.address) as connection,
    ):
        took = median(exchange(connection, b"x") for _ in range(9))
        assert 2 * DELAY_SECONDS <= took < 2 * DELAY_SECONDS + LATE_SECONDS
        # 100 kB take 100 ms each way, and the way back begins before the way up has ended.
        assert exchange(connection, bytes(100_000)) >= 0.1 + 2 * DELAY_SECONDS
        link.change(QUICK)
        assert median(exchange(connection, b"x") for _ in range(9)) < 2 * DELAY_SECONDS
        traffic = link.traffic()
        assert traffic.up.bytes == traffic.down.bytes == 100_018
        assert link.facts["method"].startswith("a TCP relay")
        assert link.facts["reason"] == "a relay was asked for"


def test_a_target_may_be_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        with (
            emulated(QUICK, f"[::1]:{server.getsockname()[1]}") as link,
            connect(link.address) as connection,
        ):
            assert link.method == "relay"
            exchange(connection, b"x")


def test_the_end_of_a_connection_is_relayed_after_its_data() -> None:
    with (
        echo_server() as target,
        emulated(Profile("slow", None, DELAY_SECONDS), target, method="relay") as link,
        connect(link.address) as connection,
    ):
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: connection.recv(100), b"")) == b"last words"


def test_a_relay_to_nobody_ends_connections_and_stays() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    with emulated(QUICK, target, method="relay") as link:
        for _ in range(2):
            with connect(link.address) as connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""


# The emulator's life.


def test_a_target_elsewhere_takes_a_relay_and_says_why() -> None:
    with emulated(QUICK, "192.0.2.1:9") as link:
        assert link.method == "relay"
        assert "not on this machine" in link.reason


def test_packets_that_cannot_be_had_are_refused() -> None:
    with (
        pytest.raises(ConfigError, match="not on this machine"),
        emulated(QUICK, "192.0.2.1:9", method="tun"),
    ):
        pass


def test_an_address_of_another_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="host:port"), emulated(QUICK, "nowhere"):
        pass


def test_the_emulator_ends_with_its_block() -> None:
    with pytest.raises(ZeroDivisionError), emulated(QUICK, "127.0.0.1:9", method="relay") as link:
        process = link._process
        raise ZeroDivisionError
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        connect(link.address)


def test_a_link_whose_emulator_died_says_so() -> None:
    with emulated(QUICK, "127.0.0.1:9", method="relay") as link:
        os.kill(link._process.pid, signal.SIGKILL)
        link._process.wait()
        with pytest.raises(LinkLostError, match="has ended"):
            link.change(QUICK)


def test_the_emulator_ends_with_a_killed_parent() -> None:
    program = (
        "from benchmarks.links import *\n"
        "with emulated(PROFILES['lan'], '127.0.0.1:9', method='relay') as link:\n"
        "    print(link._process.pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Packets.


@pytest.mark.network
def test_packets_travel_late_and_are_counted_as_the_kernel_counts_them() -> None:
    def there() -> None:
        with (
            echo_server() as target,
            emulated(Profile("slow", 20e6, DELAY_SECONDS), target, method="tun") as link,
            connect(link.address) as connection,
        ):
            took = median(exchange(connection, b"x") for _ in range(9))
            assert 2 * DELAY_SECONDS <= took < 2 * DELAY_SECONDS + LATE_SECONDS
            assert_counts_agree(connection, link)
            link.change(QUICK)
            assert median(exchange(connection, b"x") for _ in range(9)) < 2 * DELAY_SECONDS

    in_private_network(there)


def assert_counts_agree(connection: socket.socket, link: Link) -> None:
    """The kernel's figures lack the eight bytes of options of each of the two first segments."""
    totals, deadline = read_totals(connection), time.monotonic() + 10
    handshake_bytes = 8
    while (traffic := link.traffic()).down.bytes < totals.received_bytes + handshake_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        totals = read_totals(connection)
    assert traffic.up.bytes == totals.sent_bytes + handshake_bytes
    assert traffic.down.bytes == totals.received_bytes + handshake_bytes
    assert totals.min_rtt_seconds is not None
    assert totals.min_rtt_seconds >= 2 * DELAY_SECONDS


@pytest.mark.network
def test_a_rate_is_kept_and_lost_packets_are_sent_again() -> None:
    def there() -> None:
        lossy = Profile("lossy", 40e6, 0.002, 0.001, 0.02)
        with (
            echo_server() as target,
            emulated(lossy, target, method="tun") as link,
            connect(link.address) as connection,
        ):
            # 1 MB takes 0.2 s each way, besides what is sent again.
            took = sum(exchange(connection, bytes(50_000)) for _ in range(20))
            assert took >= 2 * 0.2
            traffic = link.traffic()
            assert traffic.up.lost > 0
            assert traffic.down.lost > 0
            assert read_totals(connection).retransmitted_bytes > 0

    in_private_network(there)


@pytest.mark.network
def test_a_private_network_is_apart_and_the_device_goes_with_the_link() -> None:
    def there() -> tuple[list[str], list[str]]:
        with echo_server() as target, emulated(QUICK, target) as link:
            assert link.method == "tun"
            assert link.reason == ""
            with connect(link.address) as connection:
                exchange(connection, b"x")
            during = interfaces()
        return during, interfaces()

    during, after = in_private_network(there)
    assert set(during) - set(after) == {"ncx0"}


def interfaces() -> list[str]:
    """Return the names of the interfaces of this thread's network."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return sorted(line.partition(":")[0].strip() for line in lines)


def test_where_the_system_refuses_a_private_network_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_CLONE_NEWNET", 1)  # no flag of unshare
    assert not enter_private_network()
