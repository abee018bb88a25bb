"""Cheats on a running network: each is convicted by the row of the table that fits it, and nobody honest pays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from kit.local import MONEY_MICRO, SECTIONS, USER, start_network, submit_jobs, verify_money, wait_settled
from kit.wealth import (
    RULES,
    JobRecord,
    Wealth,
    compute_beta,
    compute_changes,
    read_jobs,
    read_wealth,
    verify_changes,
)
from pocache.client import Job, PocacheClient
from pocache.engine.demo_model import build_demo_model
from pocache.protocol.lifecycle import Phase
from pocache_cli.local_network import LocalNetwork, WorkerProcess

HONEST_GENERATORS = ("generator-1", "generator-2")
HONEST_VERIFIERS = ("verifier-1", "verifier-2", "verifier-3")
CHEATS = {
    "other": "another-model",
    "prompt": "swapped-prompt",
    "silent": "never-opens",
    "twice": "two-commitments",
}
CASES = {
    "other": "confirm_prior",
    "prompt": "confirm_prior",
    "silent": "no_opening",
    "twice": "equivocation",
}
LAZY = "lazy"
LAZY_STAKE_FACTOR = 7
"""So much more than an honest verifier has it staked that it is drawn first in most audits."""
COARSE = "coarse"
SETTLE_S = 90.0
BATCH = 10
BATCHES_MAX = 8

PATIENT = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "window_rounds": 6, "lottery_share": "1/4"},
    "deadlines": {**SECTIONS["deadlines"], "opening_ticks": 8},
    "rules": RULES,
}
"""A window in which a challenge arrives on a loaded machine; silence is waited out for eight rounds."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@dataclass(frozen=True)
class Played:
    """What was done on a network, and what its record says."""

    jobs: Sequence[Job]
    records: Sequence[JobRecord]
    names: Mapping[str, str]
    before: Mapping[str, Wealth]
    after: Mapping[str, Wealth]

    def by(self, name: str) -> list[JobRecord]:
        """Return the jobs that ``name`` generated."""
        return [record for record in self.records if self.names[record.generator] == name]

    def slashed(self, record: JobRecord) -> set[str]:
        """Return the names of those who were slashed in a job."""
        return {self.names[one] for one in record.payout.slashed}


async def play(
    network: LocalNetwork, names: Sequence[str], cheats: set[str], wanted: set[str], batch_size: int = BATCH
) -> Played:
    """Submit jobs, and challenge those of ``cheats``, until everyone in ``wanted`` was slashed."""
    by_id: dict[str, str] = {
        network.directory.signing_key(name).participant_id: name for name in (*names, USER)
    }
    cheating = {one for one, name in by_id.items() if name in cheats}
    before = await read_wealth(network, (*names, USER))
    jobs: list[Job] = []
    async with network.open_user(USER) as client:
        for _ in range(BATCHES_MAX):
            batch = await submit_jobs(client, network, batch_size)
            await asyncio.gather(*(_challenge(client, job, cheating) for job in batch))
            await wait_settled(client, batch, SETTLE_S)
            jobs += batch
            records = await read_jobs(network, jobs)
            slashed = {by_id[one] for record in records for one in record.payout.slashed}
            honest = {by_id[record.generator] for record in records} - cheats
            if wanted <= slashed and honest:
                break
        await verify_money(network, jobs)
    return Played(jobs, records, by_id, before, await read_wealth(network, (*names, USER)))


async def _challenge(client: PocacheClient, job: Job, cheating: set[str]) -> None:
    """Challenge a job when it is one of the cheats that committed to it."""
    await client.wait(job, Phase.COMMITTED)
    assert job.holder is not None
    if job.holder[1] in cheating:
        await client.challenge(job)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """Two honest generators and four that cheat; three honest verifiers and one that seals garbage."""
    workers = (
        WorkerProcess("generators", HONEST_GENERATORS, roles="generate"),
        WorkerProcess("cheats", tuple(CHEATS), roles="generate", cheats=CHEATS),
        WorkerProcess(
            "verifiers", (*HONEST_VERIFIERS, LAZY), roles="verify", cheats={LAZY: "garbage-claims"}
        ),
    )
    names = tuple(name for worker in workers for name in worker.identities)
    folder = tmp_path_factory.mktemp("cheats")
    money = {LAZY: LAZY_STAKE_FACTOR * MONEY_MICRO}
    async with start_network(folder, workers=workers, sections=PATIENT, money=money) as network:
        yield await play(network, names, set(CHEATS), {*CHEATS, LAZY})


@pytest.mark.parametrize("name", CHEATS)
async def test_every_challenged_cheat_loses_its_stake_to_the_row_that_fits(played: Played, name: str) -> None:
    """Rows that do not match, silence, contradiction: each job of the cheat, without exception."""
    records = played.by(name)
    assert records
    for record in records:
        assert name in played.slashed(record)
        assert record.case == CASES[name]
        [line] = [one for one in record.payout.lines if one.account == record.generator]
        assert (line.amount_micro, line.held_micro) == (0, compute_beta(record.cg))
    lost = played.before[records[0].generator] - played.after[records[0].generator]
    assert lost == Wealth(stake=sum(compute_beta(record.cg) for record in records))


async def test_a_verifier_that_seals_garbage_loses_every_comparison(played: Played) -> None:
    """It is slashed wherever it opened and another verifier decided; it never decides itself."""
    [lazy] = [one for one, name in played.names.items() if name == LAZY]
    lost = []
    for record in played.records:
        if record.outcome is None or record.case in ("no_opening", "equivocation"):
            continue
        assert lazy not in (record.outcome.deciding, record.outcome.prior)
        if lazy in {one.participant for one in record.outcome.verifiers}:
            assert LAZY in played.slashed(record)
            lost.append(compute_beta(record.cv))
    assert lost
    gained = compute_changes(record for record in played.records if record.case == "no_opening")
    expected = gained.get(lazy, Wealth()) + Wealth(stake=-sum(lost))
    assert played.after[lazy] - played.before[lazy] == expected


async def test_no_honest_party_is_slashed_and_honest_generators_are_paid(played: Played) -> None:
    """Not even where the garbage verifier was drawn first against them."""
    dishonest = {*CHEATS, LAZY}
    for record in played.records:
        assert played.slashed(record) <= dishonest
    for name in HONEST_GENERATORS:
        for record in played.by(name):
            assert record.case in ("no_challenge", "agree", "confirm_generator")
    assert any(played.by(name) for name in HONEST_GENERATORS)


async def test_every_balance_is_that_of_table_1_to_the_last_micro_unit(played: Played) -> None:
    """Users, generators, verifiers, treasury: what all the jobs together must have changed."""
    verify_changes(played.before, played.after, compute_changes(played.records))


async def test_a_quantised_model_is_convicted_by_real_numbers(tmp_path: Path) -> None:
    """transformers on both sides: int4 weights against a threshold that honest runs measured."""
    model = build_demo_model(tmp_path / "model")
    workers = (
        WorkerProcess("generators", ("generator-1", COARSE), roles="generate", cheats={COARSE: "int4"}),
        WorkerProcess("verifiers", ("verifier-1", "verifier-2"), roles="verify"),
    )
    names = tuple(name for worker in workers for name in worker.identities)
    async with start_network(
        tmp_path / "network", model=str(model), workers=workers, sections=PATIENT
    ) as network:
        played = await play(network, names, {COARSE}, {COARSE}, batch_size=5)
    convicted, honest = played.by(COARSE), played.by("generator-1")
    assert convicted
    assert honest
    assert {record.case for record in convicted} == {"confirm_prior"}
    assert {record.case for record in honest} <= {"no_challenge", "agree"}
    for record in played.records:
        assert played.slashed(record) == ({COARSE} if record in convicted else set())
        for comparison in record.outcome.comparisons if record.outcome is not None else ():
            is_cheat = record in convicted and record.generator in (comparison.left, comparison.right)
            assert comparison.verdict == ("mismatch" if is_cheat else "match")
            assert comparison.row_count > 0
    verify_changes(played.before, played.after, compute_changes(played.records))
