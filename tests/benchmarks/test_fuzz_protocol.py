"""The fuzzer of the stream protocol: it runs clean, and it notices what it is there to notice."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz_protocol
from cloud_server.scheduler import Scheduler
from cloud_server.session import CloudSession
from shared.model.bundle import Bundle

MESSAGES = 4000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Every broken stream is logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", [0, 100_000])
async def test_no_sequence_of_messages_does_harm(tiny_bundle: Bundle, seed: int) -> None:
    outcome = await fuzz_protocol.fuzz(tiny_bundle.path, seed, MESSAGES)
    assert outcome.failures == []
    assert outcome.messages >= MESSAGES
    assert outcome.clean_samples > 50
    # It reaches both: streams that live, and every kind of refusal of their messages.
    assert {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"} <= outcome.statuses.keys()


async def test_a_slot_that_is_kept_is_noticed(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_protocol, "STREAM_SECONDS", 1.0)
    monkeypatch.setattr(CloudSession, "disconnected", lambda session, ending=None: [])
    outcome = await fuzz_protocol.fuzz(tiny_bundle.path, 0, MESSAGES)
    assert any("slots are still held" in failure for failure in outcome.failures)


async def test_an_answer_of_another_sample_is_noticed(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_protocol, "STREAM_SECONDS", 1.0)
    begin = Scheduler.begin

    def begin_in_slot_of_another(self: Scheduler, *arguments: Any) -> Any:
        sample = begin(self, *arguments)
        sample.logit_sum = [5.0, *sample.logit_sum[1:]]
        return sample

    monkeypatch.setattr(Scheduler, "begin", begin_in_slot_of_another)
    outcome = await fuzz_protocol.fuzz(tiny_bundle.path, 0, MESSAGES)
    assert any("expected Decision" in failure for failure in outcome.failures)


async def test_a_bug_behind_a_message_is_noticed(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(session: CloudSession, number: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(CloudSession, "cancel", bug)
    outcome = await fuzz_protocol.fuzz(tiny_bundle.path, 0, MESSAGES)
    assert any("ended with INTERNAL" in failure for failure in outcome.failures)


def test_the_command_writes_a_report(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "fuzz_protocol.json"
    flags = ["--messages", "500", "--bundle", str(tiny_bundle.path), "--out", str(out)]
    assert fuzz_protocol.main(flags) == 0
    report = json.loads(out.read_text())
    assert report["benchmark"] == "fuzz_protocol"
    figures = {result["name"]: result["value"] for result in report["results"]}
    assert figures["failures"] == 0
    assert figures["messages"] >= 500
