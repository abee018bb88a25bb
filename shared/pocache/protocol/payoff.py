"""Who gets what when a job ends: the face of the rule sets (docs/economics.md; docs/protocol.md 9).

Two rule sets stand behind one interface, :class:`RuleSet`: ``unified-pool``, the paper's Table 1, and
``fixed-fee-committee``, this network's own. Owns nothing but the one call that settles a job under whichever of them
the network's configuration names; what the words mean is in ``payoff_terms``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pocache.protocol.committee import DEFAULT_COMMITTEE, FixedFeeCommittee
from pocache.protocol.committee_terms import FIXED_FEE_COMMITTEE
from pocache.protocol.payoff_terms import (
    RATIONAL_TERM_MAX,
    RESERVE,
    TREASURY,
    Case,
    HoldAmounts,
    JobEnding,
    Rational,
    RuleSet,
    Settlement,
    VerifierStanding,
)
from pocache.protocol.unified_pool import UNIFIED_POOL, Products, TableRow, UnifiedPool, compute_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocache.protocol.ids import ParticipantId

__all__ = [
    "DEFAULT_COMMITTEE",
    "FIXED_FEE_COMMITTEE",
    "RATIONAL_TERM_MAX",
    "RESERVE",
    "RULES_DEFAULT",
    "TREASURY",
    "UNIFIED_POOL",
    "Case",
    "FixedFeeCommittee",
    "HoldAmounts",
    "JobEnding",
    "Products",
    "Rational",
    "RuleSet",
    "Settlement",
    "TableRow",
    "UnifiedPool",
    "VerifierStanding",
    "compute_table",
    "settle",
]

RULES_DEFAULT: Final[str] = FIXED_FEE_COMMITTEE
"""What a network is paid by that does not say so."""


def settle(
    rules: RuleSet,
    *,
    case: Case,
    cg: int,
    cv: int,
    user: ParticipantId,
    generator: ParticipantId,
    verifiers: Sequence[VerifierStanding],
    deciding: ParticipantId | None = None,
    prior: ParticipantId | None = None,
    is_challenged: bool = False,
    reserve_micro: int = 0,
) -> Settlement:
    """Empty a job's pool to the last micro-unit under the given rules; PayoffError as in their `settle`."""
    return rules.settle(
        JobEnding(
            case=case,
            cg=cg,
            cv=cv,
            user=user,
            generator=generator,
            verifiers=tuple(verifiers),
            deciding=deciding,
            prior=prior,
            is_challenged=is_challenged,
            reserve_micro=reserve_micro,
        )
    )
