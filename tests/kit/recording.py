"""How a recorded session says what was paid."""

from __future__ import annotations

from typing import Any


def describe(body: Any) -> dict[str, Any]:
    """Return what a payout says, apart from which message said it."""
    return {
        "job": body.job_id.hex(),
        "case": body.case,
        "slashed": sorted(body.slashed),
        "lines": sorted((line.account, line.amount_micro) for line in body.lines),
    }
