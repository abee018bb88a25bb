"""`kill -9` of each process in turn while thirty jobs are in flight: everything settles, nothing is paid twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kit.local import USER, read_record, start_network, submit_jobs, verify_money, wait_settled
from pocache.client import Job, PocacheClient
from pocache.engine.demo_model import build_demo_model
from pocache.protocol.lifecycle import Phase
from pocache.wire import topics as t
from pocache_cli.local_network import READY_S, LocalNetwork

JOBS_IN_FLIGHT = 30
SETTLE_S = 150.0
PROCESSES = ("router", "commitments", "beacon", "verifier", "ledger", "generators", "verifiers")

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """One network on the engine without a model, for every process that is killed."""
    async with start_network(tmp_path_factory.mktemp("faults")) as running:
        yield running


async def wait_under_way(client: PocacheClient, jobs: list[Job]) -> None:
    """Wait until a third of the jobs have a commitment: the others are queued, leased or generating."""
    done = [asyncio.ensure_future(client.wait(job, Phase.COMMITTED)) for job in jobs]
    for count, one in enumerate(asyncio.as_completed(done), start=1):
        await one
        if count >= len(jobs) // 3:
            break
    for task in done:
        task.cancel()
    await asyncio.gather(*done, return_exceptions=True)


async def verify_nobody_slashed(network: LocalNetwork, jobs: list[Job]) -> None:
    """Assert that a crash cost no honest party its stake."""
    ours = {job.job_id for job in jobs}
    slashed = [
        body.slashed  # type: ignore[attr-defined]
        for body in await read_record(network, t.PAYOUT_SETTLED)
        if body.job_id in ours and body.slashed  # type: ignore[attr-defined]
    ]
    assert slashed == []


@pytest.mark.parametrize("name", PROCESSES)
async def test_killed_process(network: LocalNetwork, name: str) -> None:
    """Each of the services, and each kind of worker, dies at once and comes back."""
    async with network.open_user(USER) as client:
        jobs = await submit_jobs(client, network, JOBS_IN_FLIGHT)
        await wait_under_way(client, jobs)
        child = network.children[name]
        await child.kill()
        assert child.exit_code == -9
        await child.start()
        await child.wait_ready(READY_S)
        await wait_settled(client, jobs, SETTLE_S)
        await verify_money(network, jobs)
        await verify_nobody_slashed(network, jobs)


async def test_killed_nats_server(network: LocalNetwork) -> None:
    """The bus dies with everything in flight and comes back on the same files."""
    async with network.open_user(USER) as client:
        jobs = await submit_jobs(client, network, JOBS_IN_FLIGHT)
        await wait_under_way(client, jobs)
        await network.server.kill()
        await network.server.restart()
        await wait_settled(client, jobs, SETTLE_S)
        await verify_money(network, jobs)
        await verify_nobody_slashed(network, jobs)


async def test_killed_worker_with_a_real_model(tmp_path: Path) -> None:
    """The same with transformers: a killed worker generates again, or its lease passes to another."""
    model = build_demo_model(tmp_path / "model")
    async with start_network(tmp_path / "network", model=str(model)) as network:
        async with network.open_user(USER) as client:
            jobs = await submit_jobs(client, network, JOBS_IN_FLIGHT)
            await wait_under_way(client, jobs)
            await network.children["generators"].kill()
            await network.children["generators"].start()
            await wait_settled(client, jobs, SETTLE_S)
            await verify_money(network, jobs)
            await verify_nobody_slashed(network, jobs)
