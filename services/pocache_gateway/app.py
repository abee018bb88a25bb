"""The application: routes of the API, of health, and whatever else is mounted beside them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route

from pocache_gateway.state import GatewayState


def build_app(state: GatewayState, extra_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application of one gateway; ``extra_routes`` come after its own."""
    app = Starlette(routes=[*_health_routes(), *extra_routes])
    app.state.gateway = state
    return app


def _health_routes() -> list[BaseRoute]:
    return [
        Route("/healthz", _live),
        Route("/livez", _live),
        Route("/readyz", _ready),
    ]


async def _live(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("live\n")


async def _ready(request: Request) -> PlainTextResponse:
    state: GatewayState = request.app.state.gateway
    if state.drain.is_draining:
        return PlainTextResponse("draining\n", 503)
    if not state.is_ready():
        return PlainTextResponse("not ready\n", 503)
    return PlainTextResponse("ready\n")
