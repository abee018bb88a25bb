"""A whole network under faults: processes, their relays, their clocks and disks, and what is done to them in waves.

A wave submits jobs and injects its faults while they run; then everything is healed, all of its jobs must end, and the
invariants of ``chaos.invariants`` must hold before the next wave begins. Processes that end are started again, as
``pocache up`` or a cluster would do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from chaos.child import write_clock
from chaos.cluster import Cluster, get_stream_leader
from chaos.disks import Disk, mount_small
from chaos.faults import USERS, Fault, Kind
from chaos.proxy import Address, Proxy
from kit.local import SECTIONS, get_model_id, start_network, wait_settled
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer
from pocache.client import Job, PocacheClient, open_client
from pocache.protocol.errors import PocacheError
from pocache.protocol.lifecycle import Phase
from pocache.wire.topics import Stream
from pocache_cli.bootstrap import PROVISIONER
from pocache_cli.local_network import ChildPlan, LocalNetwork
from pocache_cli.supervision import Supervised, SupervisedServer, Supervisor

USER_NAMES: Final = ("ada", "grace")
SETTLE_S: Final = 150.0
READY_S: Final = 90.0
RESTART_S: Final = 0.2
LEDGER_DISK_BYTES: Final = 96 << 20
BUS_DISK_BYTES: Final = 512 << 20
CHALLENGED_SHARE: Final = 0.2
TESTS: Final = Path(__file__).parents[1]


PATIENT: Final[Mapping[str, Mapping[str, Any]]] = {
    **SECTIONS,
    "deadlines": {"queue_ticks": 180, "lease_ticks": 30, "seal_ticks": 60, "opening_ticks": 60},
}
"""Longer than any fault lasts: who does not open in time is convicted of silence, whatever kept it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run consists of."""

    seed: int
    faults: Sequence[Fault]
    waves: int
    jobs_per_wave: int
    wave_s: float = 6.0
    """Over how long a wave's jobs are submitted and its faults begin."""
    is_cluster: bool = False
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PATIENT)


class ChaosNetwork:
    """A running network and the handles by which it is disturbed."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan = plan
        self.folder = folder
        self.draw = random.Random(f"pocache chaos traffic {plan.seed}")
        self.proxies: dict[str, Proxy] = {}
        self.network: LocalNetwork
        self.provisioner: NatsBus
        self.clients: list[PocacheClient] = []
        self.bus_disk: Disk
        self.ledger_disk: Disk
        self.injected: list[Fault] = []
        self._paused: set[int] = set()
        self._server: EmbeddedServer | None = None

    @property
    def servers(self) -> list[EmbeddedServer]:
        """The bus's servers."""
        server = self.network.server
        return list(server.nodes) if isinstance(server, Cluster) else [server]

    def get_pids(self) -> dict[str, int]:
        """Return the process ids of what is running, by name."""
        children = {name: child.pid for name, child in self.network.children.items()}
        servers = {f"nats-server-{number}": one.pid for number, one in enumerate(self.servers)}
        return {name: pid for name, pid in {**children, **servers}.items() if pid is not None}

    # building

    def adapt(self, plan: ChildPlan) -> ChildPlan:
        """Put a relay before a process, and a clock into it."""
        clock = self.folder / f"{plan.name}.clock"
        write_clock(clock, 0.0)
        proxy = self.add_proxy(plan.name)
        environ = {
            **plan.environ,
            "POCACHE_NATS_URL": proxy.url,
            "CHAOS_MODULE": plan.module,
            "CHAOS_CLOCK": str(clock),
            "PYTHONPATH": os.pathsep.join([str(TESTS), plan.environ.get("PYTHONPATH", "")]),
        }
        if plan.name == "ledger":
            environ["POCACHE_STATE_DIR"] = str(self.folder / "ledger")
        return replace(plan, module="chaos.child", environ=environ)

    def add_proxy(self, name: str) -> Proxy:
        """Make a relay to whatever server is up."""
        proxy = Proxy(self._find_servers, random.Random(f"{self.plan.seed} {name}"))
        self.proxies[name] = proxy
        asyncio.get_running_loop().create_task(proxy.serve())
        return proxy

    def open_server(self, settings: Any) -> EmbeddedServer:
        """Make the bus of this run."""
        self._server = Cluster(settings) if self.plan.is_cluster else EmbeddedServer(settings)
        return self._server

    def _find_servers(self) -> list[Address]:
        server = self._server
        if server is None:
            return []
        if isinstance(server, Cluster):
            return server.get_addresses()
        host, _, port = server.url.removeprefix("nats://").rpartition(":")
        return [(host, int(port))]

    # faults

    async def inject(self, fault: Fault) -> None:
        """Do it, wait as long as it lasts, heal it."""
        self.injected.append(fault)
        await _ACTIONS[fault.kind](self, fault)

    async def _kill(self, fault: Fault) -> None:
        pid = self.network.children[fault.target].pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    async def _pause(self, fault: Fault) -> None:
        await self._stop_for(self.network.children[fault.target].pid, fault.for_s)

    async def _stop_for(self, pid: int | None, for_s: float) -> None:
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        self._paused.add(pid)
        try:
            await asyncio.sleep(for_s)
        finally:
            self._paused.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _cut(self, fault: Fault) -> None:
        self.proxies[fault.target].cut()

    async def _partition(self, fault: Fault) -> None:
        await self._switch(self.proxies[fault.target].refuse, fault.for_s)

    async def _stall(self, fault: Fault) -> None:
        await self._switch(self.proxies[fault.target].stall, fault.for_s)

    async def _scramble(self, fault: Fault) -> None:
        proxy = self.proxies[fault.target]
        await self._switch(lambda is_on: setattr(proxy, "is_scrambling", is_on), fault.for_s)

    async def _skew(self, fault: Fault) -> None:
        clock = self.folder / f"{fault.target}.clock"
        await self._switch(lambda is_on: write_clock(clock, fault.amount if is_on else 0.0), fault.for_s)

    @staticmethod
    async def _switch(switch: Callable[[bool], None], for_s: float) -> None:
        switch(True)
        try:
            await asyncio.sleep(for_s)
        finally:
            switch(False)

    async def _bus_kill(self, fault: Fault) -> None:
        pid = (await self._find_leader()).pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    async def _bus_pause(self, fault: Fault) -> None:
        await self._stop_for((await self._find_leader()).pid, fault.for_s)

    async def _find_leader(self) -> EmbeddedServer:
        server = self.network.server
        if not isinstance(server, Cluster):
            return server
        name = await get_stream_leader(self.provisioner.client.jetstream(), Stream.RECORD.value)
        return next((node for node in server.nodes if node.name == name), server.nodes[0])

    async def _beacon_outage(self, fault: Fault) -> None:
        await self._stop_for(self.network.children["beacon"].pid, fault.for_s)

    async def _ledger_disk(self, fault: Fault) -> None:
        child = self.network.children["ledger"]
        self.ledger_disk.fill(child.pid)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.ledger_disk.clear(child.pid)

    async def _bus_disk(self, fault: Fault) -> None:
        """Fill the bus's disk, make room, and start the server again, as its runbook says."""
        server = self.servers[0]
        self.bus_disk.fill(server.pid)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.bus_disk.clear(server.pid)
            if server.pid is not None:
                os.kill(server.pid, signal.SIGKILL)

    def heal(self) -> None:
        """Undo whatever is still disturbed."""
        for pid in list(self._paused):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for name, proxy in self.proxies.items():
            proxy.is_refusing = proxy.is_scrambling = False
            proxy.stall(False)
            clock = self.folder / f"{name}.clock"
            if clock.exists():
                write_clock(clock, 0.0)

    # traffic

    async def run_wave(self, number: int) -> list[Job]:
        """Submit a wave's jobs while its faults happen; return the jobs once all are over."""
        faults = [fault for fault in self.plan.faults if fault.wave == number]
        started_s = time.monotonic()

        async def disturb(fault: Fault) -> None:
            await asyncio.sleep(max(0.0, fault.at * self.plan.wave_s - (time.monotonic() - started_s)))
            await self.inject(fault)

        tasks = [asyncio.ensure_future(disturb(fault)) for fault in faults]
        try:
            jobs = await self._submit_jobs(number)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.heal()
        by_client: dict[int, list[Job]] = {}
        for index, job in jobs:
            by_client.setdefault(index, []).append(job)
        await asyncio.gather(
            *(wait_settled(self.clients[index], group, SETTLE_S) for index, group in by_client.items())
        )
        return [job for _, job in jobs]

    async def _submit_jobs(self, number: int) -> list[tuple[int, Job]]:
        count = self.plan.jobs_per_wave
        model_id = get_model_id(self.network)
        challenges: set[asyncio.Task[None]] = set()
        jobs: list[tuple[int, Job]] = []

        async def submit(index: int, prompt: tuple[int, ...], tokens: int) -> Job:
            return await self.clients[index].submit(model_id, prompt, token_count_max=tokens)

        pending: list[tuple[int, asyncio.Task[Job]]] = []
        for _ in range(count):
            index = self.draw.randrange(len(self.clients))
            prompt = tuple(self.draw.randrange(250) for _ in range(self.draw.randint(2, 12)))
            tokens = self.draw.randint(2, 24)
            is_challenged = self.draw.random() < CHALLENGED_SHARE
            task = asyncio.ensure_future(submit(index, prompt, tokens))
            pending.append((index, task))
            if is_challenged:
                challenge = asyncio.ensure_future(self._challenge(index, task))
                challenges.add(challenge)
                challenge.add_done_callback(challenges.discard)
            await asyncio.sleep(self.plan.wave_s / count)
        for index, task in pending:
            jobs.append((index, await task))
        await asyncio.gather(*challenges)
        return jobs

    async def _challenge(self, index: int, submitted: asyncio.Task[Job]) -> None:
        """Challenge a job as soon as it is committed, if that comes in time and the bus is there."""
        with contextlib.suppress(PocacheError, TimeoutError):
            job = await asyncio.shield(submitted)  # what became of it is told by whoever submitted it
            async with asyncio.timeout(SETTLE_S):
                await self.clients[index].wait(job, Phase.COMMITTED)
                if not job.is_over:
                    await self.clients[index].challenge(job)


_ACTIONS: Final = {
    Kind.KILL: ChaosNetwork._kill,
    Kind.PAUSE: ChaosNetwork._pause,
    Kind.CUT: ChaosNetwork._cut,
    Kind.PARTITION: ChaosNetwork._partition,
    Kind.STALL: ChaosNetwork._stall,
    Kind.SCRAMBLE: ChaosNetwork._scramble,
    Kind.SKEW: ChaosNetwork._skew,
    Kind.BUS_KILL: ChaosNetwork._bus_kill,
    Kind.BUS_PAUSE: ChaosNetwork._bus_pause,
    Kind.BEACON_OUTAGE: ChaosNetwork._beacon_outage,
    Kind.LEDGER_DISK: ChaosNetwork._ledger_disk,
    Kind.BUS_DISK: ChaosNetwork._bus_disk,
}


@asynccontextmanager
async def run_chaos_network(
    folder: Path, plan: Plan, *, say: Callable[[str], None] = lambda _text: None
) -> AsyncIterator[ChaosNetwork]:
    """Start a network that can be disturbed, supervised, with users connected; end it with the context."""
    chaos = ChaosNetwork(folder, plan)
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        chaos.bus_disk = stack.enter_context(mount_small(folder / "network" / "nats", BUS_DISK_BYTES))
        chaos.ledger_disk = stack.enter_context(mount_small(folder / "ledger", LEDGER_DISK_BYTES))
        stack.push_async_callback(_close_proxies, chaos)
        chaos.network = await stack.enter_async_context(
            start_network(
                folder / "network",
                users=USER_NAMES,
                sections=plan.sections,
                options={
                    "open_server": chaos.open_server,
                    "replicas": 3 if plan.is_cluster else 1,
                    "adapt_child": chaos.adapt,
                },
            )
        )
        stack.callback(chaos.heal)
        provisioner = NatsSettings.of(chaos.network.directory, chaos.network.server.url, PROVISIONER)
        chaos.provisioner = await stack.enter_async_context(connect_bus(provisioner))
        await stack.enter_async_context(_supervise(chaos, say))
        users = chaos.add_proxy(USERS)
        for name in USER_NAMES:
            chaos.clients.append(await stack.enter_async_context(_open_user(chaos, users, name)))
        yield chaos


@asynccontextmanager
async def _open_user(chaos: ChaosNetwork, proxy: Proxy, name: str) -> AsyncIterator[PocacheClient]:
    directory = chaos.network.directory
    settings = NatsSettings.of(directory, proxy.url, name)
    async with (
        connect_bus(settings) as bus,
        open_client(bus, directory.genesis, directory.signing_key(name)) as client,
    ):
        yield client


@asynccontextmanager
async def _supervise(chaos: ChaosNetwork, say: Callable[[str], None]) -> AsyncIterator[None]:
    supervised: list[Supervised] = [
        SupervisedServer(server, f"nats-server-{number}") for number, server in enumerate(chaos.servers)
    ]
    supervised += chaos.network.children.values()

    async def pause(_pause_s: float) -> None:
        await asyncio.sleep(RESTART_S)  # who is killed on purpose fails often, and not more slowly each time

    stop = asyncio.Event()
    supervisor = Supervisor(supervised, say=say, ready_s=READY_S, pause=pause)
    running = asyncio.ensure_future(supervisor.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running


async def _close_proxies(chaos: ChaosNetwork) -> None:
    for proxy in chaos.proxies.values():
        await proxy.close()
