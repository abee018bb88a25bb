"""A service's entry point: read settings, open the state, connect, serve health, run until signalled.

Exit codes: 0 drained in order; 1 failed or did not drain in time; 2 wrongly configured, with what to set.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import structlog
import uvloop

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.protocol.errors import ConfigError, PocacheError
from pocache.protocol.ids import ModelId
from pocache.protocol.keys import SigningKey
from pocache.runtime.config import Settings, load_settings
from pocache.runtime.health import serve_health
from pocache.runtime.lifecycle import DrainTimeoutError, run_until_signalled
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Genesis, Model
from pocache.runtime.telemetry import configure_logging
from pocache.runtime.tracing import open_tracer
from pocache.service.dispatch import Dispatcher
from pocache.service.process import ServiceProcess
from pocache.service.provisioning import get_consumer_names
from pocache.service.reports import Reporter
from pocache.service.unit import Service
from pocache.storage.store import Prepare, Store
from pocache.wire.topics import Role

READY_CHECK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What a service is made from."""

    genesis: Genesis
    models: dict[ModelId, Model]
    key: SigningKey
    settings: Settings


def run_service(
    role: Role, build: Callable[[ServiceContext], Service], prepare: Prepare | None = None
) -> None:
    """Run a dispatcher service as this process; ``prepare`` is that of :class:`pocache.storage.store.Store`."""

    async def serve(settings: Settings, stop: asyncio.Event) -> None:
        context = load_context(settings)
        service = build(context)
        async with AsyncExitStack() as stack:
            metrics, tracer = Metrics(role.value), open_tracer(settings.name, settings.variables)
            stack.callback(tracer.close)
            store = Store(settings.database(role.value), service.metadata, prepare=prepare)
            stack.callback(store.close)
            bus = await stack.enter_async_context(
                connect_bus(NatsSettings.of(settings.directory, settings.nats_url, settings.name))
            )
            reports = service.reports() if isinstance(service, Reporter) else {}
            process = ServiceProcess(
                Dispatcher(
                    service, store, key=context.key, genesis=context.genesis, metrics=metrics, tracer=tracer
                ),
                bus,
                consumers=get_consumer_names(role),
                query_subjects=[topic.filter() for topic in service.queries()],
                report_subjects=[topic.filter() for topic in reports],
                name=role.value,
            )
            await serve_until(
                stack,
                settings,
                process.run,
                stop,
                lambda: process.is_ready and bus.is_connected,
                metrics=metrics,
            )

    run_process(role.value, serve)


def load_context(settings: Settings) -> ServiceContext:
    """Read what the network directory gives a service."""
    return ServiceContext(
        genesis=settings.directory.genesis,
        models=settings.directory.load_models(),
        key=settings.directory.signing_key(settings.name),
        settings=settings,
    )


async def serve_until(
    stack: AsyncExitStack,
    settings: Settings,
    run: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    stop: asyncio.Event,
    is_ready: Callable[[], bool],
    *,
    metrics: Metrics | None = None,
) -> None:
    """Serve health and metrics beside ``run``, and log once when it is ready."""
    serving = serve_health(
        settings.health_host, settings.health_port, is_ready, metrics or Metrics(settings.name)
    )
    port = await stack.enter_async_context(serving)
    structlog.get_logger().info("started", service=settings.name, health_port=port)
    announcing = asyncio.ensure_future(_announce_ready(settings.name, is_ready))
    try:
        await run(stop)
    finally:
        announcing.cancel()
    structlog.get_logger().info("stopped", service=settings.name)


async def _announce_ready(name: str, is_ready: Callable[[], bool]) -> None:
    """Log once that the service is ready; whoever started the process waits for that line."""
    while not is_ready():  # noqa: ASYNC110 - readiness is asked of several parts, some of which lose it again
        await asyncio.sleep(READY_CHECK_S)
    structlog.get_logger().info("ready", service=name)


def run_process(
    name_default: str, serve: Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]
) -> None:
    """Run ``serve(settings, stop)`` as this process, and exit with its code."""
    try:
        settings = load_settings(os.environ, name_default=name_default)
        configure_logging(settings.log_level)
        structlog.contextvars.bind_contextvars(process=settings.name)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_until_signalled(lambda stop: serve(settings, stop), drain_s=settings.drain_s))
    except ConfigError as error:
        sys.stderr.write(f"pocache {name_default}: {error}\n")
        sys.exit(2)
    except (PocacheError, DrainTimeoutError, ExceptionGroup) as error:
        leaves = _leaves(error)
        if not all(isinstance(leaf, (PocacheError, DrainTimeoutError)) for leaf in leaves):
            raise
        for leaf in leaves:
            structlog.get_logger().critical("ended", error=type(leaf).__name__, reason=str(leaf))
        sys.exit(1)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]
