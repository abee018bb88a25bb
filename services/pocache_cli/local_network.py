"""A whole network on this machine: an embedded nats-server, the provisioner, and a process per service.

Used by ``pocache up``, ``pocache demo`` and the fault tests alike. Everything binds to loopback and ends with the
context.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.client import PocacheClient, open_client
from pocache.job import RefusedError
from pocache.protocol.errors import BusError, EnvelopeError, PocacheError
from pocache.runtime.network import NetworkDirectory
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope, parse_envelope, seal
from pocache.wire.topics import Role, Stream
from pocache_cli.bootstrap import (
    PROVISIONER,
    compute_operator,
    compute_users,
    load_parties,
    read_roles,
)
from pocache_cli.children import Child, pick_python_environment
from pocache_cli.deposit import publish_deposit
from pocache_cli.provision import plan_objects, provision_objects

SERVICE_MODULES: Final[Mapping[str, str]] = {
    "beacon": "pocache_beacon",
    "ledger": "pocache_ledger",
    "router": "pocache_router",
    "commitments": "pocache_commitments",
    "verifier": "pocache_verifier",
    "deadletters": "pocache.service.deadletters",
}
WORKER_MODULE: Final = "pocache_worker"
WITNESS_MODULE: Final = "pocache_cli.witness_process"
GATEWAY: Final = "gateway"
GATEWAY_MODULE: Final = "pocache_gateway"
READY_S: Final = 90.0
QUERY_S: Final = 10.0
TOTALS_S: Final = 600.0
"""How long a question for the totals waits: the ledger reads its whole journal for it, beside its other work."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One worker process: the identities that it serves with one engine, what they do, and how they cheat."""

    name: str
    identities: tuple[str, ...]
    roles: str = "generate,verify"
    cheats: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    jobs_max: int = 1


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """How one process of a network will be started; who runs the network may change it."""

    name: str
    module: str
    environ: Mapping[str, str]
    log_file: Path


OpenServer = Callable[[ServerSettings], AbstractAsyncContextManager[EmbeddedServer]]


class LocalNetwork:
    """A running network; made by :func:`run_network`."""

    def __init__(self, directory: NetworkDirectory, server: EmbeddedServer, operator: NatsBus) -> None:
        self.directory = directory
        self.server = server
        self.operator = operator
        self.children: dict[str, Child] = {}
        self._key = directory.signing_key(Role.OPERATOR.value)

    async def deposit(self, name: str, bucket: str, amount_micro: int, reference: str) -> None:
        """Credit a participant; the same reference twice is one deposit."""
        await publish_deposit(self.operator, self.directory, name, bucket, amount_micro, reference)

    async def query_totals(self, *, timeout_s: float = TOTALS_S) -> m.TotalsReplyV1:
        """Ask the ledger whether the money adds up.

        Raises RefusedError when too many ask at once or the ledger stops, BusError when it did not answer in time.
        """
        network, ledger = self.directory.genesis.network_id, self.directory.genesis.signer(Role.LEDGER)
        data = seal(self._key, network, m.TotalsQueryV1())
        answer = await self.operator.request(t.TOTALS_QUERY.subject(), data, timeout_s=timeout_s)
        if parse_envelope(answer).kind == m.RefusalV1.kind:
            refusal = open_envelope(answer, network, m.RefusalV1)
            if refusal.sender != ledger:
                raise EnvelopeError("the refusal is not signed by the ledger")
            raise RefusedError(refusal.body.code, refusal.body.reason)
        reply = open_envelope(answer, network, m.TotalsReplyV1)
        if reply.sender != ledger:
            raise EnvelopeError("the totals are not signed by the ledger")
        return reply.body

    async def query_balance(self, name: str) -> m.BalanceReplyV1:
        """Ask the ledger for a participant's balances."""
        participant = self.directory.signing_key(name).participant_id
        data = seal(self._key, self.directory.genesis.network_id, m.BalanceQueryV1(participant=participant))
        answer = await self.operator.request(
            t.BALANCE_QUERY.subject(participant=participant), data, timeout_s=QUERY_S
        )
        return open_envelope(answer, self.directory.genesis.network_id, m.BalanceReplyV1).body

    async def wait_members(self, names: Iterable[str]) -> None:
        """Wait until the latest snapshot holds these verifiers: an audit drawn before that would find none of them.

        Raises PocacheError naming who is missing after the time that a process may take to be ready.
        """
        wanted = {self.directory.signing_key(name).participant_id: name for name in names}
        topic, genesis = t.SNAPSHOT_TAKEN, self.directory.genesis
        async with self.operator.subscribe_core(topic.filter()) as heard:
            record = await self.operator.get_last(Stream.RECORD.value, topic.filter())
            data = None if record is None else record.data
            missing = set(wanted)
            try:
                async with asyncio.timeout(READY_S):
                    while missing:
                        data = data or (await anext(heard)).data
                        snapshot = open_envelope(data, genesis.network_id, topic.model)
                        if snapshot.sender == genesis.signer(topic.signer):
                            missing = wanted.keys() - {one.participant for one in snapshot.body.members}
                        data = None
            except TimeoutError:
                who = ", ".join(sorted(wanted[one] for one in missing))
                raise PocacheError(f"no snapshot of verifiers holds {who} after {READY_S:g} s") from None

    @asynccontextmanager
    async def open_user(self, name: str) -> AsyncIterator[PocacheClient]:
        """Connect as a user of this network."""
        async with _connect(self.directory, self.server.url, name) as bus:
            async with open_client(bus, self.directory.genesis, self.directory.signing_key(name)) as client:
                yield client


@asynccontextmanager
async def run_network(
    directory: NetworkDirectory,
    workers: Sequence[WorkerProcess],
    *,
    model: str,
    log_level: str = "info",
    port: int = 0,
    witnesses: Sequence[str] = (),
    gateway_port: int | None = None,
    say: Callable[[str], None] = lambda _text: None,
    open_server: OpenServer = EmbeddedServer,
    replicas: int = 1,
    adapt_child: Callable[[ChildPlan], ChildPlan] = lambda plan: plan,
) -> AsyncIterator[LocalNetwork]:
    """Start everything and wait until it is ready; stop it in order when the context ends.

    ``witnesses`` are those of the genesis that run here as well; with ``gateway_port`` a gateway listens there too.
    ``open_server`` starts the bus, ``replicas`` is how many of its servers keep each stream, and ``adapt_child`` sees
    each process before it is started: what disturbs a network on purpose stands in between by these.
    """
    parties = load_parties(directory)
    models = directory.load_models()
    async with AsyncExitStack() as stack:
        say("starting nats-server")
        users = compute_users(directory, parties, models)
        operator_config = compute_operator(directory, users)
        settings = ServerSettings(
            store_dir=directory.path / "nats", port=port, users=users, operator=operator_config
        )
        server = await stack.enter_async_context(open_server(settings))
        (directory.path / "nats.url").write_text(server.url + "\n", encoding="ascii")
        say("creating streams and consumers")
        async with _connect(directory, server.url, PROVISIONER) as provisioner:
            done = await provision_objects(provisioner, *plan_objects(directory, replicas=replicas))
        if done.drift:
            raise BusError("; ".join(done.drift))
        operator = await stack.enter_async_context(_connect(directory, server.url, Role.OPERATOR.value))
        network = LocalNetwork(directory, server, operator)
        stack.push_async_callback(_stop_children, network)
        plans = _plan_children(directory, server.url, workers, model, log_level, witnesses, gateway_port)
        for plan in map(adapt_child, plans):
            network.children[plan.name] = Child(plan.name, plan.module, plan.environ, plan.log_file)
        say(f"starting {len(network.children)} processes")
        await asyncio.gather(*(child.start() for child in network.children.values()))
        for child in network.children.values():
            await child.wait_ready(READY_S)
            say(f"{child.name} is ready")
        yield network


def _connect(directory: NetworkDirectory, url: str, name: str) -> AbstractAsyncContextManager[NatsBus]:
    return connect_bus(NatsSettings.of(directory, url, name))


def _plan_children(
    directory: NetworkDirectory,
    url: str,
    workers: Sequence[WorkerProcess],
    model: str,
    log_level: str,
    witnesses: Sequence[str],
    gateway_port: int | None,
) -> list[ChildPlan]:
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("POCACHE_BEACON_") or name == "POCACHE_TRACES"
    }
    common = {
        **pick_python_environment(),
        **passed_on,
        "POCACHE_NETWORK_DIR": str(directory.path),
        "POCACHE_NATS_URL": url,
        "POCACHE_LOG_LEVEL": log_level,
    }
    logs: Path = directory.path / "logs"
    children = [
        ChildPlan(name, module, {**common, "POCACHE_NAME": name}, logs / f"{name}.log")
        for service, module in SERVICE_MODULES.items()
        for name in _get_process_names(directory, service)
    ]
    children += [
        ChildPlan(name, WITNESS_MODULE, {**common, "POCACHE_NAME": name}, logs / f"{name}.log")
        for name in witnesses
    ]
    for worker in workers:
        environ = {
            **common,
            "POCACHE_NAME": worker.identities[0],
            "POCACHE_WORKER_IDENTITIES": ",".join(worker.identities),
            "POCACHE_WORKER_ROLES": worker.roles,
            "POCACHE_WORKER_MODEL": model,
            "POCACHE_WORKER_THREADS": str(worker.threads),
            "POCACHE_WORKER_JOBS_MAX": str(worker.jobs_max),
            "POCACHE_WORKER_DEVICE": "cpu",
            # One thread each: the processes share the machine's cores, not each other's.
            "OMP_NUM_THREADS": str(worker.threads),
        }
        if worker.cheats:
            environ["POCACHE_WORKER_CHEAT"] = ",".join(
                f"{name}:{cheat}" for name, cheat in worker.cheats.items()
            )
        children.append(ChildPlan(worker.name, WORKER_MODULE, environ, logs / f"{worker.name}.log"))
    if gateway_port is not None:
        told = {name: value for name, value in os.environ.items() if name.startswith("POCACHE_GATEWAY_")}
        environ = {
            **common,
            "POCACHE_GATEWAY_EXPLORER_TEXTS": "shown",  # one machine, one person: nobody's texts but their own
            **told,
            "POCACHE_NAME": GATEWAY,
            "POCACHE_GATEWAY_PORT": str(gateway_port),
        }
        children.append(ChildPlan(GATEWAY, GATEWAY_MODULE, environ, logs / f"{GATEWAY}.log"))
    return children


def _get_process_names(directory: NetworkDirectory, service: str) -> tuple[str, ...]:
    """Return the processes of a service: one of its name, but of a threshold beacon one for each member."""
    if service != Role.BEACON.value:
        return (service,)
    return tuple(name for name, role in read_roles(directory).items() if role is Role.BEACON)


async def _stop_children(network: LocalNetwork) -> None:
    results = await asyncio.gather(
        *(child.stop() for child in network.children.values()), return_exceptions=True
    )
    for name, result in zip(network.children, results, strict=True):
        if result not in (0, None, -9):
            structlog.get_logger().warning("child_ended", child=name, result=str(result))
