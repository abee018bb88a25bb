"""Judging a receipt on the user's own side: what comes back holds, or an error says where it does not."""

from __future__ import annotations

from pocache.protocol.errors import ReceiptError
from pocache.protocol.ids import JobId
from pocache.receipt.report import Report
from pocache.receipt.trust import TrustRoots
from pocache.receipt.verify import verify_receipt


def judge_receipt(data: bytes, trust: TrustRoots, job_id: JobId) -> Report:
    """Return the report of a receipt that holds and is this job's. Raises ReceiptError naming what does not."""
    report = verify_receipt(data, trust)
    failure = report.failure
    if failure is not None or not report.is_valid:
        raise ReceiptError(
            f"the receipt does not hold: {failure.to_dict() if failure is not None else 'incomplete'}"
        )
    if report.job_id != job_id:
        raise ReceiptError("the receipt is another job's")
    return report
