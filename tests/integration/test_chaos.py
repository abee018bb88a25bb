"""One seeded wave of every kind of fault that heals in seconds; ``make chaos`` runs two hundred of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.faults import Kind, draw_schedule
from chaos.harness import Plan
from chaos.run import run_chaos

SEED = 11
KINDS = (
    Kind.KILL,
    Kind.PAUSE,
    Kind.CUT,
    Kind.PARTITION,
    Kind.SCRAMBLE,
    Kind.SKEW,
    Kind.BUS_KILL,
    Kind.LEDGER_DISK,
)
JOBS = 24


@pytest.mark.timeout(300)
async def test_a_wave_of_faults_loses_no_job_and_no_money(tmp_path: Path) -> None:
    """All jobs end, each is paid out once, the audit passes, nobody honest is slashed."""
    faults = draw_schedule(SEED, waves=1, faults_per_wave=len(KINDS), kinds=KINDS)
    said: list[str] = []
    report = await run_chaos(tmp_path / "chaos", Plan(SEED, faults, 1, JOBS), say=said.append)
    assert not report.broken, (report.broken, said)
    assert report.jobs == JOBS
    assert set(report.faults) == {kind.value for kind in KINDS}
    assert report.audits == 1
    assert sum(report.cases.values()) == JOBS
    assert "refused" not in report.cases
