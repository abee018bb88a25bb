"""Stake on its way out: who waits for how much, and what a slash takes of it before it is gone.

Owns the table of unbondings. Money moves with it in the same operation, which the caller posts: a participant's rows
always sum to its unbonding account.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pocache_ledger.tables import UNBONDINGS


@dataclass(frozen=True, slots=True)
class Unbonding:
    """Stake that a participant asked for under a nonce."""

    participant: str
    nonce: bytes
    requested_micro: int
    amount_micro: int
    """What slashes have left of it."""
    matures_tick: int


def begin(
    connection: sa.Connection, participant: str, nonce: bytes, amount_micro: int, matures_tick: int
) -> None:
    """Write down that this much stake unbonds until a tick."""
    connection.execute(
        sa.insert(UNBONDINGS).values(
            participant=participant,
            nonce=nonce,
            requested_micro=amount_micro,
            amount_micro=amount_micro,
            matures_tick=matures_tick,
            is_paid=False,
        )
    )


def get_open(connection: sa.Connection, participant: str) -> tuple[Unbonding, ...]:
    """Return what a participant has not been paid yet, the first to mature first."""
    return _read(connection, UNBONDINGS.c.participant == participant)


def get_due(connection: sa.Connection, tick: int, count_max: int) -> tuple[Unbonding, ...]:
    """Return what matures by ``tick``, at most so many, the first to mature first."""
    return _read(connection, UNBONDINGS.c.matures_tick <= tick, count_max=count_max)


def compute_open_micro(connection: sa.Connection, participant: str) -> int:
    """Return how much of a participant's stake is unbonding."""
    return sum(one.amount_micro for one in get_open(connection, participant))


def take(connection: sa.Connection, participant: str, amount_micro: int) -> None:
    """Take from what unbonds, the first to leave first. The caller has made sure that there is as much."""
    for one in get_open(connection, participant):
        part = min(amount_micro, one.amount_micro)
        if part:
            _update(connection, one, amount_micro=one.amount_micro - part)
            amount_micro -= part
    assert amount_micro == 0, "no more is taken than unbonds"


def end(connection: sa.Connection, one: Unbonding) -> None:
    """Write down that it was paid out."""
    _update(connection, one, amount_micro=0, is_paid=True)


def _update(connection: sa.Connection, one: Unbonding, **values: Any) -> None:
    key = (UNBONDINGS.c.participant == one.participant, UNBONDINGS.c.nonce == one.nonce)
    connection.execute(sa.update(UNBONDINGS).where(*key).values(**values))


def _read(
    connection: sa.Connection, condition: sa.ColumnElement[bool], count_max: int | None = None
) -> tuple[Unbonding, ...]:
    rows = connection.execute(
        sa.select(UNBONDINGS)
        .where(condition, ~UNBONDINGS.c.is_paid)
        .order_by(UNBONDINGS.c.matures_tick, UNBONDINGS.c.participant, UNBONDINGS.c.nonce)
        .limit(count_max)
    )
    return tuple(
        Unbonding(row.participant, row.nonce, row.requested_micro, row.amount_micro, row.matures_tick)
        for row in rows
    )
