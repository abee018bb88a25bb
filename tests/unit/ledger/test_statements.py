"""Statements by page, and checkpoints that show a journal rewritten by somebody who knows how."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness
from kit.network import make_key
from pocache.protocol.errors import LedgerError
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_ledger.accounts import (
    JOURNAL_START,
    Operation,
    Posting,
    compute_entry_hash,
    get_entry_count,
    verify_journal,
)
from pocache_ledger.books import CHECKPOINT_ENTRIES
from pocache_ledger.statements import read_checkpoints
from pocache_ledger.tables import JOURNAL_CHECKPOINTS, OPERATIONS, POSTINGS

USER, WORKER = make_key("user"), make_key("worker")


def ask(ledger: LedgerHarness, after: int = 0, count: int = 100) -> m.StatementReplyV1:
    """Ask for a page of the worker's statement."""
    query = m.StatementQueryV1(participant=WORKER.participant_id, after_entry=after, entries_max=count)
    reply = ledger.ask(t.STATEMENT_QUERY, query, m.StatementReplyV1, WORKER)
    assert isinstance(reply, m.StatementReplyV1), reply
    return reply


def play(ledger: LedgerHarness) -> None:
    """Let the worker earn, and ask for some of it."""
    job = Job(ledger.network)
    ledger.commit(job)
    ledger.must(t.WINDOW_CLOSED, job.window_closed())
    assert ledger.withdraw(WORKER, "stake", 400).action == "ack"


def grow(ledger: LedgerHarness) -> int:
    """Make the journal long enough for two checkpoints, and have them published; return its length."""
    for index in range(2 * CHECKPOINT_ENTRIES):
        ledger.fund(USER, available=1, reference=f"drop {index}")
    ledger.pass_rounds(1)
    return ledger.verify_journal()


def test_a_statement_adds_up_to_the_balances(ledger: LedgerHarness) -> None:
    """Every line on the participant's accounts, in order, says what it was for."""
    play(ledger)
    reply = ask(ledger)
    sums: dict[str, int] = {}
    for line in reply.lines:
        sums[line.account] = sums.get(line.account, 0) + line.amount_micro
    money = ledger.money(WORKER)
    me = WORKER.participant_id
    assert sums == {me: money.available, f"stake:{me}": money.stake, f"unbonding:{me}": money.unbonding}
    kinds = ["deposit", "deposit", "hold", "surplus", "settle", "settle", "withdrawal", "withdrawal"]
    assert [line.operation for line in reply.lines] == kinds
    assert [line.entry for line in reply.lines] == sorted(line.entry for line in reply.lines)
    assert not reply.has_more
    assert reply.journal_entries == ledger.verify_journal()


def test_pages_join_without_a_gap_or_a_repetition(ledger: LedgerHarness) -> None:
    """Whole entries, whatever the page's size; what comes later is on a later page."""
    play(ledger)
    whole = ask(ledger).lines
    for count in (1, 2, 3):
        lines: list[m.StatementLineV1] = []
        after, has_more = 0, True
        while has_more:
            page = ask(ledger, after, count)
            left = {line.entry for line in whole if line.entry > after}
            assert {line.entry for line in page.lines} == set(sorted(left)[:count])
            lines += page.lines
            after, has_more = page.last_entry, page.has_more
        assert tuple(lines) == whole
    last = ask(ledger, after)
    assert (last.lines, last.last_entry, last.has_more) == ((), after, False)
    ledger.fund(WORKER, available=9, reference="later")
    assert [line.amount_micro for line in ask(ledger, after).lines] == [9]


def test_statements_are_told_to_their_owner_and_the_operator_only(ledger: LedgerHarness) -> None:
    """Anybody else learns nothing."""
    question = m.StatementQueryV1(participant=USER.participant_id)
    for signer in (USER, ledger.network.keys[t.Role.OPERATOR]):
        reply = ledger.ask(t.STATEMENT_QUERY, question, m.StatementReplyV1, signer)
        assert isinstance(reply, m.StatementReplyV1)
        assert [line.amount_micro for line in reply.lines] == [FUNDS]
    for tokens in ({}, {"participant": WORKER.participant_id}):
        refused = ledger.ask(t.STATEMENT_QUERY, question, m.StatementReplyV1, WORKER, **tokens)
        assert isinstance(refused, m.RefusalV1)
        assert refused.code == ("E102" if tokens else "E209")


def test_checkpoints_are_published_once_each(ledger: LedgerHarness) -> None:
    """With the next round, at every so manieth entry, signed by the ledger."""
    grow(ledger)
    published = ledger.outbox_of(t.JOURNAL_CHECKPOINT)
    assert [one.entries for one in published] == [CHECKPOINT_ENTRIES, 2 * CHECKPOINT_ENTRIES]
    with ledger.store.begin() as connection:
        rows = connection.execute(sa.select(OPERATIONS.c.number, OPERATIONS.c.entry_hash))
        hashes = {row.number: row.entry_hash for row in rows}
    assert [one.head for one in published] == [hashes[one.entries] for one in published]
    ledger.pass_rounds(1)
    assert ledger.outbox_of(t.JOURNAL_CHECKPOINT) == []


def rewrite(ledger: LedgerHarness, number: int) -> None:
    """Change an entry's cause and chain everything after it anew, as who writes the database can."""
    with ledger.store.begin() as connection:
        previous: bytes = JOURNAL_START
        for row in connection.execute(sa.select(OPERATIONS).order_by(OPERATIONS.c.number)).all():
            lines = connection.execute(
                sa.select(POSTINGS).where(POSTINGS.c.number == row.number).order_by(POSTINGS.c.line)
            )
            postings = tuple(Posting(line.account, line.amount_micro) for line in lines)
            cause = b"\x66" * 32 if row.number == number else row.cause
            operation = Operation(row.kind, row.subject, cause, postings)
            previous = compute_entry_hash(previous, row.number, operation, row.at_ms)
            connection.execute(
                sa.update(OPERATIONS)
                .where(OPERATIONS.c.number == row.number)
                .values(cause=cause, entry_hash=previous)
            )


@pytest.mark.parametrize("number", [1, CHECKPOINT_ENTRIES, CHECKPOINT_ENTRIES + 1])
def test_a_rewritten_journal_is_found_by_its_checkpoint(ledger: LedgerHarness, number: int) -> None:
    """The chain alone is whole; the first checkpoint after the change does not fit."""
    grow(ledger)
    rewrite(ledger, number)
    ledger.verify_journal()
    first = CHECKPOINT_ENTRIES * (1 + (number - 1) // CHECKPOINT_ENTRIES)
    with ledger.store.begin() as connection:
        genesis = ledger.network.genesis
        checkpoints = read_checkpoints(connection, genesis.network_id, genesis.signer(t.Role.LEDGER))
        with pytest.raises(LedgerError, match=f"entry {first} is not the one of the checkpoint"):
            verify_journal(connection, checkpoints)
    reply = ledger.ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
    assert isinstance(reply, m.TotalsReplyV1)
    assert not reply.journal_intact


def test_a_journal_cut_before_a_checkpoint_is_found(ledger: LedgerHarness) -> None:
    """A copy of the checkpoint is enough, as the record has it."""
    entries = grow(ledger)
    with ledger.store.begin() as connection:
        head = connection.execute(
            sa.select(OPERATIONS.c.entry_hash).where(OPERATIONS.c.number == entries)
        ).scalar_one()
        assert verify_journal(connection, {entries: head}) == entries == get_entry_count(connection)
        with pytest.raises(
            LedgerError, match=f"ends at entry {entries}, a checkpoint was made at entry {entries + 1}"
        ):
            verify_journal(connection, {entries + 1: head})


def test_a_checkpoint_of_another_does_not_count(ledger: LedgerHarness) -> None:
    """Who can write the database cannot sign for the ledger, nor move its signatures about."""
    grow(ledger)
    genesis = ledger.network.genesis
    body = m.JournalCheckpointV1(entries=CHECKPOINT_ENTRIES, head=bytes(32), at_ms=0)
    forged = ledger.network.seal(USER, body)
    with ledger.store.begin() as connection:
        rows = connection.execute(
            sa.select(JOURNAL_CHECKPOINTS).order_by(JOURNAL_CHECKPOINTS.c.entries)
        ).all()
    for envelope, reason in (
        (forged, "another's"),
        (rows[1].envelope, "another's"),
        (b"", "does not verify"),
    ):
        with ledger.store.begin() as connection:
            connection.execute(
                sa.update(JOURNAL_CHECKPOINTS)
                .where(JOURNAL_CHECKPOINTS.c.entries == CHECKPOINT_ENTRIES)
                .values(envelope=envelope)
            )
            with pytest.raises(LedgerError, match=reason):
                read_checkpoints(connection, genesis.network_id, genesis.signer(t.Role.LEDGER))
