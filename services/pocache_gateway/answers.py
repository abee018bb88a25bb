"""Answers with text: the bodies of OpenAI's two completions, whole or as server-sent events.

Each event has an id, ``JOB:COUNT``, COUNT the pieces of text up to and with it: whoever comes back with ``Last-Event-ID``
goes on behind it. The last event with a choice, and a whole body, carry ``pocache``: the job, its receipt, its status.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from pocache.runtime.metrics import Metrics
from pocache_gateway.errors import ApiError
from pocache_gateway.logprobs import ScoredToken, make_chat_logprobs, make_completion_logprobs
from pocache_gateway.runs import Delivered, Run

PING_S: Final = 15
DONE: Final = "[DONE]"


def make_headers(run: Run) -> dict[str, str]:
    """Return the headers of every answer about a job."""
    return {"x-pocache-job": run.job_id.hex(), "x-request-id": run.job_id.hex()}


def make_body(run: Run, public_url: str) -> dict[str, Any]:
    """Return the whole body of a job that is over."""
    text = "".join(piece.text for piece in run.pieces)
    choice: dict[str, Any] = {
        "index": 0,
        "logprobs": _make_logprobs(run, run.pieces),
        "finish_reason": run.finish_reason,
    }
    if run.asked.is_chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    return {
        **_make_frame(run, "chat.completion" if run.asked.is_chat else "text_completion"),
        "choices": [choice],
        "usage": make_usage(run),
        "pocache": make_note(run, public_url),
    }


def make_note(run: Run, public_url: str) -> dict[str, Any]:
    """Return what is said of the job itself."""
    job = run.job_id.hex()
    return {
        "job_id": job,
        "receipt_url": f"{public_url}/v1/receipts/{job}",
        "status": run.job.phase,
        "cancelled": run.job.result is not None and run.job.result.finish_reason == "cancelled",
    }


def make_usage(run: Run) -> dict[str, int]:
    """Return the tokens that are paid for."""
    return {
        "prompt_tokens": run.prompt_count,
        "completion_tokens": run.output_count,
        "total_tokens": run.prompt_count + run.output_count,
    }


class RunStream(EventSourceResponse):
    """A job's text as events; what is held for it is let go when the answer ends, however it does."""

    def __init__(
        self,
        run: Run,
        *,
        held: ExitStack,
        first: int,
        public_url: str,
        send_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        super().__init__(
            _make_events(run, first, public_url, metrics),
            headers=make_headers(run),
            sep="\n",
            ping=PING_S,
            send_timeout=send_timeout_s,
        )
        self._run = run
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that reads too slowly is left."""
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                structlog.get_logger().warning("client_too_slow", job=self._run.job_id)


async def _make_events(
    run: Run, first: int, public_url: str, metrics: Metrics
) -> AsyncIterator[ServerSentEvent]:
    """Yield a run's chunks from a piece on, the last with how it ended; a failure is an event as well."""
    kind = "chat.completion.chunk" if run.asked.is_chat else "text_completion"
    frame = _make_frame(run, kind)
    if run.asked.includes_usage:
        frame["usage"] = None
    job = run.job_id.hex()
    try:
        if first == 0 and run.asked.is_chat:
            begin = _make_choice(run, Delivered(""), role="assistant")
            yield _make_event(f"{job}:0", {**frame, "choices": [begin]})
        async for index, piece in run.read(first):
            yield _make_event(f"{job}:{index + 1}", {**frame, "choices": [_make_choice(run, piece)]})
    except ApiError as error:
        metrics.gateway_refusals.labels(error.code).inc()
        yield _make_event(f"{job}:{len(run.pieces)}", error.body())
        yield ServerSentEvent(data=DONE)
        return
    note = {"pocache": make_note(run, public_url)}
    last = f"{job}:{len(run.pieces)}"
    yield _make_event(last, {**frame, "choices": [_make_choice(run, None)], **note})
    if run.asked.includes_usage:
        yield _make_event(last, {**frame, "choices": [], "usage": make_usage(run), **note})
    yield ServerSentEvent(data=DONE)


def _make_frame(run: Run, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if run.asked.is_chat else "cmpl"
    return {
        "id": f"{prefix}-{run.job_id.hex()}",
        "object": kind,
        "created": run.created_s,
        "model": run.served.name,
        "system_fingerprint": run.served.model.model_id.hex()[:16],
    }


def _make_choice(run: Run, piece: Delivered | None, *, role: str | None = None) -> dict[str, Any]:
    """Return one choice: a piece of text, or with None the end."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
    if piece is None:
        choice["finish_reason"] = run.finish_reason
    else:
        choice["logprobs"] = _make_logprobs(run, (piece,))
    if not run.asked.is_chat:
        return {**choice, "text": "" if piece is None else piece.text}
    delta: dict[str, str] = {} if role is None else {"role": role}
    if piece is not None:
        delta["content"] = piece.text
    return {**choice, "delta": delta}


def _make_logprobs(run: Run, pieces: Sequence[Delivered]) -> dict[str, Any] | None:
    """Return what is said of the tokens of these pieces; None where nothing was asked, or one has none."""
    if run.asked.logprobs is None:
        return None
    tokens: list[ScoredToken] = []
    for piece in pieces:
        if piece.tokens is None:
            return None
        tokens += piece.tokens
    return (
        make_chat_logprobs(tokens)
        if run.asked.is_chat
        else make_completion_logprobs(tokens, run.asked.logprobs)
    )


def _make_event(event_id: str, body: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(body, separators=(",", ":")), id=event_id)
