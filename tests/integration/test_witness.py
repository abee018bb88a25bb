"""``pocache witness`` over a real bus: it cosigns what grew, the receipt shows it, and a fork ends it with evidence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from kit.local import start_network, submit_jobs, wait_settled
from pocache.protocol.checkpoint import sign_checkpoint
from pocache.protocol.ids import Digest
from pocache.receipt.format import decode_receipt
from pocache.receipt.trust import TrustRoots, make_trust
from pocache.receipt.verify import verify_receipt
from pocache.wire.topics import Role
from pocache_cli.local_network import LocalNetwork
from pocache_cli.main import main

WITNESS, RUNNING = "watcher", "running-watcher"
SETTLE_S = 60.0

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    """Two witnesses: one is called by hand, the other runs as a process of its own."""
    folder = tmp_path_factory.mktemp("network")
    async with start_network(folder, witnesses=(RUNNING,), idle_witnesses=(WITNESS,)) as running:
        yield running


async def call(network: LocalNetwork, *arguments: str, command: str = "witness") -> Result:
    """Run the command in a thread of its own, as its user would."""
    options = [command, *arguments, "--network-dir", str(network.directory.path), "--json"]
    env = {"POCACHE_NATS_URL": network.server.url}
    return await asyncio.to_thread(CliRunner().invoke, main, options, env=env)


async def test_a_witness_cosigns_growth_and_refuses_a_fork(network: LocalNetwork) -> None:
    genesis = network.directory.genesis
    state = network.directory.path / "witness" / f"{WITNESS}.note"
    async with network.open_user("ada") as client:
        (job,) = await submit_jobs(client, network, 1)
        await wait_settled(client, [job], SETTLE_S)
        await client.wait_payout(job)
        answer = await call(network, WITNESS)
        assert answer.exit_code == 0, answer.output
        said = json.loads(answer.stdout)
        assert (said["event"], said["size"] >= 1, said["before"]) == ("cosigned", True, 0)
        async with asyncio.timeout(SETTLE_S):
            # The store takes the line in its own time.
            while True:
                receipt = await client.get_receipt(job)
                log = decode_receipt(receipt).log
                if log is not None and log.cosigned:
                    break
                await asyncio.sleep(0.1)
    trust = make_trust(genesis).model_dump() | {"witnesses": list(genesis.witnesses), "witness_quorum": 1}
    assert verify_receipt(receipt, TrustRoots.model_validate(trust)).is_valid
    seen = state.read_bytes()
    # A memory of another log of that size, signed by this one: what a witness has who was shown a fork.
    key = network.directory.signing_key(Role.COMMITMENTS.value)
    state.write_bytes(sign_checkpoint(genesis.network_id, 1, Digest(bytes(32)), key))
    answer = await call(network, WITNESS)
    assert answer.exit_code == 1, answer.output
    evidence = json.loads(Path(f"{state}.fork.json").read_text())
    assert evidence["shown"] == seen.decode()
    assert evidence["seen"] == state.read_text()
    state.write_bytes(seen)


async def test_the_audit_holds_the_log_against_what_witnesses_kept(
    network: LocalNetwork, tmp_path: Path
) -> None:
    """A witness that runs beside the network keeps a note; a fork that was shown to anybody is found, and where."""
    async with network.open_user("ada") as client:
        (job,) = await submit_jobs(client, network, 1)
        await wait_settled(client, [job], SETTLE_S)
    kept = network.directory.path / "witness" / f"{RUNNING}.note"
    async with asyncio.timeout(SETTLE_S):
        while not kept.exists():
            await asyncio.sleep(0.1)
    done = await call(network, command="audit")
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["sound"], answer["witnessed"] >= 1) == (0, True, True), done.output
    key = network.directory.signing_key(Role.COMMITMENTS.value)
    fork = tmp_path / "fork.note"
    fork.write_bytes(sign_checkpoint(network.directory.genesis.network_id, 1, Digest(bytes(32)), key))
    done = await call(network, "--witnessed", str(fork), command="audit")
    first = json.loads(done.stdout)["first"]
    assert (done.exit_code, first["step"], first["stated"]) == (1, "A2", "00" * 32)
    fork.write_bytes(b"no note")
    assert (await call(network, "--witnessed", str(fork), command="audit")).exit_code == 2


async def test_whoever_is_no_witness_is_told_so(network: LocalNetwork) -> None:
    answer = await call(network, "ada")
    assert answer.exit_code == 2
    assert "no witness of this network" in answer.output
