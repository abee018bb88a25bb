"""More than the network takes: the sender is told at once, what was accepted is done, and room is made again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kit.local import (
    SECTIONS,
    USER,
    get_model_id,
    start_network,
    submit_jobs,
    verify_money,
    wait_settled,
)
from kit.wealth import RULES, read_topic
from pocache.client import Job, PocacheClient, RefusedError
from pocache.protocol.errors import BackpressureError
from pocache.protocol.lifecycle import Phase
from pocache.wire import topics as t
from pocache_cli.local_network import READY_S, LocalNetwork

SUBMISSIONS_MAX = 10
OPEN_JOBS_MAX = 14
SETTLE_S = 60.0
BOUNDS = {"submissions_max": SUBMISSIONS_MAX, "open_jobs_max": OPEN_JOBS_MAX}

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """A network with room for a few jobs."""
    sections = {**SECTIONS, "bounds": BOUNDS, "rules": RULES}
    async with start_network(tmp_path_factory.mktemp("overload"), sections=sections) as running:
        yield running


async def submit_one(client: PocacheClient, network: LocalNetwork, number: int) -> Job:
    """Submit one more job."""
    return await client.submit(get_model_id(network), (number, 2, 3), token_count_max=4)


async def test_a_full_queue_refuses_the_sender_and_keeps_what_it_took(network: LocalNetwork) -> None:
    """With the router dead: as many as the bound are stored, the next fails; they settle once it is back."""
    admitted = {body.job_id for body in await read_topic(network, t.JOB_ADMITTED)}
    router = network.children["router"]
    async with network.open_user(USER) as client:
        await router.kill()
        jobs = await submit_jobs(client, network, SUBMISSIONS_MAX)
        for number in range(3):
            with pytest.raises(BackpressureError, match="try again later"):
                await submit_one(client, network, number)
        await router.start()
        await router.wait_ready(READY_S)
        await wait_settled(client, jobs, SETTLE_S)
        assert {job.phase for job in jobs} == {Phase.SETTLED.value}
        again = await submit_one(client, network, 9)
        await wait_settled(client, [again], SETTLE_S)
        accepted = {job.job_id for job in (*jobs, again)}
        assert {body.job_id for body in await read_topic(network, t.JOB_ADMITTED)} - admitted == accepted
        await verify_money(network, [*jobs, again])


async def test_too_many_open_jobs_are_refused_by_name_and_the_open_ones_go_on(network: LocalNetwork) -> None:
    """With the ledger dead no deposit is held, so jobs stay open: the one beyond the bound gets E205."""
    ledger = network.children["ledger"]
    async with network.open_user(USER) as client:
        await ledger.kill()
        jobs: list[Job] = []
        for number in range(OPEN_JOBS_MAX):
            jobs.append(await submit_one(client, network, number))
            await client.wait(jobs[-1], Phase.ESCROWING)
        one_too_many = await submit_one(client, network, OPEN_JOBS_MAX)
        with pytest.raises(RefusedError) as refused:
            await client.wait(one_too_many, Phase.ESCROWING)
        assert refused.value.refusal_code == BackpressureError.code
        assert str(OPEN_JOBS_MAX) in refused.value.reason
        await ledger.start()
        await ledger.wait_ready(READY_S)
        await wait_settled(client, jobs, SETTLE_S)
        assert {job.phase for job in jobs} == {Phase.SETTLED.value}
        jobs.append(await submit_one(client, network, OPEN_JOBS_MAX))
        await wait_settled(client, jobs[-1:], SETTLE_S)
        await verify_money(network, jobs)
