"""A participant's money, as its owner asks for it: balances, statements, and withdrawals.

Every answer is verified to be the ledger's own. A withdrawal is published once and its answer waited for: heard live,
and asked for again when nothing was heard for a while. Not covered: the payout itself, which happens outside.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final, Literal, TypeVar

from pocache.bus.port import Bus, CoreMessage
from pocache.job import RefusedError
from pocache.protocol.errors import BusError, CommitmentError, PocacheError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.runtime.network import Genesis
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope, parse_envelope, seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Stream

M = TypeVar("M", bound=WireModel)

NONCE_BYTES: Final = 16
QUIET_S: Final = 5.0
"""How long a question waits for its answer, and a withdrawal before its answer is asked for."""
ANSWER_S: Final = 60.0
"""How long a withdrawal waits for the ledger."""


class Purse:
    """One participant's account. A worker's requests go their own way, so its ``role`` has to be said."""

    def __init__(self, bus: Bus, genesis: Genesis, key: SigningKey, role: Role = Role.USER) -> None:
        self._bus = bus
        self._genesis = genesis
        self._key = key
        self._role = role
        self.owner = key.participant_id

    async def balance(self, participant: ParticipantId | None = None) -> m.BalanceReplyV1:
        """Ask the ledger for this participant's balances; the operator may ask for anybody's."""
        asked = participant or self.owner
        subject = t.BALANCE_QUERY.subject(participant=asked)
        return await self._ask(subject, m.BalanceQueryV1(participant=asked), m.BalanceReplyV1)

    async def statement(
        self, participant: ParticipantId | None = None, *, after_entry: int = 0
    ) -> AsyncIterator[m.StatementLineV1]:
        """Yield every line of the journal on a participant's accounts, oldest first, from after an entry on.

        The operator may ask for anybody's. Raises RefusedError, CommitmentError when the pages do not join.
        """
        asked = participant or self.owner
        subject = t.STATEMENT_QUERY.subject(participant=asked)
        has_more = True
        while has_more:
            query = m.StatementQueryV1(participant=asked, after_entry=after_entry)
            page = await self._ask(subject, query, m.StatementReplyV1)
            entries = [line.entry for line in page.lines]
            has_more = page.has_more
            goes_on = entries == sorted(entries) and all(
                after_entry < entry <= page.last_entry for entry in entries
            )
            if page.participant != asked or not goes_on or (has_more and not entries):
                raise CommitmentError("the ledger's page does not go on where the one before it ended")
            for line in page.lines:
                yield line
            after_entry = page.last_entry

    async def withdraw(
        self,
        amount_micro: int,
        *,
        bucket: Literal["available", "stake"] = "available",
        nonce: bytes | None = None,
        timeout_s: float = ANSWER_S,
    ) -> m.WithdrawalAcceptedV1:
        """Ask for money back, and return the ledger's acceptance once it is durable.

        Available money is paid out at once, stake when it has unbonded (docs/protocol.md 9.10). One withdrawal per
        ``nonce`` (16 bytes; drawn unless given): the same request again is answered with the first acceptance, another
        one under its nonce refused. Raises RefusedError (E204: more than is free, E208: the nonce was used), BusError
        when no answer came: the request may still be handled, so repeat it with its nonce and never with another.
        """
        nonce = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
        request = m.WithdrawalRequestV1(bucket=bucket, amount_micro=amount_micro, nonce=nonce)
        data = seal(self._key, self._genesis.network_id, request)
        ref = hashlib.sha256(data).digest()
        accepted = t.WITHDRAWAL_ACCEPTED.subject(participant=self.owner)
        refused = t.REFUSALS[Role.LEDGER].subject(ref=ref)
        topic = t.WORKER_WITHDRAWAL_REQUESTED if self._role is Role.WORKER else t.USER_WITHDRAWAL_REQUESTED
        answers: asyncio.Queue[CoreMessage] = asyncio.Queue()
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            listeners = []
            for subject in (accepted, refused):
                messages = await stack.enter_async_context(self._bus.subscribe_core(subject))
                listeners.append(group.create_task(_forward(messages, answers)))
            answer: m.WithdrawalAcceptedV1 | PocacheError
            try:
                subject = topic.subject(**{self._role.value: self.owner})
                await self._bus.publish(subject, data, message_id=ref.hex())
                async with asyncio.timeout(timeout_s):
                    answer = await self._wait_answer(data, answers, accepted, refused)
            except TimeoutError:
                answer = BusError(
                    "the ledger has not answered yet; the request is stored and may still be handled: "
                    f"repeat it with the nonce {nonce.hex()}, so that it counts once"
                )
            except PocacheError as error:  # raised below: the group would wrap it
                answer = error
            for task in listeners:
                task.cancel()
        if isinstance(answer, PocacheError):
            raise answer
        return answer

    async def _wait_answer(
        self, data: bytes, answers: asyncio.Queue[CoreMessage], accepted: str, refused: str
    ) -> m.WithdrawalAcceptedV1 | PocacheError:
        while True:
            try:
                async with asyncio.timeout(QUIET_S):
                    said = (await answers.get()).data
            except TimeoutError:
                for stream, subject in ((Stream.RECORD, accepted), (Stream.REFUSALS, refused)):
                    record = await self._bus.get_last(stream.value, subject)
                    if record is not None:
                        answers.put_nowait(CoreMessage(subject, record.data))
                continue
            found = self._read_answer(said, data)
            if found is not None:
                return found

    def _read_answer(self, said: bytes, data: bytes) -> m.WithdrawalAcceptedV1 | PocacheError | None:
        """Return what was said about this very request, None when it was about another or by another."""
        try:
            if parse_envelope(said).kind == m.RefusalV1.kind:
                refusal = self._open(said, m.RefusalV1)
                is_mine = refusal.message_hash == hashlib.sha256(data).digest()
                return RefusedError(refusal.code, refusal.reason) if is_mine else None
            acceptance = self._open(said, m.WithdrawalAcceptedV1)
        except PocacheError:
            return None
        return acceptance if acceptance.request == data else None

    async def _ask(self, subject: str, query: WireModel, model: type[M]) -> M:
        question = seal(self._key, self._genesis.network_id, query)
        answer = await self._bus.request(subject, question, timeout_s=QUIET_S)
        if parse_envelope(answer).kind == m.RefusalV1.kind:
            refusal = self._open(answer, m.RefusalV1)
            raise RefusedError(refusal.code, refusal.reason)
        return self._open(answer, model)

    def _open(self, data: bytes, model: type[M]) -> M:
        opened = open_envelope(data, self._genesis.network_id, model)
        if opened.sender != self._genesis.signer(Role.LEDGER):
            raise CommitmentError(f"{model.kind} is not signed by the ledger")
        return opened.body


async def _forward(messages: AsyncIterator[CoreMessage], answers: asyncio.Queue[CoreMessage]) -> None:
    async for message in messages:
        answers.put_nowait(message)
