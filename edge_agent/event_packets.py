"""Live event streams: one datagram is one packet of events, over UDP or a Unix socket.

All numbers are little endian. A packet is a header of 24 bytes, then ``count`` events of 8 bytes:

======  ====  ==========================================================================
offset  size  header
======  ====  ==========================================================================
0       4     ``NCXE``
4       1     version, 1
5       1     flags: bit 0 says that the recording ends with this packet; others are 0
6       2     ``count``, 0 to :data:`MAX_EVENTS`; a packet without events tells the time
8       4     sequence number, one more (mod 2^32) with every packet of the stream
12      4     number of the recording; another than before begins another recording
16      8     ``base``: microseconds of the camera's clock
======  ====  ==========================================================================

======  ====  ==========================================================================
offset  size  event
======  ====  ==========================================================================
0       2     x
2       2     y in bits 0-14, bit 15 is 1 for ON (brighter)
4       4     microseconds since ``base``
======  ====  ==========================================================================

Events within a packet are in the order of time, and none is earlier than one of a packet before.
The clock of a recording starts with the ``base`` of its first packet.

Why a format of its own: what exists for datagrams carries no time at all (AER as SPIF and
SpiNNaker speak it), or none that outlasts 32 bits and no sequence number, so that neither a lost
packet nor the end of a timestep could be known; AEDAT 4's network form is a TCP stream of
compressed flatbuffers, which a microcontroller will not write.
"""

from __future__ import annotations

import logging
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from shared.addresses import parse_address
from shared.errors import ConfigError, InputError
from shared.events.recording import Events

log = logging.getLogger(__name__)

MAGIC, VERSION, ENDS = b"NCXE", 1, 1
HEADER = struct.Struct("<4sBBHIIQ")
EVENT = np.dtype([("x", "<u2"), ("y", "<u2"), ("since", "<u4")])
MAX_EVENTS = 4096
"""Most events of a packet: 32 KiB, which datagrams of either kind can carry."""
UDP_EVENTS = 180
"""What a sender puts into one over UDP: 1,464 bytes, which no Ethernet has to cut."""
MAX_DATAGRAM_BYTES = HEADER.size + MAX_EVENTS * EVENT.itemsize
RECEIVE_BUFFER_BYTES = 4 << 20
"""Asked of the system, so that a burst is not lost while we are busy; it may give less."""
LATE_PACKETS = 64
"""A sequence number at most so far behind is a late packet; one further, a stream begun anew."""
MOST_LOST = 1 << 16
"""A longer gap is a stream begun anew, too."""
_UNIX = "unix:"
_UDP = "udp:"


class Packet(NamedTuple):
    """One datagram's content."""

    sequence: int
    recording: int
    ends: bool
    base_microseconds: int
    events: NDArray[np.void]
    """Of :data:`EVENT`, in the order of time."""

    def to_bytes(self) -> bytes:
        """Return the datagram."""
        flags = ENDS if self.ends else 0
        count = len(self.events)
        header = (MAGIC, VERSION, flags, count, self.sequence, self.recording)
        return HEADER.pack(*header, self.base_microseconds) + self.events.tobytes()


def decode_packet(data: bytes) -> Packet:
    """Read a datagram.

    Raises:
        InputError: another format or version, another length, or times that fall.
    """
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise InputError(f"expected an event packet, got {len(data)} bytes of no such kind")
    _, version, flags, count, sequence, recording, base = HEADER.unpack_from(data)
    if version != VERSION:
        raise InputError(f"expected event packets of version {VERSION}, got {version}")
    if flags & ~ENDS or count > MAX_EVENTS:
        raise InputError(
            f"expected flags of 0 or 1 and at most {MAX_EVENTS} events, got {flags} and {count}"
        )
    expected = HEADER.size + count * EVENT.itemsize
    if len(data) != expected:
        raise InputError(f"expected {expected} bytes of {count} events, got {len(data)}")
    if base >= 1 << 62:
        raise InputError(f"expected a time below 2^62 microseconds, got {base}")
    events = np.frombuffer(data, EVENT, count, HEADER.size)
    if (events["since"][1:] < events["since"][:-1]).any():
        raise InputError("expected events in the order of time, got falling times")
    return Packet(sequence, recording, bool(flags & ENDS), base, events)


class Piece(NamedTuple):
    """What a packet adds to its recording."""

    begins: bool
    """Whether the recording begins with it."""
    ends: bool
    events: Events
    """Times since the recording's start."""
    now_microseconds: int
    """So far has the recording's clock come."""


class PacketReader:
    """Puts the packets of one stream in their place.

    Args:
        sensor: ``[H, W]`` of the camera.
    """

    def __init__(self, sensor: tuple[int, int]) -> None:
        self._sensor = sensor
        self._next: int | None = None
        """Sequence number to come."""
        self._recording: int | None = None
        """None: whatever comes next begins one."""
        self._start = self._now = 0
        self.lost = 0
        """Packets that never came, so far."""
        self.late = 0
        """Packets that came after later ones, or twice; they are left out."""

    def forget(self) -> None:
        """End the recording: what comes next begins another, under whatever number."""
        self._next = self._recording = None

    def take(self, data: bytes) -> Piece | None:
        """Take in a datagram; nothing if it came too late.

        Raises:
            InputError: it is no packet, has an event outside the sensor, or is earlier than those
                before.
        """
        packet = decode_packet(data)
        anew = self._is_anew(packet.sequence)
        if anew is None:
            self.late += 1
            return None
        begins = anew or packet.recording != self._recording
        start = packet.base_microseconds if begins else self._start
        piece = self._piece(packet, start, begins)
        self._next = (packet.sequence + 1) % (1 << 32)
        self._recording = None if packet.ends else packet.recording
        self._start, self._now = start, piece.now_microseconds
        return piece

    def _is_anew(self, sequence: int) -> bool | None:
        """Say whether a stream begins with this packet; None for one that is late."""
        if self._next is None:
            return True
        ahead = (sequence - self._next) % (1 << 32)
        if ahead <= MOST_LOST:
            self.lost += ahead
            return False
        return None if (1 << 32) - ahead <= LATE_PACKETS else True

    def _piece(self, packet: Packet, start: int, begins: bool) -> Piece:
        base = packet.base_microseconds - start
        since = packet.events["since"].astype(np.int64)
        times = since + base
        earliest = 0 if begins else self._now
        if base < 0 or (len(times) and times[0] < earliest):
            raise InputError(f"expected events from {earliest} microseconds on, got earlier ones")
        x, y = (packet.events[name].astype(np.int64) for name in ("x", "y"))
        try:
            events = Events(times, x, y & 0x7FFF, y >> 15, self._sensor)
        except ValueError as error:
            raise InputError(str(error)) from error
        now = max(earliest, base, int(times[-1]) if len(times) else 0)
        return Piece(begins, packet.ends, events, now)


def bound_socket(address: str) -> socket.socket:
    """Return a datagram socket that listens at ``udp:HOST:PORT`` or ``unix:PATH``.

    Raises:
        ConfigError: no such address, or it is in use.
    """
    path = _path(address)
    if path is not None and path.is_socket():
        path.unlink()
    listening = _made(address, socket.socket.bind)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    if path is not None:
        path.chmod(0o600)
    return listening


def unbind(listening: socket.socket, address: str) -> None:
    """Close what :func:`bound_socket` made for an address."""
    listening.close()
    path = _path(address)
    if path is not None:
        path.unlink(missing_ok=True)


def _path(address: str) -> Path | None:
    return Path(address.removeprefix(_UNIX)) if address.startswith(_UNIX) else None


def _made(address: str, use: Callable[[socket.socket, Any], None]) -> socket.socket:
    """Return a datagram socket that was bound or connected to an address."""
    path = _path(address)
    if path is not None:
        family, place = socket.AF_UNIX, str(path)
    else:
        family, place = _udp(address)
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        use(made, place)
    except OSError as error:
        made.close()
        raise ConfigError(f"{address}: {error.strerror or error}") from error
    return made


def _udp(address: str) -> tuple[socket.AddressFamily, Any]:
    if not address.startswith(_UDP):
        raise ConfigError(f"expected udp:HOST:PORT or unix:PATH, got {address!r}")
    host, port = parse_address(address.removeprefix(_UDP))
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)


class EventSender:
    """Sends recordings as packets.

    Args:
        address: ``udp:HOST:PORT`` or ``unix:PATH``, where a daemon or a receiver listens.

    Raises:
        ConfigError: no such address, or nobody listens at the Unix socket.
    """

    def __init__(self, address: str) -> None:
        self._socket = _made(address, socket.socket.connect)
        self._most = UDP_EVENTS if _path(address) is None else MAX_EVENTS
        self._sequence = self._recording = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, events: Events) -> None:
        """Send a piece of the recording, in as many packets as it takes; OSError if that fails."""
        for start in range(0, len(events), self._most):
            part = events.part(start, start + self._most)
            packed = np.empty(len(part), EVENT)
            base = int(part.microseconds[0])
            packed["x"], packed["y"] = part.x, part.y | part.polarity << 15
            packed["since"] = part.microseconds - base
            self._send(base, packed, ends=False)

    def tell_time(self, microseconds: int) -> None:
        """Say that the camera's clock has come so far, so that timesteps end in silence, too."""
        self._send(microseconds, np.empty(0, EVENT), ends=False)

    def end(self, microseconds: int) -> None:
        """End the recording at this time; what is sent next begins another."""
        self._send(microseconds, np.empty(0, EVENT), ends=True)
        self._recording = (self._recording + 1) % (1 << 32)

    def _send(self, base: int, events: NDArray[np.void], *, ends: bool) -> None:
        self._socket.send(Packet(self._sequence, self._recording, ends, base, events).to_bytes())
        self._sequence = (self._sequence + 1) % (1 << 32)


class EventReceiver:
    """Receives recordings, for programs of one's own; a thread reads the socket meanwhile.

    Args:
        address: ``udp:HOST:PORT`` (port 0 picks one) or ``unix:PATH``.
        sensor: ``[H, W]`` of the camera.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, address: str, sensor: tuple[int, int]) -> None:
        self._socket = bound_socket(address)
        self.address = address
        """Where it listens."""
        if _path(address) is None:
            host, port = self._socket.getsockname()[:2]
            self.address = f"udp:[{host}]:{port}" if ":" in host else f"udp:{host}:{port}"
        self._reader = PacketReader(sensor)
        self._recordings: queue.Queue[queue.Queue[Events | None] | None] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="events", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop to listen; recordings under way end."""
        self._closed.set()
        self._thread.join()
        unbind(self._socket, self.address)

    def recordings(self) -> Iterator[Iterator[Events]]:
        """Yield every recording when it begins: an iterator over its pieces as they arrive.

        One that is not read to its end does not hold up the next.
        """
        while (pieces := self._recordings.get()) is not None:
            yield iter(pieces.get, None)

    def _read(self) -> None:
        """Be the thread."""
        self._socket.settimeout(0.1)
        current: queue.Queue[Events | None] | None = None
        while not self._closed.is_set():
            try:
                piece = self._reader.take(self._socket.recv(MAX_DATAGRAM_BYTES + 1))
            except TimeoutError:
                continue
            except InputError as error:
                log.warning("%s: %s", self.address, error)
                continue
            current = self._hand_on(piece, current)
        if current is not None:
            current.put(None)
        self._recordings.put(None)

    def _hand_on(
        self, piece: Piece | None, current: queue.Queue[Events | None] | None
    ) -> queue.Queue[Events | None] | None:
        if piece is None:
            return current
        if piece.begins or current is None:
            if current is not None:
                current.put(None)
            current = queue.Queue()
            self._recordings.put(current)
        current.put(piece.events)
        if piece.ends:
            current.put(None)
            return None
        return current
