from __future__ import annotations

import pytest

from shared.addresses import is_local, parse_address
from shared.errors import ConfigError


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9100") == ("127.0.0.1", 9100)
    assert parse_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("address", ["", "9100", ":9100", "host:", "host:http", "host:65536"])
def test_a_bad_address_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address of the form host:port"):
        parse_address(address)


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1:0", "127.3.2.1:9", "[::1]:5", "unix:/a/b"]
)
def test_what_only_this_machine_reaches_is_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:1", "[::]:1", "*:1", "10.0.0.1:1", "host:1", "localhost.example:1", "unix:", ":1"],
)
def test_what_others_may_reach_is_not(address: str) -> None:
    assert not is_local(address)
