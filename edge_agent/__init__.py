"""The edge side: the daemon, and what programs on the device use to ask it.

:class:`Edge` and :class:`AsyncEdge` are connections to the daemon, :class:`EventReceiver` and
:class:`EventSender` the ends of a live event stream. Nothing here imports torch.
"""

from edge_agent.answers import Answer, Latency, QueueFullError
from edge_agent.async_client import AsyncEdge
from edge_agent.client import Edge
from edge_agent.event_packets import EventReceiver, EventSender
from edge_agent.exchange import Network, Picture
from shared.errors import (
    EngineError,
    InputError,
    LinkLostError,
    NeucodexError,
    RefusedError,
    SampleError,
)
from shared.events.files import read_events
from shared.events.recording import Events

__all__ = [
    "Answer",
    "AsyncEdge",
    "Edge",
    "EngineError",
    "EventReceiver",
    "EventSender",
    "Events",
    "InputError",
    "Latency",
    "LinkLostError",
    "Network",
    "NeucodexError",
    "Picture",
    "QueueFullError",
    "RefusedError",
    "SampleError",
    "read_events",
]
