"""Jobs of every ending, played once: their receipts, their networks with all keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kit.loopback import SECTIONS, Habit, Loopback
from pocache.protocol.ids import JobId
from pocache.receipt.format import Receipt, encode_binary
from pocache.receipt.report import Report
from pocache.receipt.verify import verify_receipt
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import VerifierDrawnV1

ALWAYS = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": "1/1", "full_depth_share": "0/1"}}
CHEATS = {"worker": Habit("a cheat")}
COMMITTEE = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "lottery_share": "1/1000000"},
    "rules": {"name": "fixed-fee-committee", "committee_size": 3, "recheck": "0"},
}
"""The other rule set, whose audits here are asked for: the lottery takes next to nothing, nothing is rechecked."""
LOOKED_AT = {
    **COMMITTEE,
    "audit": {**SECTIONS["audit"], "lottery_share": "1/1", "full_depth_share": "0/1"},
    "rules": {**COMMITTEE["rules"], "levy": "2"},
}
RECHECKED = {**LOOKED_AT, "rules": {**COMMITTEE["rules"], "levy": "3", "recheck": "1"}}
SEATED = tuple(f"verifier-{number}" for number in range(1, 9))


@dataclass(frozen=True)
class Played:
    """One job that is over."""

    loopback: Loopback
    job_id: JobId
    receipt: Receipt

    def verify(self, receipt: Receipt) -> Report:
        """Judge a receipt by this network's trust roots."""
        return verify_receipt(encode_binary(receipt), self.loopback.trust)


@cache
def play(ending: str) -> Played:
    """Play a job to an ending."""
    loopback, options = _make(ending)
    job_id = loopback.play(**options)
    asker = options.get("user")
    return Played(loopback, job_id, loopback.get_receipt(job_id, asker))


def _make(ending: str) -> tuple[Loopback, dict[str, Any]]:
    if ending == "no_challenge":
        return Loopback(), {}
    if ending == "agree":
        return Loopback(), {"challenge": True}
    if ending == "lottery":
        return Loopback(ALWAYS), {}
    if ending == "deepened":
        return Loopback(ALWAYS), {"challenge": True, "challenge_after": 2}
    if ending == "confirm_prior":
        return Loopback(habits=dict(CHEATS)), {"challenge": True}
    if ending == "silent_verifier":
        drawn = _find_drawn(play("agree"))
        return Loopback(habits={drawn: Habit(seals=False)}), {"challenge": True}
    if ending == "no_opening":
        return Loopback(habits={"worker": Habit(opens=False)}), {"challenge": True}
    if ending == "equivocation":
        return Loopback(habits={"worker": Habit(commits_twice=True)}), {}
    if ending == "void":
        names = ("worker", "verifier-1", "verifier-2", "verifier-3")
        return Loopback(habits={name: Habit(name) for name in names}), {"challenge": True}
    if ending == "refunded":
        return Loopback(habits={"worker": Habit(commits=False)}), {}
    if ending == "cancelled":
        return Loopback(), {"challenge": True, "cancel": True}
    if ending == "epoch_seed":
        return Loopback(), {"seed": None}
    if ending == "refused":
        return Loopback(), {"user": "poor"}
    return _make_committee(ending)


def _make_committee(ending: str) -> tuple[Loopback, dict[str, Any]]:
    asked: dict[str, Any] = {"challenge": True}
    if ending == "committee_no_challenge":
        return _seat(), {}
    if ending == "committee_agree":
        return _seat(), asked
    if ending == "committee_lottery":
        return _seat(sections=LOOKED_AT), {}
    if ending == "committee_deepened":
        return _seat(sections=LOOKED_AT), {**asked, "challenge_after": 2}
    if ending == "committee_rechecked":
        return _seat(sections=RECHECKED), {}
    if ending == "committee_conviction":
        return _seat(dict(CHEATS)), asked
    if ending == "committee_acquittal":
        return _seat({_find_auditor(): Habit("a liar")}), asked
    if ending == "committee_silent_auditor":
        return _seat({_find_auditor(): Habit(opens=False)}), asked
    if ending == "committee_no_opening":
        return _seat({"worker": Habit(opens=False)}), asked
    if ending == "committee_equivocation":
        return _seat({"worker": Habit(commits_twice=True)}), {}
    if ending == "committee_void":
        return _seat({name: Habit(name) for name in ("worker", *SEATED)}), asked
    assert ending == "committee_too_few", ending
    convicted = play("committee_conviction")  # the same cheat's commitment, so the same draws
    awake = {_find_drawn(convicted), _find_drawn(convicted, stage=7)}
    return _seat({**CHEATS, **{name: Habit(seals=False) for name in SEATED if name not in awake}}), asked


def _seat(
    habits: dict[str, Habit] | None = None, *, sections: Mapping[str, Mapping[str, Any]] = COMMITTEE
) -> Loopback:
    return Loopback(sections, verifiers=SEATED, habits=habits or {})


def _find_auditor() -> str:
    """Return whom the audit of the network's first challenged job draws; the same whatever anybody does."""
    return _find_drawn(play("committee_agree"))


def _find_drawn(played: Played, stage: int = 1) -> str:
    """Return who was drawn for a seat: the audit's first is 1, the first committee's 7 (docs/protocol.md 8.10)."""
    loopback, subject = played.loopback, t.VERIFIER_DRAWN.subject(job=played.job_id)
    drawn = (
        open_envelope(one.data, loopback.network.network_id, VerifierDrawnV1).body
        for one in loopback.record
        if one.subject == subject
    )
    return next(loopback.keys[body.participant] for body in drawn if body.stage == stage)


ENDINGS = (
    "no_challenge",
    "agree",
    "lottery",
    "deepened",
    "confirm_prior",
    "silent_verifier",
    "no_opening",
    "equivocation",
    "void",
    "refunded",
    "cancelled",
    "epoch_seed",
    "refused",
    "committee_no_challenge",
    "committee_agree",
    "committee_lottery",
    "committee_deepened",
    "committee_rechecked",
    "committee_conviction",
    "committee_acquittal",
    "committee_silent_auditor",
    "committee_no_opening",
    "committee_equivocation",
    "committee_void",
    "committee_too_few",
)
STATED = {
    "lottery": "agree",
    "deepened": "agree",
    "cancelled": "agree",
    "epoch_seed": "no_challenge",
    "silent_verifier": "confirm_generator",
    "committee_no_challenge": "no_challenge",
    "committee_agree": "agree",
    "committee_lottery": "agree",
    "committee_deepened": "agree",
    "committee_rechecked": "agree",
    "committee_conviction": "conviction",
    "committee_acquittal": "acquittal",
    "committee_silent_auditor": "agree",
    "committee_no_opening": "no_opening",
    "committee_equivocation": "equivocation",
    "committee_void": "void",
    "committee_too_few": "void",
}
"""The ending that the rules call it, where it is another word."""
