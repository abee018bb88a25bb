"""A whole network of processes for a test: real nats-server, real services, the engine of the test's choice."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kit.wealth import wait_record
from pocache.client import Job, PocacheClient
from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.protocol.ids import JobId, ModelId
from pocache.protocol.lifecycle import Phase
from pocache.protocol.matching import MatchingProfile
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Stream, Topic
from pocache_cli.bootstrap import NetworkPlan, create_network, register_model
from pocache_cli.calibrate import build_engine, describe
from pocache_cli.local_network import LocalNetwork, WorkerProcess, run_network

USER = "ada"
GENERATORS = ("generator-1", "generator-2", "generator-3")
VERIFIERS = ("verifier-1", "verifier-2", "verifier-3")
FAKE_MODEL = "fake:kit"
MONEY_MICRO = 10_000_000_000

SECTIONS: Mapping[str, Mapping[str, Any]] = {
    "audit": {
        "lottery_share": "1/2",
        "full_depth_share": "1/2",
        "sample_count": 4,
        "bind_delay_ms": 200,
        "window_rounds": 3,
        "commitment_lag_rounds_max": 30,
    },
    "deadlines": {"queue_ticks": 90, "lease_ticks": 20, "seal_ticks": 20, "opening_ticks": 15},
}
"""Fast enough for a test, patient enough for a loaded machine."""


def honest_processes() -> tuple[WorkerProcess, ...]:
    """Return one process of generators and one of verifiers."""
    return (
        WorkerProcess("generators", GENERATORS, roles="generate"),
        WorkerProcess("verifiers", VERIFIERS, roles="verify"),
    )


@asynccontextmanager
async def start_network(
    folder: Path,
    *,
    model: str = FAKE_MODEL,
    workers: Sequence[WorkerProcess] | None = None,
    users: Sequence[str] = (USER,),
    sections: Mapping[str, Mapping[str, Any]] = SECTIONS,
    idle_workers: Sequence[str] = (),
    idle_models: Sequence[str] = (),
    idle_users: Sequence[str] = (),
    witnesses: Sequence[str] = (),
    idle_witnesses: Sequence[str] = (),
    money: Mapping[str, int] = MappingProxyType({}),
    encoding: str = "sketch",
    model_name: str = "test",
    options: Mapping[str, Any] = MappingProxyType({}),
    adjust: Callable[[MatchingProfile], MatchingProfile] = lambda profile: profile,
) -> AsyncIterator[LocalNetwork]:
    """Create, calibrate, start and fund a network; return when deposits are booked and verifiers may be drawn.

    ``idle_workers`` are identities with a stake that no process runs, ``idle_models`` entries that no process serves:
    what a test plays by hand; ``idle_users`` have keys and no account, ``idle_witnesses`` no process. ``money`` says
    what a name has where that is not ``MONEY_MICRO``; ``options`` go on to ``run_network``; ``adjust`` sees each profile before
    the operator signs it. Rules without a name are those of `unified-pool`.
    """
    processes = tuple(workers) if workers is not None else honest_processes()
    names = (*(name for process in processes for name in process.identities), *idle_workers)
    directory = create_network(
        folder,
        NetworkPlan(
            name="test",
            users=(*users, *idle_users),
            workers=names,
            is_demo=True,
            sections={**sections, "rules": {"name": "unified-pool", **sections.get("rules", {})}},
            period_s=1,
            witnesses=(*witnesses, *idle_witnesses),
        ),
    )
    for source in (model, *idle_models):
        engine = build_engine(source, encoding=encoding, device="cpu", threads=1)
        prompts = draw_prompts(engine.capabilities(), count=6)
        profile = await asyncio.to_thread(run_calibration, engine, engine, prompts, max_tokens=16)
        register_model(directory, describe(engine.capabilities(), adjust(profile), model_name))
    async with run_network(directory, processes, model=model, witnesses=witnesses, **options) as network:
        deposits = [(name, "available") for name in users] + [(name, "stake") for name in names]
        for name, bucket in deposits:
            await network.deposit(name, bucket, money.get(name, MONEY_MICRO), f"test/{name}")
        # The ledger books in the order of the record, and says so for stakes: after the last one all are booked.
        last = network.directory.signing_key(names[-1]).participant_id
        await wait_record(network, t.STAKE_POSTED, participant=last)
        verifying = [process for process in processes if "verify" in process.roles]
        await network.wait_members(name for process in verifying for name in process.identities)
        yield network


def get_model_id(network: LocalNetwork) -> ModelId:
    """Return the model of a network that has one."""
    return next(iter(network.directory.load_models()))


async def submit_jobs(
    client: PocacheClient, network: LocalNetwork, count: int, *, token_count_max: int = 8
) -> list[Job]:
    """Submit ``count`` jobs, each with a prompt of its own."""
    model_id = get_model_id(network)
    return [
        await client.submit(
            model_id, tuple(hashlib.sha256(bytes([index])).digest()[:6]), token_count_max=token_count_max
        )
        for index in range(count)
    ]


async def wait_settled(client: PocacheClient, jobs: Sequence[Job], timeout_s: float) -> None:
    """Wait until every job is settled or refunded; a TimeoutError names those that are not."""
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(client.wait(job, Phase.SETTLED, Phase.REFUNDED))
    except TimeoutError:
        open_jobs = {job.job_id.hex()[:8]: job.phase for job in jobs if not job.is_over}
        raise TimeoutError(f"not over after {timeout_s:g} s: {open_jobs}") from None


async def read_record(network: LocalNetwork, topic: Topic[Any]) -> list[WireModel]:
    """Return every message of a topic in the record."""
    network_id = network.directory.genesis.network_id
    return [
        open_envelope(record.data, network_id, topic.model).body
        async for record in network.operator.read(Stream.RECORD.value, subject=topic.filter())
    ]


async def verify_money(network: LocalNetwork, jobs: Sequence[Job]) -> None:
    """Assert that each job was paid out once, pools are empty, and no micro-unit was made or lost."""
    payouts = Counter(JobId(body.job_id) for body in await read_record(network, t.PAYOUT_SETTLED))  # type: ignore[attr-defined]
    assert {job.job_id: payouts[job.job_id] for job in jobs} == {job.job_id: 1 for job in jobs}
    totals = await network.query_totals()
    assert totals.journal_intact
    assert totals.held_micro == totals.deposited_micro
    assert (totals.closed_pools_micro, totals.open_pools_micro, totals.open_pool_count) == (0, 0, 0)
