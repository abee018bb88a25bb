"""Vectors of settlements under ``fixed-fee-committee`` (docs/protocol.md 9.3, docs/economics.md 5.3)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from kit.vectors.draws import name_party
from kit.vectors.words import Sections, Vector
from pocache.protocol.committee_terms import AUDIT_SEAT, COMMITTEE_SEAT, RECHECK_SEAT
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.payoff import (
    DEFAULT_COMMITTEE,
    RESERVE,
    TREASURY,
    Case,
    FixedFeeCommittee,
    Rational,
    VerifierStanding,
    settle,
)

Seat = tuple[int, bool, bool]
"""Its number, whether it opened, whether the outcome bears it out."""

FACTORS: Final = ("alpha", "beta_generator", "beta_verifier", "phi", "levy", "bounty", "bonus")
HOUSE: Final = {TREASURY: "treasury", RESERVE: "reserve"}
PLENTY: Final = 10**9
COSTS: Final = (1_000_000, 100_000)
_SMALL: Final = replace(DEFAULT_COMMITTEE, committee_size=3)
_ODD: Final = FixedFeeCommittee(
    alpha=Rational(7, 6),
    beta_generator=Rational(61, 7),
    beta_verifier=Rational(31, 3),
    phi=Rational(8, 7),
    levy=Rational(5, 7),
    lottery=Rational(1, 3),
    recheck=Rational(1, 4),
    committee_size=5,
    committee_count=1,
    bounty=Rational(2, 3),
    bonus=Rational(1, 9),
    reserve=Rational(1, 5),
)
_RULES: Final = (DEFAULT_COMMITTEE, _SMALL, _ODD)


def make_committees() -> Sections:
    """Every outcome by name, with what is special about it; then many drawn at random, most of them refused."""
    return {"settlements": [*_make_named(), *_make_drawn()]}


def _make_named() -> list[Vector]:
    a, b, c, d = AUDIT_SEAT, RECHECK_SEAT, COMMITTEE_SEAT, COMMITTEE_SEAT + 3
    right, wrong, silent = (True, True), (True, False), (False, False)

    def seats(*found: tuple[int, tuple[bool, bool]]) -> list[Seat]:
        return [(number, *standing) for number, standing in found]

    committee = ((c, right), (c + 1, right))
    cases: tuple[tuple[str, Case, list[Seat], dict[str, Any]], ...] = (
        ("no audit: the levy fills the reserve", Case.NO_CHALLENGE, [], {}),
        ("agreement, drawn by lottery", Case.AGREE, seats((a, right)), {}),
        ("agreement, the user challenged", Case.AGREE, seats((a, right)), {"is_challenged": True}),
        ("agreement, rechecked", Case.AGREE, seats((a, right), (b, right)), {}),
        ("agreement after a silent verifier", Case.AGREE, seats((a, silent), (a + 1, right)), {}),
        ("agreement, the reserve is empty", Case.AGREE, seats((a, right)), {"reserve_micro": 0}),
        ("agreement, the reserve is short", Case.AGREE, seats((a, right), (b, right)), {"reserve_micro": 7}),
        ("acquittal: the audit was wrong", Case.ACQUITTAL, seats((a, wrong), *committee, (c + 2, wrong)), {}),
        (
            "acquittal, challenged: the recheck was wrong",
            Case.ACQUITTAL,
            seats((a, right), (b, wrong), *committee, (c + 2, silent)),
            {"is_challenged": True},
        ),
        (
            "acquittal by the second committee",
            Case.ACQUITTAL,
            seats((a, wrong), (c, silent), (c + 1, silent), (c + 2, right), (d, right), (d + 1, right)),
            {},
        ),
        (
            "conviction: restitution, bounty, the finder's bonus",
            Case.CONVICTION,
            seats((a, right), *committee, (c + 2, right)),
            {"prior": f"v{a}"},
        ),
        (
            "conviction, found by the recheck; the audit was lazy",
            Case.CONVICTION,
            seats((a, wrong), (b, right), *committee, (c + 2, wrong)),
            {"prior": f"v{b}", "is_challenged": True},
        ),
        (
            "conviction, whoever called the committee was wrong itself: no finder",
            Case.CONVICTION,
            seats((a, wrong), *committee, (c + 2, silent)),
            {},
        ),
        ("no opening: whoever opened is paid", Case.NO_OPENING, seats((a, wrong), (b, silent)), {}),
        ("no opening, before anybody was drawn", Case.NO_OPENING, [], {}),
        ("void: all silent", Case.VOID, seats((a, silent), (a + 1, silent), (a + 2, silent)), {}),
        (
            "void: fees out of a silent stake",
            Case.VOID,
            seats((a, wrong), (c, wrong), (c + 1, wrong), (c + 2, silent)),
            {},
        ),
        ("void: the reserve pays", Case.VOID, seats((a, wrong)), {}),
        ("void: the reserve is short", Case.VOID, seats((a, wrong), (b, wrong)), {"reserve_micro": 100_001}),
        ("equivocation", Case.EQUIVOCATION, seats((a, wrong), (b, silent)), {}),
        ("a minority convicts nobody", Case.CONVICTION, seats((a, right), (c, right)), {}),
        ("a finder that was not borne out", Case.CONVICTION, seats((a, wrong), *committee), {"prior": f"v{a}"}),
        ("a finder of an acquittal", Case.ACQUITTAL, seats((a, right), *committee), {"prior": f"v{a}"}),
        ("a member is no finder", Case.CONVICTION, seats((a, wrong), *committee), {"prior": f"v{c}"}),
        ("two have opened in the audit", Case.AGREE, seats((a, right), (a + 1, right)), {}),
        ("borne out unseen", Case.AGREE, [(a, False, True)], {}),
        ("a seat that there is not", Case.VOID, seats((_SMALL.seat_max + 1, silent)), {}),
        ("an audit without a verifier", Case.AGREE, [], {}),
        ("verifiers without an audit", Case.NO_CHALLENGE, seats((a, right)), {}),
        ("a case of the other rules", Case.CONFIRM_PRIOR, seats((a, right)), {}),
        ("a generator that verifies itself", Case.AGREE, seats((a, right)), {"generator": f"v{a}"}),
        ("a user that verifies its own job", Case.AGREE, seats((a, right)), {"user": f"v{a}"}),
        ("a job that costs nothing", Case.NO_CHALLENGE, [], {"costs": (0, 0)}),
        ("the cheapest job there is", Case.NO_CHALLENGE, [], {"costs": (1, 0)}),
        ("βCg does not cover the fees", Case.NO_CHALLENGE, [], {"costs": (100_000, 10**6)}),
        ("the pool is too large", Case.NO_CHALLENGE, [], {"costs": (2**59, 2**50)}),
        ("large amounts", Case.CONVICTION, seats((a, right), *committee), {"prior": f"v{a}", "costs": (2**57 + 1, 2**49 + 1)}),
    )  # fmt: skip
    return [judge_committee(_SMALL, case, found, is_=words, **more) for words, case, found, more in cases]


def _make_drawn() -> list[Vector]:
    """Standings that could be, and some that could not, under each rule set."""
    source = random.Random("committees")
    result: list[Vector] = []
    cases = [one for one in Case if one not in (Case.CONFIRM_GENERATOR, Case.CONFIRM_PRIOR)]
    for _ in range(160):
        rules = source.choice(_RULES)
        case = source.choice(cases)
        numbers = [AUDIT_SEAT] if source.random() < 0.9 and case is not Case.NO_CHALLENGE else []
        numbers += [RECHECK_SEAT] if numbers and source.random() < 0.4 else []
        is_judged = case in (Case.ACQUITTAL, Case.CONVICTION)
        if is_judged or (case is Case.VOID and source.random() < 0.5):
            numbers += range(COMMITTEE_SEAT, COMMITTEE_SEAT + rules.committee_size)
            if rules.committee_count == 2 and source.random() < 0.3:
                numbers += range(COMMITTEE_SEAT + rules.committee_size, rules.seat_max + 1)
        found: list[Seat] = []
        for number in numbers:
            has_opened = source.random() < 0.85
            is_upheld = has_opened and (case is Case.AGREE or (is_judged and source.random() < 0.75))
            found.append((number, has_opened, is_upheld))
        finders = [f"v{number}" for number, _, upheld in found if upheld and number < COMMITTEE_SEAT]
        prior = source.choice(finders) if finders and case is Case.CONVICTION else None
        cv = source.choice((0, 1, 999, 10**6 + 7))
        result.append(
            judge_committee(
                rules,
                case,
                found,
                prior=prior,
                is_challenged=case is not Case.NO_CHALLENGE and source.random() < 0.4,
                reserve_micro=source.choice((0, 5, 10**6, PLENTY)),
                costs=(source.choice((1, 12 * cv + 3, 10 * cv + 17, 10**9 + 9)), cv),
            )
        )
    return result


def judge_committee(
    rules: FixedFeeCommittee,
    case: Case,
    seats: Sequence[Seat],
    *,
    is_: str = "",
    prior: str | None = None,
    is_challenged: bool = False,
    reserve_micro: int = PLENTY,
    costs: tuple[int, int] = COSTS,
    user: str = "user",
    generator: str = "generator",
) -> Vector:
    """Return what a settlement pays; null where costs or standings are refused."""
    vector: Vector = {
        **({"is": is_} if is_ else {}),
        "rules": [*(str(getattr(rules, name)) for name in FACTORS), rules.committee_size, rules.committee_count],
        "case": case.value, "costs": [str(one) for one in costs], "user": user, "generator": generator,
        "seats": [list(one) for one in seats], "prior": prior, "challenged": is_challenged, "reserve": str(reserve_micro),
    }  # fmt: skip
    try:
        found = settle(
            rules, case=case, cg=costs[0], cv=costs[1], user=ParticipantId(user), generator=ParticipantId(generator),
            verifiers=[VerifierStanding(ParticipantId(f"v{number}"), number, *how) for number, *how in seats],
            prior=name_party(prior), is_challenged=is_challenged, reserve_micro=reserve_micro,
        )  # fmt: skip
    except PocacheError:
        return {**vector, "found": None}
    payouts = sorted([HOUSE.get(name, name), str(amount)] for name, amount in found.payouts)
    named = {"payouts": payouts, "pool": str(found.pool), "slashed": list(found.slashed), "drawn": str(found.drawn)}
    return {**vector, "found": named}
