"""Addresses as configurations have them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from shared.errors import ConfigError
from shared.sockets import UNIX

DNS = "dns:///"


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; ConfigError where it is not of that form."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"expected an address of the form host:port, got {address!r}")
    return host, int(port)


def has_replicas(address: str) -> bool:
    """Say whether an address may stand for several equal servers."""
    return "," in address or address.startswith(DNS)


def peers(address: str) -> tuple[tuple[str, int], ...]:
    """Return host and port of every server that an address stands for.

    Args:
        address: ``host:port``, ``dns:///name:port`` (all addresses of that name), or several of
            ``IP:port`` with commas between.

    Raises:
        ConfigError: it is of none of these forms.
    """
    found = tuple(parse_address(part) for part in _parts(address))
    if "," in address:
        _version(host for host, _ in found)
    return found


def grpc_target(address: str) -> str:
    """Return what gRPC calls the servers of an address, or of ``unix:PATH``; errors as `peers`."""
    if "," not in address:
        return address
    version = _version(host for host, _ in peers(address))
    return f"ipv{version}:{','.join(_parts(address))}"


def is_local(address: str) -> bool:
    """Say whether only programs on this machine can reach an address."""
    if address.startswith(UNIX):
        return len(address) > len(UNIX)
    return all(map(_is_loopback, _parts(address)))


def _parts(address: str) -> list[str]:
    return [part.strip() for part in address.removeprefix(DNS).split(",")]


def _version(hosts: Iterable[str]) -> int:
    """Return the IP version of some hosts; ConfigError where they have not one."""
    hosts = list(hosts)
    try:
        (version,) = {ipaddress.ip_address(host).version for host in hosts}
    except ValueError:
        raise ConfigError(
            "expected IP addresses of one version in a list of servers (a name that has several "
            f"addresses is written {DNS}NAME:PORT), got {', '.join(hosts)}"
        ) from None
    return version


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
