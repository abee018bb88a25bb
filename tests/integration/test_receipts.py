"""Receipts over the real bus: the SDK fetches them, the commands verify, explain and audit them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kit.local import start_network, submit_jobs, wait_settled
from pocache.client import Job, RefusedError
from pocache.protocol.errors import NotAuthorizedError, NotYetError
from pocache.protocol.lifecycle import Phase
from pocache.receipt.trust import load_trust
from pocache.receipt.verify import verify_receipt
from pocache_cli.local_network import LocalNetwork

USERS = ("ada", "grace")
SETTLE_S = 90.0

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """An honest network with two users."""
    async with start_network(tmp_path_factory.mktemp("receipts"), users=USERS) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def jobs(network: LocalNetwork) -> list[Job]:
    """Jobs of ada that are over, the first of them challenged."""
    async with network.open_user("ada") as client:
        jobs = await submit_jobs(client, network, 3)
        await client.wait(jobs[0], Phase.COMMITTED)
        await client.challenge(jobs[0])
        await wait_settled(client, jobs, SETTLE_S)
        for job in jobs:
            await fetch(network, job)
    return jobs


async def fetch(network: LocalNetwork, job: Job, user: str = "ada") -> bytes:
    """Return a receipt, asking again until the store has heard of the payout as well."""
    async with asyncio.timeout(SETTLE_S), network.open_user(user) as client:
        while True:
            try:
                return await client.get_receipt(job.job_id)
            except RefusedError as error:
                if error.refusal_code != NotYetError.code:
                    raise
                await asyncio.sleep(0.1)


async def call(network: LocalNetwork, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "pocache_cli", *arguments, "--network-dir", str(network.directory.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


async def test_the_user_gets_receipts_that_hold_by_the_networks_own_trust_file(
    network: LocalNetwork, jobs: list[Job]
) -> None:
    trust = load_trust(network.directory.path / "trust.json")
    for job in jobs:
        report = verify_receipt(await fetch(network, job), trust)
        assert report.failure is None
        assert report.job_id == job.job_id


async def test_nobody_else_gets_them(network: LocalNetwork, jobs: list[Job]) -> None:
    with pytest.raises(RefusedError) as refused:
        await fetch(network, jobs[0], "grace")
    assert refused.value.refusal_code == NotAuthorizedError.code


async def test_the_commands_fetch_verify_and_explain(
    network: LocalNetwork, jobs: list[Job], tmp_path: Path
) -> None:
    file = tmp_path / "receipt.json"
    job_id = jobs[0].job_id.hex()
    done = await call(network, "receipt", job_id, "--out", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] == file.stat().st_size
    done = await call(network, "verify", str(file), "--json")
    assert (done.returncode, json.loads(done.stdout)["case"]) == (0, "agree"), done.stdout
    done = await call(network, "explain", job_id)
    assert done.returncode == 0, done.stderr
    assert "ada asked" in done.stdout
    assert "Its user challenged it" in done.stdout
    refused = await call(network, "receipt", job_id, "--as", "grace")
    assert refused.returncode == 1
    assert "E209" in refused.stderr
    assert (await call(network, "receipt", "00" * 32)).returncode == 1


async def test_the_operator_audits_the_record_from_the_bus_and_from_its_export(
    network: LocalNetwork, jobs: list[Job], tmp_path: Path
) -> None:
    file = tmp_path / "record.jsonl.gz"
    done = await call(network, "audit", "--export", str(file), "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["sound"], answer["first"]) == (0, True, None), done.stderr
    assert answer["jobs"] >= len(jobs)
    done = await call(network, "audit", "--from", str(file), "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, answer)
