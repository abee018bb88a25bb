"""Table 1 row by row with numbers, the rows the paper leaves out, and what is refused."""

from __future__ import annotations

import pytest

from pocache.protocol.errors import PayoffError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.payoff import (
    TREASURY,
    Case,
    Rational,
    Settlement,
    UnifiedPool,
    VerifierStanding,
    compute_table,
    settle,
)

USER, GENERATOR = ParticipantId("user"), ParticipantId("generator")
V = [ParticipantId(f"v{number}") for number in range(6)]
RULES = UnifiedPool(Rational(6, 5), Rational(5), 4)
CG, CV = 1_000_000, 100_000
A_CG, A_CV, B_CG, B_CV = 1_200_000, 120_000, 5_000_000, 500_000


def stand(*opened: bool) -> list[VerifierStanding]:
    """One verifier per stage; V[stage] opened or was silent."""
    return [VerifierStanding(V[stage], stage, is_open) for stage, is_open in enumerate(opened, 1)]


def end(
    case: Case,
    verifiers: list[VerifierStanding],
    deciding: ParticipantId | None = None,
    prior: ParticipantId | None = None,
    rules: UnifiedPool = RULES,
) -> Settlement:
    return settle(
        rules,
        case=case,
        cg=CG,
        cv=CV,
        user=USER,
        generator=GENERATOR,
        verifiers=verifiers,
        deciding=deciding,
        prior=prior,
    )


def test_stakes_and_deposit_are_the_four_products() -> None:
    products = RULES.compute_products(CG, CV)
    assert (products.deposit, products.generator_stake, products.verifier_stake) == (A_CG + A_CV, B_CG, B_CV)


def test_no_challenge_pays_the_generator_and_returns_the_verification_fee() -> None:
    settlement = end(Case.NO_CHALLENGE, [])
    assert dict(settlement.payouts) == {GENERATOR: A_CG + B_CG, USER: A_CV}
    assert settlement.slashed == ()


def test_agreement_pays_generator_and_verifier() -> None:
    settlement = end(Case.AGREE, stand(True), V[1])
    assert dict(settlement.payouts) == {GENERATOR: A_CG + B_CG, V[1]: A_CV + B_CV}
    assert settlement.slashed == ()


def test_confirming_the_generator_takes_the_stakes_of_earlier_verifiers() -> None:
    """(α+3β)Cv to the third; the second was silent and loses like the first."""
    settlement = end(Case.CONFIRM_GENERATOR, stand(True, False, True), V[3])
    assert dict(settlement.payouts) == {GENERATOR: A_CG + B_CG, V[3]: A_CV + 3 * B_CV}
    assert settlement.slashed == (V[1], V[2])


def test_confirming_a_prior_verifier_convicts_the_generator() -> None:
    settlement = end(Case.CONFIRM_PRIOR, stand(True, True, False, True), V[4], V[2])
    assert dict(settlement.payouts) == {
        USER: A_CG + A_CV,
        V[2]: A_CV + B_CV,
        V[4]: B_CG + 3 * B_CV - A_CV,
    }
    assert settlement.slashed == (GENERATOR, V[1], V[3])


def test_void_returns_everything() -> None:
    settlement = end(Case.VOID, stand(True, True, True, True))
    assert dict(settlement.payouts) == {USER: A_CG + A_CV, GENERATOR: B_CG, **dict.fromkeys(V[1:5], B_CV)}
    assert settlement.slashed == ()


def test_void_gives_a_silent_verifiers_stake_to_the_user() -> None:
    settlement = end(Case.VOID, stand(True, False))
    assert dict(settlement.payouts) == {USER: A_CG + A_CV + B_CV, GENERATOR: B_CG, V[1]: B_CV}
    assert settlement.slashed == (V[2],)


def test_no_opening_shares_the_forfeited_stakes_among_who_opened() -> None:
    """βCg and the silent βCv by three: the remainder of one micro-unit goes to the first who opened."""
    settlement = end(Case.NO_OPENING, stand(False, True, True, True))
    share, remainder = divmod(B_CG + B_CV, 3)
    assert remainder == 1
    assert dict(settlement.payouts) == {
        USER: A_CG + A_CV,
        V[2]: B_CV + share + 1,
        V[3]: B_CV + share,
        V[4]: B_CV + share,
    }
    assert settlement.slashed == (GENERATOR, V[1])


@pytest.mark.parametrize("verifiers", [[], stand(False), stand(False, False)])
def test_no_opening_at_all_leaves_everything_to_the_user(verifiers: list[VerifierStanding]) -> None:
    settlement = end(Case.NO_OPENING, verifiers)
    assert settlement.payouts == ((USER, A_CG + A_CV + B_CG + len(verifiers) * B_CV),)
    assert settlement.slashed == (GENERATOR, *(seat.participant for seat in verifiers))


def test_equivocation_pays_user_and_treasury_and_returns_verifier_stakes() -> None:
    settlement = end(Case.EQUIVOCATION, stand(True, False))
    assert dict(settlement.payouts) == {USER: A_CG + A_CV, TREASURY: B_CG, V[1]: B_CV, V[2]: B_CV}
    assert settlement.slashed == (GENERATOR,)


def test_the_user_may_be_a_verifier_and_is_paid_once() -> None:
    """A party with two roles has one line in the settlement."""
    seat = VerifierStanding(USER, 1, opened=True)
    assert end(Case.VOID, [seat]).payouts == ((USER, A_CG + A_CV + B_CV), (GENERATOR, B_CG))


def test_order_of_standings_does_not_matter() -> None:
    verifiers = stand(False, True, True)
    assert end(Case.NO_OPENING, verifiers[::-1]) == end(Case.NO_OPENING, verifiers)


@pytest.mark.parametrize(
    ("case", "verifiers", "deciding", "prior"),
    [
        (Case.NO_CHALLENGE, stand(True), None, None),
        (Case.AGREE, [], None, None),
        (Case.AGREE, stand(True), None, None),
        (Case.AGREE, stand(False), V[1], None),
        (Case.AGREE, stand(True, True), V[2], None),
        (Case.CONFIRM_GENERATOR, stand(True), V[1], None),
        (Case.CONFIRM_GENERATOR, stand(True, True), V[1], None),
        (Case.CONFIRM_GENERATOR, stand(True, False), V[2], None),
        (Case.CONFIRM_GENERATOR, stand(True, True), V[2], V[1]),
        (Case.CONFIRM_PRIOR, stand(True, True), V[2], None),
        (Case.CONFIRM_PRIOR, stand(True, True), V[2], V[2]),
        (Case.CONFIRM_PRIOR, stand(False, True), V[2], V[1]),
        (Case.CONFIRM_PRIOR, stand(True, True), V[2], V[5]),
        (Case.VOID, stand(True), V[1], None),
        (Case.NO_OPENING, stand(True), V[1], None),
        (Case.EQUIVOCATION, stand(True), None, V[1]),
        (Case.VOID, stand(True, True, True, True, True), None, None),
        (Case.VOID, [VerifierStanding(V[1], 2, opened=True)], None, None),
        (Case.VOID, [VerifierStanding(V[1], 1, True), VerifierStanding(V[2], 1, True)], None, None),
        (Case.VOID, [VerifierStanding(V[1], 1, True), VerifierStanding(V[1], 2, True)], None, None),
        (Case.VOID, [VerifierStanding(GENERATOR, 1, True)], None, None),
    ],
)
def test_contradictory_standings_are_refused(
    case: Case, verifiers: list[VerifierStanding], deciding: ParticipantId | None, prior: ParticipantId | None
) -> None:
    with pytest.raises(PayoffError):
        end(case, verifiers, deciding, prior)


def test_costs_that_make_a_payout_negative_are_refused_with_the_inequality() -> None:
    """At β(Cg+Cv) = αCv the deciding verifier of stage 2 gets 0; one micro-unit less is refused."""
    rules = UnifiedPool(Rational(3), Rational(1), 2)
    rules.validate_costs(200, 100)
    with pytest.raises(PayoffError, match=r"β\(Cg\+Cv\) ≥ αCv is violated.*-1$"):
        rules.validate_costs(199, 100)


def test_settling_checks_the_costs_too() -> None:
    with pytest.raises(PayoffError, match="αCv"):
        end(Case.NO_CHALLENGE, [], rules=UnifiedPool(Rational(60), Rational(1), 2))


def test_a_single_stage_takes_any_costs() -> None:
    UnifiedPool(Rational(3), Rational(1), 1).validate_costs(0, 100)


@pytest.mark.parametrize(("cg", "cv"), [(-1, 0), (0, -1), (2**63, 0), (0, 2**63), (1.0, 0), (True, 0)])
def test_costs_out_of_range_are_refused(cg: int, cv: int) -> None:
    with pytest.raises(PayoffError, match="violated"):
        RULES.compute_products(cg, cv)


def test_a_pool_beyond_an_accounts_range_is_refused() -> None:
    with pytest.raises(PayoffError, match="pool ≤"):
        RULES.compute_products(2**61, 0)


@pytest.mark.parametrize(
    ("alpha", "beta", "stage_max"), [("0", "5", 4), ("1", "0/3", 4), ("1", "5", 0), ("1", "5", 17)]
)
def test_rules_out_of_range_are_refused(alpha: str, beta: str, stage_max: int) -> None:
    with pytest.raises(PayoffError, match="violated"):
        UnifiedPool(Rational.parse(alpha), Rational.parse(beta), stage_max)


def test_fractions_parse_print_and_floor() -> None:
    assert Rational.parse("6/5") == Rational(6, 5)
    assert Rational.parse("5") == Rational(5, 1)
    assert (str(Rational(6, 5)), str(Rational(5))) == ("6/5", "5")
    assert Rational(6, 5).floor_of(4) == 4


@pytest.mark.parametrize(
    "text", ["", "1.2", "-1", "6/", "/5", "6/0", "6 /5", "1e3", "6/5/1", "٣", "9" * 14, "5\n"]
)
def test_texts_that_are_no_fraction_are_refused(text: str) -> None:
    with pytest.raises(PayoffError):
        Rational.parse(text)


def test_the_table_is_table_1() -> None:
    """The paper's formulas, written out again by hand for α = 6/5, β = 5."""
    rows = {(row.case, row.k): row for row in compute_table(RULES, CG, CV, 4)}
    assert len(rows) == 9
    pool = A_CG + A_CV + B_CG
    for k in (2, 3, 4):
        row = rows[Case.CONFIRM_GENERATOR, k]
        assert (row.pool_micro, row.generator_micro, row.user_micro) == (pool + k * B_CV, A_CG + B_CG, 0)
        assert (row.deciding_verifier_micro, row.prior_verifier_micro) == (A_CV + k * B_CV, 0)
        assert row.losing_verifiers == k - 1
        row = rows[Case.CONFIRM_PRIOR, k]
        assert (row.pool_micro, row.generator_micro, row.user_micro) == (pool + k * B_CV, 0, A_CG + A_CV)
        assert row.deciding_verifier_micro == B_CG + (k - 1) * B_CV - A_CV
        assert (row.prior_verifier_micro, row.losing_verifiers) == (A_CV + B_CV, k - 2)
    void = rows[Case.VOID, 4]
    assert (void.generator_micro, void.user_micro) == (B_CG, A_CG + A_CV)
    assert (void.deciding_verifier_micro, void.prior_verifier_micro, void.losing_verifiers) == (
        B_CV,
        3 * B_CV,
        0,
    )
