"""What an account's owner and an outsider can hold the ledger to: statements by page, and signed checkpoints.

A checkpoint is the hash of every so manieth journal entry, signed and published on the record. A copy of one, kept
anywhere else, shows when an entry up to it is rewritten, also by somebody who computes the whole chain anew. Not
covered: entries after the last checkpoint, and whoever has the ledger's key as well as its database.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from pocache.protocol.errors import LedgerError, PocacheError
from pocache.protocol.ids import NetworkId, ParticipantId
from pocache.service.unit import Unit
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import JournalCheckpointV1, StatementLineV1, StatementQueryV1, StatementReplyV1
from pocache_ledger.accounts import do_nothing, get_entry_count, stake_account, unbonding_account
from pocache_ledger.tables import JOURNAL_CHECKPOINTS, OPERATIONS, POSTINGS


def compute_statement(connection: sa.Connection, query: StatementQueryV1) -> StatementReplyV1:
    """Return the journal's lines on a participant's accounts: whole entries, oldest first, after the one named."""
    accounts = (query.participant, stake_account(query.participant), unbonding_account(query.participant))
    numbers = (
        connection.execute(
            sa.select(POSTINGS.c.number)
            .where(POSTINGS.c.account.in_(accounts), POSTINGS.c.number > query.after_entry)
            .distinct()
            .order_by(POSTINGS.c.number)
            .limit(query.entries_max + 1)
        )
        .scalars()
        .all()
    )
    page = numbers[: query.entries_max]
    rows = connection.execute(
        sa.select(OPERATIONS, POSTINGS.c.account, POSTINGS.c.amount_micro)
        .join_from(OPERATIONS, POSTINGS)
        .where(POSTINGS.c.account.in_(accounts), OPERATIONS.c.number.in_(page))
        .order_by(OPERATIONS.c.number, POSTINGS.c.line)
    )
    lines = tuple(
        StatementLineV1(
            entry=row.number,
            at_ms=row.at_ms,
            operation=row.kind,
            subject=row.subject,
            cause=row.cause,
            account=row.account,
            amount_micro=row.amount_micro,
        )
        for row in rows
    )
    return StatementReplyV1(
        participant=query.participant,
        lines=lines,
        last_entry=page[-1] if page else query.after_entry,
        has_more=len(numbers) > len(page),
        journal_entries=get_entry_count(connection),
    )


def announce_checkpoints(unit: Unit) -> None:
    """Sign and publish the checkpoints that the journal has grown past since the last round."""
    rows = unit.connection.execute(
        sa.select(JOURNAL_CHECKPOINTS)
        .where(JOURNAL_CHECKPOINTS.c.envelope.is_(None))
        .order_by(JOURNAL_CHECKPOINTS.c.entries)
    ).all()
    for row in rows:
        checkpoint = JournalCheckpointV1(entries=row.entries, head=row.head, at_ms=unit.now_ms)
        unit.emit(t.JOURNAL_CHECKPOINT, checkpoint)
        unit.connection.execute(
            sa.update(JOURNAL_CHECKPOINTS)
            .where(JOURNAL_CHECKPOINTS.c.entries == row.entries)
            .values(envelope=unit.sign(checkpoint)[0])
        )


def read_checkpoints(
    connection: sa.Connection,
    network: NetworkId,
    ledger: ParticipantId,
    check: Callable[[], None] = do_nothing,
) -> dict[int, bytes]:
    """Return the published checkpoints, entries to head, every signature verified.

    Raises LedgerError for one that the ledger did not sign so, and what ``check`` raises, which is called for each.
    """
    rows = connection.execute(
        sa.select(JOURNAL_CHECKPOINTS.c.entries, JOURNAL_CHECKPOINTS.c.envelope)
        .where(JOURNAL_CHECKPOINTS.c.envelope.is_not(None))
        .order_by(JOURNAL_CHECKPOINTS.c.entries)
    )
    checkpoints: dict[int, bytes] = {}
    for row in rows:
        check()
        try:
            opened = open_envelope(row.envelope, network, JournalCheckpointV1)
        except PocacheError as error:
            raise LedgerError(f"the checkpoint of {row.entries} entries does not verify: {error}") from error
        if opened.sender != ledger or opened.body.entries != row.entries:
            raise LedgerError(f"the checkpoint of {row.entries} entries is another's")
        checkpoints[row.entries] = opened.body.head
    return checkpoints
