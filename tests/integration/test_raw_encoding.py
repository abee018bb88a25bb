"""The paper's own encoding, whole vectors instead of sketches, from calibration to payout on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.local import USER, read_record, start_network, submit_jobs, verify_money, wait_settled
from pocache.engine.demo_model import build_demo_model
from pocache.protocol.lifecycle import Phase
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_cli.local_network import WorkerProcess

pytestmark = pytest.mark.timeout(240)


async def test_raw_vectors_convict_a_cheat_and_pay_the_honest(tmp_path: Path) -> None:
    """An honest job agrees, a quantised one is convicted, both at full depth over raw rows."""
    model = build_demo_model(tmp_path / "model")
    workers = (
        WorkerProcess("honest", ("generator-1",), roles="generate"),
        WorkerProcess("cheat", ("generator-2",), roles="generate", cheats={"generator-2": "int4"}),
        WorkerProcess("verifiers", ("verifier-1", "verifier-2", "verifier-3"), roles="verify"),
    )
    async with (
        start_network(tmp_path / "network", model=str(model), workers=workers, encoding="raw") as network,
        network.open_user(USER) as client,
    ):
        cheat = network.directory.signing_key("generator-2").participant_id
        jobs = await submit_jobs(client, network, 6)
        for job in jobs:
            await client.wait(job, Phase.COMMITTED)
            await client.challenge(job)
        await wait_settled(client, jobs, 120.0)
        await verify_money(network, jobs)
        outcomes = [body for body in await read_record(network, t.OUTCOME_DECIDED) if isinstance(body, m.OutcomeV1)]
        payouts = [body for body in await read_record(network, t.PAYOUT_SETTLED) if isinstance(body, m.PayoutSettledV1)]
        assert {body.case for body in outcomes} == {"agree", "confirm_prior"}
        assert {party for payout in payouts for party in payout.slashed} == {cheat}
