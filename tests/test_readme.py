"""The README keeps its word: commands run or exist, the example runs, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.pair import pair
from shared.model.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(
    r"(?:^<!-- not run by the tests: (?P<reason>[^\n]+) -->\n)?"
    r"^```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
ADDRESS = "unix:edge.sock"
"""Of the daemon in the README's Python example."""
BIN = Path(sys.executable).parent


class Block(NamedTuple):
    """A fenced block."""

    kind: str
    text: str
    reason: str | None
    """Why it is not run."""


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [Block(each["kind"], each["text"], each["reason"]) for each in FENCE.finditer(text)]


def commands_of(blocks: list[Block]) -> list[list[str]]:
    """Return the commands of shell blocks, word by word."""
    texts = [block.text.replace("\\\n", " ") for block in blocks]
    lines = [line for text in texts for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


BLOCKS = blocks_of(ROOT / "README.md")
SHELL = [block for block in BLOCKS if block.kind == "sh"]
COMMANDS = commands_of(SHELL)


def run(*command: str) -> str:
    """Run a command as a reader would, in the clone with the environment active."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


NESTED = ("nir", "models")
"""Commands that have, or may have, commands of their own."""


def check_flags(blocks: list[Block]) -> None:
    """Check that every flag of our commands exists; each command is asked once."""
    flags: dict[tuple[str, ...], set[str]] = {}
    for program, *words in commands_of(blocks):
        if program.startswith("neucodex-"):
            deep = 1 if len(words) == 1 or words[0] not in NESTED else 2
            deep -= words[deep - 1].startswith("--")
            asked = flags.setdefault((program, *words[:deep]), set())
            asked |= {word for word in words if word.startswith("--")}
    assert flags
    for command, named in flags.items():
        known = run(*command, "--help")
        for flag in named:
            assert re.search(rf"{flag}\b", known), f"{' '.join(command)} has no {flag}"


def test_every_fence_was_understood() -> None:
    assert 2 * len(BLOCKS) == len(re.findall("^```", README, re.MULTILINE))
    assert {block.kind for block in BLOCKS} == {"sh", "python"}
    assert any(block.reason is None for block in SHELL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", [block for block in SHELL if block.reason is None])
def test_shell_blocks_run(block: Block) -> None:
    run("bash", "-euo", "pipefail", "-c", block.text)


def test_make_targets_exist() -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word
        for command in COMMANDS
        if command[0] == "make"
        for word in command[1:]
        if "=" not in word
    }
    assert {"demo", "test"} <= named <= rules


@pytest.mark.timeout(600)
def test_flags_of_our_commands_exist() -> None:
    check_flags(SHELL)


@pytest.mark.timeout(600)
def test_the_python_example_runs_and_is_short(tiny_bundle: Bundle) -> None:
    (example,) = (block.text for block in BLOCKS if block.kind == "python")
    assert len(example.splitlines()) <= 10
    assert ADDRESS in example
    with pair(tiny_bundle.path) as both:
        said = run(sys.executable, "-c", example.replace(ADDRESS, both.edge.address))
    assert "co_inference" in said
    assert said.count("Answer(") == 2


def test_links_lead_somewhere() -> None:
    links = LINK.findall(README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
