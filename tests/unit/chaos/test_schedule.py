"""A seed is a schedule: the same one gives the same faults; every kind has its turn; memory that grew is named."""

from __future__ import annotations

import pytest

from chaos.faults import ALL_KINDS, PROCESSES, USERS, Kind, draw_schedule
from chaos.invariants import MEMORY_GROWTH_KB_MAX, compute_slopes, find_grown


def test_a_seed_gives_the_same_faults_again() -> None:
    """And another seed gives others."""
    schedule = draw_schedule(7, waves=10, faults_per_wave=4)
    assert schedule == draw_schedule(7, waves=10, faults_per_wave=4)
    assert schedule != draw_schedule(8, waves=10, faults_per_wave=4)


def test_every_kind_and_each_wave_has_its_share() -> None:
    """With room for all kinds, all occur; each wave has the number that was asked for, in the order of its times."""
    schedule = draw_schedule(1, waves=5, faults_per_wave=4)
    assert {fault.kind for fault in schedule} == set(ALL_KINDS)
    for wave in range(5):
        times = [fault.at for fault in schedule if fault.wave == wave]
        assert len(times) == 4
        assert times == sorted(times)
    assert {fault.target for fault in schedule} <= {*PROCESSES, USERS, "nats-server"}
    assert all(abs(fault.amount) >= 1 for fault in schedule if fault.kind is Kind.SKEW)


@pytest.mark.parametrize(("last", "is_grown"), [(60_000, False), (60_000 + MEMORY_GROWTH_KB_MAX + 1, True)])
def test_memory_that_did_not_come_back_is_named(last: int, is_grown: bool) -> None:
    """By the medians of the first and the last samples: one sample more or less says nothing."""
    samples = [{"router": size} for size in (60_000, 60_000, 500_000, last, last, last, last)]
    assert bool(find_grown(samples)) == is_grown


def test_the_slope_is_what_a_thousand_jobs_leave_behind() -> None:
    """Warming up is not counted, and who was not there long enough has none."""
    samples = [{"router": 50_000 + 9_000 * number} for number in range(4)]
    samples += [{"router": 90_000 + 10 * number, "late": 1} for number in range(4)]
    samples[4].pop("late")
    samples[5].pop("late")
    assert compute_slopes(samples, 100) == {"router": 100}
