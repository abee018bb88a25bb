"""Tokens on their way to the user while they are generated: signed chunks on core NATS, at most once.

A chunk carries a running hash over all tokens so far, so two streams of one attempt that disagree contradict each
other by signature. What was missed is in the result; a stream that cannot be sent never holds up the generation.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

import structlog

from pocache.bus.port import Bus
from pocache.protocol.commitment import CHUNK_HASH_START, compute_chunk_hash
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.errors import BusError
from pocache.protocol.ids import NetworkId
from pocache.wire.messages import LeaseV1, TokenChunkV1
from pocache.wire.topics import TOKENS
from pocache_worker.state import WorkerState


class TokenStream:
    """Async context manager around one generation: what is pushed inside it is published, in order, to its end.

    When the context ends in order the last chunk says so; when it ends by an error there is no last chunk.
    """

    def __init__(self, bus: Bus, state: WorkerState, network: NetworkId, lease: LeaseV1) -> None:
        self._bus = bus
        self._state = state
        self._network = network
        self._lease = lease
        self._subject = TOKENS.subject(user=lease.user, job=lease.job_id, worker=state.participant)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, ...] | None] = asyncio.Queue()
        self._hash = CHUNK_HASH_START
        self._count = 0
        self._first_ns = 0
        """When the engine gave the first token."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = self._loop.create_task(self._publish_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        if error is None:
            self._queue.put_nowait(None)
        else:
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=error is not None)

    def push(self, tokens: tuple[int, ...]) -> None:
        """Take newly generated tokens; from any thread."""
        self._first_ns = self._first_ns or time.time_ns()
        self._loop.call_soon_threadsafe(self._queue.put_nowait, tokens)

    async def _publish_all(self) -> None:
        """Publish what was pushed, all that waits in one chunk, until the end is pushed."""
        is_last = False
        while not is_last:
            tokens: list[int] = []
            waiting = [await self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            for pushed in waiting:
                if pushed is None:
                    is_last = True
                else:
                    tokens += pushed
            is_first = self._count == 0 and bool(tokens)
            await self._publish(pack_tokens(tokens), len(tokens), is_last=is_last)
            if is_first:
                structlog.get_logger().info("first_token", job=self._lease.job_id, engine_ns=self._first_ns)

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
            await self._bus.publish_core(self._subject, self._state.seal(chunk))
        except BusError as error:
            structlog.get_logger().info("tokens_not_sent", job=self._lease.job_id, reason=str(error))
