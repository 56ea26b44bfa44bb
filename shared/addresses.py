"""Addresses as configurations have them."""

from __future__ import annotations

import ipaddress

from shared.errors import ConfigError


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; ConfigError where it is not of that form."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"expected an address of the form host:port, got {address!r}")
    return host, int(port)


def is_local(address: str) -> bool:
    """Say whether only programs on this machine can reach an address."""
    if address.startswith("unix:"):
        return len(address) > len("unix:")
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
