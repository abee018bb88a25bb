"""Every row of Table 1, and those added to it, empties the pool exactly, whoever is silent."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from pocache.protocol.errors import PayoffError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.limits import STAGE_COUNT_MAX
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

CASES = sorted(set(Case) - {Case.ACQUITTAL, Case.CONVICTION})
rationals = st.builds(Rational, st.integers(1, 10**6), st.integers(1, 10**6))
costs = st.one_of(st.integers(0, 20), st.integers(0, 10**12))
rule_sets = st.builds(UnifiedPool, rationals, rationals, st.integers(1, STAGE_COUNT_MAX))


def get_verifiers(opened: list[bool]) -> list[VerifierStanding]:
    return [VerifierStanding(ParticipantId(f"v{stage}"), stage, flag) for stage, flag in enumerate(opened, 1)]


def verify_conserved(settlement: Settlement, rules: UnifiedPool, cg: int, cv: int, count: int) -> None:
    """Pool in equals payouts out, none of them negative, no account unknown or twice."""
    products = rules.compute_products(cg, cv)
    assert settlement.pool == products.deposit + products.generator_stake + count * products.verifier_stake
    assert sum(amount for _, amount in settlement.payouts) == settlement.pool
    assert all(amount > 0 for _, amount in settlement.payouts)
    accounts = [account for account, _ in settlement.payouts]
    assert len(set(accounts)) == len(accounts)
    assert set(accounts) <= {USER, GENERATOR, TREASURY, *(f"v{stage}" for stage in range(1, count + 1))}


@given(rules=rule_sets, cg=costs, cv=costs, data=st.data())
def test_every_case_empties_the_pool(rules: UnifiedPool, cg: int, cv: int, data: st.DataObject) -> None:
    try:
        rules.validate_costs(cg, cv)
    except PayoffError:
        assume(False)
    case = data.draw(st.sampled_from(CASES))
    low = {Case.NO_CHALLENGE: 0, Case.AGREE: 1, Case.CONFIRM_GENERATOR: 2, Case.CONFIRM_PRIOR: 2}.get(case, 0)
    high = {Case.NO_CHALLENGE: 0, Case.AGREE: 1}.get(case, rules.stage_max)
    assume(low <= high)
    count = data.draw(st.integers(low, high), label="k")
    opened = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), label="opened")
    deciding = prior = None
    if case in {Case.AGREE, Case.CONFIRM_GENERATOR, Case.CONFIRM_PRIOR}:
        opened[-1] = True
        deciding = ParticipantId(f"v{count}")
    if case is Case.CONFIRM_PRIOR:
        stage = data.draw(st.integers(1, count - 1), label="prior")
        opened[stage - 1] = True
        prior = ParticipantId(f"v{stage}")
    settlement = settle(
        rules,
        case=case,
        cg=cg,
        cv=cv,
        user=USER,
        generator=GENERATOR,
        verifiers=data.draw(st.permutations(get_verifiers(opened))),
        deciding=deciding,
        prior=prior,
    )
    verify_conserved(settlement, rules, cg, cv, count)
    assert not {deciding, prior} & set(settlement.slashed)
    if case is not Case.EQUIVOCATION:
        assert set(settlement.slashed) >= {
            seat.participant for seat in get_verifiers(opened) if not seat.opened
        }


@given(rules=rule_sets, cg=costs, cv=costs)
def test_costs_are_refused_exactly_when_a_payout_would_be_negative(
    rules: UnifiedPool, cg: int, cv: int
) -> None:
    """The products are floors, so the refusal differs from the exact inequality by rounding only."""
    products = rules.compute_products(cg, cv)
    negative = rules.stage_max >= 2 and products.b_cg + products.b_cv - products.a_cv < 0
    try:
        rules.validate_costs(cg, cv)
    except PayoffError:
        assert negative
    else:
        assert not negative
    alpha = Fraction(rules.alpha.numerator, rules.alpha.denominator)
    beta = Fraction(rules.beta.numerator, rules.beta.denominator)
    slack = beta * (cg + cv) - alpha * cv
    if rules.stage_max >= 2 and slack <= -1:
        assert negative
    if slack >= 2:
        assert not negative


@given(rules=rule_sets, cg=costs, cv=costs, stages=st.integers(1, STAGE_COUNT_MAX))
def test_every_printed_row_adds_up(rules: UnifiedPool, cg: int, cv: int, stages: int) -> None:
    try:
        rows = compute_table(rules, cg, cv, stages)
    except PayoffError:
        assume(False)
    assert len(rows) == 1 + 1 + 2 * (stages - 1) + 1
    for row in rows:
        parts = (row.generator_micro, row.user_micro, row.deciding_verifier_micro, row.prior_verifier_micro)
        assert min(parts) >= 0
        assert sum(parts) == row.pool_micro
