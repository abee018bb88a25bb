"""One identity as a verifier: re-run the known tokens, make the rows durable, seal their root, then settle the task.

Tasks are taken in small batches, one call of the engine each. Refused: tasks that the verifier pool did not sign, for
another worker or model, or whose corner lies outside the job. A task that cannot be done is terminated with its
reason: the pool's deadline then counts it against this verifier, as any silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import sqlalchemy as sa
import structlog

from pocache.bus.port import Bus, StoredMessage
from pocache.engine.port import VerifyCapture, VerifyRequest
from pocache.protocol.challenge import Corner
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import (
    AdmissionError,
    EngineError,
    EnvelopeError,
    InputError,
    PocacheError,
    VerificationError,
)
from pocache.protocol.ids import JobId, NetworkId
from pocache.runtime.network import Genesis, Model
from pocache.service.process import iterate_until
from pocache.service.unit import Unit
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Stream
from pocache_worker.engines import EngineHost
from pocache_worker.grants import read_sampling
from pocache_worker.leaves import LeafStore, SealedLeaves, compute_claim_name
from pocache_worker.state import WorkerState, send
from pocache_worker.tables import CLAIMS

BATCH_MAX: Final = 8
"""Verifications in one call of the engine."""
PROGRESS_S: Final = 1.5

JOB_FAILURES: Final = (EngineError, AdmissionError, InputError, VerificationError)
"""What one job's work may raise and the worker goes on."""


@dataclass(frozen=True, slots=True)
class VerifierContext:
    """What one identity verifies with."""

    name: str
    genesis: Genesis
    model: Model
    bus: Bus
    state: WorkerState
    host: EngineHost
    store: LeafStore


@dataclass(frozen=True, slots=True)
class _Item:
    message: StoredMessage
    task: m.VerifyTaskV1


class Verifier:
    """Runs one identity's verification tasks."""

    def __init__(self, context: VerifierContext) -> None:
        self._c = context
        self._log = structlog.get_logger().bind(worker=context.name)

    async def pull_tasks(self, stop: asyncio.Event) -> None:
        """Take and do verification tasks until ``stop`` is set; the batch in hand is finished."""
        async with self._c.bus.pull(
            Stream.TASKS.value,
            f"verify-{self._c.state.participant}",
            credit=BATCH_MAX,
            batch_max=BATCH_MAX,
            progress_s=PROGRESS_S,
        ) as batches:
            async for batch in iterate_until(batches, stop):
                await self._handle(batch)

    async def _handle(self, batch: Sequence[StoredMessage]) -> None:
        items = []
        for message in batch:
            try:
                task = verify_task(
                    message.subject, message.data, self._c.genesis, self._c.model, self._c.state.participant
                )
            except PocacheError as error:
                await self._terminate(message, error)
                continue
            if await self._c.state.transact(partial(is_sealed, task=task)):
                await (
                    message.ack()
                )  # sealed in an earlier delivery: what was said then is in the outbox, or said
            else:
                items.append(_Item(message, task))
        if items:
            await self._verify(items)

    async def _verify(self, items: Sequence[_Item]) -> None:
        """Verify a batch at once; when that fails, each by itself, so that one job cannot fail the others."""
        requests = [compute_request(item.task, self._c.genesis.network_id) for item in items]
        try:
            captures = await self._c.host.verify(self._c.name, requests)
        except JOB_FAILURES as error:
            if self._c.host.is_aborted:
                raise  # the process is going down: the tasks come again, to the next one
            if len(items) == 1:
                await self._terminate(items[0].message, error)
                return
            for item in items:
                await self._verify([item])
            return
        for item, capture in zip(items, captures, strict=True):
            await self._seal(item, capture)

    async def _seal(self, item: _Item, capture: VerifyCapture) -> None:
        task = item.task
        name = compute_claim_name(task.job_id, task.attempt, task.stage, task.retry)
        try:
            sealed = await asyncio.to_thread(self._c.store.write, name, capture.leaves)
        except EngineError as error:
            await self._terminate(item.message, error)
            return
        with self._c.state.tracer.working("worker verify-task.v1", task.job_id, item.message.headers):
            await self._c.state.transact(
                lambda unit: seal_claim(
                    unit, task, sealed, worker=self._c.state.participant, stack=self._c.model.entry.stack
                )
            )
        await item.message.ack()
        self._log.info("sealed", job=task.job_id, stage=task.stage, retry=task.retry, root=sealed.root)

    async def _terminate(self, message: StoredMessage, error: PocacheError) -> None:
        self._log.error("verification_failed", subject=message.subject, code=error.code, reason=str(error))
        await message.term(f"{error.code}: {error}")


def verify_task(subject: str, data: bytes, genesis: Genesis, model: Model, worker: str) -> m.VerifyTaskV1:
    """Return a task that the verifier pool signed, for this worker and its model. Raises InputError."""
    opened = open_envelope(data, genesis.network_id, m.VerifyTaskV1)
    if opened.sender != genesis.signer(Role.VERIFIER):
        raise EnvelopeError("a verification task must be signed by the verifier pool")
    if t.VERIFY_TASK.parse(subject)["worker"] != worker:
        raise EnvelopeError("a verification task for another worker")
    task = opened.body
    if task.model_id != model.model_id:
        raise EnvelopeError("a verification task of another model than this worker's")
    leaf_count = len(unpack_tokens(task.tokens)) - 1
    if task.corner.position_max >= leaf_count or task.corner.layer_max >= model.schema.layer_count:
        raise EnvelopeError(f"a corner beyond {leaf_count} leaves or {model.schema.layer_count} layers")
    return task


def compute_request(task: m.VerifyTaskV1, network: NetworkId) -> VerifyRequest:
    """Return what the engine is asked for."""
    return VerifyRequest(
        job_id=JobId(task.job_id),
        tokens=unpack_tokens(task.tokens),
        prompt_count=task.prompt_count,
        corner=Corner(
            layer_max=task.corner.layer_max,
            position_max=task.corner.position_max,
            full_depth=task.corner.full_depth,
        ),
        sampling=read_sampling(task.sampling),
        seed=task.seed,
        network=network,
    )


def is_sealed(unit: Unit, task: m.VerifyTaskV1) -> bool:
    """Whether this stage's claim was sealed before."""
    where = [CLAIMS.c[name] == getattr(task, name) for name in ("job_id", "attempt", "stage", "retry")]
    return unit.connection.execute(sa.select(CLAIMS.c.root).where(*where)).first() is not None


def seal_claim(unit: Unit, task: m.VerifyTaskV1, sealed: SealedLeaves, *, worker: str, stack: str) -> None:
    """Say the root over leaves that are durable, once."""
    if is_sealed(unit, task):
        return
    assert sealed.leaf_count == task.corner.position_max + 1, "an engine lost or invented leaves"
    unit.connection.execute(
        sa.insert(CLAIMS).values(
            job_id=task.job_id,
            attempt=task.attempt,
            stage=task.stage,
            retry=task.retry,
            root=sealed.root,
        )
    )
    claim = m.ClaimSealedV1(
        job_id=task.job_id,
        attempt=task.attempt,
        stage=task.stage,
        retry=task.retry,
        corner=task.corner,
        leaf_count=sealed.leaf_count,
        root=sealed.root,
        stack=stack,
    )
    send(
        unit, t.CLAIM_SEALED, claim, job_id=task.job_id, attempt=task.attempt, worker=worker, job=task.job_id
    )
