"""A seeded share of ``python -m fuzz``: every decoder refuses or understands, nothing else, and soon."""

from __future__ import annotations

import pytest

from fuzz.__main__ import run_plain
from fuzz.targets import TARGETS, CrashError, Target
from pocache.protocol.errors import CodecError

COUNTS = {"leaf": 60, "service": 80, "receipt": 30, "beacon-body": 40, "gateway": 300}
COUNT = 400


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_changed_bytes_are_refused_or_understood(target: Target) -> None:
    """No crash, none slow, no memory kept; and honest bytes are understood."""
    assert any(target.feed(data) for data in target.make_corpus())
    report = run_plain(target, seed=1, count=COUNTS.get(target.name, COUNT))
    assert not report["crash"], report


def test_a_crash_a_hang_and_a_refusal_are_told_apart() -> None:
    """What is no typed error ends the run, with the input kept."""

    def crash(data: bytes) -> None:
        if len(data) > 3:
            raise CrashError("as the test has it")
        raise CodecError("refused")

    report = run_plain(Target("test", crash, lambda: [b"ab"]), seed=1, count=1_000)
    assert "as the test has it" in report["crash"]
    assert report["inputs"] < 1_000
    assert report["understood"] == 0
