"""Log-probabilities of streamed tokens, heard for the jobs that asked for them (docs/protocol.md 10.4.4).

One subscription for each such job, from before it is published until its result is known, or nobody holds the job any
more. Nothing but the signature and that they follow one another can be checked here: they are the generator's word. Refused:
scores with a gap, of too many claimants, or of too many tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog

from pocache.bus.port import Bus
from pocache.job import STREAMS_KEPT_MAX, Job, ScoreStream
from pocache.protocol.errors import CommitmentError, PocacheError
from pocache.protocol.ids import JobId, NetworkId, ParticipantId
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope

SCORES_S: Final = 1.0
"""How long tokens wait for their scores, which were published before them; and scores are heard behind a result."""


class Scoring:
    """Hears the scores of one user's jobs; :meth:`running` gives it somewhere to do so."""

    def __init__(
        self, bus: Bus, network: NetworkId, user: ParticipantId, find: Callable[[JobId], Job | None]
    ) -> None:
        """``find`` returns a job that somebody holds."""
        self._bus = bus
        self._network = network
        self._user = user
        self._find = find
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._log = structlog.get_logger().bind(user=user)

    @contextlib.contextmanager
    def running(self, group: asyncio.TaskGroup) -> Iterator[None]:
        """Hear in tasks of a group while the context lasts."""
        self._group = group
        try:
            yield
        finally:
            self._group = None
            for job_id in tuple(self._tasks):
                self._end(job_id)

    async def begin(self, job: Job) -> None:
        """Hear a job's scores from now on. Raises BusError when that is not possible or not allowed."""
        assert self._group is not None, "a client hears within its context"
        loop = asyncio.get_running_loop()
        is_open: asyncio.Future[None] = loop.create_future()
        subject = t.SCORES.filter(user=self._user, job=job.job_id)
        self._tasks[job.job_id] = self._group.create_task(self._hear(subject, is_open))
        job.is_scored = True
        weakref.finalize(job, _call_in_loop, loop, self._end, job.job_id).atexit = False
        try:
            await is_open
        except (PocacheError, asyncio.CancelledError):
            self._end(job.job_id)
            raise

    def end(self, job_id: JobId) -> None:
        """Hear a job's scores no longer than what is on its way may take: its result is known."""
        if job_id in self._tasks:
            asyncio.get_running_loop().call_later(SCORES_S, self._end, job_id)

    async def wait(self, waiting: Awaitable[object]) -> None:
        """Wait for scores as long as it is worth it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCORES_S):
                await waiting

    def _end(self, job_id: JobId) -> None:
        task = self._tasks.pop(job_id, None)
        if task is not None:
            task.cancel()

    async def _hear(self, subject: str, is_open: asyncio.Future[None]) -> None:
        try:
            async with self._bus.subscribe_core(subject) as messages:
                is_open.set_result(None)
                async for message in messages:
                    try:
                        await self._take(message.data)
                    except PocacheError as error:
                        self._log.warning("ignored", subject=subject, code=error.code, reason=str(error))
        except PocacheError as error:
            if is_open.done():
                self._log.warning("scores_lost", subject=subject, code=error.code, reason=str(error))
            else:
                is_open.set_exception(error)
        finally:
            if not is_open.done():
                is_open.cancel()

    async def _take(self, data: bytes) -> None:
        opened = open_envelope(data, self._network, m.TokenScoresV1)
        job = self._find(JobId(opened.body.job_id))
        if job is None:
            return
        key = (opened.body.attempt, opened.sender)
        if key not in job.scores and len(job.scores) >= STREAMS_KEPT_MAX and key != job.holder:
            raise CommitmentError("too many claim to generate this job")
        async with job.changed:
            job.scores.setdefault(key, ScoreStream()).take(opened.body, job.submission.token_count_max)
            job.changed.notify_all()


def _call_in_loop(loop: asyncio.AbstractEventLoop, work: Callable[[JobId], None], job_id: JobId) -> None:
    """Call from whatever thread lets go of a job; a loop that is closed has nothing left to end."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(work, job_id)
