"""One identity as a generator: take a task, get its lease, generate, make the leaves durable, commit.

A task is settled on the bus once its lease is answered; from then on the lease in the table is what counts, so a
restart goes on with it as long as its deadline allows: the sampler is deterministic, so generating again gives the
same tokens, but for ties that rounding breaks, as it depends on what decodes beside. One result at most is ever said.
No more is pulled than this identity may generate at once: a task held here would be withheld from idle workers.
Refused: tasks that the router did not sign. An engine's failure leaves the lease to lapse, and the worker goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import structlog

from pocache.bus.port import Bus, StoredMessage
from pocache.engine.port import Capture, GenerateRequest
from pocache.protocol.errors import (
    AdmissionError,
    EjectedError,
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
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Stream
from pocache_worker.cheats import Cheat
from pocache_worker.commits import commit_result
from pocache_worker.engines import EngineHost
from pocache_worker.grants import Grant, GrantVerifier, verify_cancellation
from pocache_worker.leases import (
    GrantedLease,
    LeaseAnswer,
    LeaseKey,
    finish_lease,
    read_answers,
    read_cancellation,
    read_granted,
    request_lease,
)
from pocache_worker.leaves import LeafStore, compute_commitment_name
from pocache_worker.rounds import RoundTracker
from pocache_worker.state import Bell, News, WorkerState, raise_if_cancelled, wait_event
from pocache_worker.streaming import Pacer, TokenStream
from pocache_worker.tables import LeasePhase

LEASE_ANSWER_S: Final = 15.0
"""How long an answer to a lease request is waited for before the task goes back."""
TASK_RETURN_S: Final = 5.0
"""How long such a task stays away."""
STAKE_BACKOFF_S: Final = 10.0
"""How long an identity without free stake asks for nothing: the tasks are for others meanwhile."""
EJECTED_BACKOFF_S: Final = 600.0
"""How long an identity that was ejected from the model asks for nothing: it is told so again then, as long as it runs."""
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
    grants: GrantVerifier
    pacer: Pacer
    cheat: Cheat
    jobs_max: int = 1
    """Leases in hand at once: each holds its stake, and runs against its deadline."""


class Generator:
    """Runs one identity's leases, at most ``jobs_max`` of them at once."""

    def __init__(self, context: GeneratorContext) -> None:
        self._c = context
        self._asked: dict[LeaseKey, asyncio.Future[LeaseAnswer | None]] = {}
        self._begun: dict[LeaseKey, asyncio.Task[None]] = {}
        self._idle = asyncio.Event()
        """Set while nothing granted is left to generate."""
        self._pause_s = 0.0
        self._log = structlog.get_logger().bind(worker=context.name)

    async def pull_tasks(self, stop: asyncio.Event) -> None:
        """Take tasks until ``stop`` is set. Each takes a credit until what came of it is over.

        What this identity has no hands for is never prefetched: it is for others.
        """
        while True:
            raise_if_cancelled()
            await self._idle.wait()  # also leases of an earlier life
            if stop.is_set():
                return
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                stopping = group.create_task(_set_after(stop, enough))
                async with self._c.bus.pull(
                    Stream.TASKS.value,
                    f"generate-{self._c.model.model_id.hex()}",
                    credit=self._c.jobs_max,
                    progress_s=PROGRESS_S,
                ) as batches:
                    pulled = cast("AsyncGenerator[list[StoredMessage], None]", iterate_until(batches, enough))
                    async with aclosing(pulled):
                        async for (message,) in pulled:
                            group.create_task(self._take(message, enough))
                stopping.cancel()
            # Outside the pull, so that nothing is prefetched while this identity is not free.
            pause_s, self._pause_s = self._pause_s, 0.0
            if pause_s:
                raise_if_cancelled()
                await wait_event(stop, pause_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Generate what is granted, from earlier lives first, until ``stop`` is set and nothing granted is left."""
        async with asyncio.TaskGroup() as group:
            with self._c.bell.listen(News.LEASES) as rung:
                while True:
                    rung.clear()
                    rung_count = self._c.bell.get_count(News.CANCELLATIONS)
                    look = partial(
                        _look,
                        asked=tuple(self._asked),
                        begun=frozenset(self._begun),
                        free_count=self._c.jobs_max - len(self._begun),
                    )
                    granted, answers = await self._c.state.transact(look)
                    for lease in granted:
                        key = (lease.body.job_id, lease.body.attempt)
                        self._begun[key] = group.create_task(self._generate(lease, rung_count))
                    for key, answer in answers:
                        self._answer(key, answer)
                    if self._begun:
                        self._idle.clear()
                    else:
                        self._idle.set()
                        if stop.is_set():
                            return
                    await rung.wait()

    async def _take(self, message: StoredMessage, enough: asyncio.Event) -> None:
        """Ask for a task's lease, settle the task, and keep its credit until the lease is generated."""
        try:
            task = verify_task(message.subject, message.data, self._c.genesis, self._c.model)
        except PocacheError as error:
            self._log.error("task_refused", subject=message.subject, code=error.code, reason=str(error))
            await message.term(f"{error.code}: {error}")
            return
        with self._c.state.tracer.working("worker generate-task.v1", task.job_id, message.headers):
            try:
                answer = await self._ask(task)
            except TimeoutError:
                self._log.warning("lease_unanswered", job=task.job_id, attempt=task.attempt)
                await message.nak(TASK_RETURN_S)
                return
        if answer is not None and answer.phase is LeasePhase.DENIED:
            self._note_denial(answer, enough)
        await message.ack(keeps_credit=True)
        begun = self._begun.get((task.job_id, task.attempt))
        if begun is not None:
            await asyncio.wait({begun})
        message.release()

    def _note_denial(self, answer: LeaseAnswer, enough: asyncio.Event) -> None:
        """Ask for nothing for a while where the next task would be denied as well: it is for others."""
        if answer.code == FundsError.code:
            self._pause_s = STAKE_BACKOFF_S
            self._log.warning("no_stake", pause_s=self._pause_s, reason=answer.reason)
            enough.set()
        elif answer.code == EjectedError.code:
            self._pause_s = EJECTED_BACKOFF_S
            self._log.error("ejected", pause_s=self._pause_s, reason=answer.reason)
            enough.set()

    async def _ask(self, task: m.GenerateTaskV1) -> LeaseAnswer | None:
        """Return the router's answer, None when the job was settled meanwhile. Raises TimeoutError."""
        key = (task.job_id, task.attempt)
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            ask = partial(request_lease, task=task, worker=self._c.state.participant)
            known = await self._c.state.transact(ask)
            if known is not None:
                return known
            await asyncio.wait({future}, timeout=LEASE_ANSWER_S)
            if not future.done():
                raise TimeoutError
            return future.result()
        finally:
            self._asked.pop(key, None)

    def _answer(self, key: LeaseKey, answer: LeaseAnswer | None) -> None:
        """Tell who asked, unless the request is still on its way."""
        future = self._asked.get(key)
        if future is None or future.done() or (answer is not None and answer.phase is LeasePhase.REQUESTED):
            return
        future.set_result(answer)

    async def _generate(self, granted: GrantedLease, rung_count: int) -> None:
        """Generate a lease that was read when the bell had rung so often for cancellations."""
        body = granted.body
        try:
            with self._c.state.tracer.working("worker generate", body.job_id):
                await self._fulfil(granted, rung_count)
        finally:
            del self._begun[body.job_id, body.attempt]
            self._c.bell.ring(News.LEASES)

    async def _fulfil(self, granted: GrantedLease, rung_count: int) -> None:
        """Generate one lease to its end: a commitment, or the reason why there is none."""
        c = self._c
        body = granted.body
        log = self._log.bind(job=body.job_id, attempt=body.attempt)
        try:
            grant = c.grants.verify(body)
            capture, cancellation = await self._run_engine(grant, granted.cancellation, rung_count)
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

    async def _run_engine(
        self, grant: Grant, cancellation: bytes | None, rung_count: int
    ) -> tuple[Capture, bytes | None]:
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
        watching = asyncio.create_task(self._wait_cancelled(grant, cancellation, rung_count, enough))
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

    async def _wait_cancelled(
        self, grant: Grant, cancellation: bytes | None, rung_count: int, enough: threading.Event
    ) -> bytes:
        """Wait until the user of this lease has cancelled it, say so to the engine, and return the cancellation."""
        with self._c.bell.listen(News.CANCELLATIONS) as rung:
            if self._c.bell.get_count(News.CANCELLATIONS) != rung_count:
                rung.set()  # since the lease was read
            while True:
                if cancellation is not None:
                    try:
                        verify_cancellation(grant, cancellation, network=self._c.genesis.network_id)
                    except (InputError, AdmissionError) as error:
                        self._log.error("cancellation_refused", job=grant.job_id, reason=str(error))
                    else:
                        enough.set()
                        return cancellation
                await rung.wait()
                rung.clear()
                cancellation = await self._c.state.transact(lambda unit: read_cancellation(unit, grant))

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


def _look(
    unit: Unit, asked: Sequence[LeaseKey], begun: Collection[LeaseKey], free_count: int
) -> tuple[list[GrantedLease], list[tuple[LeaseKey, LeaseAnswer | None]]]:
    """Return as much of what is granted and not begun as there are hands for, and where each attempt is that was asked for."""
    return read_granted(unit, begun, free_count), read_answers(unit, asked)


async def _set_after(first: asyncio.Event, then: asyncio.Event) -> None:
    await first.wait()
    then.set()
