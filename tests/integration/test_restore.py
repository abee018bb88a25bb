"""A rolling restart under load loses nothing; a network that is backed up, lost, and restored goes on."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from chaos.invariants import run_audit
from kit.local import USER, read_record, start_network, submit_jobs, verify_money, wait_settled
from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.client import Job, PocacheClient, open_client
from pocache.storage.backup import copy_database
from pocache.wire import topics as t
from pocache_cli.local_network import READY_S, LocalNetwork

ROLLING = ("ledger", "router", "commitments", "verifier")
"""The workers' and the beacon's turn is in test_network."""
SETTLE_S = 120.0
LOAD = 12


async def drain(network: LocalNetwork) -> None:
    """Stop every process in order; each ends with 0, its outbox empty."""
    codes = await asyncio.gather(*(child.stop() for child in network.children.values()))
    assert set(codes) == {0}, dict(zip(network.children, codes, strict=True))


async def start(network: LocalNetwork) -> None:
    """Start every process."""
    for child in network.children.values():
        await child.start()
    for child in network.children.values():
        await child.wait_ready(READY_S)


def back_up(network: LocalNetwork, target: Path) -> None:
    """Copy databases, leaves and streams, as docs/operations.md has it."""
    state = network.directory.path / "state"
    (target / "state").mkdir(parents=True)
    for file in sorted(state.glob("*.sqlite")):
        copy_database(file, target / "state" / file.name)
    if (state / "leaves").exists():
        shutil.copytree(state / "leaves", target / "state" / "leaves")
    shutil.copytree(network.directory.path / "nats", target / "nats")


def restore(network: LocalNetwork, source: Path) -> None:
    """Lose everything but the keys, and put back what was copied."""
    for name in ("state", "nats"):
        shutil.rmtree(network.directory.path / name)
        shutil.copytree(source / name, network.directory.path / name)


async def verify_all(network: LocalNetwork, client: PocacheClient, jobs: list[Job]) -> None:
    """All over, each paid out once, nobody slashed, money conserved."""
    await wait_settled(client, jobs, SETTLE_S)
    await verify_money(network, jobs)
    payouts = await read_record(network, t.PAYOUT_SETTLED)
    assert [body.slashed for body in payouts if body.slashed] == []  # type: ignore[attr-defined]


async def follow_again(network: LocalNetwork, jobs: list[Job]) -> None:
    """Wait with a client of a later day for jobs that another one submitted."""
    directory = network.directory
    settings = NatsSettings.of(directory, network.server.url, USER)
    async with (
        connect_bus(settings) as bus,
        open_client(bus, directory.genesis, directory.signing_key(USER)) as client,
    ):
        later = [Job(job.job_id, job.submission, job.message_hash) for job in jobs]
        for job in later:
            client._jobs[job.job_id] = job
        await verify_all(network, client, later)


@pytest.mark.timeout(400)
async def test_a_network_is_restarted_under_load_then_lost_and_restored(tmp_path: Path) -> None:
    """Jobs are in flight at each restart and at the backup; after the restore they end, and new ones do."""
    async with start_network(tmp_path / "network") as network, network.open_user(USER) as client:
        jobs: list[Job] = []
        for name in ROLLING:
            jobs += await submit_jobs(client, network, LOAD // 4)
            assert await network.children[name].stop() == 0, name
            await network.children[name].start()
            await network.children[name].wait_ready(READY_S)
        await verify_all(network, client, jobs)

        in_flight = await submit_jobs(client, network, LOAD)
        await drain(network)
        await network.server.stop()
        back_up(network, tmp_path / "backup")
        restore(network, tmp_path / "backup")
        await network.server.start()
        await start(network)
        await follow_again(network, in_flight)
        await verify_all(network, client, await submit_jobs(client, network, LOAD // 2))
        audited = await run_audit(network.directory.path)
        assert audited["jobs"] == len(jobs) + LOAD + LOAD // 2
