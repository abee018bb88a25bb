"""``POST /v1/chat/completions`` and ``/v1/completions``, and coming back to what they began.

A request is refused by what is cheapest first: its key, its rate, its size, its fields, its model. A job is submitted
then, and nothing is answered before the network has admitted it, so that a short balance is a 402 and not a broken
stream. Who goes away cancels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocache.bus.replies import DeniedError
from pocache.protocol.ids import JobId
from pocache.storage.api_keys import ApiKey
from pocache_gateway.access import read_body
from pocache_gateway.answers import RunStream, make_body, make_headers
from pocache_gateway.errors import ApiError, overloaded, unavailable, unsupported
from pocache_gateway.jobs import parse_job_id
from pocache_gateway.requests import Asked, parse_chat, parse_completion, parse_json
from pocache_gateway.runs import Run
from pocache_gateway.state import GatewayState

_LONG_TEXT_BYTES: Final = 20_000
"""A body from this size on is tokenised beside the event loop."""


async def post_chat(request: Request) -> Response:
    """Answer a conversation."""
    return await _complete(request, parse_chat)


async def post_completion(request: Request) -> Response:
    """Continue a prompt."""
    return await _complete(request, parse_completion)


async def get_stream(request: Request) -> Response:
    """Stream a job that is in hand, or was a moment ago: from its beginning, or behind ``Last-Event-ID``."""
    state: GatewayState = request.app.state.gateway
    key = await state.access.authenticate(request)
    job_id = parse_job_id(request.path_params["job"])
    resumed = request.headers.get("last-event-id")
    if resumed and not resumed.startswith(f"{job_id.hex()}:"):
        raise ApiError(
            400, "Last-Event-ID is not of this job", code="invalid_event_id", param="Last-Event-ID"
        )
    return _resume(state, key, resumed or f"{job_id.hex()}:0")


async def _complete(request: Request, parse: Callable[[Mapping[str, Any]], Asked]) -> Response:
    state: GatewayState = request.app.state.gateway
    key = await state.access.authenticate(request)
    resumed = request.headers.get("last-event-id")
    if resumed:
        return _resume(state, key, resumed)  # an interrupted answer goes on; nothing is submitted twice
    if state.drain.is_draining:
        raise unavailable("this gateway is stopping: ask again", "draining")
    state.access.count_request(key)
    body = await read_body(request, min(key.limits.body_bytes_max, state.settings.body_bytes_max))
    asked = parse(parse_json(body))
    with ExitStack() as held:
        run = await _submit(state, key, asked, is_long=len(body) > _LONG_TEXT_BYTES)
        held.enter_context(state.runs.reading(run))
        await _wait(request, run, lambda: run.is_admitted or run.is_over)
        if run.failure is not None:
            raise _with_job(run.failure, run)
        if asked.is_streamed:
            return _stream(state, run, held.pop_all(), first=0)
        await _wait(request, run, lambda: run.is_over)
        if run.failure is not None:
            raise _with_job(run.failure, run)
        return JSONResponse(make_body(run, state.settings.public_url), headers=make_headers(run))


async def _submit(state: GatewayState, key: ApiKey, asked: Asked, *, is_long: bool) -> Run:
    """Submit a job and have it followed. Raises ApiError, PocacheError."""
    served = state.catalogue.get(asked.model)
    prompt = (
        await asyncio.to_thread(served.compute_prompt, asked) if is_long else served.compute_prompt(asked)
    )
    token_count_max = served.compute_token_count_max(asked, len(prompt))
    with ExitStack() as counted:
        counted.enter_context(state.access.hold(key))
        if state.drain.in_hand >= state.settings.open_jobs_max:
            raise overloaded(
                f"{state.settings.open_jobs_max} jobs are in hand, as many as this gateway takes"
            )
        counted.enter_context(state.drain.hold())
        counted.enter_context(state.metrics.gateway_jobs.track_inprogress())
        client = await state.accounts.get(key.account)
        submitted_s = time.monotonic()
        try:
            job = await client.submit(
                served.model.model_id,
                prompt,
                token_count_max=token_count_max,
                sampling=asked.sampling,
                seed=asked.seed,
                eos_stop=asked.eos_stop,
                logprobs=asked.logprobs is not None,
            )
        except DeniedError as error:
            if asked.logprobs is None:
                raise
            raise unsupported("logprobs", "the bus does not let this account hear them") from error
        run = Run(job, client, key, asked, served, int(time.time()), submitted_s)
        state.runs.add(run, counted.pop_all().close)
    return run


async def _wait(request: Request, run: Run, is_met: Callable[[], bool]) -> None:
    """Wait for news of a job, or until its client is gone. Raises ApiError 499 then; nobody reads it."""
    if is_met():
        return
    met = asyncio.ensure_future(run.wait(is_met))
    gone = asyncio.ensure_future(_wait_gone(request))
    try:
        await asyncio.wait({met, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not met.done():
            raise ApiError(499, "the client went away", code="client_gone")
    finally:
        met.cancel()
        gone.cancel()
        await asyncio.gather(met, gone, return_exceptions=True)


async def _wait_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _resume(state: GatewayState, key: ApiKey, event_id: str) -> Response:
    """Go on with an answer behind one of its events. Raises ApiError 400 or 404."""
    name, _, count = event_id.partition(":")
    if not count.isdecimal() or not count.isascii() or len(count) > 9:
        raise ApiError(
            400, "Last-Event-ID is none of this gateway's", code="invalid_event_id", param="Last-Event-ID"
        )
    run = state.runs.find(JobId(parse_job_id(name)), key.account)
    if run is None:
        raise ApiError(
            404,
            "this gateway does not have the text of that job any more: its receipt has the whole output",
            code="stream_not_found",
            param="Last-Event-ID",
        )
    with ExitStack() as held:
        held.enter_context(state.runs.reading(run))
        return _stream(state, run, held.pop_all(), first=min(int(count), len(run.pieces)))


def _stream(state: GatewayState, run: Run, held: ExitStack, *, first: int) -> Response:
    settings = state.settings
    held.enter_context(state.metrics.gateway_streams.track_inprogress())
    return RunStream(
        run,
        held=held,
        first=first,
        public_url=settings.public_url,
        send_timeout_s=settings.send_timeout_s,
        metrics=state.metrics,
    )


def _with_job(error: ApiError, run: Run) -> ApiError:
    """Return an error that names the job which it is about."""
    return ApiError(
        error.status,
        error.message,
        code=error.code,
        param=error.param,
        kind=error.kind,
        headers={**error.headers, **make_headers(run)},
    )
