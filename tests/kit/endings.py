"""Jobs of every ending, played once: their receipts, their networks with all keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from kit.loopback import SECTIONS, Habit, Loopback
from pocache.protocol.ids import JobId
from pocache.receipt.format import Receipt, encode_binary
from pocache.receipt.report import Report
from pocache.receipt.verify import verify_receipt
from pocache.wire import topics as t

ALWAYS = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": "1/1", "full_depth_share": "0/1"}}
CHEATS = {"worker": Habit("a cheat")}


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
        first = play("agree").loopback
        drawn = first.keys[_find_drawn(first)]
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
    assert ending == "refused", ending
    return Loopback(), {"user": "poor"}


def _find_drawn(loopback: Loopback) -> str:
    job_id = play("agree").job_id
    return str(loopback.find(t.VERIFIER_DRAWN, job_id).participant)


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
)
STATED = {
    "lottery": "agree",
    "deepened": "agree",
    "cancelled": "agree",
    "epoch_seed": "no_challenge",
    "silent_verifier": "confirm_generator",
}
"""The ending that the rules call it, where it is another word."""
