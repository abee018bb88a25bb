"""The pool's own sums: counted with the outcome, in one transaction, once, for each worker and model by itself."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from kit.network import Harness, Network, make_key, make_network
from kit.pool import LeasedJob, Pool
from pocache.protocol.ids import EnvelopeId, ModelId, ParticipantId
from pocache.protocol.sprt import EJECT_Q16, HONEST_PERMILLE, WEIGHTS_Q16, Standing, judge_jobs
from pocache.runtime.metrics import Metrics
from pocache.service.unit import Unit
from pocache.storage.rows import upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_verifier.ejection import count_outcome, read_ejected
from pocache_verifier.jobs import Job
from pocache_verifier.service import VerifierService
from pocache_verifier.tables import JOB_TESTS

WORKER = make_key("worker").participant_id
VERIFIER = make_key("verifier-1").participant_id
NO_NUMBERS: dict[str, Any] = dict.fromkeys(
    (name for name in m.ComparisonV1.model_fields if name.endswith("_q16") or name == "row_count"), 0
)


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network(ejection={})


def make_pool(network: Network, url: str = "sqlite://") -> Harness:
    return Harness(VerifierService(network.genesis, network.models), network, url=url)


def make_outcome(network: Network, number: int, *grades: int) -> tuple[Job, m.OutcomeV1]:
    """Return a job by number, and an outcome that shows comparisons of these grades with its generator."""
    leased = LeasedJob(network, name=f"job {number}")
    job: Any = Job.__new__(Job)
    for name, value in {
        "job_id": leased.job_id,
        "generator": ParticipantId(WORKER),
        "model": network.model,
    }.items():
        object.__setattr__(job, name, value)
    comparisons = tuple(
        m.ComparisonV1(
            stage=stage,
            retry=0,
            left=VERIFIER,
            right=WORKER,
            verdict="match",
            grade=grade,
            **NO_NUMBERS,
        )
        for stage, grade in enumerate(grades, 1)
    )
    return job, leased.outcome("void").model_copy(update={"comparisons": comparisons})


def count(pool: Harness, number: int, *grades: int, dies: bool = False) -> bool:
    """Decide a job, in a transaction of its own; one that ``dies`` before it is durable is as if it had not been."""
    job, outcome = make_outcome(pool.network, number, *grades)

    def work(unit: Unit) -> bool:
        outcome_id: EnvelopeId = unit.emit(t.OUTCOME_DECIDED, outcome, job=job.job_id)
        is_out = count_outcome(pool.network.genesis, unit, job, outcome, outcome_id)
        if dies:
            raise KeyboardInterrupt
        return is_out

    return pool.dispatcher.transact(work)


def read_row(pool: Harness) -> Any:
    with pool.store.begin() as connection:
        return connection.execute(sa.select(JOB_TESTS)).one()


def test_it_is_ejected_by_the_outcome_that_crosses_and_by_none_before(network: Network) -> None:
    pool = make_pool(network)
    assert [count(pool, number, 3) for number in range(4)] == [False, False, False, True]
    emissions = pool.drain()
    assert [one.topic for one in emissions][-2:] == [t.OUTCOME_DECIDED, t.WORKER_EJECTED]
    ejection, outcome = emissions[-1].body, emissions[-2]
    assert isinstance(ejection, m.EjectionV1)
    expected = judge_jobs([3] * 4)
    assert (ejection.outcome, ejection.job_count) == (outcome.envelope_id, 4)
    assert (ejection.grade_sum_q16, ejection.token_sum_q16) == (expected.sum_q16, expected.token_sum_q16)
    assert ejection.grade_sum_q16 >= EJECT_Q16
    with pool.store.begin() as connection:
        assert read_ejected(connection) == {WORKER: {network.model.model_id}}
    assert [count(pool, number, 3) for number in range(4, 9)] == [False] * 5, "once, for good"
    assert read_row(pool).standing == Standing.EJECTED.value
    pool.close()


def test_a_crash_loses_nothing_and_says_nothing_twice(network: Network, tmp_path: Path) -> None:
    """Killed before the outcome is durable: no trace. Killed after it: both messages are in the outbox."""
    pool = make_pool(network, f"sqlite:///{tmp_path / 'pool.sqlite'}")
    for number in range(3):
        count(pool, number, 3)
    pool.drain()
    with pytest.raises(KeyboardInterrupt):
        count(pool, 3, 3, dies=True)
    pool.close()
    pool.open()
    assert pool.drain() == []
    assert read_row(pool).grade_3 == 3
    assert count(pool, 3, 3)
    pool.close()
    pool.open()
    assert [one.topic for one in pool.drain()] == [t.OUTCOME_DECIDED, t.WORKER_EJECTED]
    assert not count(pool, 4, 3)
    pool.close()


def test_a_cleared_cycle_begins_again_at_nothing(network: Network) -> None:
    pool = make_pool(network)
    for number in range(18):
        count(pool, number, 0)
    row = read_row(pool)
    assert (row.cycle_count, row.sum_q16, row.standing) == (2, 0, Standing.CLEARED.value)
    assert [count(pool, 18 + number, 3) for number in range(4)][-1], "good jobs buy no bad ones"
    pool.close()


def test_two_models_are_apart(network: Network) -> None:
    other = make_network(layer_count=3, ejection={}).model
    other.model_id = ModelId(b"\x09" * 32)
    both = replace(network, model=other)
    pool = make_pool(network)
    for number in range(3):
        count(pool, number, 3)
    pool.network = both
    assert [count(pool, 3 + number, 3) for number in range(3)] == [False] * 3
    pool.network = network
    assert count(pool, 6, 3)
    with pool.store.begin() as connection:
        assert read_ejected(connection) == {WORKER: {network.model.model_id}}
    pool.close()


def test_an_outcome_without_a_comparison_and_a_liar_count_for_nothing(network: Network) -> None:
    pool = make_pool(network)
    assert not count(pool, 0)
    with pool.store.begin() as connection:
        assert connection.execute(sa.select(JOB_TESTS)).all() == []
    for number in range(1, 9):
        assert not count(pool, number, 3, 0, 0), "the lower median of three stages"
    assert read_row(pool).grade_0 == 8
    pool.close()


def test_honest_workers_at_the_bound_are_never_ejected(network: Network) -> None:
    """Grades as often as an honest worker's may be at most, through the pool's own rows."""
    pool = make_pool(network)
    source = random.Random(7)
    grades = source.choices(range(4), weights=HONEST_PERMILLE, k=600)
    assert not any(count(pool, number, grade) for number, grade in enumerate(grades))
    row = read_row(pool)
    expected = judge_jobs(grades)
    assert (row.sum_q16, row.cycle_count) == (expected.sum_q16, expected.cycle_count)
    assert (row.grade_0, row.grade_1, row.grade_2, row.grade_3) == expected.grade_counts
    assert row.cycle_count > 10
    pool.close()


def test_a_network_that_ejects_nobody_counts_nothing() -> None:
    pool = make_pool(make_network())
    assert not any(count(pool, number, 3) for number in range(6))
    with pool.store.begin() as connection:
        assert connection.execute(sa.select(JOB_TESTS)).all() == []
    pool.close()


def test_who_is_ejected_is_in_no_later_snapshot_for_that_model() -> None:
    """The next round has a new one; what else it announces stays."""
    pool = Pool(sections={"ejection": {}})
    pool.enroll(make_key("worker"), 5)
    pool.enroll(make_key("verifier-1"), 7)
    pool.harness.pass_rounds()
    assert {one.participant for one in pool.hear(t.SNAPSHOT_TAKEN).members} == {WORKER, VERIFIER}
    for number in range(4):
        count(pool.harness, number, 3)
    pool.stake(make_key("worker"), 6, entry=2)
    pool.harness.pass_rounds()
    assert [one.participant for one in pool.hear(t.SNAPSHOT_TAKEN).members] == [VERIFIER]


def test_a_dispute_ejects_and_the_next_round_draws_from_others() -> None:
    """Also before the ledger has taken anything: one more job, however clean, and the sum is at the threshold."""
    pool = Pool(sections={"ejection": {}})
    pool.commit()
    pool.hear(t.SNAPSHOT_TAKEN)
    generator = pool.job.generator.participant_id
    key = {"participant": generator, "model_id": pool.network.model.model_id}
    near = {"sum_q16": EJECT_Q16 - WEIGHTS_Q16[0], "token_sum_q16": 0, "cycle_count": 0, "standing": "open"}
    with pool.harness.store.begin() as connection:
        upsert(connection, JOB_TESTS, key, {**near, **{f"grade_{grade}": grade for grade in range(4)}})
    pool.audit()
    pool.play()
    outcome, ejection = pool.hear(t.OUTCOME_DECIDED), pool.hear(t.WORKER_EJECTED)
    assert (outcome.case, ejection.job_id) == ("agree", outcome.job_id)
    assert (ejection.participant, ejection.grade_sum_q16, ejection.job_count) == (generator, EJECT_Q16, 7)
    pool.harness.pass_rounds()
    drawn = {one.participant for one in pool.hear(t.SNAPSHOT_TAKEN).members}
    assert drawn == set(pool.keys) - {generator}


def test_an_ejection_is_counted_by_its_test(network: Network) -> None:
    pool = make_pool(network)
    assert [count(pool, number, 3) for number in range(4)][-1]
    metrics = Metrics("verifier")
    metrics.observe_said([one.body for one in pool.drain()])
    assert 'pocache_ejections_total{test="grades"} 1.0' in metrics.render()
    pool.close()
