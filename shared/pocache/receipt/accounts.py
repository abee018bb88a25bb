"""Everybody's money, from the record alone: deposits in, payouts and fees across, withdrawals out.

Owns one sum for each participant: what it put into the network, plus what its jobs gave, minus what they took. It must
cover, at the end of the record, what is locked for jobs that are still open. The split between available money and stake
is the ledger's own and is not followed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pocache.protocol.errors import ReceiptError
from pocache.receipt.dossier import Said
from pocache.receipt.payment import RESERVE, TREASURY
from pocache.wire import topics as t

_HOUSE: Final = frozenset({TREASURY, RESERVE})


class Accounts:
    """Takes every message of the record; what is not about money changes nothing."""

    def __init__(self, lease_fee_micro: int) -> None:
        self._lease_fee_micro = lease_fee_micro
        self._wealth: dict[str, int] = {}
        self._locked: dict[bytes, dict[tuple[object, ...], tuple[str, int]]] = {}
        self._references: dict[str, tuple[object, ...]] = {}
        self._withdrawn: set[tuple[str, bytes]] = set()
        self._bonds: set[bytes] = set()
        self.deposited_micro = 0

    def take(self, said: Said[Any]) -> None:
        """Note what a message does to anybody's money. Raises ReceiptError where a payout does not add up."""
        body = said.body
        if said.topic is t.DEPOSITED:
            self._deposit(body)
        elif said.topic is t.WITHDRAWAL_PAID:
            self._withdraw(body)
        elif said.topic is t.HOLD_PLACED:
            key = (body.purpose, body.attempt, body.stage, body.party)
            self._locked.setdefault(body.job_id, {})[key] = (body.party, body.amount_micro)
        elif said.topic is t.ATTEMPT_CHARGED:
            self._charge(body)
        elif said.topic is t.PAYOUT_SETTLED:
            self._settle(body)
        elif said.topic is t.BOND_TAKEN and said.envelope_id not in self._bonds:
            self._bonds.add(said.envelope_id)
            self._add(body.participant, -body.taken_micro)
            self._add(TREASURY, body.taken_micro)

    def find_overdrawn(self) -> Iterator[tuple[str, int, int]]:
        """Yield who has less than what is locked of its money: account, what it has, what it must have."""
        locked: dict[str, int] = {}
        for holds in self._locked.values():
            for party, amount in holds.values():
                locked[party] = locked.get(party, 0) + amount
        for account in sorted({*self._wealth, *locked} - _HOUSE):
            has, least = self._wealth.get(account, 0), locked.get(account, 0)
            if has < least:
                yield account, has, least

    def _deposit(self, body: Any) -> None:
        terms = (body.participant, body.bucket, body.amount_micro)
        # The ledger credits a reference once; the same with other terms it refuses.
        if self._references.setdefault(body.reference, terms) is not terms:
            return
        self._add(body.participant, body.amount_micro)
        self.deposited_micro += body.amount_micro

    def _withdraw(self, body: Any) -> None:
        key = (body.participant, body.nonce)
        if key in self._withdrawn:
            return
        self._withdrawn.add(key)
        # What was slashed of it left with the payout of the job that took it, or with a bond.
        self._add(body.participant, -body.amount_micro)

    def _charge(self, body: Any) -> None:
        held = self._locked.get(body.job_id, {}).pop(
            ("generator_stake", body.attempt, 0, body.generator), (body.generator, 0)
        )
        fee = min(self._lease_fee_micro, held[1])
        self._add(body.generator, -fee)
        self._add(TREASURY, fee)

    def _settle(self, body: Any) -> None:
        paid = sum(line.amount_micro for line in body.lines)
        held = sum(line.held_micro for line in body.lines)
        if not paid == held == body.pool_micro:
            raise ReceiptError(
                f"a payout of {paid} from a pool of {body.pool_micro}, into which {held} were put"
            )
        self._locked.pop(body.job_id, None)
        has = self._wealth.get(RESERVE, 0)
        if body.reserve_micro != has:
            raise ReceiptError(
                f"a reserve of {body.reserve_micro}, where the payouts before left {has} in it"
            )
        for line in body.lines:
            self._add(line.account, line.amount_micro - line.held_micro)

    def _add(self, account: str, amount_micro: int) -> None:
        self._wealth[account] = self._wealth.get(account, 0) + amount_micro
