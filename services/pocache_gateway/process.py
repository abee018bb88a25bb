"""The gateway's process: settings, connections, the HTTP server, and how it ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog

from pocache.runtime.config import Settings
from pocache.service.entry import serve_until
from pocache_gateway.app import build_app
from pocache_gateway.server import serve_http
from pocache_gateway.settings import read_gateway_settings
from pocache_gateway.state import GatewayState


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve HTTP until ``stop`` is set, then finish what is in hand."""
    gateway = read_gateway_settings(settings)
    is_serving = asyncio.Event()
    async with AsyncExitStack() as stack:
        state = GatewayState(
            settings=gateway,
            directory=settings.directory,
            genesis=settings.directory.genesis,
            models=settings.directory.load_models(),
        )

        async def run(stop: asyncio.Event) -> None:
            async with serve_http(build_app(state), gateway) as port:
                structlog.get_logger().info("listening", host=gateway.host, port=port)
                is_serving.set()
                await stop.wait()
                state.drain.is_draining = True
                await state.drain.wait_empty()

        await serve_until(stack, settings, run, stop, lambda: is_serving.is_set() and state.is_ready())
