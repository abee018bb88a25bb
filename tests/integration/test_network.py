"""An honest network from submission to payout: what is streamed, committed, audited, paid, and how it stops."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kit.health import find_health_port, get_status
from kit.local import GENERATORS, SECTIONS, VERIFIERS, start_network, submit_jobs, verify_money, wait_settled
from kit.wealth import (
    RULES,
    compute_alpha,
    compute_changes,
    read_jobs,
    read_wealth,
    verify_changes,
)
from pocache.client import Job, PocacheClient
from pocache.protocol.errors import ExpiredError
from pocache.protocol.lifecycle import Phase
from pocache_cli.local_network import READY_S, LocalNetwork

USERS = ("ada", "grace")
EVERYBODY = (*USERS, *GENERATORS, *VERIFIERS)
SETTLE_S = 60.0
BATCHES_MAX = 12
STATEFUL = ("router", "commitments", "verifier", "ledger")

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """Three generators, three verifiers, two users; every second job is drawn by the lottery."""
    folder = tmp_path_factory.mktemp("network")
    async with start_network(folder, users=USERS, sections={**SECTIONS, "rules": RULES}) as running:
        yield running


async def collect(client: PocacheClient, job: Job) -> tuple[int, ...]:
    """Return every token that the client's stream yields."""
    return tuple([token async for piece in client.stream(job) for token in piece.tokens])


async def test_what_is_streamed_is_what_is_committed_and_each_step_is_told(network: LocalNetwork) -> None:
    """The user hears the tokens from the generator itself, and the phases in their order."""
    async with network.open_user("ada") as client:
        [job] = await submit_jobs(client, network, 1, token_count_max=24)
        streamed, events = await asyncio.gather(collect(client, job), _collect_phases(client, job))
        assert job.result is not None
        assert job.holder is not None
        assert streamed == job.output
        assert 1 <= len(streamed) <= 24
        # Not from the result: the generator's own signed chunks, whole, under their running hash.
        assert job.streams[job.holder].tokens == job.result.output
        expected = [Phase.ESCROWING, Phase.QUEUED, Phase.GENERATING, Phase.COMMITTED, Phase.SETTLED]
        assert events == [phase.value for phase in expected]
        payout = await client.wait_payout(job)
        assert payout.job_id == job.job_id
        assert payout.pool_micro == sum(line.amount_micro for line in payout.lines)


async def test_unchallenged_jobs_are_paid_by_table_1_and_the_lottery_audits_some(
    network: LocalNetwork,
) -> None:
    """Until both a job without an audit and one that the lottery drew were settled: all balances exact."""
    before = await read_wealth(network, EVERYBODY)
    jobs: list[Job] = []
    async with network.open_user("ada") as ada, network.open_user("grace") as grace:
        for _ in range(BATCHES_MAX):
            batch = [*await submit_jobs(ada, network, 3), *await submit_jobs(grace, network, 3)]
            await wait_settled(ada, batch[:3], SETTLE_S)
            await wait_settled(grace, batch[3:], SETTLE_S)
            jobs += batch
            records = await read_jobs(network, jobs)
            if {record.case for record in records} == {"no_challenge", "agree"}:
                break
    assert {record.case for record in records} == {"no_challenge", "agree"}
    verify_changes(before, await read_wealth(network, EVERYBODY), compute_changes(records))
    await verify_money(network, jobs)
    for record in records:
        assert record.payout.slashed == ()
        assert (record.audit is not None) == (record.case == "agree")
        if record.audit is not None:
            assert record.audit.reason == "lottery"
            assert record.outcome is not None
            assert record.outcome.comparisons[0].verdict == "match"
            assert record.outcome.comparisons[0].row_count > 0
            assert record.cv <= record.cv_full


async def test_a_challenged_job_is_audited_in_full_and_the_user_pays_the_verifier(
    network: LocalNetwork,
) -> None:
    """α(Cg+Cv) leaves the user: αCg to the generator, αCv to the one verifier."""
    before = await read_wealth(network, EVERYBODY)
    async with network.open_user("ada") as client:
        [job] = await submit_jobs(client, network, 1)
        await client.wait(job, Phase.COMMITTED)
        await client.challenge(job)
        await wait_settled(client, [job], SETTLE_S)
        [record] = await read_jobs(network, [job])
        assert record.case == "agree"
        assert record.audit is not None
        assert record.outcome is not None
        assert record.outcome.corner.full_depth
        assert record.cv == record.cv_full
        after = await read_wealth(network, EVERYBODY)
        verify_changes(before, after, compute_changes([record]))
        paid = compute_alpha(record.cg) + compute_alpha(record.cv_full)
        assert before[client.user].available - after[client.user].available == paid


async def test_a_challenge_after_the_end_is_refused_to_its_sender(network: LocalNetwork) -> None:
    """The client is told why, by its code, and nothing changes hands."""
    async with network.open_user("ada") as client:
        [job] = await submit_jobs(client, network, 1)
        await wait_settled(client, [job], SETTLE_S)
        before = await read_wealth(network, EVERYBODY)
        await client.challenge(job)
        async with asyncio.timeout(SETTLE_S), job.changed:
            await job.changed.wait_for(lambda: job.challenge_refusal is not None)
        assert job.challenge_refusal is not None
        assert job.challenge_refusal.refusal_code == ExpiredError.code
        assert "decided" in job.challenge_refusal.reason
    assert await read_wealth(network, EVERYBODY) == before


async def call(network: LocalNetwork, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a command in a process of its own; return its exit code and what it printed."""
    done = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable,
            "-m",
            "pocache_cli",
            *arguments,
            "--network-dir",
            str(network.directory.path),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_money_leaves_once_by_command_and_the_statement_says_so(network: LocalNetwork) -> None:
    """Available money at once, stake after it has unbonded; the same nonce for another amount, or too much, is refused."""
    before = await read_wealth(network, ("ada", "generator-1"))
    ada, generator = (network.directory.signing_key(name).participant_id for name in ("ada", "generator-1"))
    nonce = secrets.token_hex(16)
    code, accepted = await call(network, "withdraw", "ada", "700", "--nonce", nonce)
    assert (code, accepted["participant"], accepted["nonce"]) == (0, ada, nonce)
    assert await call(network, "withdraw", "ada", "700", "--nonce", nonce) == (0, accepted)
    code, refused = await call(network, "withdraw", "ada", "701", "--nonce", nonce)
    assert (code, refused["code"]) == (1, "E208")
    code, refused = await call(network, "withdraw", "ada", str(2**62))
    assert (code, refused["code"]) == (1, "E204")
    code, unbonding = await call(network, "withdraw", "generator-1", "900", "--bucket", "stake")
    assert (code, unbonding["matures_tick"] > accepted["matures_tick"]) == (0, True)
    after = await read_wealth(network, ("ada", "generator-1"))
    assert before[ada].available - after[ada].available == 700
    assert before[generator].stake - after[generator].stake == 900
    code, balances = await call(network, "balance", "generator-1")
    assert (code, balances["balances"][0]["unbonding_micro"]) == (0, 900)
    code, told = await call(network, "statement", "ada", "--after", str(accepted["entry"] - 1))
    assert code == 0
    assert (told["lines"][0]["operation"], told["lines"][0]["amount_micro"]) == ("withdrawal", -700)
    assert [line["amount_micro"] for line in told["lines"]].count(-700) == 1


@pytest.mark.parametrize("name", STATEFUL)
async def test_a_draining_service_is_not_ready_finishes_what_it_has_and_leaves(
    network: LocalNetwork, name: str
) -> None:
    """SIGTERM: 503 while the work in hand lasts, then the port is closed and the exit code is 0."""
    child = network.children[name]
    port = find_health_port(network, name)
    assert await get_status(port, "/readyz") == 200
    async with network.open_user("ada") as client:
        jobs = await submit_jobs(client, network, 3)
        # Whoever holds the database's lock holds the service at its work.
        database = sqlite3.connect(
            network.directory.path / "state" / f"{name}.sqlite", isolation_level=None, timeout=10
        )
        try:
            database.execute("BEGIN IMMEDIATE")
            stopping = asyncio.ensure_future(child.stop())
            async with asyncio.timeout(SETTLE_S):
                while await get_status(port, "/readyz") == 200:
                    assert not stopping.done()
            assert await get_status(port, "/readyz") == 503
            assert await get_status(port, "/livez") == 200
        finally:
            database.rollback()
            database.close()
        assert await stopping == 0
        with pytest.raises(OSError, match="Connect call failed"):
            await get_status(port, "/readyz")
        await child.start()
        await child.wait_ready(READY_S)
        await wait_settled(client, jobs, SETTLE_S)
        await verify_money(network, jobs)


async def test_every_process_drains_with_jobs_in_flight_and_nothing_is_lost(network: LocalNetwork) -> None:
    """One after the other, each ends with 0 and comes back; all jobs settle, nobody loses a stake."""
    before = await read_wealth(network, EVERYBODY)
    async with network.open_user("ada") as client:
        jobs = await submit_jobs(client, network, 12)
        for name in ("generators", "verifiers", "beacon"):
            assert await network.children[name].stop() == 0, name
            await network.children[name].start()
            await network.children[name].wait_ready(READY_S)
        await wait_settled(client, jobs, SETTLE_S)
        await verify_money(network, jobs)
        records = await read_jobs(network, jobs)
    assert {record.payout.slashed for record in records} == {()}
    verify_changes(before, await read_wealth(network, EVERYBODY), compute_changes(records))


async def _collect_phases(client: PocacheClient, job: Job) -> list[str]:
    phases = [event.phase async for event in client.events(job)]
    return [phase for phase in phases if phase != Phase.LOCKING.value]
