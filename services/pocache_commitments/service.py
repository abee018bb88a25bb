"""The commitment store as a service: which message goes to which concern, and what each round brings.

Recording takes results, audits the lottery and the challenges, stages and openings what must be shown, receipts keep
what was. It stops for no message: nothing that it skips moves money by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocache.protocol.ids import ModelId
from pocache.runtime.network import Genesis, Model
from pocache.service.unit import Handler, Query, RoundView, Unit
from pocache.wire.topics import (
    CHALLENGE_REQUESTED,
    CHECKPOINT_COSIGNED,
    CONSISTENCY_QUERY,
    LEASE_LAPSED,
    OPENING_SUBMITTED,
    OUTCOME_DECIDED,
    PAYOUT_SETTLED,
    RECEIPT_QUERY,
    RESULT_COMPLETED,
    STAGE_SEALED,
    Role,
    Topic,
)
from pocache_commitments.audits import Audits
from pocache_commitments.cosigning import Cosigning
from pocache_commitments.openings import Openings
from pocache_commitments.receipts import Receipts
from pocache_commitments.recording import Recording
from pocache_commitments.stages import Stages
from pocache_commitments.tables import METADATA


class CommitmentsService:
    """One commitment per attempt, drawn rounds later, opened where it is asked to be."""

    role = Role.COMMITMENTS
    metadata = METADATA
    halts_on_poison = False

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._recording = Recording(genesis, models)
        self._audits = Audits(genesis, models)
        self._stages = Stages(genesis)
        self._openings = Openings(genesis, models)
        self._receipts = Receipts(genesis, models)
        self._cosigning = Cosigning(genesis)

    def handlers(self) -> Mapping[Topic[Any], Handler]:
        """Return what is done with each topic."""
        handlers: dict[Topic[Any], Handler] = {
            RESULT_COMPLETED: self._recording.record,
            LEASE_LAPSED: self._recording.lapse,
            CHALLENGE_REQUESTED: self._audits.challenge,
            STAGE_SEALED: self._stages.seal,
            OPENING_SUBMITTED: self._openings.accept,
            CHECKPOINT_COSIGNED: self._cosigning.accept,
            OUTCOME_DECIDED: self._audits.conclude,
            PAYOUT_SETTLED: self._audits.settle,
        }
        return self._receipts.extend(handlers)

    def queries(self) -> Mapping[Topic[Any], Query]:
        """Return the questions that it answers: a job's receipt, and whether the log only grew."""
        return {RECEIPT_QUERY: self._receipts.answer, CONSISTENCY_QUERY: self._cosigning.answer}

    def on_round(self, unit: Unit, view: RoundView) -> None:
        """Keep the round, draw what it decides, then end what its tick ends."""
        self._receipts.keep_round(unit, view)
        self._stages.issue_due(unit)
        self._audits.open_due(unit)
        if view.is_fresh:
            # Rounds that came late are no ticks, and whoever had to answer in them may still be heard.
            self._stages.close_due(unit)
            self._audits.close_windows(unit)
