"""Bytes on the wire of this process's own TCP connections, as the kernel counted them (Linux).

gRPC does not give out its sockets, so they are looked up under ``/proc/self/fd`` by their peer (or
by their local port, on a server) and asked with ``getsockopt(TCP_INFO)``; no privileges needed.

Wire bytes are TCP payload with retransmissions, plus for every segment, pure ACKs included, the IP
header (20 or 40 bytes), the TCP header (20) and the timestamp option (12); no Ethernet. Rare extra
options (SACK blocks, those of the handshake) are not counted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

_INFO_BYTES = 256
_COUNTERS = struct.Struct("=5x B x B 120x Q I I 4x I 8x Q 32x Q Q")
"""Head of the kernel's ``struct tcp_info`` (since Linux 4.19): options, flags, bytes_received,
segs_out, segs_in, min_rtt in microseconds, delivery_rate, bytes_sent, bytes_retrans."""
_TCP_INFO = 11
_OPTION_TIMESTAMPS = 1
_FLAG_APPLICATION_LIMITED = 1
_NO_RTT = 0xFFFFFFFF
_IPV4_HEADER_BYTES = 20
_IPV6_HEADER_BYTES = 40
_TCP_HEADER_BYTES = 20
_TIMESTAMPS_BYTES = 12
_IP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_NOT_OURS = {errno.EBADF, errno.ENOTSOCK, errno.ENOTCONN, errno.EINVAL}
"""A descriptor that was closed under our eyes, is no socket, or is not connected."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Totals(NamedTuple):
    """Wire bytes since a counter was made, over all connections it saw."""

    sent_bytes: int = 0
    received_bytes: int = 0
    retransmitted_bytes: int = 0
    """TCP payload sent again; contained in ``sent_bytes``."""
    min_rtt_seconds: float | None = None
    """The kernel's smallest round trip over the open connections, if there are any."""
    link_bytes_per_second: float | None = None
    """The highest of the rates, TCP payload alone, at which they delivered what was sent; None
    where so little was sent that the link's rate did not show."""

    def plus(self, other: Totals) -> Totals:
        """Return the totals of two groups of connections together."""
        rtts = [rtt for rtt in (self.min_rtt_seconds, other.min_rtt_seconds) if rtt is not None]
        rates = (self.link_bytes_per_second, other.link_bytes_per_second)
        return Totals(
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
            self.retransmitted_bytes + other.retransmitted_bytes,
            min(rtts, default=None),
            max((rate for rate in rates if rate is not None), default=None),
        )


class WireCounter:
    """Counts the wire bytes of this process's TCP connections to peers, or to a port of ours.

    Bytes that flow between the last :meth:`poll` and the closing of a connection are missed, so
    poll before closing one. Safe to call from several threads.

    Args:
        peers: ``(host, port)`` of each other end; a name is looked up when a connection to its
            port appears.
        local_port: on a server, the port it listens on, instead of ``peers``.
        proc: where the proc file system is mounted.

    Raises:
        ValueError: not exactly one of ``peers`` and ``local_port`` is given.
    """

    def __init__(
        self,
        *,
        peers: Sequence[tuple[str, int]] = (),
        local_port: int | None = None,
        proc: Path = Path("/proc"),
    ) -> None:
        if (not peers) == (local_port is None):
            raise ValueError(f"expected peers or a local port, got {peers} and {local_port}")
        self._peers = tuple(peers)
        self._local_port = local_port
        self._descriptors = proc / "self" / "fd"
        self._supported = self._descriptors.is_dir() and _kernel_tells()
        self._lock = Lock()
        self._open: dict[int, Totals] = {}
        self._closed = Totals()
        self._is_peer: dict[tuple[str, IpAddress], bool] = {}

    def poll(self) -> Totals | None:
        """Return the totals so far; they never fall.

        Returns:
            Nothing where the system does not tell: no Linux, no proc, a kernel before 4.19. What
            the last call returned when this one cannot look, for want of descriptors.
        """
        if not self._supported:
            return None
        with self._lock:
            with contextlib.suppress(OSError):
                self._update(dict(self._scan()))
            return sum_of([self._closed, *self._open.values()])

    def _update(self, seen: dict[int, Totals]) -> None:
        gone = [totals for inode, totals in self._open.items() if inode not in seen]
        self._closed = sum_of([self._closed, *gone])._replace(
            min_rtt_seconds=None, link_bytes_per_second=None
        )
        self._open = seen

    def _scan(self) -> Iterator[tuple[int, Totals]]:
        """Yield inode and totals of every connection of ours, some perhaps twice.

        Each descriptor is duplicated first: the copy stays the same socket whatever the owner
        does with the number meanwhile.
        """
        for name in os.listdir(self._descriptors):
            try:
                with _copy_of(int(name)) as connection:
                    inode = os.fstat(connection.fileno()).st_ino
                    if inode in self._open or self._matches(connection):
                        yield inode, read_totals(connection)
            except OSError as error:
                if error.errno not in _NOT_OURS:
                    raise

    def _matches(self, connection: socket.socket) -> bool:
        if connection.family not in _IP_FAMILIES or connection.proto != socket.IPPROTO_TCP:
            return False
        ip, port = _end(connection.getpeername())
        if self._local_port is not None:
            return _end(connection.getsockname())[1] == self._local_port
        hosts = [host for host, peer_port in self._peers if peer_port == port]
        return any(self._is_peer_address(host, ip) for host in hosts)

    def _is_peer_address(self, host: str, ip: IpAddress) -> bool:
        if (host, ip) not in self._is_peer:
            with contextlib.suppress(socket.gaierror):
                self._is_peer[host, ip] = ip in _addresses(host)
        return self._is_peer.get((host, ip), False)


def sum_of(parts: Iterable[Totals]) -> Totals:
    """Return the totals of several groups of connections together."""
    return functools.reduce(Totals.plus, parts, Totals())


def read_totals(connection: socket.socket) -> Totals:
    """Ask the kernel about one connected TCP socket.

    Raises:
        OSError: not a TCP socket.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
    options, flags, received, segments_out, segments_in, rtt_us, rate, sent, retransmitted = (
        _COUNTERS.unpack_from(info)
    )
    # Of a connection that had nothing more to send, the kernel knows only what it asked for.
    rate_shows = rate > 0 and not flags & _FLAG_APPLICATION_LIMITED
    header_bytes = _TCP_HEADER_BYTES + _ip_header_bytes(connection)
    if options & _OPTION_TIMESTAMPS:
        header_bytes += _TIMESTAMPS_BYTES
    return Totals(
        sent + segments_out * header_bytes,
        received + segments_in * header_bytes,
        retransmitted,
        None if rtt_us == _NO_RTT else rtt_us * 1e-6,
        float(rate) if rate_shows else None,
    )


def _ip_header_bytes(connection: socket.socket) -> int:
    ip, _ = _end(connection.getsockname())
    return _IPV4_HEADER_BYTES if ip.version == 4 else _IPV6_HEADER_BYTES


def _end(name: tuple[str, int]) -> tuple[IpAddress, int]:
    """Return IP address and port of a socket name, IPv4 also where a dual-stack socket says v6."""
    ip = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip, name[1]


def _addresses(host: str) -> set[IpAddress]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return {_end((str(name[0]), 0))[0] for *_, name in found}


@contextlib.contextmanager
def _copy_of(descriptor: int) -> Iterator[socket.socket]:
    """Open a socket on a duplicate of a descriptor; OSError where it is none."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTSOCK, "not a socket")
    duplicate = os.dup(descriptor)
    try:
        copy = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise
    with copy:
        yield copy


def _kernel_tells() -> bool:
    if sys.platform != "linux":
        return False
    with socket.socket() as probe:
        info = probe.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_BYTES)
    return len(info) >= _COUNTERS.size
