"""What a user's client hears and says, without a bus: a test speaks for the router, the workers and the ledger.

``HeardBus`` is no adapter of the port, only the part of it that a client touches: published messages are kept, what
the test says reaches those who listen, and can be asked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from kit.network import Network, make_key
from pocache.bus.port import Bus, CoreMessage, StreamRecord
from pocache.client import Job, PocacheClient
from pocache.protocol.commitment import CHUNK_HASH_START, compute_chunk_hash, compute_token_hash
from pocache.protocol.encoding import pack_logprobs, pack_tokens
from pocache.protocol.keys import SigningKey
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Topic

USER: Final = make_key("user")
WORKER: Final = make_key("worker")


@dataclass
class HeardBus:
    """Keeps what is published, and delivers what the test says."""

    published: list[tuple[str, bytes]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    listeners: dict[str, asyncio.Queue[CoreMessage]] = field(default_factory=dict)
    failure: Exception | None = None
    """Raised by the next publish."""

    async def publish(self, subject: str, data: bytes, **_options: Any) -> int:
        """Keep a message."""
        if self.failure is not None:
            raise self.failure
        self.published.append((subject, data))
        return len(self.published)

    @asynccontextmanager
    async def subscribe_core(
        self, subject: str, *, pending_max: int = 1
    ) -> AsyncIterator[AsyncIterator[CoreMessage]]:
        """Listen."""
        del pending_max
        queue = self.listeners[subject] = asyncio.Queue()

        async def read() -> AsyncIterator[CoreMessage]:
            while True:
                yield await queue.get()

        try:
            yield read()
        finally:
            self.listeners.pop(subject, None)

    async def request(self, subject: str, _data: bytes, timeout_s: float) -> bytes:
        """Answer as the test prepared it."""
        del timeout_s
        return self.answers[subject]

    async def get_last(self, _stream: str, subject: str) -> StreamRecord | None:
        """Return what was said last on a subject."""
        data = self.stored.get(subject)
        return None if data is None else StreamRecord(subject, data, {}, "", 1, 0)

    def deliver(self, subject: str, data: bytes) -> None:
        """Store a message, and let those hear it who listen."""
        self.stored[subject] = data
        for pattern, queue in self.listeners.items():
            wanted, found = pattern.split("."), subject.split(".")
            if len(wanted) == len(found) and all(
                one in ("*", two) for one, two in zip(wanted, found, strict=True)
            ):
                queue.put_nowait(CoreMessage(subject, data))

    def as_bus(self) -> Bus:
        """Return it as what a client takes."""
        return self  # type: ignore[return-value]


@dataclass
class UserSide:
    """A client that listens, and everybody it hears."""

    network: Network
    bus: HeardBus
    client: PocacheClient

    def say(
        self, topic: Topic[Any], body: WireModel, signer: SigningKey | None = None, **tokens: Any
    ) -> bytes:
        """Seal and deliver a message; the topic's service signs unless given."""
        key = signer or self.network.keys[topic.signer]
        data = self.network.seal(key, body)
        self.bus.deliver(topic.subject(**tokens), data)
        return data

    def tell(self, job: Job, phase: str, **fields: Any) -> None:
        """The router announces a phase."""
        body = make_event(job, phase, **fields)
        self.say(t.JOB_EVENT, body, user=USER.participant_id, job=job.job_id)

    def stream(
        self,
        job: Job,
        tokens: list[int],
        *,
        first: int = 0,
        before: list[int] | None = None,
        attempt: int = 1,
        signer: SigningKey = WORKER,
    ) -> None:
        """A worker streams tokens that follow ``before``."""
        prefix = pack_tokens(before or [])
        body = m.TokenChunkV1(
            job_id=job.job_id,
            attempt=attempt,
            first_index=first or len(before or []),
            tokens=pack_tokens(tokens),
            running_hash=compute_chunk_hash(CHUNK_HASH_START, prefix + pack_tokens(tokens)),
            is_last=False,
        )
        names = {"user": USER.participant_id, "job": job.job_id, "worker": signer.participant_id}
        self.say(t.TOKENS, body, signer, **names)

    def score(
        self,
        job: Job,
        logprobs: list[float],
        *,
        first: int = 0,
        attempt: int = 1,
        signer: SigningKey = WORKER,
    ) -> None:
        """A worker says how likely tokens were, from an index on."""
        body = m.TokenScoresV1(
            job_id=job.job_id, attempt=attempt, first_index=first, logprobs=pack_logprobs(logprobs)
        )
        names = {"user": USER.participant_id, "job": job.job_id, "worker": signer.participant_id}
        self.say(t.SCORES, body, signer, **names)

    def commit(
        self,
        job: Job,
        tokens: list[int],
        *,
        attempt: int = 1,
        signer: SigningKey = WORKER,
        phase: str = "committed",
        **terms: Any,
    ) -> None:
        """The router announces the result of ``signer``; ``terms`` change its lease."""
        result = self.make_result(job, tokens, attempt=attempt, signer=signer, **terms)
        self.tell(job, phase, attempt=attempt, result=result, generator=signer.participant_id)

    def make_result(
        self,
        job: Job,
        tokens: list[int],
        *,
        attempt: int = 1,
        signer: SigningKey = WORKER,
        router: SigningKey | None = None,
        **terms: Any,
    ) -> bytes:
        """Return a sealed result with its lease."""
        asked = job.submission
        lease = m.LeaseV1(
            **{
                "job_id": job.job_id,
                "attempt": attempt,
                "generator": signer.participant_id,
                "user": USER.participant_id,
                "model_id": asked.model_id,
                "prompt_hash": compute_token_hash(asked.salt, asked.prompt),
                "prompt_count": len(job.prompt),
                "token_count_max": asked.token_count_max,
                "sampling": asked.sampling,
                "eos_stop": asked.eos_stop,
                "seed": hashlib.sha256(b"seed").digest(),
                "salt": asked.salt,
                "schema_digest": bytes(32),
                "profile_set": bytes(32),
                "granted_ms": 0,
                "deadline_ms": 1,
                **terms,
            }
        )
        body = m.ResultV1(
            job_id=job.job_id,
            attempt=attempt,
            lease=self.network.seal(router or self.network.keys[Role.ROUTER], lease),
            output=pack_tokens(tokens),
            finish_reason="length",
            leaf_count=1,
            root=bytes(32),
            binding=bytes(32),
            stack="fake/1",
            latest_round=0,
        )
        return self.network.seal(signer, body)

    def pay(self, job: Job, case: Any = "agree", **fields: Any) -> None:
        """The ledger empties the pool."""
        body = m.PayoutSettledV1(
            job_id=job.job_id,
            attempt=1,
            case=case,
            stage=1,
            pool_micro=100,
            generation_micro=1,
            verification_micro=1,
            reserve_micro=0,
            lines=(
                m.PayoutLineV1(account=USER.participant_id, amount_micro=20, held_micro=50),
                m.PayoutLineV1(account=WORKER.participant_id, amount_micro=80, held_micro=50),
            ),
            slashed=(),
        )
        self.say(t.PAYOUT_SETTLED, body.model_copy(update=fields), job=job.job_id)

    def refuse(self, role: Role, message_hash: bytes, code: str, reason: str) -> None:
        """A service says why it did not act on a message."""
        body = m.RefusalV1(message_hash=message_hash, subject="jobs.submitted", code=code, reason=reason)
        self.say(t.REFUSALS[role], body, ref=message_hash)


def make_event(job: Job, phase: str, **fields: Any) -> m.JobEventV1:
    """Return a router's event."""
    defaults = {"attempt": 1, "code": "", "detail": "", "at_ms": 1}
    return m.JobEventV1(**{"job_id": job.job_id, "phase": phase, **defaults, **fields})


@asynccontextmanager
async def open_user_side(network: Network) -> AsyncIterator[UserSide]:
    """Yield a client that listens while the context lasts."""
    bus = HeardBus()
    client = PocacheClient(bus.as_bus(), network.genesis, USER)
    async with client.listening():
        yield UserSide(network, bus, client)
