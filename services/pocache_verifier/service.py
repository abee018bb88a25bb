"""The verifier pool as a service: which message goes to which of its concerns, and what is done in each round.

Membership says who can be drawn, jobs what there is to verify, disputes how it goes on. It stops for no message: what
it cannot handle is delivered again or refused, and no money moves without its outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocache.protocol.ids import ModelId
from pocache.runtime.network import Genesis, Model
from pocache.runtime.profiles import verify_profile_fits
from pocache.service.unit import Handler, Query, RoundView, Unit
from pocache.wire import topics as t
from pocache.wire.topics import Role, Topic
from pocache_verifier.comparison import verify_profile
from pocache_verifier.disputes import Disputes
from pocache_verifier.jobs import Jobs
from pocache_verifier.membership import Membership
from pocache_verifier.tables import METADATA


class VerifierService:
    """Draws verifiers, takes their sealed claims, compares what was opened, and says how a dispute ended."""

    role = Role.VERIFIER
    metadata = METADATA
    halts_on_poison = False

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        """Refuse models whose disputes could not be decided; ConfigError."""
        for model in models.values():
            verify_profile(model)
            verify_profile_fits(model, is_demo=genesis.demo)
        self._membership = Membership(genesis, models)
        self._jobs = Jobs(genesis, models)
        self._disputes = Disputes(genesis, models)

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        """Return what is done with each topic."""
        return {
            t.MEMBER_ANNOUNCED: self._membership.announce,
            t.STAKE_POSTED: self._membership.post_stake,
            t.OWNER_DECLARED: self._membership.declare_owner,
            t.JOB_ADMITTED: self._jobs.admit,
            t.COMMITMENT_RECORDED: self._jobs.record,
            t.PAYOUT_SETTLED: self._jobs.settle,
            t.AUDIT_OPENED: self._disputes.open,
            t.AUDIT_DEEPENED: self._disputes.deepen,
            t.EVIDENCE: self._disputes.equivocate,
            t.HOLD_PLACED: self._disputes.place_hold,
            t.HOLD_REFUSED: self._disputes.refuse_hold,
            t.CLAIM_SEALED: self._disputes.seal_claim,
            t.OPENING_ACCEPTED: self._disputes.accept_opening,
            t.OPENINGS_CLOSED: self._disputes.close_openings,
        }

    def queries(self) -> Mapping[Topic[Any], Query]:
        """Return nothing: what there is to know is in the record."""
        return {}

    def on_round(self, unit: Unit, view: RoundView) -> None:
        """End what this tick or round ends, draw what this round decides, take the snapshot for the rounds to come."""
        self._disputes.expire_due(unit)
        self._disputes.close_held(unit)
        self._disputes.draw_due(unit)
        self._membership.take_snapshot(unit, view)
