import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from shared.tcp_info import Totals, WireCounter, read_totals, sum_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is read on Linux")

HEADERS_BYTES = 20 + 20 + 12
HANDSHAKE_SEGMENTS = 3
Address = tuple[str, int]


def totals_of(counter: WireCounter) -> Totals:
    """Poll a counter that must know."""
    totals = counter.poll()
    assert totals is not None
    return totals


class Pair:
    """Two ends of one TCP connection inside this process."""

    def __init__(self, listener: socket.socket, host: str = "127.0.0.1") -> None:
        self.client = socket.create_connection((host, listener.getsockname()[1]))
        self.server, _ = listener.accept()

    def send(self, size_bytes: int) -> None:
        """Send from client to server and wait until all is there."""
        self.client.sendall(bytes(size_bytes))
        left = size_bytes
        while left:
            left -= len(self.server.recv(left))

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def peer(listener: socket.socket) -> Address:
    host, port = listener.getsockname()
    return host, port


def test_sent_bytes_are_payload_and_headers(listener: socket.socket, peer: Address) -> None:
    counter = WireCounter(peers=[peer])
    with closing(Pair(listener)) as pair:
        before = totals_of(counter)
        for _ in range(20):
            pair.send(100)
        after = totals_of(counter)
    sent = after.sent_bytes - before.sent_bytes
    payload, headers = 20 * 100, sent - 20 * 100
    assert headers % HEADERS_BYTES == 0
    assert 1 <= headers // HEADERS_BYTES <= 20
    assert sent > payload
    assert after.retransmitted_bytes == 0
    assert after.min_rtt_seconds is not None and 0 < after.min_rtt_seconds < 1


def test_a_links_rate_shows_only_where_more_was_to_be_sent_than_it_took(
    listener: socket.socket, peer: Address
) -> None:
    counter = WireCounter(peers=[peer])
    with closing(Pair(listener)) as pair:
        pair.send(100)
        assert totals_of(counter).link_bytes_per_second is None
        pair.client.setblocking(False)
        for _ in range(20):
            with suppress(BlockingIOError):
                while True:
                    pair.client.send(bytes(1 << 20))
            pair.server.recv(1 << 20)
        rate = totals_of(counter).link_bytes_per_second
        assert rate is not None and rate > 0
    assert totals_of(counter).link_bytes_per_second is None


def test_both_ends_agree(listener: socket.socket, peer: Address) -> None:
    client, server = WireCounter(peers=[peer]), WireCounter(local_port=peer[1])
    with closing(Pair(listener)) as pair:
        pair.send(200_000)
        ours, theirs = totals_of(client), totals_of(server)
    # The server counts from the end of the handshake on, and its last ACKs may be under way.
    assert theirs.received_bytes >= 200_000
    assert abs(ours.sent_bytes - theirs.received_bytes) <= HANDSHAKE_SEGMENTS * HEADERS_BYTES
    assert theirs.sent_bytes > 0
    assert theirs.sent_bytes % HEADERS_BYTES == 0


def test_totals_live_on_after_a_connection(listener: socket.socket, peer: Address) -> None:
    counter = WireCounter(peers=[peer])
    with closing(Pair(listener)) as pair:
        pair.send(1000)
        first = totals_of(counter)
    between = totals_of(counter)
    assert between == first._replace(min_rtt_seconds=None, link_bytes_per_second=None)
    with closing(Pair(listener)) as pair:
        pair.send(5000)
        second = totals_of(counter)
    assert second.sent_bytes >= first.sent_bytes + 5000 + HEADERS_BYTES
    assert totals_of(counter).sent_bytes == second.sent_bytes


def test_a_duplicated_descriptor_counts_once(listener: socket.socket, peer: Address) -> None:
    counter = WireCounter(peers=[peer])
    with closing(Pair(listener)) as pair:
        pair.send(1000)
        once = totals_of(counter)
        with pair.client.dup():
            assert totals_of(counter) == once


def test_connections_elsewhere_do_not_count(listener: socket.socket, peer: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, ExitStack() as stack:
        stack.enter_context(closing(Pair(elsewhere))).send(1000)
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.connect(peer)
        datagrams.send(b"not TCP")
        for end in socket.socketpair():
            stack.enter_context(end)
        assert WireCounter(peers=[peer]).poll() == Totals()
        assert WireCounter(peers=[("127.0.0.2", peer[1])]).poll() == Totals()
        assert WireCounter(local_port=peer[1]).poll() == Totals()


def test_a_peer_may_be_a_name(listener: socket.socket, peer: Address) -> None:
    with closing(Pair(listener)) as pair:
        pair.send(10)
        assert totals_of(WireCounter(peers=[("localhost", peer[1])])).sent_bytes > 0
        assert WireCounter(peers=[("no-such-host.invalid", peer[1])]).poll() == Totals()


def test_ipv4_through_a_dual_stack_socket_has_ipv4_headers(
    listener: socket.socket, peer: Address
) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6) as client:
        client.connect((f"::ffff:{peer[0]}", peer[1]))
        server, _ = listener.accept()
        with server:
            counter = WireCounter(peers=[peer])
            before = totals_of(counter).sent_bytes
            client.sendall(b"x" * 50)
            assert server.recv(50)
            assert totals_of(counter).sent_bytes == before + 50 + HEADERS_BYTES


def test_polling_leaves_no_descriptor_open(listener: socket.socket, peer: Address) -> None:
    counter = WireCounter(peers=[peer])
    with closing(Pair(listener)):
        before = os.listdir("/proc/self/fd")
        for _ in range(10):
            totals_of(counter)
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_descriptors_may_come_and_go_meanwhile(listener: socket.socket, peer: Address) -> None:
    counter, stop = WireCounter(peers=[peer]), threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for end in socket.socketpair():
                end.close()
            with open(os.devnull):
                pass

    threads = [threading.Thread(target=churn) for _ in range(2)]
    with closing(Pair(listener)) as pair:
        pair.send(1000)
        for thread in threads:
            thread.start()
        polls = [totals_of(counter) for _ in range(200)]
        stop.set()
        for thread in threads:
            thread.join()
        assert {poll.sent_bytes for poll in polls} == {totals_of(counter).sent_bytes}


def test_without_proc_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert WireCounter(peers=[("127.0.0.1", 1)], proc=tmp_path).poll() is None


def test_exactly_one_end_is_named() -> None:
    with pytest.raises(ValueError, match="peers or a local port"):
        WireCounter()
    with pytest.raises(ValueError, match="peers or a local port"):
        WireCounter(peers=[("127.0.0.1", 1)], local_port=2)


def test_other_sockets_have_no_totals() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError):
        read_totals(datagrams)


def test_the_smallest_round_trip_of_several_connections_counts() -> None:
    parts = [Totals(1, 2, 3, 0.5), Totals(10, 20, 30), Totals(100, 200, 300, 0.25)]
    assert sum_of(parts) == Totals(111, 222, 333, 0.25)
