"""The link emulator's own process: packets, or bytes, leave later than they came, or not at all.

``python -m benchmarks.emulator TARGET --profile JSON``, started by :mod:`benchmarks.links`: in a
process of its own it does not disturb what is measured.

*tun*: a TUN device with the network ``198.18.N.0/24`` (a range set aside for benchmarks, RFC 2544).
A client connects to ``.2``; its packets come out of the device into this process, which holds them
up and puts them back addressed to the target, as if ``.3`` had sent them. TCP runs between client
and target, over every delay and loss. The device goes with the process, however that ends.

*relay*: a TCP proxy on the loopback interface. Delay and rate are real, but client and target each
speak TCP with the proxy: nothing is ever lost, and connecting takes no time.

Commands come on standard input, each is answered on standard output by the traffic so far: a
profile in JSON takes effect at once, an empty line changes nothing. The end of the input is the
end of the link.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import os
import selectors
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

Method = Literal["tun", "relay"]

QUEUE_SECONDS = 0.2
"""Longest queue before the link, in transmission time; our choice, what it cannot take is lost."""
QUEUE_MIN_BYTES = 64_000
"""A slow link's queue holds at least so much."""
PRIORITY = -10
"""Niceness, where it may be set: the packets of a busy machine are not to wait for the emulator."""
MTU_BYTES = 1500
RELAYED_BYTES = 1448
"""Of one segment; a relay hands on so much at a time."""
RELAYED_HEADER_BYTES = 52
"""IPv4, TCP and timestamps, which a relayed segment would have needed on the link."""
BURST_PACKETS = 64
"""Most packets taken from the device before due ones are looked after."""
SEEDS = (1, 2)
"""Of the losses and jitter upwards and downwards."""

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8914, 0x8916, 0x891C, 0x8922
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_NAME_BYTES, _IFREQ_BYTES = 16, 40
_TCP = 6


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a link behaves, the same in both directions; ValueError if it cannot."""

    name: str
    rate_bits_per_second: float | None
    """None: no limit."""
    delay_seconds: float
    """One way; a round trip takes twice as long."""
    jitter_seconds: float = 0.0
    """A packet's delay is uniform within so much of ``delay_seconds``; none overtakes another."""
    loss: float = 0.0
    """Share of packets lost, each by itself."""

    def __post_init__(self) -> None:
        if self.rate_bits_per_second is not None and not 0 < self.rate_bits_per_second < 1e13:
            raise ValueError(f"rate_bits_per_second: expected more than 0, got {self}")
        if not 0 <= self.jitter_seconds <= self.delay_seconds <= 60:
            raise ValueError(f"expected 0 <= jitter_seconds <= delay_seconds <= 60, got {self}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss: expected a share from 0 to less than 1, got {self}")


class Counts(msgspec.Struct):
    """What one direction has carried."""

    packets: int = 0
    """Sent into the link, those it lost included; of a relay, reads."""
    bytes: int = 0
    """Of these, IP headers and all; of a relay, what TCP carried."""
    lost: int = 0
    """Packets lost on the link."""
    overflowed: int = 0
    """Packets lost because the queue before it was full."""


class Traffic(msgspec.Struct):
    """What the link has carried since its start."""

    up: Counts
    """Client to target."""
    down: Counts


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The emulator's first word, unless it cannot start: then, in plain text, why not."""

    method: Method
    address: str
    """Where to connect instead of to the target."""
    reason: str = ""
    """Of a relay: why it is none of the other kind."""


class Direction:
    """One direction of a link: a queue, then a line of some rate, delay, jitter and loss.

    Args:
        profile: at first.
        seed: of its losses and jitter.
    """

    def __init__(self, profile: Profile, seed: int) -> None:
        self.profile = profile
        self.counts = Counts()
        self._random = Random(seed)
        self._free = 0.0
        self._last = 0.0

    def backlog_seconds(self, now: float) -> float:
        """Return how long the line is busy with what was sent before."""
        return max(0.0, self._free - now)

    def drops(self, now: float) -> bool:
        """Say whether the next packet gets lost, and count it if so."""
        profile = self.profile
        if profile.loss and self._random.random() < profile.loss:
            self.counts.lost += 1
            return True
        rate, backlog_seconds = profile.rate_bits_per_second, self.backlog_seconds(now)
        if rate is None or backlog_seconds <= max(QUEUE_SECONDS, QUEUE_MIN_BYTES * 8 / rate):
            return False
        self.counts.overflowed += 1
        return True

    def due(self, size_bytes: int, now: float) -> float:
        """Send ``size_bytes`` into the line and return when they come out."""
        profile, rate = self.profile, self.profile.rate_bits_per_second
        self._free = max(now, self._free) + (size_bytes * 8 / rate if rate is not None else 0.0)
        jitter_seconds = self._random.uniform(-profile.jitter_seconds, profile.jitter_seconds)
        self._last = max(self._last, self._free + profile.delay_seconds + jitter_seconds)
        return self._last


class Line:
    """Does things when they are due, in their order.

    Args:
        direction: says when.
    """

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self._events = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, Callable[[], object]]] = deque()

    def send(self, size_bytes: int, then: Callable[[], object]) -> None:
        """Call ``then`` when ``size_bytes`` sent now come out at the other end."""
        due = self.direction.due(size_bytes, self._events.time())
        self._waiting.append((due, then))
        if len(self._waiting) == 1:
            self._events.call_at(due, self._release)

    def _release(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._events.time():
            self._waiting.popleft()[1]()
        if self._waiting:
            self._events.call_at(self._waiting[0][0], self._release)


# Packets.


def readdress(packet: bytearray, ends: bytes, shift: int) -> None:
    """Give an IPv4 packet another source and destination, in place.

    Args:
        packet: whole; TCP, or something whose checksum does not cover the addresses (ICMP).
        ends: the new addresses, 8 bytes.
        shift: :func:`word_sum` of the new addresses less that of the old; the checksums are
            mended by it (RFC 1624).
    """
    offsets = [10]
    if packet[9] == _TCP:
        offsets.append((packet[0] & 0xF) * 4 + 16)
    packet[12:20] = ends
    for offset in offsets:
        (checksum,) = struct.unpack_from("!H", packet, offset)
        struct.pack_into("!H", packet, offset, 0xFFFF - (0xFFFF - checksum + shift) % 0xFFFF)


def word_sum(ends: bytes) -> int:
    """Return the sum of the four 16-bit words of two addresses."""
    return sum(struct.unpack("!4H", ends))


class TunLink:
    """The way of the packets through a TUN device.

    Args:
        device: its file descriptor, not blocking.
        network: the first three bytes of its addresses.
        target: address of the target.
        up: client to target.
        down: back.
    """

    def __init__(self, device: int, network: bytes, target: bytes, up: Line, down: Line) -> None:
        self._device = device
        edge, seen, mirrored = (network + bytes([host]) for host in (1, 2, 3))
        upward, onward = edge + seen, mirrored + target
        downward, homeward = target + mirrored, seen + edge
        self._ways = {
            upward: (up, onward, word_sum(onward) - word_sum(upward)),
            downward: (down, homeward, word_sum(homeward) - word_sum(downward)),
        }
        asyncio.get_running_loop().add_reader(device, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(BURST_PACKETS):
                self._take(bytearray(os.read(self._device, 65536)))

    def _take(self, packet: bytearray) -> None:
        way = self._ways.get(bytes(packet[12:20]))
        if way is None or packet[0] >> 4 != 4:
            return  # IPv6 looks for routers on every new device.
        line, ends, shift = way
        counts = line.direction.counts
        counts.packets += 1
        counts.bytes += len(packet)
        if not line.direction.drops(asyncio.get_running_loop().time()):
            readdress(packet, ends, shift)
            line.send(len(packet), partial(os.write, self._device, packet))


def open_tun() -> tuple[int, bytes]:
    """Make a device in this process's network; return it and the start of its addresses.

    Raises:
        OSError: not root, or the system has no TUN.
    """
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        return device, _set_up(device)
    except OSError:
        os.close(device)
        raise


def _set_up(device: int) -> bytes:
    request = struct.pack("16sH22x", b"ncx%d", _IFF_TUN | _IFF_NO_PI)
    name = fcntl.ioctl(device, _TUNSETIFF, request)[:_NAME_BYTES].rstrip(b"\0").decode()
    network = bytes([198, 18, int(name.removeprefix("ncx")) % 256])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for code, value in (
            (_SIOCSIFADDR, _socket_address(network + b"\1")),
            (_SIOCSIFNETMASK, _socket_address(b"\xff\xff\xff\0")),
            (_SIOCSIFMTU, struct.pack("i", MTU_BYTES)),
            (_SIOCSIFFLAGS, struct.pack("H", _IFF_UP | _IFF_RUNNING)),
        ):
            fcntl.ioctl(control, code, interface_request(name, value))
    # What comes out of the device may then be for 127.0.0.1; it comes from this process alone.
    Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")
    return network


def interface_request(name: str, value: bytes) -> bytes:
    """Return the kernel's ``struct ifreq``."""
    return (name.encode().ljust(_NAME_BYTES, b"\0") + value).ljust(_IFREQ_BYTES, b"\0")


def _socket_address(ip: bytes) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, ip)


def set_loopback_up() -> None:
    """Switch on the loopback interface of this thread's network; OSError where it may not be."""
    flags = struct.pack("H", _IFF_UP | _IFF_RUNNING)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, interface_request("lo", flags))


def local_ipv4(host: str) -> bytes:
    """Return the IPv4 address of a host that is this machine; OSError if it is another."""
    found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)
    address: tuple[str, int] = found[0][4]  # type: ignore[assignment]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address[0], 0))
        except OSError as error:
            raise OSError(errno.EADDRNOTAVAIL, "the target is not on this machine") from error
    return socket.inet_aton(address[0])


# Bytes.


class Relay:
    """The proxy.

    Args:
        host: of the target.
        port: of the target.
        up: client to target.
        down: back.
    """

    def __init__(self, host: str, port: int, up: Line, down: Line) -> None:
        self._host, self._port = host, port
        self._up, self._down = up, down

    async def start(self) -> str:
        """Listen on a free port of the loopback interface; return the address."""
        # Referred to, or it would be collected.
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(
        self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        try:
            reader, target = await asyncio.open_connection(self._host, self._port)
        except OSError:
            client.transport.abort()  # As the target would have refused.
            return
        try:
            await asyncio.gather(
                self._pump(client_reader, target, self._up),
                self._pump(reader, client, self._down),
            )
        except OSError:
            target.transport.abort()
            client.transport.abort()
        finally:
            target.close()
            client.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line
    ) -> None:
        """Carry one direction of one connection; the line is everybody's."""
        events, direction = asyncio.get_running_loop(), line.direction
        while data := await reader.read(RELAYED_BYTES):
            direction.counts.packets += 1
            direction.counts.bytes += len(data)
            line.send(len(data) + RELAYED_HEADER_BYTES, partial(writer.write, data))
            # No more is taken than the queue of a real link would hold.
            await asyncio.sleep(direction.backlog_seconds(events.time()) - QUEUE_SECONDS)
            await writer.drain()
        ended = asyncio.Event()
        line.send(0, ended.set)
        await ended.wait()
        writer.write_eof()


# The process.


async def start(target: str, method: Method | None, up: Line, down: Line) -> Started:
    """Begin to carry.

    Args:
        target: ``host:port``.
        method: None for packets where they can be had, else bytes.
        up: client to target.
        down: back.

    Raises:
        OSError: packets were asked for and cannot be had.
    """
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    reason = "a relay was asked for"
    if method != "relay":
        try:
            ip = local_ipv4(host)
            device, network = open_tun()
        except OSError as error:
            if method == "tun":
                raise
            reason = str(error)
        else:
            TunLink(device, network, ip, up, down)
            return Started(method="tun", address=f"{socket.inet_ntoa(network + bytes([2]))}:{port}")
    address = await Relay(host, int(port), up, down).start()
    return Started(method="relay", address=address, reason=reason)


async def run(target: str, profile: Profile, method: Method | None) -> None:
    """Be the link until standard input ends."""
    up, down = (Line(Direction(profile, seed)) for seed in SEEDS)
    _tell(await start(target, method, up, down))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        if line.strip():
            up.direction.profile = down.direction.profile = msgspec.json.decode(line, type=Profile)
        _tell(Traffic(up.direction.counts, down.direction.counts))


def _tell(value: msgspec.Struct) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _be_punctual() -> None:
    """Come to one's turn early, on any core, and wake up on time, as far as the system allows."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emulator", description=__doc__)
    parser.add_argument("target", help="host:port")
    parser.add_argument("--profile", type=partial(msgspec.json.decode, type=Profile), required=True)
    parser.add_argument("--method", choices=("tun", "relay"))
    arguments = parser.parse_args(argv)
    _be_punctual()
    # asyncio's own choice of selector rounds every wait up to a whole millisecond.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        try:
            runner.run(run(arguments.target, arguments.profile, arguments.method))
        except OSError as error:
            sys.stdout.write(f"{error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
