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

WITNESS = "watcher"
SETTLE_S = 60.0

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def network(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalNetwork]:
    async with start_network(tmp_path_factory.mktemp("network"), witnesses=(WITNESS,)) as running:
        yield running


async def call(network: LocalNetwork, *arguments: str) -> Result:
    """Run the command in a thread of its own, as its user would."""
    options = ["witness", *arguments, "--network-dir", str(network.directory.path), "--json"]
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
        assert json.loads(answer.stdout) == {"event": "cosigned", "size": 1, "before": 0}
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


async def test_whoever_is_no_witness_is_told_so(network: LocalNetwork) -> None:
    answer = await call(network, "ada")
    assert answer.exit_code == 2
    assert "no witness of this network" in answer.output
