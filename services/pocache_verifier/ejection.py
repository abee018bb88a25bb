"""The tests over a worker's audited jobs, as the pool keeps them: what it has counted, and whom it has ejected.

Owns one record for each worker and model, written in the transaction that decides the outcome which it counts, with the
ejection that it leads to in the same outbox: a crash leaves all of it or nothing, and nobody is ejected twice. The tests
themselves are ``pocache.protocol.sprt``'s (docs/protocol.md 7.8). A network whose genesis ejects nobody counts nothing.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
import structlog

from pocache.protocol.ids import EnvelopeId
from pocache.protocol.sprt import JobRecord, Standing, advance_record, judge_job
from pocache.runtime.network import Genesis
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import find_row, upsert
from pocache.wire.comparisons import read_looks
from pocache.wire.messages import EjectionV1, OutcomeV1
from pocache.wire.topics import WORKER_EJECTED
from pocache_verifier.jobs import Job
from pocache_verifier.tables import JOB_TESTS

_GET_EJECTED: Final = Prepared(
    sa.select(JOB_TESTS.c.participant, JOB_TESTS.c.model_id).where(
        JOB_TESTS.c.standing == Standing.EJECTED.value
    )
)


def count_outcome(genesis: Genesis, unit: Unit, job: Job, outcome: OutcomeV1, outcome_id: EnvelopeId) -> bool:
    """Count an outcome just decided for its generator; say so, and return True, where that ejects it."""
    if genesis.ejection is None:
        return False
    limits = job.model.profile.limits.tokens
    evidence = judge_job(read_looks(outcome.comparisons, job.generator), limits)
    if evidence is None:
        return False
    before = _read_record(unit.connection, job)
    after = advance_record(before, evidence.grade, evidence.token_evidence_q16)
    if after is before:
        return False  # ejected already: a job of before, or one that was under way
    _write_record(unit.connection, job, after)
    if after.crossed is None:
        return False
    ejection = EjectionV1(
        participant=job.generator,
        model_id=job.model.model_id,
        test=after.crossed.value,
        job_id=job.job_id,
        outcome=outcome_id,
        job_count=after.job_count,
        grade_sum_q16=after.sum_q16,
        token_sum_q16=after.token_sum_q16,
    )
    unit.emit(WORKER_EJECTED, ejection, participant=job.generator)
    structlog.get_logger().warning(
        "ejected", service="verifier", worker=job.generator, test=ejection.test, jobs=after.job_count
    )
    return True


def read_ejected(connection: sa.Connection) -> dict[str, set[bytes]]:
    """Return whom this network has ejected: participants with the models that they generate and verify no more."""
    ejected: dict[str, set[bytes]] = {}
    for row in _GET_EJECTED.all(connection):
        ejected.setdefault(row.participant, set()).add(row.model_id)
    return ejected


def _read_record(connection: sa.Connection, job: Job) -> JobRecord:
    row = find_row(connection, JOB_TESTS, {"participant": job.generator, "model_id": job.model.model_id})
    if row is None:
        return JobRecord()
    return JobRecord(
        sum_q16=row.sum_q16,
        cycle_count=row.cycle_count,
        grade_counts=(row.grade_0, row.grade_1, row.grade_2, row.grade_3),
        standing=Standing(row.standing),
        token_sum_q16=row.token_sum_q16,
    )


def _write_record(connection: sa.Connection, job: Job, record: JobRecord) -> None:
    values = {
        "sum_q16": record.sum_q16,
        "token_sum_q16": record.token_sum_q16,
        "cycle_count": record.cycle_count,
        "standing": record.standing.value,
        **{f"grade_{grade}": count for grade, count in enumerate(record.grade_counts)},
    }
    upsert(connection, JOB_TESTS, {"participant": job.generator, "model_id": job.model.model_id}, values)
