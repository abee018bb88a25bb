"""What an ejection costs: a share of all that the worker has staked, taken from wherever it is.

Owns the table of bonds. What is due is fixed when the ejection arrives. It is taken at once from the free stake and from
what unbonds; what lies locked in jobs is settled by their own rules first, and the rest of the bond is taken from what
comes free, with the next round. Once nothing is locked any more, what is still lacking was lost in those jobs and is let
go. Available money is never touched. Every taking is an operation of its own, named by worker, model and its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.ids import EnvelopeId
from pocache.protocol.sprt import compute_bond
from pocache.service.unit import Unit
from pocache.storage.prepared import Prepared
from pocache.storage.rows import find_row, upsert
from pocache.wire.messages import BondTakenV1, EjectionV1
from pocache.wire.topics import BOND_TAKEN
from pocache_ledger import unbonding
from pocache_ledger.accounts import (
    TREASURY,
    Operation,
    Posting,
    compute_bond_subject,
    get_balance,
    post,
    stake_account,
    unbonding_account,
)
from pocache_ledger.books import STAKES
from pocache_ledger.holds import announce_stakes, get_books, get_locked
from pocache_ledger.tables import BONDS

_GET_OPEN: Final = Prepared(
    sa.select(BONDS).where(BONDS.c.is_open).order_by(BONDS.c.participant, BONDS.c.model_id)
)


@dataclass(frozen=True, slots=True)
class _Bond:
    """A row of ``bonds``."""

    participant: str
    model_id: bytes
    ejection: bytes
    stake_micro: int
    bond_micro: int
    taken_micro: int = 0
    part_count: int = 0
    """How often it was spoken of: what the next taking is numbered after."""


def begin_bond(unit: Unit, ejection: EjectionV1, ejection_id: EnvelopeId, share: tuple[int, int]) -> bool:
    """Fix what a worker owes for its ejection and take what there is; False where that was done before."""
    participant, model_id = ejection.participant, ejection.model_id
    if find_row(unit.connection, BONDS, {"participant": participant, "model_id": model_id}) is not None:
        return False
    books = get_books(unit)
    stake_micro = (
        (get_balance(books, stake_account(participant)) or 0)
        + get_locked(books, participant, STAKES)
        + unbonding.compute_open_micro(unit.connection, participant)
    )
    bond = _Bond(participant, model_id, ejection_id, stake_micro, compute_bond(stake_micro, share))
    _collect(unit, bond)
    return True


def collect_bonds(unit: Unit) -> None:
    """Take what has come free of stake that bonds are due from."""
    for row in _GET_OPEN.all(unit.connection):
        names = _Bond.__dataclass_fields__
        _collect(unit, _Bond(**{name: getattr(row, name) for name in names}))


def _collect(unit: Unit, bond: _Bond) -> None:
    books, participant = get_books(unit), bond.participant
    due = bond.bond_micro - bond.taken_micro
    from_free = min(due, get_balance(books, stake_account(participant)) or 0)
    from_unbonding = min(due - from_free, unbonding.compute_open_micro(unit.connection, participant))
    taken = from_free + from_unbonding
    is_locked = get_locked(books, participant, STAKES) > 0
    entry = _post(unit, bond, from_free, from_unbonding) if taken else 0
    open_micro = due - taken if is_locked else 0
    is_told = bond.part_count == 0 or taken > 0 or open_micro == 0
    values: dict[str, Any] = {
        "ejection": bond.ejection,
        "stake_micro": bond.stake_micro,
        "bond_micro": bond.bond_micro,
        "taken_micro": bond.taken_micro + taken,
        "part_count": bond.part_count + is_told,
        "is_open": open_micro > 0,
    }
    if not is_told:
        return
    upsert(unit.connection, BONDS, {"participant": participant, "model_id": bond.model_id}, values)
    body = BondTakenV1(
        participant=participant,
        model_id=bond.model_id,
        ejection=bond.ejection,
        stake_micro=bond.stake_micro,
        bond_micro=bond.bond_micro,
        taken_micro=taken,
        open_micro=open_micro,
        entry=entry,
    )
    unit.emit(BOND_TAKEN, body, participant=participant)
    if taken:
        announce_stakes(unit, [participant], entry)


def _post(unit: Unit, bond: _Bond, from_free: int, from_unbonding: int) -> int:
    participant = bond.participant
    entry = post(
        get_books(unit),
        Operation(
            kind="bond",
            subject=compute_bond_subject(participant, bond.model_id, bond.part_count + 1),
            cause=bond.ejection,
            postings=(
                Posting(stake_account(participant), -from_free),
                Posting(unbonding_account(participant), -from_unbonding),
                Posting(TREASURY, from_free + from_unbonding),
            ),
        ),
        now_ms=unit.now_ms,
    )
    unbonding.take(unit.connection, participant, from_unbonding)
    return entry
