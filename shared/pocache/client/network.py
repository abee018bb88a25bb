"""A user on the bus: submit a job, stream its tokens, cancel or challenge it, follow it to its payout.

Everything that arrives is verified here: who signed it, that the result fulfils a lease for this very submission, the
running hash over the streamed tokens, and that what was streamed is what was committed. Events are heard live and
asked for again when nothing was heard for a while, so a broken connection loses nothing: the last event of a job
carries its result. Not covered: whether the tokens are the model's. An audit finds that out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import structlog

from pocache.bus.port import Bus, CoreMessage
from pocache.client.judging import judge_receipt
from pocache.client.opening import open_result, open_said
from pocache.client.receipts import fetch_due_receipt, fetch_receipt
from pocache.client.scoring import Scoring
from pocache.job import (
    STREAMS_KEPT_MAX,
    Job,
    Piece,
    RefusedError,
    TokenStream,
    verify_stream,
)
from pocache.money import Purse
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.errors import (
    CommitmentError,
    ConflictError,
    ExpiredError,
    NotYetError,
    PocacheError,
    UnknownJobError,
)
from pocache.protocol.ids import JobId, ModelId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.protocol.lifecycle import TERMINAL_PHASES, Phase
from pocache.receipt.report import Report
from pocache.receipt.trust import TrustRoots
from pocache.runtime.network import Genesis
from pocache.runtime.tracing import NO_TRACER, Tracer
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import compute_envelope_id, compute_preimage, open_envelope, parse_envelope, seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Stream

T = TypeVar("T")
M = TypeVar("M", bound=WireModel)

QUIET_S: Final = 5.0
"""After this long without news of a job, its last event is asked for."""
VALIDITY_MS: Final = 300_000


class PocacheClient:
    """One user's connection to a network. Make it by :func:`open_client`."""

    def __init__(self, bus: Bus, genesis: Genesis, key: SigningKey, tracer: Tracer = NO_TRACER) -> None:
        self._bus = bus
        self._tracer = tracer
        self._genesis = genesis
        self._key = key
        # Held as long as their callers hold them: a client that lives for months forgets what nobody follows.
        self._jobs: WeakValueDictionary[JobId, Job] = WeakValueDictionary()
        self._refusable: WeakValueDictionary[bytes, Job] = WeakValueDictionary()
        self._challenges: dict[bytes, asyncio.Future[RefusedError]] = {}
        self._ended: WeakValueDictionary[JobId, asyncio.Event] = WeakValueDictionary()
        self._log = structlog.get_logger().bind(user=key.participant_id)
        self._purse = Purse(bus, genesis, key)
        self.user = key.participant_id
        self._scoring = Scoring(bus, genesis.network_id, self.user, self._jobs.get)

    async def submit(
        self,
        model_id: ModelId,
        prompt: Sequence[int],
        *,
        token_count_max: int,
        sampling: Sampling | None = None,
        seed: bytes | None = None,
        eos_stop: bool = True,
        logprobs: bool = False,
    ) -> Job:
        """Publish a job and return it once the bus has stored it; follow it by :meth:`wait`.

        With ``logprobs`` its pieces carry the generator's word on how likely each token was (docs/protocol.md 10.4.4).
        Raises BackpressureError when the queue is full (nothing was stored), BusError when the bus is away.
        """
        sampling = sampling or Sampling()
        now_ms = time.time_ns() // 1_000_000
        submission = m.SubmissionV1(
            model_id=model_id,
            prompt=pack_tokens(prompt),
            token_count_max=token_count_max,
            sampling=m.SamplingV1(
                temperature_micro=sampling.temperature_micro,
                top_k=sampling.top_k,
                top_p_micro=sampling.top_p_micro,
            ),
            seed=seed,
            eos_stop=eos_stop,
            salt=secrets.token_bytes(16),
            created_ms=now_ms,
            expires_ms=now_ms + VALIDITY_MS,
        )
        data = seal(self._key, self._genesis.network_id, submission)
        envelope = parse_envelope(data)
        preimage = compute_preimage(self._genesis.network_id, envelope.kind, envelope.payload)
        job_id = JobId(compute_envelope_id(preimage, envelope.kid))
        job = Job(job_id, submission, hashlib.sha256(data).digest())
        self._jobs[job_id] = self._refusable[job.message_hash] = job
        if logprobs:
            await self._scoring.begin(job)
        with self._tracer.working("user submit", job_id):
            self._tracer.carry(job_id.hex(), job_id)
            headers = self._tracer.take_headers(job_id.hex())
            await self._bus.publish(t.JOB_SUBMITTED.subject(), data, message_id=job_id.hex(), headers=headers)
        return job

    async def challenge(self, job: Job) -> None:
        """Ask that the job's recorded commitment be audited at full depth.

        A refusal comes later, as ``job.challenge_refusal``.
        """
        if job.result is None:
            raise CommitmentError("nothing is committed yet that could be challenged")
        data = self._seal_challenge(job.job_id, job.result.attempt)
        job.challenge_hash = hashlib.sha256(data).digest()
        self._refusable[job.challenge_hash] = job
        await self._publish_challenge(job.job_id, data)

    async def challenge_by_id(self, job_id: JobId, *, refusal_s: float = 1.0) -> None:
        """Challenge a job of this user's that may have been submitted elsewhere, by its last event.

        Raises UnknownJobError, NotYetError when nothing is committed yet, ExpiredError when the job is over, RefusedError
        when the network says no within ``refusal_s`` seconds; a challenge that is taken is not answered.
        """
        event = await self.get_event(job_id)
        if event is None:
            raise UnknownJobError("this user has no such job")
        if event.phase in TERMINAL_PHASES:
            raise ExpiredError(f"the job is {event.phase}: its window is closed")
        if event.result is None:
            raise NotYetError(
                f"the job is {event.phase}: there is no commitment that could be challenged yet"
            )
        data = self._seal_challenge(job_id, event.attempt)
        message_hash = hashlib.sha256(data).digest()
        refused: asyncio.Future[RefusedError] = asyncio.get_running_loop().create_future()
        self._challenges[message_hash] = refused
        try:
            await self._publish_challenge(job_id, data)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(refusal_s):
                    raise await refused
        finally:
            del self._challenges[message_hash]

    async def get_event(self, job_id: JobId) -> m.JobEventV1 | None:
        """Return the last that the router said of a job of this user's, None when it said nothing."""
        subject = t.JOB_EVENT.subject(user=self.user, job=job_id)
        record = await self._bus.get_last(Stream.RECORD.value, subject)
        return None if record is None else open_said(record.data, m.JobEventV1, self._genesis, Role.ROUTER)

    async def wait_end(self, job_id: JobId) -> m.JobEventV1:
        """Wait until a job of this user's is over, wherever it was submitted, and return its last event.

        Raises UnknownJobError when the router never spoke of it.
        """
        ended = self._ended.setdefault(job_id, asyncio.Event())
        while True:
            event = await self.get_event(job_id)
            if event is None:
                raise UnknownJobError("this user has no such job")
            if event.phase in TERMINAL_PHASES:
                return event
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_S):
                    await ended.wait()
            ended.clear()

    def _seal_challenge(self, job_id: JobId, attempt: int) -> bytes:
        return seal(self._key, self._genesis.network_id, m.ChallengeRequestV1(job_id=job_id, attempt=attempt))

    async def _publish_challenge(self, job_id: JobId, data: bytes) -> None:
        subject = t.CHALLENGE_REQUESTED.subject(user=self.user, job=job_id)
        await self._bus.publish(subject, data, message_id=hashlib.sha256(data).hexdigest())

    async def cancel(self, job: Job | JobId) -> None:
        """Ask for no more of the job: its output ends with the token in hand, and what was not generated is refunded.

        A job that nobody generates yet is abandoned; one that has its result is not touched.
        """
        job_id = job.job_id if isinstance(job, Job) else job
        data = seal(self._key, self._genesis.network_id, m.CancelRequestV1(job_id=job_id))
        subject = t.CANCEL_REQUESTED.subject(user=self.user, job=job_id)
        await self._bus.publish(subject, data, message_id=hashlib.sha256(data).hexdigest())

    async def wait(self, job: Job, *phases: Phase) -> m.JobEventV1:
        """Wait until the job is in one of ``phases``, or past them at its end; returns its latest event.

        Raises RefusedError when the network refused it and that was not waited for, CommitmentError when what was
        announced as its result is none.
        """
        wanted = {phase.value for phase in phases}

        def find() -> m.JobEventV1 | None:
            reached = next((one for one in job.events if one.phase in wanted), None)
            if reached is not None or not job.is_over:
                return reached
            assert job.end is not None
            if job.end.phase == Phase.REFUSED.value:
                raise RefusedError(job.end.code, job.end.detail)
            return job.end

        return await self._wait_for(job, find)

    async def events(self, job: Job) -> AsyncIterator[m.JobEventV1]:
        """Yield what the router says of the job, each event once, to its end."""
        seen = 0

        def find() -> m.JobEventV1 | bool | None:
            return job.events[seen] if seen < len(job.events) else job.is_over or None

        while isinstance(event := await self._wait_for(job, find), m.JobEventV1):
            seen += 1
            yield event

    async def wait_payout(self, job: Job) -> m.PayoutSettledV1:
        """Wait until the ledger has said who was paid; for a job that is settled or refunded."""
        return await self._wait_for(job, lambda: job.payout)

    async def stream(self, job: Job) -> AsyncIterator[Piece]:
        """Yield tokens as they come, of the attempt that is running, to the end of the committed output.

        Ends with the job when there is none. Raises CommitmentError when what was streamed is not what was committed.
        """
        attempt, index = 0, 0
        is_patient = job.is_scored

        def find() -> Piece | bool | None:
            verify_stream(job)
            return job.get_piece(attempt, index) or (job.result is not None or job.is_over) or None

        def find_scored() -> Piece | bool | None:
            found = find()
            return None if isinstance(found, Piece) and found.logprobs is None else found

        while isinstance(piece := await self._wait_for(job, find), Piece):
            if is_patient and piece.logprobs is None:
                await self._scoring.wait(self._wait_for(job, find_scored))
                again = find()
                piece = again if isinstance(again, Piece) else piece
                is_patient = piece.logprobs is not None  # once and no more: text comes before scores
            attempt, index = piece.attempt, piece.first_index + len(piece.tokens)
            yield piece

    async def balance(self, participant: ParticipantId | None = None) -> m.BalanceReplyV1:
        """Ask the ledger for this user's balances; the operator may ask for anybody's."""
        return await self._purse.balance(participant)

    def statement(
        self, participant: ParticipantId | None = None, *, after_entry: int = 0
    ) -> AsyncIterator[m.StatementLineV1]:
        """Yield what moved this user's money, oldest first: :meth:`pocache.money.Purse.statement`."""
        return self._purse.statement(participant, after_entry=after_entry)

    async def withdraw(self, amount_micro: int, *, nonce: bytes | None = None) -> m.WithdrawalAcceptedV1:
        """Ask for available money back: :meth:`pocache.money.Purse.withdraw`, which also unbonds a worker's stake."""
        return await self._purse.withdraw(amount_micro, nonce=nonce)

    async def get_receipt(self, job: Job | JobId, *, user: ParticipantId | None = None) -> bytes:
        """Return a finished job's receipt in its binary form; the operator names the ``user`` whose job it is.

        Nothing of it is judged here: that is :func:`pocache.receipt.verify.verify_receipt`'s. Raises RefusedError (E209:
        another's job, E501: not over yet), ReceiptError when the parts do not make one receipt.
        """
        job_id = job.job_id if isinstance(job, Job) else job
        return await fetch_receipt(self._bus, self._genesis, self._key, job_id, user or self.user)

    async def verify_receipt(self, job: Job | JobId, trust: TrustRoots, *, wait_s: float = 120.0) -> Report:
        """Wait for a job's end, fetch its receipt, and judge it here.

        Raises ReceiptError naming what does not hold, NotYetError when there is none after ``wait_s`` seconds.
        """
        job_id = job.job_id if isinstance(job, Job) else job
        try:
            async with asyncio.timeout(wait_s):
                await self.wait_end(job_id)
                data = await fetch_due_receipt(self._bus, self._genesis, self._key, job_id, self.user)
        except TimeoutError:
            raise NotYetError(f"the job has no receipt after {wait_s:g} s") from None
        return await asyncio.to_thread(judge_receipt, data, trust, job_id)

    # --- what is heard ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear events, tokens, payouts and refusals while the context lasts."""
        heard: tuple[tuple[str, Callable[[bytes], Awaitable[None]]], ...] = (
            (t.JOB_EVENT.filter(user=self.user), self._on_event),
            (t.TOKENS.filter(user=self.user), self._on_chunk),
            (t.PAYOUT_SETTLED.filter(), self._on_payout),
            (t.REFUSALS[Role.ROUTER].filter(), self._on_router_refusal),
            (t.REFUSALS[Role.COMMITMENTS].filter(), self._on_challenge_refusal),
        )
        failure: Exception | None = None
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            tasks = []
            for subject, handle in heard:
                messages = await stack.enter_async_context(self._bus.subscribe_core(subject))
                tasks.append(group.create_task(self._hear(messages, handle)))
            try:
                with self._scoring.running(group):
                    yield
            except Exception as error:  # noqa: BLE001 - the caller's own, raised below: a group would wrap it
                failure = error
            for task in tasks:
                task.cancel()
        if failure is not None:
            raise failure

    async def _hear(
        self, messages: AsyncIterator[CoreMessage], handle: Callable[[bytes], Awaitable[None]]
    ) -> None:
        async for message in messages:
            try:
                await handle(message.data)
            except PocacheError as error:
                self._log.warning("ignored", subject=message.subject, code=error.code, reason=str(error))

    async def _on_event(self, data: bytes) -> None:
        event = open_said(data, m.JobEventV1, self._genesis, Role.ROUTER)
        if event.phase in TERMINAL_PHASES and (ended := self._ended.get(JobId(event.job_id))) is not None:
            ended.set()
        job = self._jobs.get(JobId(event.job_id))
        if job is None or event in job.events:
            return
        async with job.changed:
            job.events.append(event)
            if event.result is not None and job.result is None:
                try:
                    job.result, generator = open_result(job, event.result, self._genesis)
                    job.holder = (job.result.attempt, generator)
                    self._scoring.end(job.job_id)
                except PocacheError as error:
                    job.fault = CommitmentError(f"the announced result is none for this job: {error}")
            elif event.generator is not None and job.result is None:
                job.holder = (event.attempt, event.generator)
            job.changed.notify_all()

    async def _on_chunk(self, data: bytes) -> None:
        opened = open_envelope(data, self._genesis.network_id, m.TokenChunkV1)
        job = self._jobs.get(JobId(opened.body.job_id))
        if job is None:
            return
        key = (opened.body.attempt, opened.sender)
        if key not in job.streams and len(job.streams) >= STREAMS_KEPT_MAX and key != job.holder:
            raise CommitmentError("too many claim to generate this job")
        async with job.changed:
            job.streams.setdefault(key, TokenStream()).take(opened.body, job.submission.token_count_max)
            job.changed.notify_all()

    async def _on_payout(self, data: bytes) -> None:
        payout = open_said(data, m.PayoutSettledV1, self._genesis, Role.LEDGER)
        job = self._jobs.get(JobId(payout.job_id))
        if job is None:
            return
        async with job.changed:
            job.payout = payout
            job.changed.notify_all()

    async def _on_router_refusal(self, data: bytes) -> None:
        refusal = open_said(data, m.RefusalV1, self._genesis, Role.ROUTER)
        job = self._refusable.get(refusal.message_hash)
        # A copy that somebody sent after the job was taken is refused as well; that says nothing about the job.
        if job is None or job.events or refusal.code == ConflictError.code:
            return
        event = m.JobEventV1(
            job_id=job.job_id,
            phase=Phase.REFUSED.value,
            attempt=0,
            code=refusal.code,
            detail=refusal.reason,
            at_ms=time.time_ns() // 1_000_000,
        )
        async with job.changed:
            job.events.append(event)
            job.changed.notify_all()

    async def _on_challenge_refusal(self, data: bytes) -> None:
        refusal = open_said(data, m.RefusalV1, self._genesis, Role.COMMITMENTS)
        waiting = self._challenges.get(refusal.message_hash)
        if waiting is not None and not waiting.done():
            waiting.set_result(RefusedError(refusal.code, refusal.reason))
        job = self._refusable.get(refusal.message_hash)
        if job is None or refusal.message_hash != job.challenge_hash:
            return
        async with job.changed:
            job.challenge_refusal = RefusedError(refusal.code, refusal.reason)
            job.changed.notify_all()

    # --- what was missed -------------------------------------------------------------------------------------

    async def _wait_for(self, job: Job, find: Callable[[], T | None]) -> T:
        """Wait until ``find`` finds something, asking again for what was missed whenever it is quiet."""
        while True:
            async with job.changed:
                if job.fault is not None:
                    raise job.fault
                found = find()
                if found is not None:
                    return found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET_S):
                        await job.changed.wait()
                        continue
            await self._catch_up(job)

    async def _catch_up(self, job: Job) -> None:
        """Ask for the job's last event, its payout, or why it was refused, in case they were missed."""
        ref = job.message_hash
        missed: list[tuple[Stream, str, Callable[[bytes], Awaitable[None]]]] = []
        if not job.is_over:
            subject = t.JOB_EVENT.subject(user=self.user, job=job.job_id)
            missed.append((Stream.RECORD, subject, self._on_event))
        elif job.payout is None:
            missed.append((Stream.RECORD, t.PAYOUT_SETTLED.subject(job=job.job_id), self._on_payout))
        if not job.events:
            missed.append(
                (Stream.REFUSALS, t.REFUSALS[Role.ROUTER].subject(ref=ref), self._on_router_refusal)
            )
        for stream, subject, handle in missed:
            try:
                record = await self._bus.get_last(stream.value, subject)
                if record is not None:
                    await handle(record.data)
            except PocacheError as error:
                self._log.warning("not_caught_up", subject=subject, code=error.code, reason=str(error))


@asynccontextmanager
async def open_client(
    bus: Bus, genesis: Genesis, key: SigningKey, tracer: Tracer = NO_TRACER
) -> AsyncIterator[PocacheClient]:
    """Yield a client that listens while the context lasts; ``tracer`` opens each job's trace at its submission."""
    client = PocacheClient(bus, genesis, key, tracer)
    async with client.listening():
        yield client
