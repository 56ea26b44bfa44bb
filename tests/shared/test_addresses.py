from __future__ import annotations

import pytest

from shared.addresses import grpc_target, has_replicas, is_local, parse_address, peers
from shared.errors import ConfigError


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9100") == ("127.0.0.1", 9100)
    assert parse_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("address", ["", "9100", ":9100", "host:", "host:http", "host:65536"])
def test_a_bad_address_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address of the form host:port"):
        parse_address(address)


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "127.0.0.1:0", "127.3.2.1:9", "[::1]:5", "unix:/a/b", "dns:///localhost:1"],
)
def test_what_only_this_machine_reaches_is_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:1", "[::]:1", "*:1", "10.0.0.1:1", "host:1", "localhost.example:1", "unix:", ":1"],
)
def test_what_others_may_reach_is_not(address: str) -> None:
    assert not is_local(address)


@pytest.mark.parametrize(
    ("address", "expected", "target"),
    [
        ("host:1", [("host", 1)], "host:1"),
        ("dns:///cloud.example:1", [("cloud.example", 1)], "dns:///cloud.example:1"),
        (
            "10.0.0.1:1, 10.0.0.2:2",
            [("10.0.0.1", 1), ("10.0.0.2", 2)],
            "ipv4:10.0.0.1:1,10.0.0.2:2",
        ),
        ("[::1]:1,[::2]:1", [("::1", 1), ("::2", 1)], "ipv6:[::1]:1,[::2]:1"),
    ],
)
def test_an_address_may_stand_for_several_servers(
    address: str, expected: list[tuple[str, int]], target: str
) -> None:
    assert list(peers(address)) == expected
    assert grpc_target(address) == target
    assert has_replicas(address) == (address != "host:1")
    assert not is_local(address)


@pytest.mark.parametrize("address", ["a:1,b:1", "10.0.0.1:1,[::1]:1", "10.0.0.1:1,a:1"])
def test_a_list_has_ip_addresses_of_one_version(address: str) -> None:
    with pytest.raises(ConfigError, match="expected IP addresses of one version.*dns:///NAME:PORT"):
        peers(address)


@pytest.mark.parametrize("address", ["10.0.0.1:1,", "dns:///:1", "dns://8.8.8.8/a:1,b"])
def test_a_list_with_something_else_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected an address of the form host:port"):
        peers(address)


def test_a_list_is_local_if_all_of_it_is() -> None:
    assert is_local("127.0.0.1:1,127.0.0.2:1")
    assert not is_local("127.0.0.1:1,10.0.0.2:1")
