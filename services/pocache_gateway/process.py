"""The gateway's process: settings, keys, connections, the HTTP server, and how it ends.

Stopping: requests for new jobs are answered 503 at once, jobs in hand are finished; shortly before the drain time is over
what is left is cancelled, so that nobody pays for what nobody will read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from pocache.runtime.config import Settings
from pocache.service.entry import serve_until
from pocache.storage.api_keys import open_api_keys
from pocache_gateway.access import Access
from pocache_gateway.accounts import open_accounts
from pocache_gateway.app import build_app
from pocache_gateway.catalogue import load_catalogue
from pocache_gateway.explorer.process import make_decoder, open_explorer
from pocache_gateway.server import serve_http
from pocache_gateway.settings import read_gateway_settings
from pocache_gateway.state import GatewayState

DATABASE: Final = "gateway"
_DRAIN_SHARE: Final = 0.7
"""Of the drain time: after it what is still in hand is cancelled."""


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve HTTP until ``stop`` is set, then finish what is in hand."""
    is_serving = asyncio.Event()
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(open_state(settings))

        explorer = await stack.enter_async_context(
            open_explorer(settings, decode=make_decoder(state.catalogue))
        )

        async def run(stop: asyncio.Event) -> None:
            pages = () if explorer is None else explorer.routes()
            async with serve_http(build_app(state, pages), state.settings) as port:
                structlog.get_logger().info("listening", host=state.settings.host, port=port)
                is_serving.set()
                await stop.wait()
                if explorer is not None:
                    explorer.broadcast.close()  # who follows live has nothing in hand
                await drain(state, settings.drain_s)

        await serve_until(
            stack,
            settings,
            run,
            stop,
            lambda: is_serving.is_set() and state.is_ready(),
            metrics=state.metrics,
        )


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[GatewayState]:
    """Open everything that the routes need. Raises ConfigError."""
    gateway = read_gateway_settings(settings)
    directory = settings.directory
    models = directory.load_models()
    async with AsyncExitStack() as stack:
        accounts = await stack.enter_async_context(open_accounts(directory, settings.nats_url))
        keys = stack.enter_context(open_api_keys(settings.database(DATABASE)))
        state = GatewayState(
            settings=gateway,
            directory=directory,
            genesis=directory.genesis,
            models=models,
            accounts=accounts,
            access=Access(keys),
            catalogue=load_catalogue(directory, models, gateway.tokenizers),
        )
        stack.push_async_callback(state.background.close)
        yield state


async def drain(state: GatewayState, drain_s: float) -> None:
    """Finish what is in hand; what takes too long is cancelled, and finished then."""
    state.drain.is_draining = True
    try:
        async with asyncio.timeout(drain_s * _DRAIN_SHARE):
            await state.drain.wait_empty()
    except TimeoutError:
        structlog.get_logger().warning("cancelling", jobs=state.runs.active_count)
        await state.runs.cancel_all()
        await state.drain.wait_empty()
