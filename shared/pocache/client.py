"""The SDK: submit a job, stream its tokens, challenge it, follow it to its payout.

Everything that arrives is verified here: the router's events, the generator's chunks and result, the running hash over
the chunks, and that what was delivered is what was committed. Events are heard live and asked for again when nothing
was heard for a while, so a broken connection loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from pocache.bus.port import Bus, CoreMessage
from pocache.protocol.commitment import CHUNK_HASH_START, Sampling, compute_chunk_hash
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.errors import AdmissionError, CommitmentError, PocacheError
from pocache.protocol.ids import Digest, JobId, ModelId
from pocache.protocol.keys import SigningKey
from pocache.protocol.lifecycle import TERMINAL_PHASES, Phase
from pocache.runtime.network import Genesis
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import compute_envelope_id, compute_preimage, open_envelope, parse_envelope, seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Stream

M = TypeVar("M", bound=WireModel)

QUIET_S: Final = 5.0
"""After this long without news of a job, its last event is asked for."""
VALIDITY_MS: Final = 300_000
TOKEN_CHUNKS_KEPT_MAX: Final = 65_536
_TERMINAL: Final = frozenset(phase.value for phase in TERMINAL_PHASES)


class RefusedError(AdmissionError):
    """The network refused the job; ``refusal_code`` and the message say why."""

    def __init__(self, refusal_code: str, reason: str) -> None:
        super().__init__(f"{refusal_code}: {reason}")
        self.refusal_code = refusal_code
        self.reason = reason


@dataclass
class Job:
    """A submitted job as its user sees it."""

    job_id: JobId
    model_id: ModelId
    prompt: tuple[int, ...]
    events: list[m.JobEventV1] = field(default_factory=list)
    result: m.ResultV1 | None = None
    payout: m.PayoutSettledV1 | None = None
    chunks: list[m.TokenChunkV1] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)
    """Notified whenever something of the job became known."""

    @property
    def phase(self) -> str:
        """The latest phase heard of, ``submitted`` before any."""
        return self.events[-1].phase if self.events else "submitted"

    @property
    def is_over(self) -> bool:
        """Whether the job is settled, refunded or refused."""
        return self.phase in _TERMINAL

    @property
    def output(self) -> tuple[int, ...]:
        """The committed output tokens; empty until the commitment is recorded."""
        return unpack_tokens(self.result.output) if self.result is not None else ()


class PocacheClient:
    """One user's connection to a network. Make it by :func:`open_client`."""

    def __init__(self, bus: Bus, genesis: Genesis, key: SigningKey) -> None:
        self._bus = bus
        self._genesis = genesis
        self._key = key
        self._jobs: dict[JobId, Job] = {}
        self._refusable: dict[bytes, Job] = {}
        self._log = structlog.get_logger().bind(user=key.participant_id)
        self.user = key.participant_id

    async def submit(
        self,
        model_id: ModelId,
        prompt: Sequence[int],
        *,
        token_count_max: int,
        sampling: Sampling | None = None,
        seed: bytes | None = None,
        eos_stop: bool = True,
    ) -> Job:
        """Publish a job and return it once the bus has stored it; follow it by :meth:`wait`.

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
        job = Job(JobId(compute_envelope_id(preimage, envelope.kid)), model_id, tuple(prompt))
        self._jobs[job.job_id] = job
        self._refusable[hashlib.sha256(data).digest()] = job
        try:
            await self._bus.publish(t.JOB_SUBMITTED.subject(), data, message_id=job.job_id.hex())
        except PocacheError:
            del self._jobs[job.job_id]
            raise
        return job

    async def challenge(self, job: Job) -> None:
        """Ask that the job's recorded commitment be audited at full depth."""
        if job.result is None:
            raise CommitmentError("nothing is committed yet that could be challenged")
        request = m.ChallengeRequestV1(job_id=job.job_id, attempt=job.result.attempt)
        data = seal(self._key, self._genesis.network_id, request)
        await self._bus.publish(
            t.CHALLENGE_REQUESTED.subject(user=self.user, job=job.job_id),
            data,
            message_id=hashlib.sha256(data).hexdigest(),
        )

    async def wait(self, job: Job, *phases: Phase) -> m.JobEventV1:
        """Wait until the job is in one of ``phases``, or past them at its end; returns its latest event.

        Raises RefusedError when the network refused it and that was not waited for.
        """
        wanted = {phase.value for phase in phases}
        while True:
            async with job.changed:
                reached = next((one for one in job.events if one.phase in wanted), None)
                if reached is None and not job.is_over:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(QUIET_S):
                            await job.changed.wait()
                            continue
                elif job.phase == Phase.REFUSED.value and Phase.REFUSED.value not in wanted:
                    raise RefusedError(job.events[-1].code, job.events[-1].detail)
                else:
                    return reached or job.events[-1]
            await self._catch_up(job)

    async def stream(self, job: Job) -> AsyncIterator[tuple[int, ...]]:
        """Yield tokens as they come, of the attempt that is running; ends with the commitment or the job."""
        yielded = 0
        while True:
            async with job.changed:
                chunks = job.chunks[yielded:]
                if not chunks and (job.result is not None or job.is_over):
                    return
                if not chunks:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(QUIET_S):
                            await job.changed.wait()
            for chunk in chunks:
                yielded += 1
                yield unpack_tokens(chunk.tokens) if chunk.tokens else ()
            if not chunks:
                await self._catch_up(job)

    async def balance(self) -> m.BalanceReplyV1:
        """Ask the ledger for this user's balances."""
        query = seal(self._key, self._genesis.network_id, m.BalanceQueryV1(participant=self.user))
        answer = await self._bus.request(t.BALANCE_QUERY.subject(participant=self.user), query, timeout_s=QUIET_S)
        if parse_envelope(answer).kind == m.RefusalV1.kind:
            refusal = open_envelope(answer, self._genesis.network_id, m.RefusalV1).body
            raise RefusedError(refusal.code, refusal.reason)
        return self._open(answer, m.BalanceReplyV1, Role.LEDGER)

    # --- what is heard ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear events, tokens, payouts and refusals while the context lasts."""
        heard: tuple[tuple[str, Callable[[bytes], Awaitable[None]]], ...] = (
            (t.JOB_EVENT.filter(user=self.user), self._on_event),
            (t.TOKENS.filter(user=self.user), self._on_chunk),
            (t.PAYOUT_SETTLED.filter(), self._on_payout),
            (t.REFUSALS[Role.ROUTER].filter(), self._on_refusal),
        )
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._hear(await stack.enter_async_context(self._bus.subscribe_core(subject)), handle))
                for subject, handle in heard
            ]
            yield
            for task in tasks:
                task.cancel()

    async def _hear(
        self, messages: AsyncIterator[CoreMessage], handle: Callable[[bytes], Awaitable[None]]
    ) -> None:
        async for message in messages:
            try:
                await handle(message.data)
            except PocacheError as error:
                self._log.warning("ignored", subject=message.subject, code=error.code, reason=str(error))

    async def _on_event(self, data: bytes) -> None:
        event = self._open(data, m.JobEventV1, Role.ROUTER)
        job = self._jobs.get(JobId(event.job_id))
        if job is None or event in job.events:
            return
        result = None
        if event.result is not None:
            result = open_envelope(event.result, self._genesis.network_id, m.ResultV1).body
        async with job.changed:
            job.events.append(event)
            job.result = result or job.result
            job.changed.notify_all()

    async def _on_chunk(self, data: bytes) -> None:
        chunk = open_envelope(data, self._genesis.network_id, m.TokenChunkV1).body
        job = self._jobs.get(JobId(chunk.job_id))
        if job is None or len(job.chunks) >= TOKEN_CHUNKS_KEPT_MAX:
            return
        async with job.changed:
            if job.chunks and chunk.attempt != job.chunks[-1].attempt:
                job.chunks.clear()
            job.chunks.append(chunk)
            job.changed.notify_all()

    async def _on_payout(self, data: bytes) -> None:
        payout = self._open(data, m.PayoutSettledV1, Role.LEDGER)
        job = self._jobs.get(JobId(payout.job_id))
        if job is None:
            return
        async with job.changed:
            job.payout = payout
            job.changed.notify_all()

    async def _on_refusal(self, data: bytes) -> None:
        refusal = self._open(data, m.RefusalV1, Role.ROUTER)
        job = self._refusable.get(refusal.message_hash)
        if job is None or job.events:
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

    async def _catch_up(self, job: Job) -> None:
        """Ask for the job's last event, in case it was missed."""
        subject = t.JOB_EVENT.subject(user=self.user, job=job.job_id)
        with contextlib.suppress(PocacheError):
            record = await self._bus.get_last(Stream.RECORD.value, subject)
            if record is not None:
                await self._on_event(record.data)

    def _open(self, data: bytes, model: type[M], role: Role) -> M:
        opened = open_envelope(data, self._genesis.network_id, model)
        if opened.sender != self._genesis.signer(role):
            raise CommitmentError(f"{model.kind} is not signed by the {role.value}")
        return opened.body


def verify_chunks(job: Job) -> None:
    """Check that the streamed tokens are the committed ones. Raises CommitmentError on any difference."""
    if job.result is None:
        raise CommitmentError("nothing is committed yet")
    running, tokens = CHUNK_HASH_START, b""
    for chunk in job.chunks:
        if chunk.attempt != job.result.attempt or chunk.first_index * 4 != len(tokens):
            raise CommitmentError("the stream of tokens has a gap")
        running = compute_chunk_hash(Digest(running), chunk.tokens)
        if running != chunk.running_hash:
            raise CommitmentError("a chunk's running hash is not that of its tokens")
        tokens += chunk.tokens
    if tokens != job.result.output:
        raise CommitmentError("the tokens that were streamed are not those that were committed")


@asynccontextmanager
async def open_client(bus: Bus, genesis: Genesis, key: SigningKey) -> AsyncIterator[PocacheClient]:
    """Yield a client that listens while the context lasts."""
    client = PocacheClient(bus, genesis, key)
    async with client.listening():
        yield client
