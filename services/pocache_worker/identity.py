"""One identity of a worker process: its keys, bus connection, database, and the tasks that work for it.

Stopping in order: nothing new is pulled, what is granted is generated, what is due is opened, the outbox is emptied,
then the record is no longer listened to. The drain time of the process bounds all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import structlog

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.port import Bus, CoreMessage
from pocache.protocol.errors import ExpiredError, PocacheError
from pocache.protocol.keys import SigningKey
from pocache.runtime.metrics import Metrics
from pocache.runtime.network import Genesis, Model, TlsFiles
from pocache.runtime.tracing import NO_TRACER, Tracer
from pocache.service.dispatch import Dispatcher, read_clock_ms
from pocache.service.process import ServiceProcess
from pocache.service.provisioning import get_worker_consumers
from pocache.service.unit import Unit
from pocache.storage.store import Store
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_worker.cheats import Cheat
from pocache_worker.commits import announce_again, read_announced, read_announced_round
from pocache_worker.engines import EngineHost
from pocache_worker.generation import Generator, GeneratorContext
from pocache_worker.grants import GrantVerifier
from pocache_worker.leaves import LeafStore
from pocache_worker.openings import Opener
from pocache_worker.rounds import RoundTracker
from pocache_worker.service import WorkerService, handle_refusal, verify_refusal
from pocache_worker.state import Bell, News, WorkerState, wait_event
from pocache_worker.streaming import Pacer
from pocache_worker.tables import METADATA, REMOVALS
from pocache_worker.verification import Verifier, VerifierContext

ANNOUNCE_EVERY_S: Final = 60.0
"""How often a worker says what it can do; the verifier pool forgets those it has not heard of for long."""


@dataclass(frozen=True, slots=True)
class IdentityConfig:
    """What one identity is run with."""

    name: str
    nats_url: str
    transport_seed: str
    key: SigningKey
    genesis: Genesis
    model: Model
    database_url: str
    leaves_dir: Path
    generates: bool
    verifies: bool
    cheat: Cheat
    jobs_max: int = 1
    tls: TlsFiles | None = None
    metrics: Metrics | None = None
    tracer: Tracer = NO_TRACER


class Identity:
    """Runs one identity on the process's engine."""

    def __init__(
        self,
        config: IdentityConfig,
        host: EngineHost,
        rounds: RoundTracker,
        pacer: Pacer,
        *,
        clock_ms: Callable[[], int] = read_clock_ms,
    ) -> None:
        self._config = config
        self._host = host
        self._rounds = rounds
        self._pacer = pacer
        self._clock_ms = clock_ms
        self._process: ServiceProcess | None = None
        self._bus: Bus | None = None
        self._log = structlog.get_logger().bind(worker=config.name)

    @property
    def is_ready(self) -> bool:
        """Whether it is bound to its consumers and connected."""
        return (
            self._process is not None
            and self._process.is_ready
            and self._bus is not None
            and self._bus.is_connected
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then drain. Raises what ended it otherwise."""
        config = self._config
        async with AsyncExitStack() as stack:
            store = Store(config.database_url, METADATA)
            stack.callback(store.close)
            settings = NatsSettings(
                url=config.nats_url, name=config.name, nkey_seed=config.transport_seed, tls=config.tls
            )
            self._bus = bus = await stack.enter_async_context(connect_bus(settings))
            bell = Bell()
            grants = GrantVerifier(config.genesis, config.model, config.key.participant_id)
            service = WorkerService(
                config.key.participant_id,
                grants,
                notify=bell.ring,
                opens=config.cheat.opens,
            )
            dispatcher = Dispatcher(
                service,
                store,
                key=config.key,
                genesis=config.genesis,
                clock_ms=self._clock_ms,
                metrics=config.metrics,
                tracer=config.tracer,
            )
            (record, _) = get_worker_consumers(config.key.participant_id)
            self._process = process = ServiceProcess(
                dispatcher, bus, consumers=[(record.stream, record.durable)], name=config.name
            )
            state = WorkerState(
                process,
                key=config.key,
                network=config.genesis.network_id,
                clock_ms=self._clock_ms,
            )
            try:
                tasks = _Tasks(config, bus, state, bell, grants, self._host, self._rounds, self._pacer)
                await tasks.run(process.run, stop)
            finally:
                self._process = None
                self._bus = None


class _Tasks:
    """Everything that runs side by side for one identity, and in which order it ends."""

    def __init__(
        self,
        config: IdentityConfig,
        bus: Bus,
        state: WorkerState,
        bell: Bell,
        grants: GrantVerifier,
        host: EngineHost,
        rounds: RoundTracker,
        pacer: Pacer,
    ) -> None:
        self._config = config
        self._bus = bus
        self._state = state
        self._bell = bell
        self._rounds = rounds
        self._leaves = LeafStore(config.leaves_dir)
        self._stale: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        self._log = structlog.get_logger().bind(worker=config.name)
        self._opener = Opener(state, bell, self._leaves)
        self._generator = Generator(
            GeneratorContext(
                name=config.name,
                genesis=config.genesis,
                model=config.model,
                bus=bus,
                state=state,
                bell=bell,
                grants=grants,
                jobs_max=config.jobs_max,
                host=host,
                store=self._leaves,
                rounds=rounds,
                pacer=pacer,
                cheat=config.cheat,
            )
        )
        self._verifier = Verifier(
            VerifierContext(
                name=config.name,
                genesis=config.genesis,
                model=config.model,
                bus=bus,
                state=state,
                host=host,
                store=self._leaves,
            )
        )

    async def run(
        self, record: Callable[[asyncio.Event], Coroutine[Any, Any, None]], stop: asyncio.Event
    ) -> None:
        """Run all tasks; ``record`` is the service process, the last to be told to stop."""
        config = self._config
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            # What was missed before listening is repaired below; what comes after must be heard from the first.
            heard = await stack.enter_async_context(self._bus.subscribe_core(t.BEACON_ROUND.subject()))
            refusals = [
                await stack.enter_async_context(self._bus.subscribe_core(topic.filter()))
                for topic in t.REFUSALS.values()
            ]
            worked, recorded = asyncio.Event(), asyncio.Event()
            listeners = [group.create_task(self._observe_rounds(heard))]
            listeners += [group.create_task(self._hear_refusals(one)) for one in refusals]
            listeners += [
                group.create_task(self._announce_stale()),
                group.create_task(self._announce_member()),
            ]
            recording = group.create_task(record(recorded))
            workers = [
                group.create_task(work(worked))
                for work in (self._generator.run, self._opener.run, self._remove_files)
            ]
            pullers = []
            if config.generates:
                pullers.append(group.create_task(self._generator.pull_tasks(stop)))
            if config.verifies:
                pullers.append(group.create_task(self._verifier.pull_tasks(stop)))
            for job_id, attempt in await self._state.transact(read_announced):
                self._stale.put_nowait((job_id, attempt))
            await stop.wait()
            await asyncio.wait(pullers)
            worked.set()
            self._bell.ring()
            await asyncio.wait(workers)
            for listener in listeners:
                listener.cancel()
            recorded.set()
            await recording

    async def _observe_rounds(self, heard: AsyncIterator[CoreMessage]) -> None:
        async for message in heard:
            self._rounds.observe(message.data)

    async def _hear_refusals(self, heard: AsyncIterator[CoreMessage]) -> None:
        """Learn why a service refused what this identity said, and repair what can be repaired."""
        async for message in heard:
            try:
                body = verify_refusal(message.data, message.subject, self._config.genesis)
            except PocacheError as error:
                self._log.warning("refusal_refused", code=error.code, reason=str(error))
                continue
            sent = await self._state.transact(partial(handle_refusal, body=body))
            if sent is None:
                continue  # another participant's, or nothing that needs an answer
            self._log.warning(
                "refused",
                kind=sent.kind,
                job=sent.job_id,
                attempt=sent.attempt,
                code=body.code,
                reason=body.reason,
            )
            if sent.kind == m.ResultV1.kind and body.code == ExpiredError.code:
                self._stale.put_nowait((sent.job_id, sent.attempt))
            self._bell.ring(News.LEASES)

    async def _announce_stale(self) -> None:
        """Say results again whose round was too old, as soon as there is a later one."""
        while True:
            job_id, attempt = await self._stale.get()
            named = await self._state.transact(partial(read_announced_round, job_id=job_id, attempt=attempt))
            if named is None:
                continue
            latest = await self._rounds.wait_beyond(named)
            again = partial(
                announce_again,
                job_id=job_id,
                attempt=attempt,
                participant=self._state.participant,
                latest_round=latest,
            )
            is_said = await self._state.transact(again)
            if is_said:
                self._log.info("announced_again", job=job_id, attempt=attempt, round=latest)

    async def _announce_member(self) -> None:
        """Say what this identity can do, now and every minute."""
        never = asyncio.Event()
        while True:
            await self._state.transact(self._emit_member)
            await wait_event(never, ANNOUNCE_EVERY_S)

    def _emit_member(self, unit: Unit) -> None:
        body = m.MemberV1(
            generates=self._config.generates,
            verifies=self._config.verifies,
            model_ids=(self._config.model.model_id,),
            stack=self._config.model.entry.stack,
            announced_ms=unit.now_ms,
        )
        unit.emit(t.MEMBER_ANNOUNCED, body, worker=self._state.participant)

    async def _remove_files(self, stop: asyncio.Event) -> None:
        """Remove the leaves of settled jobs until ``stop`` is set and none are left."""
        with self._bell.listen(News.REMOVALS) as rung:
            while True:
                rung.clear()
                names = await self._state.transact(read_removals)
                for name in names:
                    await asyncio.to_thread(self._leaves.remove, name)
                if names:
                    await self._state.transact(partial(forget_removals, names=names))
                elif stop.is_set():
                    return
                else:
                    await rung.wait()


def read_removals(unit: Unit) -> list[str]:
    """Return the files that are to be removed."""
    return list(unit.connection.execute(sa.select(REMOVALS.c.file_name)).scalars())


def forget_removals(unit: Unit, names: list[str]) -> None:
    """Note that files are gone."""
    unit.connection.execute(sa.delete(REMOVALS).where(REMOVALS.c.file_name.in_(names)))
