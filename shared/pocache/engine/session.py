"""Continuous batching: which jobs wait, which decode, and how each ends. Torch-free; a runner does the arithmetic.

Owns the queue, the slots, the callbacks and the rules of ending: EOS, length, cancellation, failure. Jobs join in
the order in which they were submitted; a job that does not fit yet holds back those behind it, so that none starves.
Refuses requests outside the engine's bounds. One job's failure, its listener's too, ends that job alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pocache.engine.port import (
    Capabilities,
    Capture,
    Engine,
    FinishReason,
    GenerateRequest,
    GenerationHandle,
    GenerationSession,
    OnScores,
    OnStep,
    verify_generate_request,
)
from pocache.protocol.errors import EngineCancelledError, EngineError


@dataclass(slots=True, eq=False)
class Ticket:
    """One job on its way through a session."""

    handle: GenerationHandle
    on_step: OnStep
    should_stop: Callable[[], bool]
    on_scores: OnScores | None = None
    output: list[int] = field(default_factory=list)
    state: Any = None
    """The runner's own."""

    @property
    def request(self) -> GenerateRequest:
        """What was asked for."""
        return self.handle.request


class Drawn(NamedTuple):
    """A job's next token, and how likely the model said it was."""

    token: int
    logprob: float
    """By its score row: logit - logsumexp, of the model's own distribution whatever the temperature."""


Delivery = tuple[Ticket, Drawn | Exception]
"""A job's next token, or what ended it."""


def compute_logprob(logit: float, logsumexp: float) -> float:
    """Return a token's natural log-probability by its score row (docs/protocol.md 3.8): logit - logsumexp, at most 0.

    Both are float32: the difference of two that are rounded may come out above 0 where the token is almost certain.
    """
    return min(0.0, logit - logsumexp)


class Runner(Protocol):
    """Computes tokens and rows for the jobs of one session."""

    def verify_fits(self, request: GenerateRequest) -> None:
        """Refuse a job that would not fit even alone: EngineError."""
        ...

    def count_admissible(self, waiting: Sequence[Ticket]) -> int:
        """Return how many of the waiting jobs, from the first on, may start now."""
        ...

    def start(self, tickets: Sequence[Ticket]) -> list[Delivery]:
        """Prefill jobs; return what has become ready."""
        ...

    def advance(self) -> list[Delivery]:
        """Decode one token for each started job; return what has become ready.

        A token of a job that was dropped meanwhile may still come; it is ignored.
        """
        ...

    def finish(self, ticket: Ticket, finish_reason: FinishReason) -> Capture:
        """Return a job's rows; its slot is freed by ``drop``."""
        ...

    def drop(self, ticket: Ticket) -> None:
        """Free what a job holds."""
        ...


class BatchSession:
    """A GenerationSession over a runner."""

    def __init__(self, capabilities: Capabilities, runner: Runner, *, slot_count: int) -> None:
        assert slot_count >= 1, "a session without slots never ends"
        self._capabilities = capabilities
        self._runner = runner
        self._slot_count = slot_count
        self._waiting: deque[Ticket] = deque()
        self._active: list[Ticket] = []

    @property
    def is_idle(self) -> bool:
        """Whether no submitted job is open."""
        return not self._waiting and not self._active

    def submit(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
        on_scores: OnScores | None = None,
    ) -> GenerationHandle:
        """Queue a job; see the port."""
        verify_generate_request(self._capabilities, request)
        self._runner.verify_fits(request)
        ticket = Ticket(GenerationHandle(request), on_step, should_stop, on_scores)
        self._waiting.append(ticket)
        return ticket.handle

    def step(self) -> list[GenerationHandle]:
        """Advance every started job by one token, and start those that fit; see the port."""
        done = self._cancel_stopped()
        try:
            deliveries = self._runner.advance() if self._active else []
            joining = self._admit()
            if joining:
                deliveries += self._runner.start(joining)
            elif (
                self._waiting and not self._active
            ):  # it is within the bound: the machine has less memory than that
                self._active.append(self._waiting.popleft())
                deliveries = [(self._active[0], EngineError("out of memory: no room for one job's KV cache"))]
        except Exception as error:  # noqa: BLE001 - whatever broke the batch ends its jobs, and each is told
            deliveries = [(ticket, error) for ticket in self._active]
        # Every listener has its token before the first job that ends is made into leaves.
        ends = [
            (ticket, self._deliver(ticket, outcome))
            for ticket, outcome in deliveries
            if not ticket.handle.is_done
        ]
        for ticket, end in ends:
            if end is not None:
                self._end(ticket, end)
                done.append(ticket.handle)
        return done

    def close(self) -> None:
        """Abandon all open jobs."""
        for ticket in (*self._waiting, *self._active):
            self._settle(ticket, EngineCancelledError("the session was closed"))
        self._waiting.clear()

    def _cancel_stopped(self) -> list[GenerationHandle]:
        done: list[GenerationHandle] = []
        for ticket in (*self._active, *self._waiting):
            try:
                is_stopped = ticket.should_stop()
            except Exception as error:  # noqa: BLE001 - the caller's own, handed back to it
                self._settle(ticket, error)
            else:
                if not is_stopped:
                    continue
                self._settle(ticket, EngineCancelledError("the generation was abandoned on request"))
            done.append(ticket.handle)
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.handle.is_done)
        return done

    def _admit(self) -> list[Ticket]:
        free = self._slot_count - len(self._active)
        candidates = [self._waiting[index] for index in range(min(free, len(self._waiting)))]
        if not candidates:
            return []
        joining = candidates[: self._runner.count_admissible(candidates)]
        for _ in joining:
            self._waiting.popleft()
        self._active += joining
        return joining

    def _deliver(self, ticket: Ticket, outcome: Drawn | Exception) -> FinishReason | Exception | None:
        """Hand a job its token; return how the job ends by it, None when it goes on."""
        if not isinstance(outcome, Drawn):
            return outcome
        request, output = ticket.request, ticket.output
        output.append(outcome.token)
        try:
            if ticket.on_scores is not None:
                ticket.on_scores((outcome.logprob,))
            is_enough = ticket.on_step((outcome.token,))
        except Exception as error:  # noqa: BLE001 - the listener's own, handed back to it
            return error
        if request.eos_stop and outcome.token in self._capabilities.eos_tokens:
            return "stop"
        if len(output) >= request.max_tokens:
            return "length"
        return "cancelled" if is_enough else None

    def _end(self, ticket: Ticket, end: FinishReason | Exception) -> None:
        try:
            result: Capture | Exception = (
                end if isinstance(end, Exception) else self._runner.finish(ticket, end)
            )
        except Exception as error:  # noqa: BLE001 - rows that cannot be committed, told to who waits for them
            result = error
        self._settle(ticket, result)

    def _settle(self, ticket: Ticket, outcome: Capture | Exception) -> None:
        if ticket in self._active:
            self._active.remove(ticket)
            self._runner.drop(ticket)
        ticket.handle.resolve(outcome)


class ChangedSession:
    """A session whose requests or captures are changed on the way: what dishonest engines are made of."""

    def __init__(
        self,
        inner: GenerationSession,
        *,
        change_request: Callable[[GenerateRequest], GenerateRequest] = lambda request: request,
        change_capture: Callable[[GenerateRequest, Capture], Capture] = lambda _request, capture: capture,
        is_output_changed: bool = False,
    ) -> None:
        """``is_output_changed`` holds all tokens back until the capture is changed, and delivers its own."""
        self._inner = inner
        self._change_request = change_request
        self._change_capture = change_capture
        self._is_output_changed = is_output_changed
        self._outer: dict[GenerationHandle, GenerationHandle] = {}
        self._listeners: dict[GenerationHandle, OnStep] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no submitted job is open."""
        return not self._outer

    def submit(
        self,
        request: GenerateRequest,
        on_step: OnStep,
        should_stop: Callable[[], bool],
        on_scores: OnScores | None = None,
    ) -> GenerationHandle:
        """Queue the changed request; where the output is changed, no scores are those of its tokens."""
        handle = GenerationHandle(request)
        changed = self._change_request(request)
        if self._is_output_changed:
            inner = self._inner.submit(changed, _ignore, should_stop)
        else:
            inner = self._inner.submit(changed, on_step, should_stop, on_scores)
        self._outer[inner] = handle
        if self._is_output_changed:
            self._listeners[handle] = on_step
        return handle

    def step(self) -> list[GenerationHandle]:
        """Advance, and change the captures of what is done."""
        return [self._settle(inner) for inner in self._inner.step()]

    def close(self) -> None:
        """Abandon all open jobs."""
        self._inner.close()
        for inner in list(self._outer):
            self._settle(inner)

    def _settle(self, inner: GenerationHandle) -> GenerationHandle:
        outer = self._outer.pop(inner)
        listener = self._listeners.pop(outer, _ignore)
        try:
            capture = self._change_capture(outer.request, inner.result())
            listener(capture.output)
            outer.resolve(capture)
        except Exception as error:  # noqa: BLE001 - this job's own end, handed to whoever asks for its result
            outer.resolve(error)
        return outer


def _ignore(_tokens: tuple[int, ...]) -> None:
    """Listen to nothing."""


def generate_alone(
    engine: Engine,
    request: GenerateRequest,
    on_step: OnStep,
    should_stop: Callable[[], bool],
) -> Capture:
    """Generate one job in a session of its own: what ``Engine.generate`` is."""
    session = engine.open_session(slot_count=1)
    handle = session.submit(request, on_step, should_stop)
    try:
        while not handle.is_done:
            session.step()
    finally:
        session.close()
    return handle.result()
