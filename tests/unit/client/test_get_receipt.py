"""Fetching a receipt by parts: whatever does not make one whole is refused, and so is what the store refuses."""

from __future__ import annotations

from typing import Any

import pytest

from kit.network import Network, make_network
from pocache.client import PocacheClient, RefusedError
from pocache.protocol.errors import CommitmentError, ReceiptError
from pocache.protocol.ids import JobId
from pocache.receipt.format import compute_receipt_hash
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Role

JOB = JobId(b"\x05" * 32)
WHOLE = b"one receipt"
PARTS = (b"one ", b"rec", b"eipt")


class Store:
    """A bus on which a commitment store answers as the test has it."""

    def __init__(self, network: Network, signer: Role = Role.COMMITMENTS, **changes: Any) -> None:
        self.network, self.signer, self.changes = network, signer, changes
        self.asked: list[tuple[str, int]] = []

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Answer a question for one part."""
        query = open_envelope(data, self.network.network_id, m.ReceiptQueryV1).body
        self.asked.append((subject, query.part))
        return self.network.seal(self.network.keys[self.signer], self.answer(query))

    def answer(self, query: m.ReceiptQueryV1) -> WireModel:
        if "refusal" in self.changes:
            return m.RefusalV1(message_hash=bytes(32), subject="s", code=self.changes["refusal"], reason="no")
        fields = {
            "job_id": query.job_id,
            "part": query.part,
            "part_count": len(PARTS),
            "data": PARTS[query.part],
            "receipt_hash": compute_receipt_hash(WHOLE),
        }
        changed = self.changes if query.part == 1 or self.changes.get("always") else {}
        return m.ReceiptPartV1.model_validate(
            {**fields, **{k: v for k, v in changed.items() if k != "always"}}
        )


async def fetch(store: Store, user: str | None = None) -> bytes:
    network = store.network
    client = PocacheClient(store, network.genesis, network.key("user"))  # type: ignore[arg-type]
    named = None if user is None else network.participant(user)
    return await client.get_receipt(JOB, user=named)


async def test_parts_are_asked_for_in_their_order_and_joined() -> None:
    store = Store(make_network())
    assert await fetch(store) == WHOLE
    subject = t.RECEIPT_QUERY.subject(user=store.network.participant("user"), job=JOB)
    assert store.asked == [(subject, 0), (subject, 1), (subject, 2)]


async def test_the_operator_names_whose_job_it_is() -> None:
    store = Store(make_network())
    assert await fetch(store, "another") == WHOLE
    assert store.network.participant("another") in store.asked[0][0]


@pytest.mark.parametrize(
    "changes",
    [
        {"receipt_hash": bytes(32)},
        {"receipt_hash": bytes(32), "always": True},
        {"part_count": 4},
        {"part": 2},
        {"job_id": bytes(32)},
        {"data": b"RECEIPT"},
    ],
    ids=str,
)
async def test_parts_that_make_no_whole_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ReceiptError):
        await fetch(Store(make_network(), **changes))


async def test_what_the_store_refuses_is_said_with_its_code() -> None:
    with pytest.raises(RefusedError) as refused:
        await fetch(Store(make_network(), refusal="E209"))
    assert refused.value.refusal_code == "E209"


async def test_an_answer_by_another_service_is_refused() -> None:
    with pytest.raises(CommitmentError):
        await fetch(Store(make_network(), Role.LEDGER))
