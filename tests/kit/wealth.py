"""Who has how much on a running network, and what Table 1 says that a job must have changed.

The table is written out here once more, from DESIGN.md section 5 alone, so that a settlement is never compared with
itself: α = 6/5, β = 5, and the prices that every network of the tests has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pocache.client import Job
from pocache.protocol.encoding import unpack_tokens
from pocache.runtime.network import Genesis
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Stream, Topic
from pocache_cli.local_network import LocalNetwork

M = TypeVar("M", bound=WireModel)

RULES: Final = {"name": "unified-pool", "alpha": "6/5", "beta": "5", "stage_max": 5, "lease_fee_micro": 1_000}
PROMPT_MICRO, OUTPUT_MICRO, VERIFY_MICRO = 1_000, 10_000, 1_000
TREASURY: Final = "treasury"
WAIT_S: Final = 60.0


def compute_alpha(cost_micro: int) -> int:
    """Return ⌊6/5 · cost⌋."""
    return cost_micro * 6 // 5


def compute_beta(cost_micro: int) -> int:
    """Return 5 · cost."""
    return cost_micro * 5


@dataclass(frozen=True, slots=True)
class Wealth:
    """One party's money, in micro-units."""

    available: int = 0
    stake: int = 0
    locked: int = 0

    def __sub__(self, other: Wealth) -> Wealth:
        return Wealth(self.available - other.available, self.stake - other.stake, self.locked - other.locked)

    def __add__(self, other: Wealth) -> Wealth:
        return Wealth(self.available + other.available, self.stake + other.stake, self.locked + other.locked)


@dataclass(frozen=True)
class JobRecord:
    """What the record says about one job that was settled."""

    user: str
    generator: str
    cg: int
    cv_full: int
    cv: int
    payout: m.PayoutSettledV1
    outcome: m.OutcomeV1 | None = None
    audit: m.AuditOpenedV1 | None = None

    @property
    def case(self) -> str:
        """The row of the table."""
        return self.payout.case


@dataclass
class Changes:
    """Earnings and losses by participant id."""

    by_party: dict[str, Wealth] = field(default_factory=dict)

    def add(self, party: str, *, available: int = 0, stake: int = 0) -> None:
        """Note that a party's money changed."""
        self.by_party[party] = self.by_party.get(party, Wealth()) + Wealth(available, stake)


async def read_wealth(network: LocalNetwork, names: Iterable[str]) -> dict[str, Wealth]:
    """Return what each of these has, and the treasury."""
    found = {}
    for name in names:
        reply = await network.query_balance(name)
        found[reply.participant] = Wealth(reply.available_micro, reply.stake_micro, reply.locked_micro)
    totals = await network.query_totals()
    assert totals.held_micro == totals.deposited_micro
    found[TREASURY] = Wealth(totals.treasury_micro)
    return found


async def wait_record(network: LocalNetwork, topic: Topic[M], **tokens: str | bytes) -> M:
    """Return the last message of a stream on a subject, waiting for it where there is none."""
    assert topic.stream is not None
    subject = topic.filter(**tokens)
    async with network.operator.subscribe_core(subject) as heard:
        record = await network.operator.get_last(topic.stream.value, subject)
        if record is not None:
            data = record.data
        else:
            async with asyncio.timeout(WAIT_S):
                data = (await anext(heard)).data
    opened = open_envelope(data, network.directory.genesis.network_id, topic.model)
    assert opened.sender == network.directory.genesis.signer(topic.signer)
    return opened.body


async def read_topic(network: LocalNetwork, topic: Topic[M]) -> list[M]:
    """Return every message of a topic in the record, each signed by its service."""
    genesis = network.directory.genesis
    found = []
    async for record in network.operator.read(Stream.RECORD.value, subject=topic.filter()):
        opened = open_envelope(record.data, genesis.network_id, topic.model)
        assert opened.sender == genesis.signer(topic.signer)
        found.append(opened.body)
    return found


async def read_jobs(network: LocalNetwork, jobs: Sequence[Job]) -> list[JobRecord]:
    """Return what the record says about these jobs, each committed and settled exactly once."""
    genesis = network.directory.genesis
    ids = {bytes(job.job_id) for job in jobs}
    recorded = {body.job_id: body for body in await read_topic(network, t.COMMITMENT_RECORDED)}
    outcomes = _index(await read_topic(network, t.OUTCOME_DECIDED), ids)
    payouts = _index(await read_topic(network, t.PAYOUT_SETTLED), ids)
    audits = _index(await read_topic(network, t.AUDIT_OPENED), ids)
    layer_count = next(iter(network.directory.load_models().values())).entry.layer_count
    found = []
    for job in jobs:
        commitment = recorded[job.job_id]
        result = _open_result(genesis, commitment)
        outcome = outcomes.get(job.job_id)
        full = VERIFY_MICRO * result.leaf_count
        found.append(
            JobRecord(
                user=_open_lease(genesis, result).user,
                generator=commitment.generator,
                cg=PROMPT_MICRO * len(job.prompt) + OUTPUT_MICRO * len(unpack_tokens(result.output)),
                cv_full=full,
                cv=full if outcome is None else _compute_corner_cost(outcome.corner, layer_count),
                payout=payouts[job.job_id],
                outcome=outcome,
                audit=audits.get(job.job_id),
            )
        )
    return found


def compute_changes(jobs: Iterable[JobRecord]) -> dict[str, Wealth]:
    """Return what these jobs must have changed for each party, by Table 1 and nothing else."""
    changes = Changes()
    for job in jobs:
        _RULES[job.case](changes, job)
    return changes.by_party


def verify_changes(
    before: Mapping[str, Wealth], after: Mapping[str, Wealth], expected: Mapping[str, Wealth]
) -> None:
    """Assert that every party's money changed by exactly what is expected, and nothing is locked."""
    found = {party: after[party] - wealth for party, wealth in before.items()}
    assert found == {party: expected.get(party, Wealth()) for party in before}
    assert set(expected) <= set(before), "somebody outside was paid"
    assert sum(wealth.available + wealth.stake for wealth in found.values()) == 0


def _no_challenge(changes: Changes, job: JobRecord) -> None:
    changes.add(job.generator, available=compute_alpha(job.cg))
    changes.add(job.user, available=-compute_alpha(job.cg))


def _for_generator(changes: Changes, job: JobRecord) -> None:
    """Pay for stage 1 and for stage k alike: the deciding verifier gets αCv and the stakes of those who lost."""
    assert job.outcome is not None
    losers = [one.participant for one in job.outcome.verifiers if one.participant != job.outcome.deciding]
    assert job.outcome.deciding is not None
    changes.add(job.generator, available=compute_alpha(job.cg))
    changes.add(job.outcome.deciding, available=compute_alpha(job.cv) + len(losers) * compute_beta(job.cv))
    changes.add(job.user, available=-compute_alpha(job.cg) - compute_alpha(job.cv))
    for loser in losers:
        changes.add(loser, stake=-compute_beta(job.cv))


def _for_prior(changes: Changes, job: JobRecord) -> None:
    """Pay Vj αCv; Vk gets βCg and the stakes of k−2 losers, and pays that αCv."""
    assert job.outcome is not None
    deciding, prior = job.outcome.deciding, job.outcome.prior
    assert deciding is not None
    assert prior is not None
    losers = [one.participant for one in job.outcome.verifiers if one.participant not in (deciding, prior)]
    changes.add(job.generator, stake=-compute_beta(job.cg))
    changes.add(prior, available=compute_alpha(job.cv))
    won = compute_beta(job.cg) + len(losers) * compute_beta(job.cv) - compute_alpha(job.cv)
    changes.add(deciding, available=won)
    for loser in losers:
        changes.add(loser, stake=-compute_beta(job.cv))


def _for_openers(changes: Changes, job: JobRecord) -> None:
    """Share βCg, and what silent verifiers staked, among those who opened; the remainder goes to the first."""
    assert job.outcome is not None
    openers = [one.participant for one in job.outcome.verifiers if one.opened]
    silent = [one.participant for one in job.outcome.verifiers if not one.opened]
    lost = compute_beta(job.cg) + len(silent) * compute_beta(job.cv)
    share, remainder = divmod(lost, len(openers))
    changes.add(job.generator, stake=-compute_beta(job.cg))
    for number, opener in enumerate(openers):
        changes.add(opener, available=share + (remainder if number == 0 else 0))
    for one in silent:
        changes.add(one, stake=-compute_beta(job.cv))


def _equivocation(changes: Changes, job: JobRecord) -> None:
    changes.add(job.generator, stake=-compute_beta(job.cg))
    changes.add(TREASURY, available=compute_beta(job.cg))


_RULES: Final = {
    "no_challenge": _no_challenge,
    "agree": _for_generator,
    "confirm_generator": _for_generator,
    "confirm_prior": _for_prior,
    "no_opening": _for_openers,
    "equivocation": _equivocation,
}


def _index(bodies: Iterable[M], ids: set[bytes]) -> dict[bytes, M]:
    """Return messages by job; none of these jobs may have two."""
    found: dict[bytes, M] = {}
    for body in bodies:
        job_id: bytes = body.job_id  # type: ignore[attr-defined]
        assert job_id not in found or job_id not in ids, f"two {body.kind} for one job"
        found[job_id] = body
    return found


def _compute_corner_cost(corner: m.CornerV1, layer_count: int) -> int:
    return VERIFY_MICRO * (corner.position_max + 1) * (corner.layer_max + 1) // layer_count


def _open_result(genesis: Genesis, commitment: m.CommitmentRecordedV1) -> m.ResultV1:
    return open_envelope(commitment.result, genesis.network_id, m.ResultV1).body


def _open_lease(genesis: Genesis, result: m.ResultV1) -> m.LeaseV1:
    return open_envelope(result.lease, genesis.network_id, m.LeaseV1).body
