"""A live event camera as a source: each timestep goes on while the next is being recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable

from edge_agent.cutter import Begin, Cutter, End, Frame, Step
from edge_agent.event_packets import PacketReader, bound_socket, unbind
from edge_agent.inputs import Recording
from edge_agent.source_config import EventStreamSource
from edge_agent.sources.base import Item, Surroundings
from shared.errors import ConfigError, InputError
from shared.metrics import EdgeMetrics, PacketFault

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 10.0
"""Invalid packets are logged no more often."""


class EventStream(asyncio.DatagramProtocol):
    """Receives packets and hands on samples that are still being recorded.

    Args:
        config: of the source.
        around: the daemon.
        metrics: told of packets that cannot be used.

    Raises:
        ConfigError: the address cannot be listened on, or it is not known how events become frames.
    """

    def __init__(
        self, config: EventStreamSource, around: Surroundings, metrics: EdgeMetrics
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._spec = around.manifest.spec
        self._reader = PacketReader(config.sensor)
        try:
            framing = around.framing(config.framing, "sources")
            size = self._spec.input_shape[1:]
            self._cutter = Cutter(framing, size, continuous=config.continuous)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._socket = bound_socket(config.listen)
        self._items: asyncio.Queue[Item | None] = asyncio.Queue()
        self._recording: Recording | None = None
        self._count = 0
        self._silence: asyncio.TimerHandle | None = None
        self._told = 0.0
        self._faults = {PacketFault.LOST: 0, PacketFault.LATE: 0}

    async def items(self) -> AsyncGenerator[Item, None]:
        """Yield every sample when it begins, until :meth:`end`."""
        self._loop = asyncio.get_running_loop()
        transport, _ = await self._loop.create_datagram_endpoint(lambda: self, sock=self._socket)
        log.info("%s: events at %s", self._config.label, self._config.listen)
        try:
            while (item := await self._items.get()) is not None:
                yield item
        finally:
            transport.close()
            unbind(self._socket, self._config.listen)
            self._on_silence()

    def end(self) -> None:
        """Yield no more samples."""
        self._items.put_nowait(None)

    def answered(self, item: Item) -> None:
        """A sample has its answer, or its error: what it has not seen is of no use."""
        if item.data is self._recording:
            self._cutter.answered()
            self._recording = None

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Take in a packet."""
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self._loop.call_later(self._config.silence_seconds, self._on_silence)
        try:
            piece = self._reader.take(data)
        except InputError as error:
            self._invalid(error)
            return
        self._count_faults()
        if piece is not None:
            self._perform(self._cutter.push(piece))

    def error_received(self, exc: Exception) -> None:
        """Nothing is sent from here, so that nothing can come back."""

    def _perform(self, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case Begin():
                    self._recording = Recording(self._spec)
                    name = f"{self._config.label}[{self._count}]"
                    self._count += 1
                    self._items.put_nowait(Item(name, self._recording))
                case Frame(frame=frame) if self._recording is not None:
                    self._recording.push(frame)
                case End() if self._recording is not None:
                    self._recording.end()
                    self._recording = None

    def _on_silence(self) -> None:
        self._reader.forget()
        self._perform(self._cutter.end())

    def _count_faults(self) -> None:
        totals = {PacketFault.LOST: self._reader.lost, PacketFault.LATE: self._reader.late}
        if totals != self._faults:
            for fault, total in totals.items():
                self._metrics.source_packets(self._config.label, fault, total - self._faults[fault])
            self._faults = totals

    def _invalid(self, error: InputError) -> None:
        self._metrics.source_packets(self._config.label, PacketFault.INVALID, 1)
        if self._loop.time() - self._told > LOG_EVERY_SECONDS or not self._told:
            self._told = self._loop.time()
            log.warning("%s: %s", self._config.label, error)
