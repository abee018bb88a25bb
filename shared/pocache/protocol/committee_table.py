"""Every outcome of `fixed-fee-committee` in numbers (docs/economics.md 5.3), by settling each; no rule lives here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocache.protocol.committee_terms import AUDIT_SEAT, COMMITTEE_SEAT, RECHECK_SEAT
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import MICRO_MAX
from pocache.protocol.payoff_terms import RESERVE, TREASURY, Case, JobEnding, VerifierStanding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocache.protocol.committee import FixedFeeCommittee


@dataclass(frozen=True, slots=True)
class CommitteeRow:
    """One outcome; every `_micro` is a gross payout from the pool, a loser's is 0.

    pool = generator + user + first verifier + other verifiers + treasury + reserve.
    """

    case: str
    verifiers: int
    pool_micro: int
    generator_micro: int
    user_micro: int
    first_verifier_micro: int
    other_verifiers_micro: int
    treasury_micro: int
    reserve_micro: int
    reserve_drawn_micro: int
    losing_verifiers: int


@dataclass(frozen=True, slots=True)
class _Seats:
    """Who sits where: seats whose claims are borne out, those found wrong, those silent."""

    upheld: Sequence[int] = ()
    wrong: Sequence[int] = ()
    silent: Sequence[int] = ()
    is_challenged: bool = False


def compute_committee_table(rules: FixedFeeCommittee, cg: int, cv: int) -> tuple[CommitteeRow, ...]:
    """Return a row for every outcome; PayoffError for costs that the rules refuse.

    In acquittal and conviction one verifier calls one committee, which is of one mind; in the void row one verifier
    calls every committee there may be, all members open, and one of them is silent.
    """
    committee = range(COMMITTEE_SEAT, COMMITTEE_SEAT + rules.committee_size)
    members = range(COMMITTEE_SEAT, rules.seat_max)
    plays = {
        "no_challenge": (Case.NO_CHALLENGE, _Seats()),
        "match_lottery": (Case.AGREE, _Seats([AUDIT_SEAT])),
        "match_lottery_rechecked": (Case.AGREE, _Seats([AUDIT_SEAT, RECHECK_SEAT])),
        "match_challenge": (Case.AGREE, _Seats([AUDIT_SEAT], is_challenged=True)),
        "match_after_silence": (Case.AGREE, _Seats([AUDIT_SEAT + 1], silent=[AUDIT_SEAT])),
        "acquittal_lottery": (Case.ACQUITTAL, _Seats(committee, [AUDIT_SEAT])),
        "acquittal_rechecked": (Case.ACQUITTAL, _Seats([AUDIT_SEAT, *committee], [RECHECK_SEAT])),
        "acquittal_challenge": (Case.ACQUITTAL, _Seats(committee, [AUDIT_SEAT], is_challenged=True)),
        "conviction": (Case.CONVICTION, _Seats([AUDIT_SEAT, *committee])),
        "conviction_rechecked": (Case.CONVICTION, _Seats([RECHECK_SEAT, *committee], [AUDIT_SEAT])),
        "no_opening": (Case.NO_OPENING, _Seats(wrong=[AUDIT_SEAT])),
        "void": (Case.VOID, _Seats(wrong=[AUDIT_SEAT, *members], silent=[rules.seat_max])),
        "equivocation": (Case.EQUIVOCATION, _Seats()),
    }
    return tuple(_compute_row(rules, cg, cv, name, case, seats) for name, (case, seats) in plays.items())


def _compute_row(
    rules: FixedFeeCommittee, cg: int, cv: int, name: str, case: Case, seats: _Seats
) -> CommitteeRow:
    user, generator = ParticipantId("user"), ParticipantId("generator")
    standings = tuple(
        VerifierStanding(
            ParticipantId(f"verifier {seat}"),
            seat,
            opened=seat not in seats.silent,
            upheld=seat in seats.upheld,
        )
        for seat in sorted((*seats.upheld, *seats.wrong, *seats.silent))
    )
    finders = (one.participant for one in standings if one.upheld and one.stage < COMMITTEE_SEAT)
    settlement = rules.settle(
        JobEnding(
            case=case,
            cg=cg,
            cv=cv,
            user=user,
            generator=generator,
            verifiers=standings,
            prior=next(finders) if case is Case.CONVICTION else None,
            is_challenged=seats.is_challenged,
            reserve_micro=MICRO_MAX,
        )
    )
    paid = [settlement.get_payout(one.participant) for one in standings]
    return CommitteeRow(
        case=name,
        verifiers=len(standings),
        pool_micro=settlement.pool,
        generator_micro=settlement.get_payout(generator),
        user_micro=settlement.get_payout(user),
        first_verifier_micro=sum(paid[:1]),
        other_verifiers_micro=sum(paid[1:]),
        treasury_micro=settlement.get_payout(TREASURY),
        reserve_micro=settlement.get_payout(RESERVE),
        reserve_drawn_micro=settlement.drawn,
        losing_verifiers=sum(one.participant in settlement.slashed for one in standings),
    )
