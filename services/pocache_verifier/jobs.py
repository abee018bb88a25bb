"""The jobs that may have to be verified: their tokens, and what was committed for them.

Owns what a verification task tells a verifier: the prompt from the user's submission, the output, sampling and seed
from the recorded result and its lease. Nothing of the generator's rows is here. Everything is forgotten with the
job's settlement but that there was such a job; of a job whose escrow was refused, that too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.errors import EnvelopeError, NotYetError, UnknownModelError
from pocache.protocol.ids import Digest, EnvelopeId, JobId, ModelId, ParticipantId
from pocache.protocol.limits import TOKEN_BYTES
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Inbound, Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import delete_rows, find_row, insert_row, update_rows
from pocache.wire.codec import encode
from pocache.wire.envelope import OpenedEnvelope, open_envelope
from pocache.wire.messages import (
    CommitmentRecordedV1,
    JobAdmittedV1,
    LeaseV1,
    PayoutSettledV1,
    ResultV1,
    SubmissionV1,
)
from pocache.wire.topics import Role
from pocache_verifier.tables import CLAIMS, COMMITMENTS, COMPARISONS, JOBS, OPENINGS

_GET_COMMITTED: Final = Prepared(
    sa.select(COMMITMENTS, JOBS.c.user, JOBS.c.prompt, JOBS.c.is_settled)
    .join(JOBS, JOBS.c.job_id == COMMITMENTS.c.job_id)
    .where(COMMITMENTS.c.job_id == sa.bindparam("job_id"))
)


@dataclass(frozen=True, slots=True)
class Job:
    """A committed job."""

    job_id: JobId
    attempt: int
    user: ParticipantId
    generator: ParticipantId
    model: Model
    root: Digest
    leaf_count: int
    binding: Digest
    result_id: EnvelopeId
    window_close_round: int
    prompt_count: int
    prompt: bytes
    output: bytes
    sampling: bytes
    seed: bytes
    is_settled: bool

    @property
    def full_corner(self) -> Corner:
        """The corner of the whole job."""
        return compute_full_corner(self.model.schema.layer_count, self.leaf_count)


class Jobs:
    """Handles admissions, commitments and settlements."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._genesis = genesis
        self._models = models

    def admit(self, unit: Unit, inbound: Inbound[JobAdmittedV1]) -> None:
        """Keep a job's prompt."""
        body = inbound.body
        if find_row(unit.connection, JOBS, {"job_id": body.job_id}) is not None:
            return
        opened = open_envelope(body.submission, self._genesis.network_id, SubmissionV1)
        if (opened.envelope_id, opened.sender) != (body.job_id, body.user):
            raise EnvelopeError("the submission is not the one that this job is called after")
        job = {"job_id": body.job_id, "user": body.user, "prompt": opened.body.prompt, "is_settled": False}
        insert_row(unit.connection, JOBS, job)

    def record(self, unit: Unit, inbound: Inbound[CommitmentRecordedV1]) -> None:
        """Keep what a job's verification starts from."""
        body = inbound.body
        job = find_row(unit.connection, JOBS, {"job_id": body.job_id})
        if job is None:
            raise NotYetError("the job's admission has not arrived")
        if job.is_settled or self.find(unit.connection, body.job_id) is not None:
            return
        result, lease = open_result(self._genesis, body.result, generator=body.generator)
        if ModelId(lease.model_id) not in self._models:
            raise UnknownModelError(f"model {lease.model_id.hex()} is not served here")
        commitment = {
            "job_id": body.job_id,
            "attempt": body.attempt,
            "generator": body.generator,
            "model_id": lease.model_id,
            "root": result.body.root,
            "leaf_count": result.body.leaf_count,
            "binding": result.body.binding,
            "result_id": result.envelope_id,
            "window_close_round": body.window_close_round,
            "prompt_count": len(job.prompt) // TOKEN_BYTES,
            "output": result.body.output,
            "sampling": encode(lease.sampling),
            "seed": lease.seed,
        }
        insert_row(unit.connection, COMMITMENTS, commitment)

    def refuse(self, unit: Unit, job_id: bytes) -> None:
        """Forget a job whose escrow the ledger refused: nothing will be committed for it."""
        if self.find(unit.connection, job_id) is None:
            delete_rows(unit.connection, JOBS, {"job_id": job_id})

    def settle(self, unit: Unit, inbound: Inbound[PayoutSettledV1]) -> None:
        """Forget a job's tokens, openings, claims and comparisons: its pool is empty, nothing will be verified any more."""
        key = {"job_id": inbound.body.job_id}
        for table in (OPENINGS, CLAIMS, COMPARISONS):
            delete_rows(unit.connection, table, key)
        update_rows(unit.connection, COMMITMENTS, key, {"output": b""})
        update_rows(unit.connection, JOBS, key, {"prompt": b"", "is_settled": True})

    def find(self, connection: sa.Connection, job_id: bytes) -> Job | None:
        """Return a committed job, None before its commitment has arrived."""
        row = _GET_COMMITTED.first(connection, job_id=job_id)
        if row is None:
            return None
        return Job(
            job_id=JobId(row.job_id),
            attempt=row.attempt,
            user=ParticipantId(row.user),
            generator=ParticipantId(row.generator),
            model=self._models[ModelId(row.model_id)],
            root=Digest(row.root),
            leaf_count=row.leaf_count,
            binding=Digest(row.binding),
            result_id=EnvelopeId(row.result_id),
            window_close_round=row.window_close_round,
            prompt_count=row.prompt_count,
            prompt=row.prompt,
            output=row.output,
            sampling=row.sampling,
            seed=row.seed,
            is_settled=bool(row.is_settled),
        )

    def get(self, connection: sa.Connection, job_id: bytes, attempt: int) -> Job:
        """Return a committed job that the record speaks of. Raises NotYetError, EnvelopeError for another attempt."""
        job = self.find(connection, job_id)
        if job is None:
            raise NotYetError("the job's commitment has not arrived")
        if job.attempt != attempt:
            raise EnvelopeError(f"the job's commitment is of attempt {job.attempt}, not {attempt}")
        return job


def open_result(
    genesis: Genesis, envelope: bytes, *, generator: str
) -> tuple[OpenedEnvelope[ResultV1], LeaseV1]:
    """Return a result that a generator signed, and the lease that it held; EnvelopeError, SignatureError."""
    result = open_envelope(envelope, genesis.network_id, ResultV1)
    lease = open_envelope(result.body.lease, genesis.network_id, LeaseV1)
    if lease.sender != genesis.signer(Role.ROUTER):
        raise EnvelopeError("the result's lease is not signed by the router")
    if (generator, generator) != (result.sender, lease.body.generator):
        raise EnvelopeError("the result is not by the generator that holds the lease")
    return result, lease.body
