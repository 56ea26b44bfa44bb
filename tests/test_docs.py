"""The guides keep their word: pages are current, alerts have runbooks, commands and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from protos import page
from tests.test_readme import Block, blocks_of, check_flags, run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
ALERTS = re.compile(r"(?m)^ *- alert: (\w+)$")
KINDS = {"sh", "python", "toml", "text"}


def shell(path: Path) -> list[Block]:
    return [block for block in blocks_of(path) if block.kind == "sh"]


def test_the_protocol_page_is_current() -> None:
    assert page.main(["--check"]) == 0


def test_every_message_and_field_is_on_the_protocol_page() -> None:
    text = page.PAGE.read_text()
    for name in page.FILES:
        proto = (ROOT / name).read_text()
        for kind, block in re.findall(r"(?m)^(service|message|enum) (\w+)", proto):
            assert f"### {kind} {block}\n" in text
        for field in re.findall(r"(?m)^ +(?:repeated |optional )?\w+ (\w+) = \d+", proto):
            assert f"| `{field}` |" in text


def test_every_alert_has_a_runbook() -> None:
    alerts = ALERTS.findall((ROOT / "docker/prometheus/rules/alerts.yml").read_text())
    headings = re.findall(r"(?m)^### (\w+)$", (DOCS / "operations.md").read_text())
    assert alerts
    assert sorted(headings) == sorted(alerts)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    found = LINK.findall(path.read_text())
    assert [link for link in found if not (DOCS / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_blocks_are_understood_and_run_or_say_why_not(path: Path) -> None:
    found = blocks_of(path)
    assert 2 * len(found) == len(re.findall("^```", path.read_text(), re.MULTILINE))
    assert {block.kind for block in found} <= KINDS
    for block in shell(path):
        if block.reason is None:
            run("bash", "-euo", "pipefail", "-c", block.text)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_flags_in_the_guides_exist() -> None:
    blocks = [block for path in PAGES for block in shell(path)]
    check_flags(blocks)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    linked = set(re.findall(r"(?m)^ +- (\w[\w-]*\.md)$", text))
    assert linked <= {path.name for path in PAGES}
    ours = {"index", "two-machines", "concepts", "inputs", "api", "operations", "protocol"}
    assert {f"{name}.md" for name in ours} <= linked


def test_the_site_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material builds the site")
    pytest.importorskip("mkdocstrings", reason="makes the API page")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fetch = re.compile(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"')
    fetch_style = re.compile(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(https?:[^"]+)"')
    for path in (tmp_path / "s").rglob("*.html"):
        text = path.read_text()
        assert fetch.findall(text) + fetch_style.findall(text) == []
    assert "classify_events" in (tmp_path / "s" / "api.html").read_text()
