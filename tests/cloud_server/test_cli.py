"""``neucodex-cloud`` as a user runs it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud_server import cli
from shared import rpc
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import Client, Edge, Start, random_codes

MAX_RSS_BYTES = 150 << 20


@asynccontextmanager
async def serving(
    bundle: Bundle, folder: Path, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Run ``neucodex-cloud serve`` in a process of its own; yield it and its ready file."""
    ready = folder / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cloud_server.cli", "serve", "--listen", "127.0.0.1:0"),
        *("--metrics", "127.0.0.1:0", "--bundle", str(bundle.path), "--ready-file", str(ready)),
        *flags,
        cwd=Path(__file__).parents[2],
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(100):
            while not ready.exists():
                assert process.returncode is None, "the server ended before it was ready"
                await asyncio.sleep(0.02)
        yield process, json.loads(ready.read_bytes())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def connected(address: str, bundle: Bundle) -> AsyncIterator[Edge]:
    """Open an ``Infer`` stream to a server of another process."""
    async with rpc.channel(address) as channel, Client(channel, bundle).opened() as edge:
        yield edge


def memory_of(pid: int) -> tuple[int, str]:
    """Return a process's resident bytes and the names of what it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024, Path(f"/proc/{pid}/maps").read_text()


async def test_sigterm_finishes_the_sample_in_hand_and_exits_with_0(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    async with serving(tiny_bundle, tmp_path) as (process, facts):
        assert facts["pid"] == process.pid
        assert facts["metrics"].startswith("127.0.0.1:")
        async with connected(facts["address"], tiny_bundle) as edge:
            packets = edge.packets(0, random_codes(tiny_bundle, 0))
            await edge.send(packets[0])
            await edge.answer()
            process.send_signal(signal.SIGTERM)
            while (await edge.receive()).draining is None:
                pass
            for packet in packets[1:]:
                await edge.send(packet)
                verdict = await edge.answer()
            assert verdict.timestep == 3
            assert (await edge.status())[0].name == "OK"
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        assert not (tmp_path / "ready.json").exists()


async def test_the_server_is_small_and_imports_no_torch(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    async with serving(tiny_bundle, tmp_path) as (process, facts):
        async with connected(facts["address"], tiny_bundle) as edge:
            await edge.run(0, random_codes(tiny_bundle, 0))
        rss_bytes, mapped = memory_of(process.pid)
    assert rss_bytes <= MAX_RSS_BYTES
    assert "torch" not in mapped


async def run_cli(*arguments: str) -> tuple[int, str, str]:
    """Run ``neucodex-cloud`` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cloud_server.cli", *arguments),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"NO_COLOR": "1"},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_models_asks_a_running_server(start: Start, tiny_bundle: Bundle) -> None:
    server = await start()
    code, out, err = await run_cli("models", "--server", server.address)
    assert (code, err) == (0, "")
    assert tiny_bundle.digest in out
    assert "0 of 128 in use" in out


def test_models_lists_a_bundle(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--bundle", str(tiny_bundle.path)]) == 0
    out = capsys.readouterr().out
    for expected in (tiny_bundle.digest, "3x32x32", "4x8x8", "head, tail, whole"):
        assert expected in out
    lines = [line.removeprefix("alpha     ") for line in out.splitlines() if "alpha " in line]
    assert {line.split(";")[0] for line in lines} == set(tiny_bundle.calibration().alpha)
    (of_one_point,) = (line for line in lines if line.startswith("loss_budget_1.0_points;"))
    assert "at most 1 points lost with 95 % certainty on inputs like its 103 held" in of_one_point
    assert of_one_point.endswith("; taken by --loss-budget 1")
    assert "median; the default" in lines


def test_models_reads_the_bundles_of_a_configuration(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text(f"bundles = [{json.dumps(str(tiny_bundle.path))}]\n")
    assert cli.main(["models", "--config", str(path)]) == 0
    assert tiny_bundle.digest in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serve", "--slots", "0"], "flag: slots: expected `int` >= 1, got 0"),
        (["serve", "--config", "nothing.toml"], "nothing.toml: expected a readable file"),
        (["serve", "--metrics", ""], "bundles: expected at least one directory"),
        (["models", "--bundle", "nowhere"], "nowhere/manifest.json"),
        (["models", "--server", "127.0.0.1:1"], "expected a NeuCODEX cloud server"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("neucodex-cloud: ")
    assert complaint in line
    assert captured.out == ""


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [each for child in action.choices.values() for each in parsers(child)]
    return found


def test_every_flag_is_documented() -> None:
    for parser in parsers(cli._parser()):
        for action in parser._actions:
            if action.option_strings:
                assert action.help, action.option_strings


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["models", "--help"]])
def test_help_is_given(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert "usage: neucodex-cloud" in capsys.readouterr().out
