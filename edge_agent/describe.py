"""The cloud's word on itself, and how long it takes to get it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import grpc
import grpc.aio

from protos import co_inference_pb2 as pb
from shared import rpc
from shared.credentials import ClientCredentials
from shared.errors import LinkLostError
from shared.metrics import GrpcType, RpcMetrics
from shared.watched import Watched

METHOD = "/neucodex.v1.CoInference/Describe"
ANSWER_SECONDS = 5.0
"""A cloud that says nothing for so long counts as unreachable."""


class Describe:
    """Asks one cloud; made by :func:`describing`.

    Args:
        channel: to the cloud.
        address: of the cloud, for messages.
        credentials: shown to it.
        metrics: told of every call; None for nobody.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        credentials: ClientCredentials,
        metrics: RpcMetrics | None,
    ) -> None:
        self._address = address
        self._tally = None if metrics is None else metrics.method(METHOD, GrpcType.UNARY)
        self._metadata = rpc.metadata(credentials)
        self._call: Any = channel.unary_unary(
            METHOD,
            request_serializer=pb.DescribeRequest.SerializeToString,
            response_deserializer=pb.DescribeReply.FromString,
        )

    async def reply(self) -> pb.DescribeReply:
        """Return what the cloud serves; LinkLostError where it does not answer."""
        began, code = perf_counter(), "CANCELLED"
        try:
            reply: pb.DescribeReply = await self._call(
                pb.DescribeRequest(), timeout=ANSWER_SECONDS, metadata=self._metadata
            )
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            message = f"{self._address}: {error.code().name}: {error.details()}"
            raise LinkLostError(message) from error
        finally:
            self._tell(code, perf_counter() - began)
        return reply

    def _tell(self, code: str, seconds: float) -> None:
        if self._tally is not None:
            self._tally.started(1)
            self._tally.sent(1)
            if code == "OK":
                self._tally.received(1)
            self._tally.handled(code, seconds)

    async def round_trip(self) -> float:
        """Return the seconds that an answer took; LinkLostError where there is none."""
        began = perf_counter()
        await self.reply()
        return perf_counter() - began


@contextlib.asynccontextmanager
async def describing(
    address: str, credentials: Watched[ClientCredentials], metrics: RpcMetrics | None = None
) -> AsyncIterator[Describe]:
    """Hold a connection for questions to the cloud at ``host:port``; made with the first one.

    Args:
        address: of the cloud.
        credentials: shown to it, as they are now.
        metrics: told of every call; None for nobody.
    """
    shown = credentials.current()
    async with rpc.channel(address, shown) as channel:
        yield Describe(channel, address, shown, metrics)
