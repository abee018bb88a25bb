"""One identity as a generator: take a task, get its lease, generate, make the leaves durable, commit.

A task is settled on the bus once its lease is answered; from then on the lease in the table is what counts, so a
restart goes on with it as long as its deadline allows: the sampler is deterministic, so generating again gives the
same tokens, but for ties that rounding breaks, as it depends on what decodes beside. One result at most is ever said. Nothing is pulled while a lease is in hand: a task held here would be withheld from idle workers.
Refused: tasks that the router did not sign. An engine's failure leaves the lease to lapse, and the worker goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Final, cast

import sqlalchemy as sa
import structlog

from pocache.bus.port import Bus, StoredMessage
from pocache.engine.port import Capture, GenerateRequest
from pocache.protocol.errors import (
    AdmissionError,
    EngineCancelledError,
    EngineError,
    EnvelopeError,
    FundsError,
    InputError,
    PocacheError,
    VerificationError,
)
from pocache.runtime.network import Genesis, Model
from pocache.service.process import iterate_until
from pocache.service.unit import Unit
from pocache.storage.store import upsert
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Stream
from pocache_worker.cheats import Cheat
from pocache_worker.commits import commit_result
from pocache_worker.engines import EngineHost
from pocache_worker.grants import Grant, verify_cancellation, verify_grant
from pocache_worker.leaves import LeafStore, compute_commitment_name
from pocache_worker.rounds import RoundTracker
from pocache_worker.state import Bell, WorkerState, raise_if_cancelled, send, wait_event
from pocache_worker.streaming import Pacer, TokenStream
from pocache_worker.tables import CANCELLATIONS, LEASES, LeasePhase

TASK_CREDIT: Final = 1
"""Tasks, and so leases, that one identity has in hand: each holds its stake and runs against its deadline."""
LEASE_ANSWER_S: Final = 15.0
"""How long an answer to a lease request is waited for before the task goes back."""
TASK_RETURN_S: Final = 5.0
"""How long such a task stays away."""
STAKE_BACKOFF_S: Final = 10.0
"""How long an identity without free stake asks for nothing: the tasks are for others meanwhile."""
PROGRESS_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class GeneratorContext:
    """What one identity generates with."""

    name: str
    genesis: Genesis
    model: Model
    bus: Bus
    state: WorkerState
    bell: Bell
    host: EngineHost
    store: LeafStore
    rounds: RoundTracker
    pacer: Pacer
    cheat: Cheat


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """Where an attempt is, and why, if it was denied or failed."""

    phase: LeasePhase
    code: str
    reason: str


class Generator:
    """Runs one identity's leases."""

    def __init__(self, context: GeneratorContext) -> None:
        self._c = context
        self._log = structlog.get_logger().bind(worker=context.name)

    async def pull_tasks(self, stop: asyncio.Event) -> None:
        """Take tasks, one at a time, until ``stop`` is set; each is answered for before the next is asked for."""
        while True:
            raise_if_cancelled()
            await self._wait_idle()
            if stop.is_set():
                return
            pause_s = 0.0
            async with self._c.bus.pull(
                Stream.TASKS.value,
                f"generate-{self._c.model.model_id.hex()}",
                credit=TASK_CREDIT,
                progress_s=PROGRESS_S,
            ) as batches:
                pulled = cast("AsyncGenerator[list[StoredMessage], None]", iterate_until(batches, stop))
                async with aclosing(pulled):
                    async for (message,) in pulled:
                        phase, pause_s = await self._take(message)
                        if phase is LeasePhase.GRANTED or pause_s:
                            break
            # Outside the pull, so that nothing is prefetched while this identity is not free.
            if pause_s:
                raise_if_cancelled()
                await wait_event(stop, pause_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Generate what is granted, from earlier lives first, until ``stop`` is set and nothing granted is left."""
        with self._c.bell.listen() as rung:
            while True:
                rung.clear()
                body = await self._c.state.transact(read_granted)
                if body is not None:
                    await self._generate(body)
                elif stop.is_set():
                    return
                else:
                    await rung.wait()

    async def _take(self, message: StoredMessage) -> tuple[LeasePhase | None, float]:
        """Ask for a task's lease and settle the task; returns the answer, and how long to pause, seconds."""
        try:
            task = verify_task(message.subject, message.data, self._c.genesis, self._c.model)
        except PocacheError as error:
            self._log.error("task_refused", subject=message.subject, code=error.code, reason=str(error))
            await message.term(f"{error.code}: {error}")
            return None, 0.0
        with self._c.state.tracer.working("worker generate-task.v1", task.job_id, message.headers):
            await self._c.state.transact(lambda unit: request_lease(unit, task, self._c.state.participant))
        try:
            async with asyncio.timeout(LEASE_ANSWER_S):
                answer = await self._wait_answer(task)
        except TimeoutError:
            self._log.warning("lease_unanswered", job=task.job_id, attempt=task.attempt)
            await message.nak(TASK_RETURN_S)
            return None, 0.0
        await message.ack()
        if answer is None:
            return None, 0.0
        if answer.phase is LeasePhase.DENIED and answer.code == FundsError.code:
            self._log.warning("no_stake", pause_s=STAKE_BACKOFF_S, reason=answer.reason)
            return answer.phase, STAKE_BACKOFF_S
        return answer.phase, 0.0

    async def _wait_answer(self, task: m.GenerateTaskV1) -> LeaseAnswer | None:
        """Wait until a request is answered; None when the job was settled meanwhile."""
        with self._c.bell.listen() as rung:
            while True:
                rung.clear()
                answer = await self._c.state.transact(
                    lambda unit: read_lease(unit, task.job_id, task.attempt)
                )
                if answer is None or answer.phase is not LeasePhase.REQUESTED:
                    return answer
                await rung.wait()

    async def _wait_idle(self) -> None:
        """Wait until no granted lease is left to generate."""
        with self._c.bell.listen() as rung:
            while True:
                rung.clear()
                if await self._c.state.transact(read_granted) is None:
                    return
                await rung.wait()

    async def _generate(self, body: m.LeaseGrantedV1) -> None:
        with self._c.state.tracer.working("worker generate", body.job_id):
            await self._fulfil(body)

    async def _fulfil(self, body: m.LeaseGrantedV1) -> None:
        """Generate one lease to its end: a commitment, or the reason why there is none."""
        c = self._c
        log = self._log.bind(job=body.job_id, attempt=body.attempt)
        try:
            grant = verify_grant(body, genesis=c.genesis, model=c.model, participant=c.state.participant)
            capture, cancellation = await self._run_engine(grant)
            name = compute_commitment_name(body.job_id, body.attempt)
            with nullcontext() if c.state.metrics is None else c.state.metrics.commit_s.time():
                sealed = await asyncio.to_thread(c.store.write, name, capture.leaves)
            await self._wait_first_round(grant.lease.deadline_ms)
        except EngineCancelledError as error:
            if c.host.is_aborted:
                raise  # the process is going down: the lease stays granted for the next one
            log.warning("lease_expired", reason=str(error))
            await self._finish(body, LeasePhase.EXPIRED, error)
        except (EngineError, AdmissionError, InputError, VerificationError) as error:
            log.error("generation_failed", code=error.code, reason=str(error))
            await self._finish(body, LeasePhase.FAILED, error)
        else:
            is_said = await c.state.transact(
                lambda unit: commit_result(
                    unit,
                    grant,
                    capture,
                    sealed,
                    participant=c.state.participant,
                    network=c.genesis.network_id,
                    stack=c.model.entry.stack,
                    latest_round=c.rounds.latest,
                    cancellation=cancellation,
                    commits_twice=c.cheat.commits_twice,
                )
            )
            if is_said:
                log.info("committed", root=sealed.root, leaf_count=sealed.leaf_count)
            else:
                log.warning("lease_expired", reason="it ended before the result could be said")
        c.bell.ring()

    async def _run_engine(self, grant: Grant) -> tuple[Capture, bytes | None]:
        """Generate to the end, or until the user has cancelled; then the cancellation is returned as well."""
        c = self._c
        lease = grant.lease
        request = GenerateRequest(
            job_id=grant.job_id,
            attempt=lease.attempt,
            prompt=grant.prompt,
            max_tokens=lease.token_count_max,
            sampling=grant.sampling,
            seed=lease.seed,
            network=c.genesis.network_id,
            eos_stop=lease.eos_stop,
        )
        enough = threading.Event()
        watching = asyncio.create_task(self._wait_cancelled(grant, enough))
        try:
            async with TokenStream(c.bus, c.state.seal, lease, c.pacer) as stream:

                def take(tokens: tuple[int, ...]) -> bool:
                    stream.push(tokens)
                    return enough.is_set()

                capture = await c.host.generate(
                    c.name, request, take, lambda: c.state.now_ms() >= lease.deadline_ms
                )
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return capture, watching.result() if capture.finish_reason == "cancelled" else None

    async def _wait_cancelled(self, grant: Grant, enough: threading.Event) -> bytes:
        """Wait until the user of this lease has cancelled it, say so to the engine, and return the cancellation."""
        with self._c.bell.listen() as rung:
            while True:
                rung.clear()
                cancellation = await self._c.state.transact(lambda unit: read_cancellation(unit, grant))
                if cancellation is not None:
                    try:
                        verify_cancellation(grant, cancellation, network=self._c.genesis.network_id)
                    except (InputError, AdmissionError) as error:
                        self._log.error("cancellation_refused", job=grant.job_id, reason=str(error))
                    else:
                        enough.set()
                        return cancellation
                await rung.wait()

    async def _wait_first_round(self, deadline_ms: int) -> None:
        """Wait for a round to name, but not beyond the deadline: a result without one is refused as stale."""
        left_s = max(0.0, (deadline_ms - self._c.state.now_ms()) / 1_000)
        try:
            async with asyncio.timeout(left_s):
                await self._c.rounds.wait_beyond(0)
        except TimeoutError:
            raise EngineCancelledError("no beacon round came before the lease's deadline") from None

    async def _finish(self, body: m.LeaseGrantedV1, phase: LeasePhase, error: PocacheError) -> None:
        await self._c.state.transact(lambda unit: finish_lease(unit, body, phase, error))


def verify_task(subject: str, data: bytes, genesis: Genesis, model: Model) -> m.GenerateTaskV1:
    """Return a task that the router signed and that is for our model. Raises InputError."""
    opened = open_envelope(data, genesis.network_id, m.GenerateTaskV1)
    if opened.sender != genesis.signer(Role.ROUTER):
        raise EnvelopeError("a generation task must be signed by the router")
    tokens = t.GENERATE_TASK.parse(subject)
    if opened.body.model_id != model.model_id or tokens["model"] != model.model_id.hex():
        raise EnvelopeError("a generation task of another model than its subject or this worker's")
    return opened.body


def request_lease(unit: Unit, task: m.GenerateTaskV1, worker: str) -> None:
    """Ask the router for an attempt, unless it is settled between us already."""
    known = read_lease(unit, task.job_id, task.attempt)
    if known is not None and known.phase not in (LeasePhase.REQUESTED, LeasePhase.DENIED):
        return
    key = {"job_id": task.job_id, "attempt": task.attempt}
    upsert(unit.connection, LEASES, key, {"phase": LeasePhase.REQUESTED.value, "code": "", "reason": ""})
    request = m.LeaseRequestV1(
        job_id=task.job_id,
        attempt=task.attempt,
        requested_ms=unit.now_ms,
        publication=task.publication,
    )
    send(unit, t.LEASE_REQUESTED, request, job_id=task.job_id, attempt=task.attempt, worker=worker)


def read_lease(unit: Unit, job_id: bytes, attempt: int) -> LeaseAnswer | None:
    """Return where an attempt is, None when it is not known here."""
    row = unit.connection.execute(
        sa.select(LEASES.c.phase, LEASES.c.code, LEASES.c.reason).where(
            LEASES.c.job_id == job_id, LEASES.c.attempt == attempt
        )
    ).one_or_none()
    return None if row is None else LeaseAnswer(LeasePhase(row.phase), row.code, row.reason)


def read_granted(unit: Unit) -> m.LeaseGrantedV1 | None:
    """Return the granted lease that ends first, None when there is none; those that are over are marked so."""
    is_granted = LEASES.c.phase == LeasePhase.GRANTED.value
    unit.connection.execute(
        sa.update(LEASES)
        .where(is_granted, LEASES.c.deadline_ms <= unit.now_ms)
        .values(phase=LeasePhase.EXPIRED.value, reason="the deadline passed before it was begun")
    )
    granted = unit.connection.execute(
        sa.select(LEASES.c.granted).where(is_granted).order_by(LEASES.c.deadline_ms).limit(1)
    ).scalar_one_or_none()
    return None if granted is None else decode(m.LeaseGrantedV1, granted)


def read_cancellation(unit: Unit, grant: Grant) -> bytes | None:
    """Return the user's signed wish for no more of this attempt, None while there is none."""
    found = unit.connection.execute(
        sa.select(CANCELLATIONS.c.cancellation).where(
            CANCELLATIONS.c.job_id == grant.job_id, CANCELLATIONS.c.attempt == grant.lease.attempt
        )
    ).scalar_one_or_none()
    return None if found is None else bytes(found)


def finish_lease(unit: Unit, body: m.LeaseGrantedV1, phase: LeasePhase, error: PocacheError) -> None:
    """Mark a granted lease as ended without a result."""
    unit.connection.execute(
        sa.update(LEASES)
        .where(
            LEASES.c.job_id == body.job_id,
            LEASES.c.attempt == body.attempt,
            LEASES.c.phase == LeasePhase.GRANTED.value,
        )
        .values(phase=phase.value, code=error.code, reason=str(error))
    )
