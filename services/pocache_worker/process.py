"""The worker process: one engine, its identities side by side, one health endpoint.

The engine is loaded and compared with the network's entry before any identity binds, so a worker that is ready can
work. One identity that cannot go on ends the process: it is started again as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from pocache.engine.port import Engine
from pocache.protocol.ids import ModelId
from pocache.runtime.config import Settings
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Model
from pocache.runtime.profiles import verify_profile_fits
from pocache.runtime.tracing import open_tracer
from pocache.service.entry import serve_until
from pocache_worker.engines import EngineHost, choose_engine
from pocache_worker.identity import Identity, IdentityConfig
from pocache_worker.rounds import RoundTracker
from pocache_worker.settings import WorkerSettings, read_worker_settings
from pocache_worker.streaming import Pacer


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run the worker of these settings until ``stop`` is set, then drain."""
    worker = read_worker_settings(settings)
    models = settings.directory.load_models()
    build = choose_engine(worker.model, models, device=worker.device, threads=worker.threads)
    await serve_with(settings, worker, models, build, stop)


async def serve_with(
    settings: Settings,
    worker: WorkerSettings,
    models: Mapping[ModelId, Model],
    build: Callable[[], Engine],
    stop: asyncio.Event,
) -> None:
    """Run a worker on the engines that ``build`` makes."""
    identities: list[Identity] = []
    async with AsyncExitStack() as stack:
        metrics, tracer = Metrics("worker"), open_tracer(settings.name, settings.variables)
        stack.callback(tracer.close)
        host = EngineHost(build, models, worker.cheats, metrics, jobs_max=worker.jobs_max)
        stack.callback(host.close)

        async def run(stop: asyncio.Event) -> None:
            model = await host.load()
            verify_profile_fits(model, is_demo=settings.directory.genesis.demo)
            rounds, pacer = RoundTracker(settings.directory.genesis), Pacer()
            configs = [
                replace(_make_config(settings, worker, model, name), metrics=metrics, tracer=tracer)
                for name in worker.identities
            ]
            identities.extend(Identity(config, host, rounds, pacer) for config in configs)
            async with asyncio.TaskGroup() as group:
                for identity in identities:
                    group.create_task(identity.run(stop))

        await serve_until(
            stack,
            settings,
            run,
            stop,
            lambda: bool(identities) and all(identity.is_ready for identity in identities),
            metrics=metrics,
        )


def _make_config(settings: Settings, worker: WorkerSettings, model: Model, name: str) -> IdentityConfig:
    directory = settings.directory
    return IdentityConfig(
        name=name,
        nats_url=settings.nats_url,
        transport_seed=directory.transport_seed(name),
        key=directory.signing_key(name),
        genesis=directory.genesis,
        model=model,
        database_url=settings.database(name),
        leaves_dir=settings.state_dir / "leaves" / name,
        generates=worker.generates,
        verifies=worker.verifies,
        cheat=worker.cheats[name],
        jobs_max=worker.jobs_max,
        tls=directory.tls_files(name),
    )
