"""Money leaving the network: asked for by its owner alone, at once what is available, after unbonding what is stake.

Owns the way from a request to the payout. Stake that unbonds is drawn by no sortition and locked by no job, but a slash
still reaches it; it unbonds longer than any dispute can last (docs/protocol.md 9.10). Refused: more than is free, and a
nonce used before for another request. The payout itself happens outside: ``withdrawal-paid.v1`` says who is owed what.
"""

from __future__ import annotations

from typing import Final, Literal

from pocache.protocol.errors import ConflictError, FundsError
from pocache.service.unit import Inbound, Unit
from pocache.wire import topics as t
from pocache.wire.messages import WithdrawalAcceptedV1, WithdrawalPaidV1, WithdrawalRequestV1
from pocache_ledger import unbonding
from pocache_ledger.accounts import (
    Operation,
    Posting,
    compute_participant_subject,
    is_posted,
    post,
    stake_account,
    unbonding_account,
)
from pocache_ledger.books import ESCROW, STAKES
from pocache_ledger.holds import announce_stakes, get_books, get_locked
from pocache_ledger.tables import WORLD

_PAID_PER_ROUND_MAX: Final = 1_000
"""What matures beyond that is paid in the next round."""


def withdraw(unit: Unit, inbound: Inbound[WithdrawalRequestV1], *, unbonding_ticks: int) -> None:
    """Pay out available money, or begin to unbond stake.

    Raises FundsError (E204) for more than is free, ConflictError for a nonce that was used before.
    """
    participant, body = inbound.sender, inbound.body
    is_stake = body.bucket == "stake"
    source = stake_account(participant) if is_stake else participant
    target = unbonding_account(participant) if is_stake else WORLD
    books = get_books(unit)
    operation = Operation(
        kind="withdrawal",
        subject=compute_participant_subject(participant, body.nonce),
        cause=inbound.envelope_id,
        postings=(Posting(source, -body.amount_micro), Posting(target, body.amount_micro)),
    )
    if is_posted(books, operation):
        # Also for the same: one request has many encodings, so many envelopes, and it is said and paid once.
        raise ConflictError("a withdrawal was asked for under this nonce before")
    try:
        entry = post(books, operation, now_ms=unit.now_ms)
    except FundsError as error:
        locked = get_locked(books, participant, STAKES if is_stake else (ESCROW,))
        if not locked:
            raise
        raise FundsError(f"{error}; {locked} more are locked in jobs") from error
    matures_tick = unit.tick + (unbonding_ticks if is_stake else 0)
    accepted = WithdrawalAcceptedV1(
        participant=participant, request=inbound.envelope, matures_tick=matures_tick, entry=entry
    )
    unit.emit(t.WITHDRAWAL_ACCEPTED, accepted, participant=participant)
    if is_stake:
        unbonding.begin(unit.connection, participant, body.nonce, body.amount_micro, matures_tick)
        announce_stakes(unit, [participant], entry)
    else:
        _announce_paid(unit, participant, "available", body.nonce, body.amount_micro, 0, entry)


def pay_matured(unit: Unit) -> None:
    """Pay out every unbonding whose tick has come, less what was slashed of it."""
    books = get_books(unit)
    for one in unbonding.get_due(unit.connection, unit.tick, _PAID_PER_ROUND_MAX):
        subject = compute_participant_subject(one.participant, one.nonce)
        operation = Operation(
            kind="withdrawal_paid",
            subject=subject,
            cause=bytes(32),  # no message asked for it: its time has come
            postings=(
                Posting(unbonding_account(one.participant), -one.amount_micro),
                Posting(WORLD, one.amount_micro),
            ),
        )
        entry = post(books, operation, now_ms=unit.now_ms)
        unbonding.end(unit.connection, one)
        slashed = one.requested_micro - one.amount_micro
        _announce_paid(unit, one.participant, "stake", one.nonce, one.amount_micro, slashed, entry)


def _announce_paid(
    unit: Unit,
    participant: str,
    bucket: Literal["available", "stake"],
    nonce: bytes,
    amount_micro: int,
    slashed_micro: int,
    entry: int,
) -> None:
    paid = WithdrawalPaidV1(
        participant=participant,
        bucket=bucket,
        nonce=nonce,
        amount_micro=amount_micro,
        slashed_micro=slashed_micro,
        entry=entry,
    )
    unit.emit(t.WITHDRAWAL_PAID, paid, participant=participant)
