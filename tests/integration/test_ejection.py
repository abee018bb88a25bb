"""A cheat that no audit convicts, on a running network: several together eject it, and a killed pool changes nothing of that."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio

from kit.local import MONEY_MICRO, SECTIONS, USER, read_record, start_network, submit_jobs, wait_settled
from kit.wealth import read_topic, wait_record
from pocache.client import Job
from pocache.protocol.errors import EjectedError
from pocache.protocol.matching import ONE_Q16, MatchingProfile
from pocache.protocol.matching_limits import TokenLimits
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Stream
from pocache_cli.local_network import LocalNetwork, WorkerProcess

HONEST, EDITOR = "generator-1", "editor"
VERIFIERS = ("verifier-1", "verifier-2")
EJECTING: Mapping[str, Mapping[str, Any]] = {
    **SECTIONS,
    # All of a job is opened: the token that is not the model's is among it.
    "audit": {**SECTIONS["audit"], "lottery_share": "1/1", "full_depth_share": "1/1", "sample_count": 16},
    "ejection": {"bond_share": "1/4"},
}
BATCH, BATCHES_MAX = 4, 12
TOKENS = 2
"""The cheat edits the second: with the engine that has no weights, every token after an edited one would be wrong as well."""
SETTLE_S, READY_S = 90.0, 60.0

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


def tolerate_a_token(profile: MatchingProfile) -> MatchingProfile:
    """As of a model whose honest tokens miss one time in 4,096, some by far: one in a job convicts nobody."""
    tokens = TokenLimits(64, 1 << 20, 1 << 20, 64 * ONE_Q16, 64 * ONE_Q16)
    return replace(profile, limits=replace(profile.limits, tokens=tokens))


@dataclass(frozen=True)
class Played:
    """The network after an ejection, and the jobs until then and since."""

    network: LocalNetwork
    before: Sequence[Job]
    after: Sequence[Job]
    editor: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """The pool is killed as soon as the record has three outcomes of the cheat, and again after the next."""
    workers = (
        WorkerProcess("generators", (HONEST, EDITOR), roles="generate", cheats={EDITOR: "edited-output"}),
        WorkerProcess("verifiers", VERIFIERS, roles="verify"),
    )
    folder = tmp_path_factory.mktemp("ejection")
    async with start_network(folder, workers=workers, sections=EJECTING, adjust=tolerate_a_token) as network:
        editor = network.directory.signing_key(EDITOR).participant_id
        before: list[Job] = []
        async with network.open_user(USER) as client:
            killing = asyncio.create_task(kill_pool(network, editor))
            for _ in range(BATCHES_MAX):
                before += await submit_jobs(client, network, BATCH, token_count_max=TOKENS)
                await wait_settled(client, before[-BATCH:], SETTLE_S)
                if await read_record(network, t.WORKER_EJECTED):
                    break
            await killing
            await wait_record(network, t.BOND_TAKEN, participant=editor)
            after: list[Job] = []
            for _ in range(BATCHES_MAX):
                after += await submit_jobs(client, network, BATCH, token_count_max=TOKENS)
                await wait_settled(client, after[-BATCH:], SETTLE_S)
                if await read_denials(network, editor):
                    break
        yield Played(network, before, after, editor)


async def kill_pool(network: LocalNetwork, editor: str) -> None:
    """Kill the pool at the outcomes that matter, and start it again."""
    pool = network.children["verifier"]
    for wanted in (3, 4):
        async with asyncio.timeout(2 * SETTLE_S):
            while len(await read_outcomes(network, editor)) < wanted:
                await asyncio.sleep(0.05)
        await pool.kill()
        await pool.start()
        await pool.wait_ready(READY_S)


async def read_outcomes(network: LocalNetwork, generator: str) -> list[m.OutcomeV1]:
    """Return the outcomes of the jobs that somebody generated, in the record's order."""
    theirs = {
        one.job_id for one in await read_topic(network, t.COMMITMENT_RECORDED) if one.generator == generator
    }
    return [one for one in await read_topic(network, t.OUTCOME_DECIDED) if one.job_id in theirs]


async def read_denials(network: LocalNetwork, worker: str) -> list[m.LeaseDeniedV1]:
    """Return the leases that somebody was denied for having been ejected, in the record's order."""
    genesis = network.directory.genesis
    found = []
    async for record in network.operator.read(
        Stream.RECORD.value, subject=t.LEASE_DENIED.filter(worker=worker)
    ):
        body = open_envelope(record.data, genesis.network_id, m.LeaseDeniedV1).body
        found += [body] if body.code == EjectedError.code else []
    return found


async def call(network: LocalNetwork, *arguments: str) -> Any:
    """Return what a command says as JSON, from a process of its own."""
    done = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable,
            "-m",
            "pocache_cli",
            *arguments,
            "--json",
            "--network-dir",
            str(network.directory.path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


async def test_no_audit_convicted_it_and_it_was_ejected_once(played: Played) -> None:
    outcomes = await read_outcomes(played.network, played.editor)
    assert {one.case for one in outcomes} == {"agree"}
    (ejection,) = await read_topic(played.network, t.WORKER_EJECTED)
    assert ejection.participant == played.editor
    assert ejection.job_count == 4
    assert ejection.job_id == outcomes[3].job_id


async def test_a_quarter_of_its_stake_is_the_treasurys_and_all_money_is_there(played: Played) -> None:
    (bond,) = await read_topic(played.network, t.BOND_TAKEN)
    assert (bond.stake_micro, bond.taken_micro, bond.open_micro) == (MONEY_MICRO, MONEY_MICRO // 4, 0)
    totals = await played.network.query_totals()
    assert totals.journal_intact
    assert totals.held_micro == totals.deposited_micro
    assert totals.treasury_micro == MONEY_MICRO // 4
    balance = await played.network.query_balance(EDITOR)
    assert balance.stake_micro + balance.locked_micro == MONEY_MICRO - MONEY_MICRO // 4
    honest = await played.network.query_balance(HONEST)
    assert honest.stake_micro + honest.locked_micro == MONEY_MICRO


async def test_it_was_leased_nothing_more(played: Played) -> None:
    """It asked, was denied with the reason, and others did those jobs."""
    denied, *_ = await read_denials(played.network, played.editor)
    assert "ejected from the model" in denied.reason
    recorded = {one.job_id: one.generator for one in await read_topic(played.network, t.COMMITMENT_RECORDED)}
    honest = played.network.directory.signing_key(HONEST).participant_id
    assert recorded[denied.job_id] == honest, "the attempt was offered again"
    assert {recorded[one.job_id] for one in played.after[-BATCH:]} == {honest}


async def test_the_audit_of_the_record_is_sound_and_counts_it(played: Played) -> None:
    answer = await call(played.network, "audit")
    assert (answer["sound"], answer["first"], answer["ejections"]) == (True, None, 1)


async def test_operators_see_who_and_why(played: Played) -> None:
    found = await call(played.network, "workers", EDITOR)
    (ejected,) = found["ejected"]
    assert (ejected["job_count"], ejected["taken_micro"]) == (4, MONEY_MICRO // 4)
    picture = await call(played.network, "top", "--once")
    assert picture["ejections"] == 1
    assert [one["name"] for one in picture["workers"] if one["is_ejected"]] == [EDITOR]
