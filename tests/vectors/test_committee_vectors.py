"""The vectors of `fixed-fee-committee` against docs/economics.md 5.3, written out again with none of the rules' code.

``make_committees`` computes them with the rules themselves, and ``verify.js`` is held to them as well.
"""

from __future__ import annotations

import json
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import pytest

CASES: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("committee_v1.json").read_text(encoding="ascii")
)["settlements"]
PAID = [one for one in CASES if one["found"] is not None]
FIRST_MEMBER = 7
"""Seats 1 to 3 are the audit's, 4 to 6 the recheck's."""


def pay(one: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Return each account's payout by the row of 5.3, and what is drawn from the reserve."""
    cg, cv = map(int, one["costs"])
    *factors, _, _ = one["rules"]
    alpha, beta_g, beta_v, phi, levy, bounty, bonus = map(Fraction, factors)
    fee, stake, held = floor(phi * cv), floor(beta_v * cv), floor(beta_g * cg)
    escrow = floor(alpha * cg) + floor(alpha * cv) + floor(levy * cv)
    got: dict[str, int] = {}

    def give(account: str, amount: int) -> None:
        got[account] = got.get(account, 0) + amount

    case = one["case"]
    takes_all = case in ("void", "no_opening")
    winners = [number for number, opened, upheld in one["seats"] if opened and (upheld or takes_all)]
    losses = (len(one["seats"]) - len(winners)) * stake
    if case == "equivocation":
        for number, *_ in one["seats"]:
            give(f"v{number}", stake)
        give(one["user"], escrow)
        give("treasury", held)
        return got, 0
    if case in ("conviction", "no_opening"):
        spent = len(winners) * fee + floor(bounty * cg) + (floor(bonus * cg) if one["prior"] else 0)
        for number in winners:
            give(f"v{number}", stake + fee)
        if one["prior"]:
            give(one["prior"], floor(bonus * cg))
        give(one["user"], escrow + floor(bounty * cg))
        give("treasury", held - spent + losses)
        return got, 0
    if case == "void":
        give(one["user"], escrow)
        give(one["generator"], held)
        income, members = 0, len(winners)
    else:
        give(one["generator"], floor(alpha * cg) + held)
        give(one["user"], 0 if one["challenged"] else floor(alpha * cv))
        income = floor(levy * cv) + (floor(alpha * cv) if one["challenged"] else 0)
        members = sum(number >= FIRST_MEMBER for number in winners)
    from_losses = min(losses, members * fee)
    at_hand = from_losses + income + int(one["reserve"])
    if len(winners) * fee > at_hand:
        fee = at_hand // len(winners)
    for number in winners:
        give(f"v{number}", stake + fee)
    give("treasury", losses - from_losses)
    left = from_losses + income - len(winners) * fee
    give("reserve", max(0, left))
    return got, max(0, -left)


@pytest.mark.parametrize("at", range(len(PAID)))
def test_each_settlement_is_that_of_the_table(at: int) -> None:
    """To the last micro-unit, and the pool is what was put in and drawn."""
    one = PAID[at]
    got, drawn = pay(one)
    found = one["found"]
    assert dict(found["payouts"]) == {name: str(amount) for name, amount in got.items() if amount}
    assert int(found["drawn"]) == drawn <= int(one["reserve"])
    cg, cv = map(int, one["costs"])
    alpha, beta_g, beta_v, _, levy, _, _ = map(Fraction, one["rules"][:7])
    put_in = floor(alpha * cg) + floor(alpha * cv) + floor(levy * cv) + floor(beta_g * cg)
    pool = put_in + len(one["seats"]) * floor(beta_v * cv) + drawn
    assert int(found["pool"]) == pool == sum(int(amount) for _, amount in found["payouts"])
    losers = [f"v{number}" for number, opened, upheld in one["seats"] if not (opened and upheld)]
    if one["case"] in ("conviction", "acquittal"):
        convicted = [one["generator"]] if one["case"] == "conviction" else []
        assert found["slashed"] == convicted + losers


def test_every_outcome_is_there_and_so_are_refusals() -> None:
    """Each case paid and, of those with standings to get wrong, refused."""
    paid = {one["case"] for one in PAID}
    assert paid == {
        "no_challenge", "agree", "acquittal", "conviction", "void", "no_opening", "equivocation",
    }  # fmt: skip
    assert {one["case"] for one in CASES if one["found"] is None} >= {
        "no_challenge", "agree", "acquittal", "conviction", "confirm_prior",
    }  # fmt: skip
    assert sum(one["challenged"] for one in PAID) > 10
    assert sum(int(one["found"]["drawn"]) > 0 for one in PAID) > 10
    assert sum(one["prior"] is not None for one in PAID) > 5
