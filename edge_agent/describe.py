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
    """

    def __init__(
        self, channel: grpc.aio.Channel, address: str, credentials: ClientCredentials
    ) -> None:
        self._address = address
        self._metadata = rpc.metadata(credentials)
        self._call: Any = channel.unary_unary(
            METHOD,
            request_serializer=pb.DescribeRequest.SerializeToString,
            response_deserializer=pb.DescribeReply.FromString,
        )

    async def reply(self) -> pb.DescribeReply:
        """Return what the cloud serves; LinkLostError where it does not answer."""
        try:
            reply: pb.DescribeReply = await self._call(
                pb.DescribeRequest(), timeout=ANSWER_SECONDS, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            message = f"{self._address}: {error.code().name}: {error.details()}"
            raise LinkLostError(message) from error
        return reply

    async def round_trip(self) -> float:
        """Return the seconds that an answer took; LinkLostError where there is none."""
        began = perf_counter()
        await self.reply()
        return perf_counter() - began


@contextlib.asynccontextmanager
async def describing(
    address: str, credentials: Watched[ClientCredentials]
) -> AsyncIterator[Describe]:
    """Hold a connection for questions to the cloud at ``host:port``; made with the first one."""
    shown = credentials.current()
    async with rpc.channel(address, shown) as channel:
        yield Describe(channel, address, shown)
