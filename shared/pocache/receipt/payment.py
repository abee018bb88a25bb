"""Steps R17 and R18: what the rules pay for this ending, and what was paid (docs/protocol.md 14.3).

Owns the settlement from the prices, the corner and the standings alone. Refuses a pool that is not emptied exactly, a
line that the rules do not know, and money from somebody of whom nothing was held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pocache.protocol import payoff
from pocache.protocol.errors import ReceiptError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.payoff import Case as Ending
from pocache.protocol.payoff import Settlement, VerifierStanding
from pocache.receipt.case import Case
from pocache.receipt.report import Findings
from pocache.wire import messages as m
from pocache.wire import topics as t

TREASURY: Final = "treasury"
RESERVE: Final = "reserve"
"""The accounts of nobody's, as the ledger's payouts name them."""

_HOUSE: Final[Mapping[str, str]] = {payoff.TREASURY: TREASURY, payoff.RESERVE: RESERVE}

REFUNDED: Final = "refunded"
_REFUSED: Final = "the deposit was refused: nothing was held, nothing is paid"


def check_payoff(case: Case, found: Findings) -> None:
    """R17: Cg, Cv, the pool and who is slashed are those of the rules for this outcome."""
    payout = case.dossier.find(t.PAYOUT_SETTLED)
    if payout is None:
        _say_unpaid(case, found)
        return
    if payout.case == REFUNDED:
        _check_refund(case, found, payout)
        return
    outcome = case.outcome
    expected_case = "no_challenge" if outcome is None else outcome.case
    found.equal("how the job ended", payout.case, expected_case)
    found.equal("attempt that is paid", payout.attempt, case.recorded.attempt)
    found.equal("stages", payout.stage, 0 if outcome is None else outcome.stage)
    cg, cv = compute_costs(case)
    found.equal("Cg, micro-units", payout.generation_micro, cg)
    found.equal("Cv of the corner", payout.verification_micro, cv)
    settlement = compute_settlement(case)
    found.equal("what was in the pool", payout.pool_micro, settlement.pool)
    found.equal("who is slashed", payout.slashed, settlement.slashed)


def _say_unpaid(case: Case, found: Findings) -> None:
    if case.dossier.is_refused:
        if len(case.dossier.all(t.HOLD_PLACED)) or case.is_committed:
            raise ReceiptError("a job whose deposit was refused has holds or a commitment")
        found.skip(_REFUSED)
        return
    if case.trust is not None and not case.is_record_whole:
        raise ReceiptError("the job is not settled: there is no receipt of it yet")
    found.skip("the job is not settled yet")


def _check_refund(case: Case, found: Findings, payout: m.PayoutSettledV1) -> None:
    if case.is_committed:
        raise ReceiptError("a job with a recorded commitment was refunded instead of settled")
    found.note("why it was given up", case.dossier.get(t.JOB_ABANDONED).reason)
    costs = (payout.generation_micro, payout.verification_micro)
    found.equal("costs of a job that was not done", costs, (0, 0))
    found.equal("who is slashed", payout.slashed, ())


def compute_costs(case: Case) -> tuple[int, int]:
    """Return Cg of the committed output, and Cv of the corner: the outcome's, else the whole job (9.1)."""
    corner = case.full_corner
    if case.outcome is not None:
        corner_body = case.outcome.corner
        layer_max, position_max = corner_body.layer_max, corner_body.position_max
    else:
        layer_max, position_max = corner.layer_max, corner.position_max
    prices = case.model.prices
    cg = prices.compute_generation_cost(len(case.prompt), len(case.output))
    cv = prices.compute_verification_cost(
        layer_max=layer_max, position_max=position_max, layer_count=case.model.schema.layer_count
    )
    return cg, cv


def compute_settlement(case: Case) -> Settlement:
    """Return what the rules pay. Raises PayoffError for standings that no run of the rules has."""
    cg, cv = compute_costs(case)
    outcome = case.outcome
    return payoff.settle(
        case.genesis.rule_set,
        case=Ending.NO_CHALLENGE if outcome is None else Ending(outcome.case),
        cg=cg,
        cv=cv,
        user=case.user,
        generator=case.generator,
        verifiers=[
            VerifierStanding(ParticipantId(one.participant), one.stage, one.opened, one.upheld)
            for one in (() if outcome is None else outcome.verifiers)
        ],
        deciding=None if outcome is None or outcome.deciding is None else ParticipantId(outcome.deciding),
        prior=None if outcome is None or outcome.prior is None else ParticipantId(outcome.prior),
        is_challenged=outcome is not None and outcome.is_challenged,
        reserve_micro=case.dossier.get(t.PAYOUT_SETTLED).reserve_micro,
    )


def check_payout(case: Case, found: Findings) -> None:
    """R18: each account got what the rules say and had put in what it must, and nothing is left."""
    payout = case.dossier.find(t.PAYOUT_SETTLED)
    if payout is None:
        found.skip(_REFUSED if case.dossier.is_refused else "the job is not settled yet")
        return
    accounts = [line.account for line in payout.lines]
    found.equal("accounts, each once", len(set(accounts)), len(accounts))
    expected = _compute_refund_lines(case) if payout.case == REFUNDED else _compute_lines(case)
    stated = {line.account: (line.amount_micro, line.held_micro) for line in payout.lines}
    for account in sorted({*stated, *expected}):
        what = f"{account}: paid, and put in"
        found.equal(what, stated.get(account, (0, 0)), expected.get(account, (0, 0)))
    paid = sum(line.amount_micro for line in payout.lines)
    held = sum(line.held_micro for line in payout.lines)
    found.equal("left in the pool, micro-units", payout.pool_micro - paid, 0)
    found.equal("put in by somebody", held, payout.pool_micro)
    _check_holds(case, found, payout)


def _compute_lines(case: Case) -> dict[str, tuple[int, int]]:
    products = case.genesis.rule_set.compute_products(*compute_costs(case))
    settlement = compute_settlement(case)
    held: dict[str, int] = {RESERVE: settlement.drawn, case.user: products.deposit}
    held[case.generator] = held.get(case.generator, 0) + products.generator_stake
    for one in () if case.outcome is None else case.outcome.verifiers:
        held[one.participant] = held.get(one.participant, 0) + products.verifier_stake
    paid = {_HOUSE.get(account, account): amount for account, amount in settlement.payouts}
    lines = {account: (paid.get(account, 0), held.get(account, 0)) for account in {*held, *paid}}
    return {account: amounts for account, amounts in lines.items() if any(amounts)}


def _compute_refund_lines(case: Case) -> dict[str, tuple[int, int]]:
    """Return every hold as it goes back; the stake of an attempt that was charged for has gone back before."""
    charged = {(one.attempt, one.generator) for one in case.dossier.all(t.ATTEMPT_CHARGED)}
    back: dict[str, int] = {}
    seen: set[tuple[object, ...]] = set()
    for hold in case.dossier.all(t.HOLD_PLACED):
        key = (hold.purpose, hold.attempt, hold.stage, hold.party)
        if key in seen or (hold.purpose == "generator_stake" and (hold.attempt, hold.party) in charged):
            continue
        seen.add(key)
        back[hold.party] = back.get(hold.party, 0) + hold.amount_micro
    return {party: (amount, amount) for party, amount in back.items() if amount}


def _check_holds(case: Case, found: Findings, payout: m.PayoutSettledV1) -> None:
    """Check that everybody's part of the pool had been locked, by the ledger's word at the time."""
    placed: dict[str, int] = {}
    seen: set[tuple[object, ...]] = set()
    for hold in case.dossier.all(t.HOLD_PLACED):
        key = (hold.purpose, hold.attempt, hold.stage, hold.party)
        if key not in seen:
            seen.add(key)
            placed[hold.party] = placed.get(hold.party, 0) + hold.amount_micro
    for line in payout.lines:
        if line.account == RESERVE:
            has = payout.reserve_micro
            found.holds("drawn from the reserve", line.held_micro <= has, line.held_micro, f"at most {has}")
            continue
        locked = placed.get(line.account, 0)
        what = f"{line.account}: put in {line.held_micro} of what was locked"
        found.holds(what, line.held_micro <= locked, locked, f"at least {line.held_micro}")
    _check_answers(case, found)


def _check_answers(case: Case, found: Findings) -> None:
    """Check that the ledger answered every request for a hold, and nothing that was not asked for."""
    requests = [*case.dossier.all(t.ROUTER_HOLD_REQUESTED), *case.dossier.all(t.VERIFIER_HOLD_REQUESTED)]
    asked = {(*_get_key(one), one.amount_micro) for one in requests}
    placed = {(*_get_key(one), one.amount_micro) for one in case.dossier.all(t.HOLD_PLACED)}
    refused = {_get_key(one) for one in case.dossier.all(t.HOLD_REFUSED)}
    answered = {one for one in asked if one in placed or one[:-1] in refused}
    found.equal("holds that were asked for and not answered", len(asked - answered), 0)
    unasked = (placed - asked) | {one for one in refused if one not in {key[:-1] for key in asked}}
    found.equal("answers about holds that were not asked for", len(unasked), 0)


def _get_key(one: m.HoldRequestV1 | m.HoldPlacedV1 | m.HoldRefusedV1) -> tuple[object, ...]:
    return (one.purpose, one.attempt, one.stage, one.party, one.publication)
