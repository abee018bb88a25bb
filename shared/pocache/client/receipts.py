"""Fetching a receipt from the commitment store, part by part. Nothing of it is judged here (``pocache.receipt.verify``)."""

from __future__ import annotations

import asyncio
from typing import Final

from pocache.bus.port import Bus
from pocache.client.opening import open_said
from pocache.job import RefusedError
from pocache.protocol.errors import NotYetError, ReceiptError
from pocache.protocol.ids import JobId, ParticipantId
from pocache.protocol.keys import SigningKey
from pocache.receipt.format import compute_receipt_hash
from pocache.runtime.network import Genesis
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import parse_envelope, seal
from pocache.wire.topics import Role

ANSWER_S: Final = 5.0
"""How long the store may take for a part."""
RETRY_S: Final = 0.2


async def fetch_receipt(
    bus: Bus, genesis: Genesis, key: SigningKey, job_id: JobId, user: ParticipantId
) -> bytes:
    """Return the binary form of the receipt of ``user``'s job, asked for by ``key``: the user's own, or the operator's.

    Raises RefusedError (E209: another's job, E501: not over yet), ReceiptError when the parts do not make one receipt.
    """
    subject = t.RECEIPT_QUERY.subject(user=user, job=job_id)
    parts: list[m.ReceiptPartV1] = []
    while not parts or len(parts) < parts[0].part_count:
        query = m.ReceiptQueryV1(job_id=job_id, part=len(parts))
        answer = await bus.request(subject, seal(key, genesis.network_id, query), timeout_s=ANSWER_S)
        if parse_envelope(answer).kind == m.RefusalV1.kind:
            refusal = open_said(answer, m.RefusalV1, genesis, Role.COMMITMENTS)
            raise RefusedError(refusal.code, refusal.reason)
        part = open_said(answer, m.ReceiptPartV1, genesis, Role.COMMITMENTS)
        if (part.job_id, part.part) != (job_id, len(parts)):
            raise ReceiptError("the store answered with another part than was asked for")
        if parts and (part.receipt_hash, part.part_count) != (parts[0].receipt_hash, parts[0].part_count):
            raise ReceiptError("the receipt changed while it was read: ask again")
        parts.append(part)
    data = b"".join(part.data for part in parts)
    if compute_receipt_hash(data) != parts[0].receipt_hash:
        raise ReceiptError("the parts do not make the receipt that the store announced")
    return data


async def fetch_due_receipt(
    bus: Bus, genesis: Genesis, key: SigningKey, job_id: JobId, user: ParticipantId
) -> bytes:
    """Return a receipt that is due now: the store may hear of a payout a moment after its user does."""
    while True:
        try:
            return await fetch_receipt(bus, genesis, key, job_id, user)
        except RefusedError as error:
            if error.refusal_code != NotYetError.code:
                raise
        await asyncio.sleep(RETRY_S)
