"""The application: routes of the API, of health, and whatever else is mounted beside them."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocache.protocol.errors import PocacheError
from pocache_gateway.catalogue import Catalogue
from pocache_gateway.completions import get_stream, post_chat, post_completion
from pocache_gateway.errors import (
    ApiError,
    answer_api_error,
    answer_bug,
    answer_http_error,
    answer_network_error,
)
from pocache_gateway.jobs import get_balance, get_job, get_receipt, post_cancel, post_challenge
from pocache_gateway.openapi import make_document
from pocache_gateway.state import GatewayState

_OTHER_ROUTE: Final = "other"
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


def build_app(state: GatewayState, extra_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application of one gateway; ``extra_routes`` come after its own."""
    app = Starlette(
        routes=[*_health_routes(), *_api_routes(), *extra_routes],
        exception_handlers={
            ApiError: answer_api_error,
            PocacheError: answer_network_error,
            HTTPException: answer_http_error,
            Exception: answer_bug,
        },
    )
    app.router.redirect_slashes = False  # a path that is not there is not there
    app.add_middleware(_SafeHeaders)
    app.add_middleware(_Counted, requests=state.metrics.gateway_requests)
    app.state.gateway = state
    return app


class _SafeHeaders:
    """Says with every answer that its type is the one it states."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with if scope["type"] == "http" else send)


class _Counted:
    """Counts answers by route and status; a path that is none of the API's is not told apart from others."""

    def __init__(self, app: ASGIApp, *, requests: Counter) -> None:
        self._app = app
        self._requests = requests
        self._routes = {one.endpoint: one.path for one in (*_health_routes(), *_api_routes())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value  # what is answered where nothing else was

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            endpoint = scope.get("endpoint")
            route = _OTHER_ROUTE if endpoint is None else self._routes.get(endpoint, _OTHER_ROUTE)
            self._requests.labels(route, str(status)).inc()


def _health_routes() -> list[Route]:
    return [
        Route("/healthz", _live),
        Route("/livez", _live),
        Route("/readyz", _ready),
    ]


def _api_routes() -> list[Route]:
    return [
        Route("/openapi.json", _get_document),
        Route("/v1/models", _list_models),
        Route("/v1/models/{model:path}", _get_model),
        Route("/v1/chat/completions", post_chat, methods=["POST"]),
        Route("/v1/completions", post_completion, methods=["POST"]),
        Route("/v1/balance", get_balance),
        Route("/v1/jobs/{job}", get_job),
        Route("/v1/jobs/{job}/stream", get_stream),
        Route("/v1/jobs/{job}/challenge", post_challenge, methods=["POST"]),
        Route("/v1/jobs/{job}/cancel", post_cancel, methods=["POST"]),
        Route("/v1/receipts/{job}", get_receipt),
    ]


async def _live(_request: Request) -> Response:
    return PlainTextResponse("live\n")


async def _ready(request: Request) -> Response:
    state: GatewayState = request.app.state.gateway
    if state.drain.is_draining:
        return PlainTextResponse("draining\n", 503)
    if not state.is_ready():
        return PlainTextResponse("not ready\n", 503)
    return PlainTextResponse("ready\n")


async def _get_document(request: Request) -> Response:
    state: GatewayState = request.app.state.gateway
    return JSONResponse(make_document(state.settings.public_url))


async def _list_models(request: Request) -> Response:
    catalogue, created_ms = await _get_catalogue(request)
    return JSONResponse({"object": "list", "data": [one.describe(created_ms) for one in catalogue.served]})


async def _get_model(request: Request) -> Response:
    catalogue, created_ms = await _get_catalogue(request)
    found: dict[str, Any] = catalogue.get(request.path_params["model"]).describe(created_ms)
    return JSONResponse(found)


async def _get_catalogue(request: Request) -> tuple[Catalogue, int]:
    state: GatewayState = request.app.state.gateway
    await state.access.authenticate(request)
    return state.catalogue, state.genesis.created_ms
