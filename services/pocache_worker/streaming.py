"""Tokens on their way to the user while they are generated: signed chunks on core NATS, at most once.

A chunk carries a running hash over all tokens so far, so two streams of one attempt that disagree contradict each
other by signature. What was missed is in the result; a stream that cannot be sent never holds up the generation.
A stream's first tokens go out at once, those that follow are gathered for a moment: every chunk costs a signature here,
a message, and a check at the user's, beside an engine that would rather have that time. Before each chunk go the
log-probabilities of its tokens, where the engine has them, in a message that only those hear who listen for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import structlog

from pocache.bus.port import Bus
from pocache.protocol.commitment import CHUNK_HASH_START, compute_chunk_hash
from pocache.protocol.encoding import pack_logprobs, pack_tokens
from pocache.protocol.errors import BusError, EncodingError
from pocache.wire.messages import LeaseV1, TokenChunkV1, TokenScoresV1
from pocache.wire.model import WireModel
from pocache.wire.topics import SCORES, TOKENS

GATHER_S_PER_STREAM: Final = 0.0125
"""How long tokens are gathered for each stream that is open: one alone hardly waits, many share the work of a chunk."""
GATHER_S_MAX: Final = 0.1
"""The longest that a token waits, however many streams are open: ten pieces of text a second still look like typing."""


class Pacer:
    """Says to all streams of one process when to publish: together, as they decode together, and not at every token."""

    def __init__(self) -> None:
        """Make one for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._streams: set[TokenStream] = set()
        self._is_asked = False
        self._woken_s = 0.0
        """When the streams were woken last, by the loop's clock."""

    def add(self, stream: TokenStream) -> None:
        """Wake a stream with the others from now on."""
        self._streams.add(stream)

    def discard(self, stream: TokenStream) -> None:
        """Forget a stream."""
        self._streams.discard(stream)

    def ask(self) -> None:
        """Ask that all streams be woken when it is time; from any thread, and cheap when it was asked already."""
        if not self._is_asked:
            self._is_asked = True
            self._loop.call_soon_threadsafe(self._schedule)

    def compute_gather_s(self) -> float:
        """Return how long tokens are gathered now, seconds."""
        return min(GATHER_S_MAX, GATHER_S_PER_STREAM * len(self._streams))

    def _schedule(self) -> None:
        self._loop.call_at(self._woken_s + self.compute_gather_s(), self._wake_all)

    def _wake_all(self) -> None:
        self._is_asked = False  # before the streams look: what is pushed after their look is asked for again
        self._woken_s = self._loop.time()
        for stream in self._streams:
            stream.wake()


class TokenStream:
    """Async context manager around one generation: what is pushed inside it is published, in order, to its end.

    When the context ends in order the last chunk says so; when it ends by an error there is no last chunk.
    """

    def __init__(self, bus: Bus, seal: Callable[[WireModel], bytes], lease: LeaseV1, pacer: Pacer) -> None:
        """``seal`` signs as the generator that the lease names."""
        self._bus = bus
        self._seal = seal
        self._lease = lease
        self._pacer = pacer
        names: dict[str, str | bytes] = {
            "user": lease.user,
            "job": lease.job_id,
            "worker": lease.generator,
        }
        self._subject, self._scores_subject = TOKENS.subject(**names), SCORES.subject(**names)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[int, ...]] = deque()
        self._logprobs: deque[float] = deque()
        """Of the tokens that wait, and of those that are about to."""
        self._is_scored = True
        """Whether every token so far had its score, and whoever listens was sent it."""
        self._due = asyncio.Event()
        self._is_ended = False
        self._hash = CHUNK_HASH_START
        self._count = 0
        self._first_ns = 0
        """When the engine gave the first token."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pacer.add(self)
        self._task = self._loop.create_task(self._publish_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._pacer.discard(self)
        if error is None:
            self._is_ended = True
            self.wake()
        else:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=error is not None)

    def push(self, tokens: tuple[int, ...]) -> None:
        """Take newly generated tokens; from any thread."""
        self._waiting.append(tokens)
        if self._first_ns:
            self._pacer.ask()
        else:
            self._first_ns = time.time_ns()
            self._loop.call_soon_threadsafe(self.wake)

    def score(self, logprobs: tuple[float, ...]) -> None:
        """Take the log-probabilities of the tokens that are pushed next; from any thread."""
        if self._is_scored:
            self._logprobs.extend(logprobs)

    def wake(self) -> None:
        """Publish what waits; in the event loop."""
        self._due.set()

    async def _publish_all(self) -> None:
        """Publish what was pushed, all that waits in one chunk at a time, until the context ends."""
        is_last = False
        while not is_last:
            await self._due.wait()
            self._due.clear()
            is_last = self._is_ended
            tokens: list[int] = []
            while self._waiting:
                tokens += self._waiting.popleft()
            if tokens or is_last:
                is_first = self._count == 0 and bool(tokens)
                await self._publish_scores(len(tokens))
                await self._publish(pack_tokens(tokens), len(tokens), is_last=is_last)
                if is_first:
                    structlog.get_logger().info(
                        "first_token", job=self._lease.job_id, engine_ns=self._first_ns
                    )

    async def _publish(self, packed: bytes, count: int, *, is_last: bool) -> None:
        self._hash = compute_chunk_hash(self._hash, packed)
        chunk = TokenChunkV1(
            job_id=self._lease.job_id,
            attempt=self._lease.attempt,
            first_index=self._count,
            tokens=packed,
            running_hash=self._hash,
            is_last=is_last,
        )
        self._count += count
        try:
            await self._bus.publish_core(self._subject, self._seal(chunk))
        except BusError as error:
            structlog.get_logger().info("tokens_not_sent", job=self._lease.job_id, reason=str(error))

    async def _publish_scores(self, count: int) -> None:
        """Publish the scores of the next ``count`` tokens; after a gap none are, as those behind it say nothing."""
        if not (count and self._is_scored):
            return
        try:
            if len(self._logprobs) < count:
                raise EncodingError("the engine gave tokens without scores")
            packed = pack_logprobs([self._logprobs.popleft() for _ in range(count)])
            scores = TokenScoresV1(
                job_id=self._lease.job_id,
                attempt=self._lease.attempt,
                first_index=self._count,
                logprobs=packed,
            )
            await self._bus.publish_core(self._scores_subject, self._seal(scores))
        except (BusError, EncodingError) as error:
            self._is_scored = False
            self._logprobs.clear()
            structlog.get_logger().info("scores_not_sent", job=self._lease.job_id, reason=str(error))
