"""How much of the record may be taken by jobs that nobody has paid for yet (docs/protocol.md 10.1.6).

A submission is in RECORD before the ledger has said whether its account can pay, and RECORD is never cut. So what waits
for that answer is bounded: for each account, and, as keys cost nothing, for all the accounts together of which no
deposit was ever held. Who was refused has a few more tries in each round. Owns the tables ``escrows`` and ``funded``;
whoever has paid once loses no place to those who never did. Not covered: jobs that are paid for and cancelled before
anybody takes them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from pocache.protocol.errors import BackpressureError, FundsError
from pocache.protocol.ids import JobId, ParticipantId
from pocache.protocol.limits import (
    ESCROW_BYTES_MAX,
    ESCROW_ENTRY_BYTES,
    NEW_ACCOUNT_ESCROW_BYTES_MAX,
    NEW_ACCOUNTS_BYTES_MAX,
    SHORT_ESCROWS_MAX,
)
from pocache.storage.prepared import Prepared
from pocache.storage.rows import delete_rows, find_row, insert_row, update_rows, upsert
from pocache_router.tables import ESCROWS, FUNDED

_SUM_BYTES: Final = sa.func.coalesce(sa.func.sum(ESCROWS.c.record_bytes), 0).label("record_bytes")
_GET_ACCOUNT: Final = Prepared(
    sa.select(
        _SUM_BYTES,
        sa.func.count(ESCROWS.c.job_id).label("job_count"),
        sa.func.count(ESCROWS.c.refused_round).label("refused_count"),
    ).where(ESCROWS.c.user == sa.bindparam("user"))
)
_GET_NEW_ACCOUNTS_BYTES: Final = Prepared(
    sa.select(_SUM_BYTES).where(ESCROWS.c.is_new == sa.bindparam("is_new"))
)
_COUNT_REFUSED: Final = Prepared(
    sa.update(FUNDED)
    .where(FUNDED.c.user == sa.bindparam("user"))
    .values(refused_count=FUNDED.c.refused_count + 1)
)
_FORGET_REFUSED: Final = Prepared(
    sa.delete(ESCROWS).where(ESCROWS.c.refused_round < sa.bindparam("round_number"))
)


def open_escrow(
    connection: sa.Connection, job_id: JobId, user: ParticipantId, submission_bytes: int, *, period_s: int
) -> None:
    """Write down that a deposit is asked for.

    Raises FundsError (E204) where the ledger has refused this account too often in this round, and BackpressureError
    (E205) where this account, or those without a deposit yet, have too much that the ledger has not answered.
    """
    record_bytes = submission_bytes + ESCROW_ENTRY_BYTES
    standing = find_row(connection, FUNDED, {"user": user})
    account = _GET_ACCOUNT.first(connection, user=user)
    refused_count = account.refused_count if standing is None else standing.refused_count
    if min(refused_count, account.job_count) >= SHORT_ESCROWS_MAX:
        raise FundsError(
            "the ledger has just refused deposits of this account: have it credited, or ask for fewer tokens, and "
            f"submit again in the next round, within {period_s} s; nothing was stored"
        )
    bytes_max = NEW_ACCOUNT_ESCROW_BYTES_MAX if standing is None else ESCROW_BYTES_MAX
    if account.record_bytes + record_bytes > bytes_max:
        raise BackpressureError(
            f"the ledger has not answered yet for {account.record_bytes} bytes of this account's jobs, of which it may "
            f"have {bytes_max} unanswered; nothing was stored, try again later"
        )
    if standing is None and _get_new_accounts_bytes(connection) + record_bytes > NEW_ACCOUNTS_BYTES_MAX:
        raise BackpressureError(
            "too many accounts that never paid a deposit ask for jobs at once; nothing was stored, try again after the "
            f"next round, in {period_s} s"
        )
    row = {"job_id": job_id, "user": user, "record_bytes": record_bytes, "is_new": standing is None}
    insert_row(connection, ESCROWS, row)


def confirm_escrow(connection: sa.Connection, job_id: JobId, user: ParticipantId) -> None:
    """The ledger holds the deposit: the account has shown money, and what the job took is paid for."""
    delete_rows(connection, ESCROWS, {"job_id": job_id})
    upsert(connection, FUNDED, {"user": user}, {"refused_count": 0})


def refuse_escrow(connection: sa.Connection, job_id: JobId, user: ParticipantId, round_number: int) -> None:
    """The ledger does not hold it: what the job took counts until the round is over."""
    update_rows(connection, ESCROWS, {"job_id": job_id}, {"refused_round": round_number})
    _COUNT_REFUSED.run(connection, user=user)


def forget_refused(connection: sa.Connection, round_number: int) -> None:
    """Let go of what was refused before this round."""
    _FORGET_REFUSED.run(connection, round_number=round_number)


def _get_new_accounts_bytes(connection: sa.Connection) -> int:
    known: int = _GET_NEW_ACCOUNTS_BYTES.scalar(connection, is_new=True)
    return known
