"""Every outcome of `fixed-fee-committee` empties the pool exactly, whatever the parameters and whoever sits where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocache.protocol.committee_terms import COMMITTEE_SEAT, RECHECK_SEAT
from pocache.protocol.errors import PayoffError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.payoff import (
    RESERVE,
    TREASURY,
    Case,
    FixedFeeCommittee,
    JobEnding,
    Rational,
    VerifierStanding,
)
from pocache.protocol.pricing import PriceList

USER, GENERATOR = ParticipantId("user"), ParticipantId("generator")

CASES = sorted(set(Case) - {Case.CONFIRM_GENERATOR, Case.CONFIRM_PRIOR})
factors = st.builds(Rational, st.integers(1, 10**4), st.integers(1, 10**3))
shares = st.builds(lambda part, more: Rational(part, part + more), st.integers(1, 99), st.integers(0, 99))
costs = st.one_of(st.integers(0, 30), st.integers(0, 10**6))


@st.composite
def rule_sets(draw: st.DrawFn) -> FixedFeeCommittee:
    """Parameters that satisfy every inequality, some of them narrowly."""
    size, count = draw(st.sampled_from([3, 5, 7, 15])), draw(st.integers(1, 2))
    phi, lottery, recheck = draw(factors), draw(shares), draw(shares)
    bounty, bonus, reserve = draw(factors), draw(factors), draw(shares)
    slack = [draw(st.sampled_from([Fraction(0), Fraction(1, 7), Fraction(9)])) for _ in range(4)]
    alpha = phi.value + slack[0]
    needed = (1 + reserve.value) * lottery.value * (1 + recheck.value) * phi.value
    levy = max(needed, recheck.value * phi.value) + slack[1]
    return FixedFeeCommittee(
        alpha=Rational(alpha.numerator, alpha.denominator),
        beta_generator=to_rational(bounty.value + bonus.value + Fraction(1, 3) + slack[2]),
        beta_verifier=to_rational(count * size * phi.value + slack[3]),
        phi=phi,
        levy=to_rational(levy),
        lottery=lottery,
        recheck=recheck,
        committee_size=size,
        committee_count=count,
        bounty=bounty,
        bonus=bonus,
        reserve=reserve,
    )


@st.composite
def jobs(draw: st.DrawFn) -> tuple[FixedFeeCommittee, int, int]:
    """Rules and costs for which the generator's stake suffices, often by a single micro-unit."""
    rules, cg, cv = draw(rule_sets()), draw(costs) + 1, draw(costs)
    products = rules.compute_products(cg, cv)
    needed = rules.paid_max * products.fee + products.bounty + products.bonus + 1
    beta = max(Fraction(needed, cg), rules.beta_generator.value) + draw(st.sampled_from([0, 3]))
    rules = replace(rules, beta_generator=to_rational(beta))
    rules.validate_costs(cg, cv)
    return rules, cg, cv


def to_rational(value: Fraction) -> Rational:
    return Rational(value.numerator, value.denominator)


@st.composite
def endings(
    draw: st.DrawFn, rules: FixedFeeCommittee, cg: int, cv: int, cases: Sequence[Case] = CASES
) -> JobEnding:
    """An ending that some run of the dispute machine could have: who sits, who opened, who was right."""
    case = draw(st.sampled_from(cases))
    opened: dict[int, bool] = {}
    if case is not Case.NO_CHALLENGE:
        for first in (1, RECHECK_SEAT):
            silent = draw(st.integers(0, 2))
            opened.update(dict.fromkeys(range(first, first + silent), False))
            if (first == 1 and case is Case.AGREE) or draw(st.booleans()):
                opened[first + silent] = True
    stages = range(COMMITTEE_SEAT, rules.seat_max + 1, rules.committee_size)
    last = 0
    if case not in {Case.NO_CHALLENGE, Case.AGREE}:
        is_called = case in {Case.ACQUITTAL, Case.CONVICTION}
        last = draw(st.sampled_from([*([] if is_called else [0]), *stages]))
        for number in range(COMMITTEE_SEAT, last + rules.committee_size if last else COMMITTEE_SEAT):
            opened[number] = draw(st.booleans())
    upheld = set[int]()
    if case is Case.AGREE:
        upheld = {number for number, flag in opened.items() if flag}
    elif case in {Case.ACQUITTAL, Case.CONVICTION}:
        majority = range(last, last + rules.plan.majority)
        opened.update(dict.fromkeys(majority, True))
        others = [number for number, flag in opened.items() if flag and number not in majority]
        upheld = {*majority, *(draw(st.sets(st.sampled_from(others))) if others else ())}
    finders = sorted(number for number in upheld if number < COMMITTEE_SEAT)
    finder = draw(st.sampled_from([None, *finders])) if case is Case.CONVICTION else None
    standings = [
        VerifierStanding(ParticipantId(f"v{number}"), number, flag, number in upheld)
        for number, flag in opened.items()
    ]
    return JobEnding(
        case=case,
        cg=cg,
        cv=cv,
        user=USER,
        generator=GENERATOR,
        verifiers=tuple(draw(st.permutations(standings))),
        prior=None if finder is None else ParticipantId(f"v{finder}"),
        is_challenged=case is not Case.NO_CHALLENGE and draw(st.booleans()),
        reserve_micro=draw(st.one_of(st.just(0), costs)),
    )


@settings(deadline=None)
@given(job=jobs(), data=st.data())
def test_every_outcome_empties_the_pool(job: tuple[FixedFeeCommittee, int, int], data: st.DataObject) -> None:
    rules, cg, cv = job
    ending = data.draw(endings(rules, cg, cv))
    settlement = rules.settle(ending)
    products = rules.compute_products(cg, cv)
    held = products.deposit + products.generator_stake + len(ending.verifiers) * products.verifier_stake

    assert settlement.pool == held + settlement.drawn
    assert sum(amount for _, amount in settlement.payouts) == settlement.pool
    assert all(amount > 0 for _, amount in settlement.payouts)
    accounts = [account for account, _ in settlement.payouts]
    assert len(set(accounts)) == len(accounts)
    seated = {one.participant for one in ending.verifiers}
    assert set(accounts) <= {USER, GENERATOR, TREASURY, RESERVE, *seated}
    assert 0 <= settlement.drawn <= ending.reserve_micro
    assert not (settlement.drawn and settlement.get_payout(RESERVE))
    verify_rows(rules, ending, settlement.slashed)


def verify_rows(rules: FixedFeeCommittee, ending: JobEnding, slashed: tuple[str, ...]) -> None:
    """Who is slashed gets nothing, who is not gets at least its stake; the user never pays more than it deposited."""
    settlement = rules.settle(ending)
    products = rules.compute_products(ending.cg, ending.cv)
    for one in ending.verifiers:
        payout = settlement.get_payout(one.participant)
        assert payout == 0 if one.participant in slashed else payout >= products.verifier_stake
        if one.upheld:
            assert one.participant not in slashed
        if not one.opened and ending.case is not Case.EQUIVOCATION:
            assert one.participant in slashed
    is_convicted = ending.case in {Case.CONVICTION, Case.NO_OPENING, Case.EQUIVOCATION}
    assert (GENERATOR in slashed) == is_convicted
    assert (settlement.get_payout(GENERATOR) == 0) == is_convicted
    is_refunded = is_convicted or ending.case is Case.VOID
    assert (settlement.get_payout(USER) >= products.deposit) == (is_refunded or products.deposit == 0)


@settings(deadline=None)
@given(job=jobs(), data=st.data())
def test_a_conviction_never_leaves_its_parties_with_more_than_they_put_in(
    job: tuple[FixedFeeCommittee, int, int], data: st.DataObject
) -> None:
    """A generator, its user and all verifiers in league lose by convicting themselves: the treasury gains."""
    rules, cg, cv = job
    ending = data.draw(endings(rules, cg, cv, [Case.CONVICTION, Case.NO_OPENING, Case.EQUIVOCATION]))
    assert rules.settle(ending).get_payout(TREASURY) > 0


@settings(deadline=None)
@given(
    rules=rule_sets(),
    cheaper=st.integers(1, 500),
    dearer=st.integers(0, 5),
    prompt=st.integers(1, 4_000),
    output=st.integers(0, 4_000),
    data=st.data(),
)
def test_allowed_prices_never_lead_to_refused_costs(
    rules: FixedFeeCommittee, cheaper: int, dearer: int, prompt: int, output: int, data: st.DataObject
) -> None:
    """At the largest price of verifying that is allowed; one more is refused."""
    rules = replace(rules, beta_generator=to_rational(rules.beta_generator.value + 1))
    left = (rules.beta_generator.value - rules.bounty.value - rules.bonus.value) * cheaper
    verify = min(int(left / (rules.paid_max * rules.phi.value)), 10**6)
    pair = data.draw(st.permutations([cheaper, cheaper + dearer]))
    rules.validate_prices(PriceList(pair[0], pair[1], verify))
    if verify < 10**6:
        with pytest.raises(PayoffError):
            rules.validate_prices(PriceList(pair[0], pair[1], verify + 1))
    cg = PriceList(pair[0], pair[1], verify).compute_generation_cost(prompt, output)
    position = data.draw(st.integers(0, max(0, prompt + output - 2)))
    cv = PriceList(pair[0], pair[1], verify).compute_verification_cost(
        layer_max=31, position_max=position, layer_count=32
    )
    rules.validate_costs(cg, cv)
