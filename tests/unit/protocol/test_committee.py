"""`fixed-fee-committee` row by row with numbers, its seats, and what it is refused for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pocache.protocol.committee_table import compute_committee_table
from pocache.protocol.committee_terms import AUDIT_SEAT, COMMITTEE_SEAT, RECHECK_SEAT, Part, SeatPlan
from pocache.protocol.errors import PayoffError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.payoff import (
    DEFAULT_COMMITTEE,
    RESERVE,
    TREASURY,
    Case,
    FixedFeeCommittee,
    Rational,
    RuleSet,
    Settlement,
    UnifiedPool,
    VerifierStanding,
    settle,
)
from pocache.protocol.pricing import PriceList, validate_prices

USER, GENERATOR = ParticipantId("user"), ParticipantId("generator")
RULES = replace(DEFAULT_COMMITTEE, committee_size=3)
CG, CV = 1_000_000, 100_000
A_CG, A_CV, LEVY = 1_200_000, 120_000, 16_666
B_CG, B_CV, FEE, BOUNTY, BONUS = 20_000_000, 2_000_000, 120_000, 500_000, 250_000
DEPOSIT = A_CG + A_CV + LEVY
PLENTY = 10**9
RIGHT, WRONG, SILENT = (True, True), (True, False), (False, False)
C1, C2, C3 = COMMITTEE_SEAT, COMMITTEE_SEAT + 1, COMMITTEE_SEAT + 2


def seat(number: int) -> ParticipantId:
    return ParticipantId(f"v{number}")


def end(
    case: Case,
    seats: dict[int, tuple[bool, bool]],
    *,
    finder: int | None = None,
    is_challenged: bool = False,
    reserve: int = PLENTY,
    rules: FixedFeeCommittee = RULES,
    cg: int = CG,
    cv: int = CV,
) -> Settlement:
    return settle(
        rules,
        case=case,
        cg=cg,
        cv=cv,
        user=USER,
        generator=GENERATOR,
        verifiers=[VerifierStanding(seat(number), number, *standing) for number, standing in seats.items()],
        prior=None if finder is None else seat(finder),
        is_challenged=is_challenged,
        reserve_micro=reserve,
    )


def test_both_rule_sets_stand_behind_one_interface() -> None:
    sets: list[RuleSet] = [UnifiedPool(Rational(6, 5), Rational(5), 4), RULES]
    assert [rules.name for rules in sets] == ["unified-pool", "fixed-fee-committee"]
    for rules in sets:
        rules.validate_costs(CG, CV)
        products = rules.compute_products(CG, CV)
        assert min(products.deposit, products.generator_stake, products.verifier_stake) > 0


def test_stakes_and_deposit() -> None:
    products = RULES.compute_products(CG, CV)
    assert (products.deposit, products.generator_stake, products.verifier_stake) == (DEPOSIT, B_CG, B_CV)


# --- the rows -------------------------------------------------------------------------------------------------


def test_no_challenge_pays_the_levy_into_the_reserve_and_returns_the_verification_fee() -> None:
    settlement = end(Case.NO_CHALLENGE, {})
    assert dict(settlement.payouts) == {GENERATOR: A_CG + B_CG, USER: A_CV, RESERVE: LEVY}
    assert (settlement.slashed, settlement.drawn) == ((), 0)


def test_a_match_by_lottery_is_paid_from_the_reserve() -> None:
    settlement = end(Case.AGREE, {AUDIT_SEAT: RIGHT})
    assert dict(settlement.payouts) == {GENERATOR: A_CG + B_CG, USER: A_CV, seat(1): B_CV + FEE}
    assert settlement.drawn == FEE - LEVY
    assert settlement.pool == DEPOSIT + B_CG + B_CV + FEE - LEVY


def test_a_match_by_challenge_is_paid_by_the_user() -> None:
    settlement = end(Case.AGREE, {AUDIT_SEAT: RIGHT}, is_challenged=True)
    assert dict(settlement.payouts) == {GENERATOR: A_CG + B_CG, seat(1): B_CV + FEE, RESERVE: LEVY}
    assert settlement.drawn == 0


def test_a_recheck_is_paid_like_the_audit() -> None:
    settlement = end(Case.AGREE, {AUDIT_SEAT: RIGHT, RECHECK_SEAT: RIGHT})
    assert settlement.get_payout(seat(1)) == settlement.get_payout(seat(4)) == B_CV + FEE
    assert settlement.drawn == 2 * FEE - LEVY


def test_a_silent_verifier_loses_its_stake_to_the_treasury_when_the_next_one_agrees() -> None:
    settlement = end(Case.AGREE, {1: SILENT, 2: RIGHT})
    assert settlement.get_payout(TREASURY) == B_CV
    assert settlement.get_payout(seat(1)) == 0
    assert settlement.slashed == (seat(1),)


def test_acquittal_pays_the_committee_from_the_losers_stakes() -> None:
    settlement = end(Case.ACQUITTAL, {1: WRONG, C1: RIGHT, C2: RIGHT, C3: WRONG})
    assert dict(settlement.payouts) == {
        GENERATOR: A_CG + B_CG,
        USER: A_CV,
        seat(C1): B_CV + FEE,
        seat(C2): B_CV + FEE,
        TREASURY: 2 * B_CV - 2 * FEE,
        RESERVE: LEVY,
    }
    assert settlement.slashed == (seat(1), seat(C3))


def test_acquittal_after_a_recheck_pays_the_audits_verifier_from_the_reserve() -> None:
    settlement = end(Case.ACQUITTAL, {1: RIGHT, 4: WRONG, C1: RIGHT, C2: RIGHT, C3: RIGHT})
    assert settlement.get_payout(seat(1)) == B_CV + FEE
    assert settlement.get_payout(TREASURY) == B_CV - 3 * FEE
    assert settlement.drawn == FEE - LEVY


def test_acquittal_of_a_challenged_job_costs_the_user_its_fee() -> None:
    settlement = end(Case.ACQUITTAL, {1: WRONG, C1: RIGHT, C2: RIGHT, C3: RIGHT}, is_challenged=True)
    assert settlement.get_payout(USER) == 0
    assert settlement.get_payout(RESERVE) == LEVY + A_CV


def test_acquittal_without_losers_pays_the_committee_from_the_reserve() -> None:
    """The finder's rows, looked at more closely, do not differ either."""
    settlement = end(Case.ACQUITTAL, {1: RIGHT, C1: RIGHT, C2: RIGHT, C3: RIGHT})
    assert settlement.drawn == 4 * FEE - LEVY
    assert settlement.slashed == ()


def test_conviction_pays_everybody_from_the_generators_stake() -> None:
    settlement = end(Case.CONVICTION, {1: RIGHT, C1: RIGHT, C2: RIGHT, C3: WRONG}, finder=1)
    assert dict(settlement.payouts) == {
        USER: DEPOSIT + BOUNTY,
        seat(1): B_CV + FEE + BONUS,
        seat(C1): B_CV + FEE,
        seat(C2): B_CV + FEE,
        TREASURY: B_CG - 3 * FEE - BOUNTY - BONUS + B_CV,
    }
    assert settlement.slashed == (GENERATOR, seat(C3))
    assert settlement.drawn == 0


def test_conviction_by_a_recheck_slashes_who_agreed_with_the_cheat() -> None:
    settlement = end(Case.CONVICTION, {1: WRONG, 4: RIGHT, C1: RIGHT, C2: RIGHT, C3: RIGHT}, finder=4)
    assert settlement.slashed == (GENERATOR, seat(1))
    assert settlement.get_payout(seat(4)) == B_CV + FEE + BONUS


def test_a_finder_whose_own_rows_are_wrong_gets_no_bonus() -> None:
    settlement = end(Case.CONVICTION, {1: WRONG, C1: RIGHT, C2: RIGHT, C3: RIGHT})
    assert settlement.get_payout(seat(1)) == 0
    assert settlement.get_payout(TREASURY) == B_CG - 3 * FEE - BOUNTY + B_CV


def test_no_opening_pays_whoever_opened_and_no_bonus() -> None:
    settlement = end(Case.NO_OPENING, {1: WRONG, C1: WRONG, C2: SILENT, C3: WRONG})
    assert dict(settlement.payouts) == {
        USER: DEPOSIT + BOUNTY,
        seat(1): B_CV + FEE,
        seat(C1): B_CV + FEE,
        seat(C3): B_CV + FEE,
        TREASURY: B_CG - 3 * FEE - BOUNTY + B_CV,
    }
    assert settlement.slashed == (GENERATOR, seat(C2))


def test_void_returns_everything_and_pays_who_opened_from_the_silent_and_the_reserve() -> None:
    opened = {1: WRONG, C1: WRONG, C2: WRONG, C3: WRONG}
    settlement = end(Case.VOID, opened)
    assert dict(settlement.payouts) == {
        USER: DEPOSIT,
        GENERATOR: B_CG,
        **{seat(number): B_CV + FEE for number in opened},
    }
    assert settlement.drawn == 4 * FEE
    silent = end(Case.VOID, {**opened, C3: SILENT})
    assert silent.drawn == 0
    assert silent.get_payout(TREASURY) == B_CV - 3 * FEE
    assert silent.slashed == (seat(C3),)


def test_equivocation_pays_user_and_treasury_and_returns_verifier_stakes() -> None:
    settlement = end(Case.EQUIVOCATION, {1: WRONG, C1: SILENT})
    assert dict(settlement.payouts) == {
        USER: DEPOSIT,
        TREASURY: B_CG,
        seat(1): B_CV,
        seat(C1): B_CV,
    }
    assert settlement.slashed == (GENERATOR,)


def test_a_short_reserve_pays_all_the_same_and_is_never_overdrawn() -> None:
    settlement = end(Case.VOID, {1: WRONG, C1: WRONG, C2: WRONG}, reserve=100)
    assert settlement.drawn == 99
    assert {settlement.get_payout(seat(number)) for number in (1, C1, C2)} == {B_CV + 33}


def test_deciders_earn_the_same_whichever_way_they_decide() -> None:
    members = {C1: RIGHT, C2: RIGHT, C3: RIGHT}
    acquitting = end(Case.ACQUITTAL, {1: WRONG, **members})
    convicting = end(Case.CONVICTION, {1: RIGHT, **members}, finder=1)
    for number in members:
        assert acquitting.get_payout(seat(number)) == convicting.get_payout(seat(number)) == B_CV + FEE


def test_the_table_has_every_outcome_and_every_row_adds_up() -> None:
    rows = {row.case: row for row in compute_committee_table(RULES, CG, CV)}
    assert len(rows) == 13
    for row in rows.values():
        parts = (
            row.generator_micro,
            row.user_micro,
            row.first_verifier_micro,
            row.other_verifiers_micro,
            row.treasury_micro,
            row.reserve_micro,
        )
        assert sum(parts) == row.pool_micro
    assert rows["conviction"].first_verifier_micro == B_CV + FEE + BONUS
    assert rows["conviction_rechecked"].losing_verifiers == 1
    assert rows["void"].verifiers == 1 + 2 * 3


# --- seats ----------------------------------------------------------------------------------------------------


def test_seats_are_numbered_through() -> None:
    plan = SeatPlan(committee_size=5, committee_count=2)
    parts = [plan.get_part(number) for number in range(1, 17)]
    assert parts == [Part.AUDIT] * 3 + [Part.RECHECK] * 3 + [Part.COMMITTEE] * 10
    assert plan.seat_max == 16
    assert [plan.get_stage(number) for number in (1, 3, 6, 7, 11, 12, 16)] == [1, 3, 6, 7, 7, 12, 12]
    assert (plan.get_seats(2), plan.get_seats(12)) == (range(2, 3), range(12, 17))
    assert [SeatPlan(size, 1).majority for size in (3, 5, 7)] == [2, 3, 4]
    for number in (0, 17, True):
        with pytest.raises(PayoffError, match="1 ≤ seat ≤ 16 is violated"):
            plan.get_part(number)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "inequality"),
    [
        ({"alpha": Rational(0)}, "alpha > 0"),
        ({"beta_generator": Rational(0)}, "beta_generator > 0"),
        ({"beta_verifier": Rational(0)}, "beta_verifier > 0"),
        ({"phi": Rational(0)}, "phi > 0"),
        ({"lottery": Rational(0)}, "lottery > 0"),
        ({"lottery": Rational(11, 10)}, "lottery ≤ 1"),
        ({"recheck": Rational(2)}, "recheck ≤ 1"),
        ({"committee_size": 4}, "M odd"),
        ({"committee_size": 1}, "M odd"),
        ({"committee_size": 17}, "M odd"),
        ({"committee_size": 7.0}, "M odd"),
        ({"committee_count": 0}, "1 ≤ committees ≤ 2"),
        ({"committee_count": 3}, "1 ≤ committees ≤ 2"),
        ({"phi": Rational(13, 10), "levy": Rational(1)}, "φ ≤ α"),
        ({"beta_verifier": Rational(16)}, "β_V ≥ 2Mφ"),
        ({"levy": Rational(164, 1000)}, r"λ ≥ \(1\+ρ\)·q_a·\(1\+q_r\)·φ"),
        ({"recheck": Rational(1), "levy": Rational(3, 10)}, "λ \\+ α − φ ≥ q_r·φ"),
        ({"beta_generator": Rational(3, 4)}, "fees \\+ bounty \\+ bonus < βCg"),
    ],
)
def test_contradicting_parameters_are_refused_with_the_inequality(
    change: dict[str, Any], inequality: str
) -> None:
    with pytest.raises(PayoffError, match=f"{inequality}.* is violated"):
        replace(DEFAULT_COMMITTEE, **change)


def test_the_limits_of_the_inequalities_are_allowed() -> None:
    replace(DEFAULT_COMMITTEE, levy=Rational(165, 1000), beta_verifier=Rational(84, 5))


def test_a_conviction_that_would_cost_more_than_the_stake_is_refused() -> None:
    """16 fees and the prizes: 16·φ·Cv + 3/4·Cg against 20·Cg."""
    DEFAULT_COMMITTEE.validate_costs(1_000, 1_002)
    with pytest.raises(PayoffError, match="fees \\+ bounty \\+ bonus < βCg is violated: 16·1204 \\+ 500"):
        DEFAULT_COMMITTEE.validate_costs(1_000, 1_004)
    with pytest.raises(PayoffError, match="violated"):
        end(Case.NO_CHALLENGE, {}, cg=1, cv=100)


@pytest.mark.parametrize(("cg", "cv"), [(-1, 0), (1, 2**63), (1.5, 1), (True, 1), (2**60, 1)])
def test_costs_out_of_range_are_refused(cg: int, cv: int) -> None:
    with pytest.raises(PayoffError, match="violated"):
        DEFAULT_COMMITTEE.compute_products(cg, cv)


def test_prices_under_which_some_job_would_be_refused_are_refused() -> None:
    """(20 − 3/4)·p ≥ 16·(6/5)·v: p = 1,000 carries v = 1,002 and not v = 1,003."""
    validate_prices(DEFAULT_COMMITTEE, PriceList(1_000, 5_000, 1_002))
    for prices in (PriceList(1_000, 5_000, 1_003), PriceList(5_000, 1_000, 1_003), PriceList(0, 1, 0)):
        with pytest.raises(PayoffError, match="violated for some job"):
            validate_prices(DEFAULT_COMMITTEE, prices)


def test_allowed_prices_allow_jobs_of_every_length() -> None:
    prices = PriceList(1_000, 5_000, 1_002)
    for prompt, output in ((1, 0), (1, 1), (65_536, 1), (1, 32_768), (17, 5)):
        cg = prices.compute_generation_cost(prompt, output)
        cv = prices.compute_verification_cost(
            layer_max=31, position_max=max(0, prompt + output - 2), layer_count=32
        )
        DEFAULT_COMMITTEE.validate_costs(cg, cv)


@pytest.mark.parametrize(
    ("case", "seats", "complaint"),
    [
        (Case.CONFIRM_PRIOR, {1: RIGHT}, "no case confirm_prior"),
        (Case.NO_CHALLENGE, {1: RIGHT}, "has no verifiers"),
        (Case.AGREE, {}, "whoever opened agreed"),
        (Case.AGREE, {1: SILENT}, "whoever opened agreed"),
        (Case.AGREE, {1: WRONG}, "whoever opened agreed"),
        (Case.AGREE, {1: RIGHT, 4: WRONG}, "whoever opened agreed"),
        (Case.AGREE, {1: RIGHT, C1: RIGHT}, "no committee was called"),
        (Case.ACQUITTAL, {1: WRONG, C1: RIGHT}, "by 1, it takes 2"),
        (Case.CONVICTION, {1: RIGHT, 4: RIGHT}, "by 0, it takes 2"),
        (Case.ACQUITTAL, {C1: RIGHT, C2: RIGHT, C3 + 1: RIGHT}, "by 1, it takes 2"),
        (Case.VOID, {1: RIGHT}, "bears nobody's claim out"),
        (Case.NO_OPENING, {1: RIGHT}, "bears nobody's claim out"),
        (Case.EQUIVOCATION, {1: RIGHT}, "bears nobody's claim out"),
        (Case.AGREE, {1: (False, True)}, "did not open"),
        (Case.VOID, {1: WRONG, 2: WRONG}, "two have opened"),
        (Case.VOID, {4: WRONG, 6: WRONG}, "two have opened"),
        (Case.VOID, {0: WRONG}, "1 ≤ seat ≤ 12"),
        (Case.VOID, {13: WRONG}, "1 ≤ seat ≤ 12"),
    ],
)
def test_standings_that_contradict_the_case_are_refused(
    case: Case, seats: dict[int, tuple[bool, bool]], complaint: str
) -> None:
    with pytest.raises(PayoffError, match=complaint):
        end(case, seats)


@pytest.mark.parametrize(
    ("case", "finder"), [(Case.ACQUITTAL, 1), (Case.CONVICTION, C1), (Case.CONVICTION, 2)]
)
def test_a_finder_found_something_and_is_no_member(case: Case, finder: int) -> None:
    with pytest.raises(PayoffError, match="finder"):
        end(case, {1: RIGHT, C1: RIGHT, C2: RIGHT, C3: RIGHT}, finder=finder)


def test_twice_the_same_party_is_refused() -> None:
    twice = [VerifierStanding(seat(1), 1, opened=False), VerifierStanding(seat(1), 2, opened=False)]
    own = [VerifierStanding(GENERATOR, 1, opened=False)]
    seats = [VerifierStanding(seat(1), 1, opened=False), VerifierStanding(seat(2), 1, opened=False)]
    for verifiers, complaint in ((twice, "stands twice"), (own, "own generation"), (seats, "one seat")):
        with pytest.raises(PayoffError, match=complaint):
            settle(
                RULES,
                case=Case.VOID,
                cg=CG,
                cv=CV,
                user=USER,
                generator=GENERATOR,
                verifiers=verifiers,
            )


def test_a_deciding_verifier_and_a_negative_reserve_are_refused() -> None:
    with pytest.raises(PayoffError, match="reserve"):
        end(Case.NO_CHALLENGE, {}, reserve=-1)
    with pytest.raises(PayoffError, match="no deciding verifier"):
        settle(
            RULES,
            case=Case.AGREE,
            cg=CG,
            cv=CV,
            user=USER,
            generator=GENERATOR,
            verifiers=[VerifierStanding(seat(1), 1, opened=True, upheld=True)],
            deciding=seat(1),
        )


def test_the_unified_pool_has_no_committees() -> None:
    with pytest.raises(PayoffError, match="unified-pool has no case conviction"):
        settle(
            UnifiedPool(Rational(6, 5), Rational(5), 4),
            case=Case.CONVICTION,
            cg=CG,
            cv=CV,
            user=USER,
            generator=GENERATOR,
            verifiers=[],
        )
