"""What a client is told when something is wrong: OpenAI's error bodies and status codes, from our own errors.

Owns the mapping from the network's codes to status codes. What a client sent is quoted only as far as it is a name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocache.job import RefusedError
from pocache.protocol.errors import (
    BackpressureError,
    BusError,
    CodecError,
    ExpiredError,
    FundsError,
    LimitError,
    NotAuthorizedError,
    NotYetError,
    PocacheError,
    PromptError,
    SamplingError,
    UnknownJobError,
    UnknownModelError,
)

RETRY_S: Final = 2
_PARAM_CHARS_MAX: Final = 64


class ApiError(Exception):
    """An answer that is not what was asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = None if param is None else param[:_PARAM_CHARS_MAX]
        self.kind = kind
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))

    def body(self) -> dict[str, Any]:
        """Return the body that OpenAI's clients read."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return the answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(message: str, param: str | None = None, *, code: str = "invalid_value") -> ApiError:
    """Return a 400 that names what is wrong."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, why: str = "") -> ApiError:
    """Return the refusal of an option that exists elsewhere and not here."""
    message = f"{param} is not supported by this gateway{f': {why}' if why else ''}; leave it out"
    return invalid(message, param, code="unsupported_parameter")


def overloaded(
    message: str, retry_after_s: float = RETRY_S, *, code: str = "rate_limit_exceeded"
) -> ApiError:
    """Return a 429."""
    return ApiError(429, message, code=code, kind="requests", retry_after_s=retry_after_s)


def unavailable(message: str, code: str, *, retry_after_s: float = RETRY_S) -> ApiError:
    """Return a 503."""
    return ApiError(503, message, code=code, kind="server_error", retry_after_s=retry_after_s)


def translate(error: PocacheError) -> ApiError:
    """Return what a client is told of one of our own errors, or of the network's refusal."""
    code = error.refusal_code if isinstance(error, RefusedError) else error.code
    reason = error.reason if isinstance(error, RefusedError) else str(error)
    if code == UnknownModelError.code:
        return ApiError(404, reason, code="model_not_found", param="model")
    if code == PromptError.code:
        return invalid(
            reason, "prompt", code="context_length_exceeded" if "context" in reason else "invalid_prompt"
        )
    if code == FundsError.code:
        return ApiError(402, reason, code="insufficient_balance", kind="insufficient_quota")
    if code == BackpressureError.code:
        return overloaded(reason, code="backpressure")
    if code in (SamplingError.code, CodecError.code, LimitError.code):
        return invalid(reason)
    if code in (UnknownJobError.code, NotAuthorizedError.code):
        return ApiError(404, "there is no such job of this account", code="job_not_found", param="job")
    if code == BusError.code:
        return unavailable("the network cannot be reached at the moment", "network_unreachable")
    if code == ExpiredError.code:
        return ApiError(409, reason, code="too_late", kind="conflict_error")
    if code == NotYetError.code:
        return ApiError(409, reason, code="not_yet", kind="conflict_error", retry_after_s=1)
    return ApiError(502, f"{code}: {reason}", code="network_error", kind="server_error")


async def answer_api_error(request: Request, error: Exception) -> Response:
    """Answer what a route raised on purpose."""
    assert isinstance(error, ApiError)
    return _refuse(request, error)


async def answer_network_error(request: Request, error: Exception) -> Response:
    """Answer what the network or the SDK refused."""
    assert isinstance(error, PocacheError)
    return _refuse(request, translate(error))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase.lower()
    message = f"{phrase}: see /openapi.json for what there is"
    answer = ApiError(error.status_code, message, code=phrase.replace(" ", "_"), headers=error.headers)
    return _refuse(request, answer)


async def answer_bug(request: Request, error: Exception) -> Response:
    """Answer our own failure without its details; they are in the log."""
    structlog.get_logger().error("request_failed", path=request.url.path, error=repr(error), exc_info=error)
    return _refuse(request, ApiError(500, "the gateway failed", code="internal_error", kind="server_error"))


def _refuse(request: Request, error: ApiError) -> Response:
    """Answer an error, and count it by its code, which is one of those that the code lists."""
    request.app.state.gateway.metrics.gateway_refusals.labels(error.code).inc()
    return error.response()
