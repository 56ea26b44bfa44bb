from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from edge_agent.config import EdgeConfig, load
from edge_agent.source_config import AnySource, Source
from shared.energy.config import EnergyConfig
from shared.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "edge.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "edge.toml"
    path.write_text(text)
    return path


def test_flags_override_the_file_and_absent_flags_do_not(tmp_path: Path) -> None:
    path = write(tmp_path, 'bundle = "b"\nwindow = 2\nalpha = [0.5, 0.6, 0.7]\n')
    config = load(path, {"window": 3, "cloud": None})
    assert (config.window, config.alpha, config.cloud) == (3, (0.5, 0.6, 0.7), "127.0.0.1:50051")


@pytest.mark.parametrize(
    ("text", "key", "came"),
    [
        ("window = 0", "window", "0"),
        ("window = 'two'", "window", "'two'"),
        ("alpha = 1.5", "alpha", "1.5"),
        ("alpha = [0.5, -1.0]", "alpha", "-1.0"),
        ("placement = 'here'", "placement", "'here'"),
        ("samples_in_flight = 4", "samples_in_flight", "4"),
        ("deadline_seconds = 0", "deadline_seconds", "0"),
        ("codec = 'gzip'", "codec", "'gzip'"),
        ("listen = '0.0.0.0:80'", "listen", "'0.0.0.0:80'"),
        ("listen = 'unix:'", "listen", "'unix:'"),
        ("network = 'whole'", "network", "'whole'"),
        ("window = 1\nsteps_per_packet = 2", "steps_per_packet", "2"),
        ("objective = 'speed'", "objective", "'speed'"),
        ("deadline_target_seconds = 0.1", "deadline_target_seconds", "'latency'"),
        ("choose_local = true", "choose_local", "'none'"),
        ("device = 'cuda'", "device", "'cuda'"),
        ("reconnect_max_seconds = 0.01", "reconnect_max_seconds", "0.01"),
        ("alpha = 0.5\nloss_budget = 'a'", "loss_budget", "both"),
        ("[[sources]]\nkind = 'tv'", "sources[0].kind", "'tv'"),
        ("[[sources]]\nkind = 'folder'", "path", ""),
        ("[[sources]]\nkind='folder'\npath='p'\ncolour = 1", "sources[0]", "colour"),
        ("[[sources]]\nkind='folder'\npath='p'\nahead = 0", "sources[0].ahead", "0"),
        ("[[sources]]\nkind='http'\nurl='ftp://a/b'", "url", "'ftp://a/b'"),
        ("[[sources]]\nkind='http'\nurl='http://a:secret@b/'", "url", "in a file"),
        ("[[sources]]\nkind='folder'\npath='p'\nresults='mqtt://h'", "results", "'mqtt://h'"),
        ("sources = [{kind='array', path='a'}, {kind='array', path='b'}]", "sources", "array"),
        (
            "[[sources]]\nkind='event_stream'\nlisten='udp:[::1]:1'\nsensor=[1,1]\n"
            "when_full='wait'",
            "when_full",
            "'wait'",
        ),
        ("[energy]\nsensors = 'yes'", "energy.sensors", "'yes'"),
        ("[energy]\nmeter = 'x'", "energy", "meter"),
    ],
)
def test_a_wrong_value_is_refused_with_key_expectation_and_what_came(
    tmp_path: Path, text: str, key: str, came: str
) -> None:
    path = write(tmp_path, f'bundle = "b"\n{text}\n')
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    message = str(raised.value)
    assert message.startswith(str(path))
    assert key in message
    assert came in message


def test_an_unknown_key_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, 'bundle = "b"\ncolour = 1\n')
    with pytest.raises(ConfigError, match=r"expected keys of .*; got colour"):
        load(path, {})


@pytest.mark.parametrize("content", [b"bundle = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected TOML"):
        load(path, {})


def test_a_missing_file_and_a_missing_bundle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a readable file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="bundle"):
        load(None, {})


def test_in_exit_mode_a_packet_may_hold_more_than_the_window() -> None:
    config = load(None, {"bundle": "b", "reply_mode": "exit", "steps_per_packet": 4})
    assert config.steps_per_packet == 4


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:0", "[::1]:5", "unix:/a/b"])
def test_addresses_of_this_device_are_accepted(address: str) -> None:
    assert load(None, {"bundle": "b", "listen": address}).listen == address


def defaults(kind: Any) -> dict[str, Any]:
    names = kind.__struct_fields__
    values = kind.__struct_defaults__
    pairs = zip(names[len(names) - len(values) :], values, strict=True)
    return {name: value for name, value in pairs if value is not msgspec.NODEFAULT}


def test_the_example_explains_every_key_and_shows_its_default() -> None:
    text = EXAMPLE.read_text()
    shown = tomllib.loads(text)
    everything = tomllib.loads(re.sub(r"(?m)^# (?=\[*[a-z_]+\]*( = |$))", "", text))
    assert set(everything) == set(EdgeConfig.__struct_fields__)
    common = set(Source.__struct_fields__)
    explained = {source.pop("kind"): set(source) for source in everything["sources"]}
    kinds = {kind.__struct_config__.tag: kind for kind in get_args(AnySource)}
    assert explained.keys() == kinds.keys()
    assert common <= explained["folder"]
    for tag, kind in kinds.items():
        assert explained[tag] | common == set(kind.__struct_fields__)
    assert set(everything["energy"]) == set(EnergyConfig.__struct_fields__)
    known = msgspec.json.decode(msgspec.json.encode(defaults(EdgeConfig)))
    expected = {key: value for key, value in known.items() if value is not None}
    del expected["sources"]  # explained, and none shown
    assert shown == {"bundle": shown["bundle"]} | expected
    load(EXAMPLE, {})
    blocks = [block for block in text.split("\n\n") if re.search(r"(?m)^(# )?[a-z_]+ = ", block)]
    assert all(block.startswith("# ") for block in blocks)
