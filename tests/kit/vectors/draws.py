"""Vectors of sortition and of settlements (docs/protocol.md 6.6, 9.3)."""

from __future__ import annotations

import hashlib
import random
from itertools import product
from typing import Any

from kit.vectors.keys import spell
from kit.vectors.words import Sections, Vector
from pocache.protocol.challenge import DeterministicStream, draw_order
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.payoff import Case, Rational, UnifiedPool, VerifierStanding, settle


def make_sortition() -> Sections:
    """Orders of many members, with stakes from one to the largest, and stakes that have none."""
    result: list[Vector] = []
    for number, (count, top) in enumerate(((1, 1), (2, 2**62), (7, 1), (20, 10), (40, 2**57), (150, 10**9))):
        source = random.Random(f"sortition {number}")
        names = sorted(spell(source.randbytes(32)) for _ in range(count))
        result.append(judge_order(number, [(name, source.randint(1, top)) for name in names]))
    names = [spell(bytes([one]) * 32) for one in (1, 2)]
    bad: list[list[tuple[str, int]]] = [
        [(names[0], 1), (names[0], 1)],
        [(names[1], 1), (names[0], 1)],
        [(names[0], 0)],
    ]
    result += [
        judge_order(one, [(name, stake) for name, stake in sorted(stakes)] if len(stakes) > 2 else stakes)
        for one, stakes in enumerate(bad)
    ]
    return {"orders": result}


def judge_order(number: int, stakes: list[tuple[str, int]]) -> Vector:
    """Return the order that a seed gives; null where the stakes are refused."""
    seed = Digest(hashlib.sha256(b"sortition %d" % number).digest())
    try:
        order: Any = list(
            draw_order(DeterministicStream(seed), [(ParticipantId(name), stake) for name, stake in stakes])
        )
    except PocacheError:
        order = None
    return {"seed": seed.hex(), "stakes": [[name, str(stake)] for name, stake in stakes], "order": order}


def make_payoffs() -> Sections:
    """Settlements under ``unified-pool``: every case with every number of stages, who opened and who did not."""
    source = random.Random("payoffs")
    result: list[Vector] = []
    names = ["generator", "v1", "v2", "v3"]
    for case in (one for one in Case if one.value not in ("acquittal", "conviction")):
        for count in range(4):
            for opened in product((True, False), repeat=count):
                costs = (source.choice((0, 1, 999, 10**6 + 7)), source.choice((0, 1, 998, 10**9 + 9)))
                last = names[count] if count else None
                for deciding, prior in dict.fromkeys(
                    ((None, None), (last, None), (last, "v1"), (None, "v1"))
                ):
                    result.append(judge_payoff(case, costs, opened, deciding, prior))
    unusual = [("1/3", "7/11", 5), ("1", "1/1000000", 2), ("6/5", "5", 16)]
    for alpha, beta, stages in unusual:
        result += [
            judge_payoff(Case.CONFIRM_PRIOR, (cg, cv), (True, True), "v2", "v1", alpha, beta, stages)
            for cg in (0, 10, 2**62)
            for cv in (0, 10, 10**6, 2**60)
        ]
    result.append(judge_payoff(Case.AGREE, (5, 5), (True,), "v1", None, user="v1"))
    result.append(judge_payoff(Case.AGREE, (5, 5), (True,), "v1", None, user="generator"))
    return {"settlements": result}


def judge_payoff(
    case: Case,
    costs: tuple[int, int],
    opened: tuple[bool, ...],
    deciding: str | None,
    prior: str | None,
    alpha: str = "6/5",
    beta: str = "5",
    stage_max: int = 3,
    user: str = "user",
) -> Vector:
    """Return what a settlement pays; null where the standings are refused."""
    verifiers = [
        VerifierStanding(ParticipantId(f"v{stage}"), stage, one) for stage, one in enumerate(opened, 1)
    ]
    vector: Vector = {
        "rules": [alpha, beta, stage_max], "case": case.value, "costs": [str(one) for one in costs], "user": user,
        "opened": list(opened), "deciding": deciding, "prior": prior,
    }  # fmt: skip
    try:
        found = settle(
            UnifiedPool(Rational.parse(alpha), Rational.parse(beta), stage_max),
            case=case, cg=costs[0], cv=costs[1], user=ParticipantId(user), generator=ParticipantId("generator"),
            verifiers=verifiers, deciding=name_party(deciding), prior=name_party(prior),
        )  # fmt: skip
    except PocacheError:
        return {**vector, "found": None}
    payouts = sorted(
        [name.lower() if name == "TREASURY" else name, str(amount)] for name, amount in found.payouts
    )
    return {**vector, "found": {"payouts": payouts, "pool": str(found.pool), "slashed": list(found.slashed)}}


def name_party(name: str | None) -> ParticipantId | None:
    """Return a name as a participant's."""
    return None if name is None else ParticipantId(name)
