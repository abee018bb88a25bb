"""Jobs in hand: each followed by a task of its own, read by any number of answers, cancelled when nobody reads.

A run turns the tokens of its job into text, piece by piece, and keeps the pieces: an answer that was interrupted goes on
where it was. Stop strings act here, on the text (docs/protocol.md 10.7.5): the rest is cancelled. Runs that are over are
kept for a while, then forgotten; the network's record keeps the job.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import structlog

from pocache.client import Job, Piece, PocacheClient
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import ConflictError, PocacheError
from pocache.protocol.ids import JobId
from pocache.protocol.lifecycle import REASON_CANCELLED, REASON_EXPIRED, Phase
from pocache.runtime.metrics import Metrics
from pocache.storage.api_keys import ApiKey
from pocache.text import Detokenizer, StopFilter
from pocache_gateway.catalogue import ServedModel
from pocache_gateway.errors import ApiError, translate, unavailable
from pocache_gateway.logprobs import ScoredToken, TokenListing
from pocache_gateway.requests import Asked

FINISHED_KEPT_MAX: Final = 1_000
LISTED_TOKENS_KEPT_MAX: Final = 200_000
"""Tokens with their log-probabilities that finished runs keep together, about 250 bytes each."""
_REGENERATED: Final = "the job was generated anew, with another output than was delivered: ask again"
_ADMITTED: Final = (
    Phase.QUEUED,
    Phase.LOCKING,
    Phase.GENERATING,
    Phase.LAPSING,
    Phase.COMMITTED,
    Phase.SETTLED,
    Phase.ABANDONING,
    Phase.REFUNDED,
)
_ENDED: Final = (Phase.COMMITTED, Phase.SETTLED, Phase.REFUNDED)


class Delivered(NamedTuple):
    """A piece of an answer's text, and the tokens that it completes where they were asked for and their scores heard."""

    text: str
    tokens: tuple[ScoredToken, ...] | None = None


@dataclass
class Run:
    """One job on its way to one or more answers."""

    job: Job
    client: PocacheClient
    key: ApiKey
    asked: Asked
    served: ServedModel
    created_s: int
    submitted_s: float = field(default_factory=time.monotonic)
    """When it was handed to the network, by a clock that only goes forward."""
    pieces: list[Delivered] = field(default_factory=list)
    """The text so far, as it was delivered: an answer's place in it is an index."""
    finish_reason: str | None = None
    failure: ApiError | None = None
    is_admitted: bool = False
    readers: int = 0
    was_read: bool = False
    is_cancelled: bool = False
    """Whether the client asked for no more, or went away."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def job_id(self) -> JobId:
        """The job."""
        return self.job.job_id

    @property
    def is_over(self) -> bool:
        """Whether there is no more text to come."""
        return self.finish_reason is not None or self.failure is not None

    @property
    def prompt_count(self) -> int:
        """Tokens of the prompt."""
        return len(self.job.submission.prompt) // 4

    @property
    def listed_count(self) -> int:
        """Tokens that are kept with their log-probabilities."""
        return sum(len(piece.tokens or ()) for piece in self.pieces)

    @property
    def output_count(self) -> int:
        """Tokens that the job's commitment is to, and that are paid for."""
        return len(self.job.result.output) // 4 if self.job.result is not None else 0

    def notify(self) -> None:
        """Wake everybody who waits for news."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, is_met: Callable[[], bool]) -> None:
        """Wait until something is so."""
        while not is_met():
            await self._changed.wait()

    async def read(self, first: int = 0) -> AsyncIterator[tuple[int, Delivered]]:
        """Yield the pieces of text from an index on, to the end. Raises ApiError when there is no end."""
        index = first
        while True:
            while index < len(self.pieces):
                yield index, self.pieces[index]
                index += 1
            if self.is_over:
                break
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure


class Runs:
    """Every job in hand, and those that ended last."""

    def __init__(
        self, *, reconnect_s: float, spawn: Callable[[Coroutine[Any, Any, None]], Any], metrics: Metrics
    ) -> None:
        self._metrics = metrics
        self._reconnect_s = reconnect_s
        self._spawn = spawn
        self._active: dict[JobId, Run] = {}
        self._finished: OrderedDict[JobId, Run] = OrderedDict()
        self._listed_count = 0
        """Tokens that finished runs keep with their log-probabilities."""
        self._log = structlog.get_logger()

    @property
    def active_count(self) -> int:
        """Jobs that still make text."""
        return len(self._active)

    @property
    def job_ids(self) -> tuple[JobId, ...]:
        """The jobs in hand, and those that ended last."""
        return (*self._active, *self._finished)

    def add(self, run: Run, on_end: Callable[[], None]) -> None:
        """Follow a job that was just submitted; ``on_end`` is called when its text is complete, or will never be."""
        self._active[run.job_id] = run
        self._spawn(self._follow(run, on_end))

    def find(self, job_id: JobId, account: str) -> Run | None:
        """Return a run of this account's."""
        run = self._active.get(job_id) or self._finished.get(job_id)
        return run if run is not None and run.key.account == account else None

    @contextmanager
    def reading(self, run: Run) -> Iterator[Run]:
        """Count an answer that reads; when the last goes away before the end, the job is cancelled."""
        run.readers += 1
        run.was_read = True
        try:
            yield run
        finally:
            run.readers -= 1
            if not run.readers and not run.is_over:
                self._spawn(self._abandon(run))

    async def cancel(self, run: Run) -> None:
        """Ask the network for no more of a job."""
        if run.is_cancelled or run.job.result is not None or run.job.is_over:
            return
        run.is_cancelled = True
        try:
            await run.client.cancel(run.job)
            self._log.info("cancelled", job=run.job_id)
        except PocacheError as error:
            run.is_cancelled = False
            self._log.warning("cancel_failed", job=run.job_id, code=error.code, reason=str(error))

    async def cancel_all(self) -> None:
        """Ask for no more of anything: the process is going down."""
        await asyncio.gather(*(self.cancel(run) for run in list(self._active.values())))

    async def _abandon(self, run: Run) -> None:
        if self._reconnect_s:
            await asyncio.sleep(self._reconnect_s)
        if not run.readers and not run.is_over:
            self._log.info("client_gone", job=run.job_id)
            await self.cancel(run)

    async def _follow(self, run: Run, on_end: Callable[[], None]) -> None:
        """Follow a job to the end of its text: whatever happens is told to whoever reads."""
        try:
            await run.client.wait(run.job, *_ADMITTED)
            run.is_admitted = True
            run.notify()
            await self._collect(run)
        except PocacheError as error:
            run.failure = translate(error)
        except Exception as error:  # noqa: BLE001 - a task's boundary: who waits must hear that it ended
            self._log.error("run_failed", job=run.job_id, error=repr(error), exc_info=error)
            run.failure = ApiError(500, "the gateway failed", code="internal_error", kind="server_error")
        finally:
            if not run.is_over:  # cancelled with the process
                run.failure = unavailable("the gateway is stopping", "draining")
            run.notify()
            on_end()
            self._active.pop(run.job_id, None)
            self._keep(run)

    def _keep(self, run: Run) -> None:
        """Keep a run that is over, and forget the oldest where there are too many, or too much in them."""
        self._finished[run.job_id] = run
        self._listed_count += run.listed_count
        while len(self._finished) > FINISHED_KEPT_MAX or self._listed_count > LISTED_TOKENS_KEPT_MAX:
            _, oldest = self._finished.popitem(last=False)
            self._listed_count -= oldest.listed_count

    async def _collect(self, run: Run) -> None:
        writer = _Writer(run, self._metrics)
        async for piece in run.client.stream(run.job):
            writer.take(piece)
            if writer.is_stopped:
                await self.cancel(run)
                break
        event = await run.client.wait(run.job, *_ENDED)
        if event.phase == Phase.REFUNDED and not writer.is_stopped:
            run.failure = _explain_refund(event.detail)
            return
        writer.end()


class _Writer:
    """Tokens of one job into pieces of text, across attempts: another attempt must say the same again."""

    def __init__(self, run: Run, metrics: Metrics) -> None:
        self._run = run
        self._metrics = metrics
        self._tokens: list[int] = []
        assert run.served.codec is not None or not run.asked.is_chat
        codec = run.served.codec
        self._text = None if codec is None else Detokenizer(codec.decode)
        self._stops = StopFilter(run.asked.stops)
        is_listed = run.asked.logprobs is not None
        self._listing = (
            TokenListing(_get_nothing if codec is None else codec.get_bytes) if is_listed else None
        )
        self._shown = 0
        """Characters of the text that were delivered."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string came."""
        return self._stops.is_stopped

    def take(self, piece: Piece) -> None:
        """Add tokens to the text. Raises ApiError 502 when they contradict what was delivered."""
        last = piece.first_index + len(piece.tokens)
        known = min(last, len(self._tokens))
        before = self._tokens[piece.first_index : known]
        if list(piece.tokens[: len(before)]) != before:
            raise ConflictError(_REGENERATED)
        known_count = max(0, len(self._tokens) - piece.first_index)
        fresh = piece.tokens[known_count:]
        if not fresh:
            return
        shown = ""
        if not self._tokens:
            self._metrics.gateway_first_token_s.observe(time.monotonic() - self._run.submitted_s)
        self._metrics.gateway_tokens.inc(len(fresh))
        self._tokens += fresh
        if self._listing is not None and piece.logprobs is not None:
            for token, logprob in zip(fresh, piece.logprobs[known_count:], strict=True):
                if self._stops.is_stopped:
                    break
                text = self._decode((token,))
                self._listing.add(token, logprob, text)
                shown = shown + self._stops.feed(text)
        else:
            self._listing = None  # a list with tokens left out would be of another text
            shown = self._stops.feed(self._decode(fresh))
        self._push(shown, is_last=self._stops.is_stopped)

    def end(self) -> None:
        """Deliver what waited, and say how it ended."""
        job = self._run.job
        if self._stops.is_stopped:
            reason = "stop"
        else:
            if job.result is not None and unpack_tokens(job.result.output) != tuple(self._tokens):
                raise ConflictError(_REGENERATED)
            rest = self._text.end() if self._text is not None else ""
            self._push(self._stops.feed(rest) + self._stops.end(), is_last=True)
            finish = job.result.finish_reason if job.result is not None else "length"
            reason = "stop" if finish == "stop" or self._stops.is_stopped else "length"
        self._run.finish_reason = reason

    def _decode(self, tokens: Sequence[int]) -> str:
        """Return the text that these tokens complete; of a model without a tokenizer, their ids."""
        return self._text.feed(tokens) if self._text is not None else "".join(f"{one} " for one in tokens)

    def _push(self, text: str, *, is_last: bool) -> None:
        self._shown += len(text)
        tokens = None if self._listing is None else self._listing.take(self._shown, is_last=is_last)
        if text or tokens:
            self._run.pieces.append(Delivered(text, tokens))
            self._run.notify()


def _get_nothing(_token: int) -> None:
    """Say no token's bytes: there is no tokenizer."""


def _explain_refund(reason: str) -> ApiError:
    if reason == REASON_EXPIRED:
        return unavailable("no worker took the job in time; it was refunded", "no_worker")
    if reason == REASON_CANCELLED:
        return ApiError(499, "the job was cancelled before it began; it was refunded", code="cancelled")
    return ApiError(502, f"the job was refunded: {reason}", code="generation_failed", kind="server_error")
