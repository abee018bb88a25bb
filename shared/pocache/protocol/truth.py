"""What each verifier is paid for the truth, and what a job locks up, in numbers (docs/economics.md 6.4, 6.5).

Owns which outcome follows when one verifier lies and everybody else is honest. Every amount is the settlement of that
outcome by the rules themselves, less the stake that went in; no payout is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from pocache.protocol.committee_terms import AUDIT_SEAT, COMMITTEE_SEAT, RECHECK_SEAT
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import MICRO_MAX
from pocache.protocol.payoff_terms import Case, JobEnding, VerifierStanding

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pocache.protocol.committee import FixedFeeCommittee
    from pocache.protocol.payoff_terms import RuleSet
    from pocache.protocol.unified_pool import UnifiedPool


@dataclass(frozen=True, slots=True)
class TruthRow:
    """One verifier in one situation: what it nets by the truth, by a lie, and the difference, in micro-units."""

    verifier: str
    generator: str
    lie: str
    truth_micro: Fraction
    lie_micro: Fraction

    @property
    def incentive_micro(self) -> Fraction:
        """What the truth is worth; negative where lying pays."""
        return self.truth_micro - self.lie_micro


def compute_committee_truth(rules: FixedFeeCommittee, cg: int, cv: int) -> tuple[TruthRow, ...]:
    """Return every verifier's incentive under `fixed-fee-committee`, all others being honest.

    A verifier that says match to a cheat is found out by a recheck only: its lie is worth the fee with 1−q_r and costs
    its stake with q_r.
    """
    committee = range(COMMITTEE_SEAT, COMMITTEE_SEAT + rules.committee_size)
    member, others = committee[0], committee[1:]
    q_r = rules.recheck.value

    def net(
        seat: int, case: Case, upheld: Collection[int], wrong: Collection[int], finder: int | None = None
    ) -> int:
        return _compute_net(rules, cg, cv, seat, case, upheld, wrong, finder)

    agrees = net(AUDIT_SEAT, Case.AGREE, [AUDIT_SEAT], [])
    caught = net(AUDIT_SEAT, Case.CONVICTION, [RECHECK_SEAT, *committee], [AUDIT_SEAT], RECHECK_SEAT)
    rows = [
        TruthRow(
            "audit",
            "honest",
            "mismatch",
            Fraction(agrees),
            Fraction(net(AUDIT_SEAT, Case.ACQUITTAL, committee, [AUDIT_SEAT])),
        ),
        TruthRow(
            "audit",
            "cheats",
            "match",
            Fraction(net(AUDIT_SEAT, Case.CONVICTION, [AUDIT_SEAT, *committee], [], AUDIT_SEAT)),
            (1 - q_r) * agrees + q_r * caught,
        ),
        TruthRow(
            "recheck",
            "honest",
            "mismatch",
            Fraction(net(RECHECK_SEAT, Case.AGREE, [AUDIT_SEAT, RECHECK_SEAT], [])),
            Fraction(net(RECHECK_SEAT, Case.ACQUITTAL, [AUDIT_SEAT, *committee], [RECHECK_SEAT])),
        ),
        TruthRow(
            "recheck",
            "cheats",
            "match",
            Fraction(
                net(RECHECK_SEAT, Case.CONVICTION, [RECHECK_SEAT, *committee], [AUDIT_SEAT], RECHECK_SEAT)
            ),
            Fraction(net(RECHECK_SEAT, Case.AGREE, [AUDIT_SEAT, RECHECK_SEAT], [])),
        ),
        TruthRow(
            "member",
            "honest",
            "mismatch",
            Fraction(net(member, Case.ACQUITTAL, committee, [AUDIT_SEAT])),
            Fraction(net(member, Case.ACQUITTAL, others, [AUDIT_SEAT, member])),
        ),
        TruthRow(
            "member",
            "cheats",
            "match",
            Fraction(net(member, Case.CONVICTION, [AUDIT_SEAT, *committee], [], AUDIT_SEAT)),
            Fraction(net(member, Case.CONVICTION, [AUDIT_SEAT, *others], [member], AUDIT_SEAT)),
        ),
    ]
    return tuple(rows)


def compute_unified_truth(rules: UnifiedPool, cg: int, cv: int) -> tuple[TruthRow, ...]:
    """Return every verifier's incentive under `unified-pool`: the first one's, and the deciding one's at every k.

    The first verifier lies alone. The deciding verifier of stage k judges between the generator and V1, who lied if the
    generator is honest; those between V1 and Vk matched nobody.
    """

    def net(seat: int, case: Case, k: int) -> Fraction:
        return Fraction(_compute_unified_net(rules, cg, cv, seat, case, k))

    if rules.stage_max == 1:
        return (TruthRow("V1", "honest", "mismatch", net(1, Case.AGREE, 1), net(1, Case.VOID, 1)),)
    rows = [
        TruthRow("V1", "honest", "mismatch", net(1, Case.AGREE, 1), net(1, Case.CONFIRM_GENERATOR, 2)),
        TruthRow("V1", "cheats", "match", net(1, Case.CONFIRM_PRIOR, 2), net(1, Case.AGREE, 1)),
    ]
    for k in range(2, rules.stage_max + 1):
        acquits, convicts = net(k, Case.CONFIRM_GENERATOR, k), net(k, Case.CONFIRM_PRIOR, k)
        rows.append(TruthRow(f"V{k}", "honest", "convicts with V1", acquits, convicts))
        rows.append(TruthRow(f"V{k}", "cheats", "acquits", convicts, acquits))
    return tuple(rows)


def _compute_unified_net(rules: UnifiedPool, cg: int, cv: int, seat: int, case: Case, k: int) -> int:
    names = [ParticipantId(f"verifier {stage}") for stage in range(1, k + 1)]
    ending = JobEnding(
        case=case,
        cg=cg,
        cv=cv,
        user=ParticipantId("user"),
        generator=ParticipantId("generator"),
        verifiers=tuple(VerifierStanding(name, stage, opened=True) for stage, name in enumerate(names, 1)),
        deciding=None if case is Case.VOID else names[-1],
        prior=names[0] if case is Case.CONFIRM_PRIOR else None,
    )
    return _get_net(rules, ending, names[seat - 1])


def _compute_net(
    rules: FixedFeeCommittee,
    cg: int,
    cv: int,
    seat: int,
    case: Case,
    upheld: Collection[int],
    wrong: Collection[int],
    finder: int | None,
) -> int:
    """Settle a lottery audit with a full reserve, and return what one seat gets beyond its stake."""
    names = {number: ParticipantId(f"verifier {number}") for number in sorted((*upheld, *wrong))}
    ending = JobEnding(
        case=case,
        cg=cg,
        cv=cv,
        user=ParticipantId("user"),
        generator=ParticipantId("generator"),
        verifiers=tuple(
            VerifierStanding(name, number, opened=True, upheld=number in upheld)
            for number, name in names.items()
        ),
        prior=None if finder is None else names[finder],
        reserve_micro=MICRO_MAX,
    )
    return _get_net(rules, ending, names[seat])


def _get_net(rules: RuleSet, ending: JobEnding, participant: ParticipantId) -> int:
    stake = rules.compute_products(ending.cg, ending.cv).verifier_stake
    return rules.settle(ending).get_payout(participant) - stake


@dataclass(frozen=True, slots=True)
class CapitalRow:
    """What one party has locked up for one job, in micro-units, from dispatch until it is settled."""

    party: str
    count: int
    each_micro: int
    expected_micro: Fraction
    """On average over jobs, honest ones."""


def compute_locked_capital(
    rules: RuleSet, cg: int, cv: int, *, audit_share: Fraction, recheck: Fraction
) -> tuple[CapitalRow, ...]:
    """Return who locks how much: the user and the generator always, verifiers q_a(1+q_r) at a time on average.

    The count of verifiers is the most that one job can have seated.
    """
    products = rules.compute_products(cg, cv)
    seated = audit_share * (1 + recheck)
    return (
        CapitalRow("user", 1, products.deposit, Fraction(products.deposit)),
        CapitalRow("generator", 1, products.generator_stake, Fraction(products.generator_stake)),
        CapitalRow("verifiers", rules.seat_max, products.verifier_stake, seated * products.verifier_stake),
    )


def get_lies_that_pay(rows: Sequence[TruthRow]) -> tuple[TruthRow, ...]:
    """Return the situations in which the truth is not worth more than the lie."""
    return tuple(row for row in rows if row.incentive_micro <= 0)
