"""Drives the ledger in tests: funds participants, takes a job to a phase, reads balances and totals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from kit.jobs import Job
from kit.network import Harness, Network
from pocache.protocol.keys import SigningKey
from pocache.service.dispatch import Decision, Delivery
from pocache.storage import prepared
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache_ledger.accounts import verify_journal
from pocache_ledger.migrations import upgrade
from pocache_ledger.service import LedgerService

FUNDS: Final = 10_000_000
"""What everybody has of everything in tests that do not say otherwise."""


class _CrashError(BaseException):
    """No handler catches it, as none catches the end of its process."""


@dataclass(frozen=True, slots=True)
class Money:
    """One participant's money."""

    available: int
    stake: int
    locked: int
    unbonding: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.available + self.stake + self.locked + self.unbonding


class LedgerHarness(Harness):
    """A harness around a ledger."""

    def fund(self, key: SigningKey, *, available: int = 0, stake: int = 0, reference: str = "") -> None:
        """Have the operator deposit; both amounts under references of their own."""
        for bucket, amount in (("available", available), ("stake", stake)):
            if amount:
                body = m.DepositV1(
                    participant=key.participant_id,
                    bucket=bucket,  # type: ignore[arg-type]
                    amount_micro=amount,
                    reference=f"{reference} {bucket} of {key.participant_id}",
                )
                assert self.deliver(t.DEPOSITED, body).action == "ack"

    def withdraw(
        self,
        key: SigningKey,
        bucket: Literal["available", "stake"],
        amount_micro: int,
        nonce: str = "first",
        *,
        is_worker: bool = True,
    ) -> Decision:
        """Ask for money back, as a worker or as a user; a nonce is named."""
        topic = t.WORKER_WITHDRAWAL_REQUESTED if is_worker else t.USER_WITHDRAWAL_REQUESTED
        body = m.WithdrawalRequestV1(
            bucket=bucket, amount_micro=amount_micro, nonce=hashlib.sha256(nonce.encode()).digest()[:16]
        )
        return self.deliver(topic, body, key)

    def crash(self, batch: Sequence[Delivery], step: int) -> bool:
        """Die after the statement of this number while a batch is applied, and come back; whether it came to that."""
        left = step

        def count(_sql: str, _parameters: Any, _is_many: bool) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise _CrashError

        prepared.TRACE = count
        try:
            decisions = self.dispatcher.apply(batch)
        except _CrashError:
            return True
        else:
            assert {decision.action for decision in decisions} == {"ack"}
            return False
        finally:
            prepared.TRACE = None
            self.close()
            self.open()

    def must(self, topic: t.Topic[Any], body: WireModel) -> None:
        """Deliver what has to be handled."""
        decision = self.deliver(topic, body)
        assert decision.action == "ack", decision

    def hold(self, request: m.HoldRequestV1) -> Decision:
        """Ask for a hold by whoever may ask for it."""
        is_verifier = request.purpose == "verifier_stake"
        return self.deliver(t.VERIFIER_HOLD_REQUESTED if is_verifier else t.ROUTER_HOLD_REQUESTED, request)

    def admit(self, job: Job) -> None:
        """Take a job up to its escrow."""
        self.must(t.JOB_ADMITTED, job.admitted())
        assert self.hold(job.escrow()).action == "ack"

    def commit(self, job: Job, *verifiers: SigningKey) -> None:
        """Take a job up to its commitment, and lock these verifiers' stakes, one stage after the other."""
        self.admit(job)
        assert self.hold(job.generator_stake()).action == "ack"
        self.must(t.COMMITMENT_RECORDED, job.committed())
        for stage, verifier in enumerate(verifiers, 1):
            assert self.hold(job.verifier_stake(stage, verifier)).action == "ack"

    def money(self, key: SigningKey) -> Money:
        """Return a participant's balances, as the participant is told them."""
        reply = self.ask(
            t.BALANCE_QUERY, m.BalanceQueryV1(participant=key.participant_id), m.BalanceReplyV1, key
        )
        assert isinstance(reply, m.BalanceReplyV1), reply
        return Money(reply.available_micro, reply.stake_micro, reply.locked_micro, reply.unbonding_micro)

    def totals(self) -> m.TotalsReplyV1:
        """Return the totals, as the operator is told them, after checking that the money adds up."""
        reply = self.ask(t.TOTALS_QUERY, m.TotalsQueryV1(), m.TotalsReplyV1)
        assert isinstance(reply, m.TotalsReplyV1), reply
        assert reply.held_micro == reply.deposited_micro
        assert reply.closed_pools_micro == 0
        assert reply.journal_intact
        return reply

    def verify_journal(self) -> int:
        """Return how long the journal is; raises when it is broken."""
        with self.store.begin() as connection:
            return verify_journal(connection)


def make_ledger(network: Network, url: str = "sqlite://") -> LedgerHarness:
    """Return a ledger of a network."""
    service = LedgerService(genesis=network.genesis, models=network.models)
    return LedgerHarness(service, network, url=url, prepare=upgrade)
