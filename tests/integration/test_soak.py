"""Twenty minutes of traffic: every job ends, money adds up, and no process needs more memory for more jobs.

``make soak`` runs it with the rest; ``SOAK_WAVES``, ``SOAK_JOBS`` (a wave) and ``SOAK_WAVE_S`` make it shorter or longer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from chaos.harness import Plan
from chaos.invariants import BUS_SLOPE_KB_PER_1000_JOBS_MAX, SLOPE_KB_PER_1000_JOBS_MAX, compute_slopes
from chaos.run import run_chaos

WAVES, JOBS, WAVE_S = 34, 150, 30.0


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_memory_is_flat_over_many_jobs(tmp_path: Path) -> None:
    """By the slope of each process's resident memory over the second half of the run.

    nats-server's own grows with what is stored, by the subjects of the record: it has a bound of its own.
    """
    waves = int(os.environ.get("SOAK_WAVES", WAVES))
    jobs = int(os.environ.get("SOAK_JOBS", JOBS))
    plan = Plan(5, (), waves, jobs, wave_s=float(os.environ.get("SOAK_WAVE_S", WAVE_S)))
    report = await run_chaos(tmp_path / "soak", plan, say=lambda text: print(text, file=sys.stderr))  # noqa: T201
    slopes = compute_slopes(report.rss_kb, jobs)
    said = {**report.to_dict(), "slope_kb_per_1000_jobs": slopes, "rss_kb": report.rss_kb}
    print(json.dumps(said), file=sys.stderr)  # noqa: T201
    assert not report.broken
    assert report.jobs == waves * jobs
    bounds = dict.fromkeys(slopes, SLOPE_KB_PER_1000_JOBS_MAX)
    bounds |= dict.fromkeys(
        (name for name in slopes if name.startswith("nats-")), BUS_SLOPE_KB_PER_1000_JOBS_MAX
    )
    grown = {name: slope for name, slope in slopes.items() if slope > bounds[name]}
    assert not grown
