"""The edge side: the daemon, and :class:`Edge`, by which programs on the device ask it."""

from edge_agent.answers import Answer, Latency, QueueFullError
from edge_agent.client import Edge

__all__ = ["Answer", "Edge", "Latency", "QueueFullError"]
