"""Receipts with one thing changed and signed again by whoever signs it: what a dishonest service could hand out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from kit.network import Network, make_key
from pocache.protocol.keys import SigningKey
from pocache.receipt.dossier import JOB_TOPICS, Said, get_order, open_message
from pocache.receipt.format import Receipt
from pocache.wire.codec import decode
from pocache.wire.envelope import open_envelope, parse_envelope
from pocache.wire.model import WireModel
from pocache.wire.topics import Topic

M = TypeVar("M", bound=WireModel)
NAMES = ("user", "worker", *(f"verifier-{number}" for number in range(1, 9)))


def find_said(receipt: Receipt, network: Network, topic: Topic[M], **fields: object) -> Said[M]:
    """Return the first message of a topic with these values in a receipt's record."""
    for data in receipt.record:
        said = open_message(data, network.network_id, network.genesis, JOB_TOPICS)
        if said.topic is topic and all(getattr(said.body, name) == value for name, value in fields.items()):
            return said
    raise AssertionError(f"no {topic.model.kind} with {fields}")


def reseal(
    network: Network, data: bytes, model: type[M], signer: SigningKey | None = None, **changes: Any
) -> bytes:
    """Return an envelope with some fields of its body changed, signed again by its signer, or by another."""
    envelope = parse_envelope(data)
    keys = {key.participant_id: key for key in (*network.keys.values(), *map(make_key, NAMES))}
    body = decode(model, envelope.payload).model_copy(update=changes)
    return network.seal(signer or keys[envelope.kid], body)


def forge(
    receipt: Receipt,
    network: Network,
    topic: Topic[Any],
    which: dict[str, object] | None = None,
    **changes: Any,
) -> Receipt:
    """Return the receipt with fields of one message of its record changed, the record in its order again."""
    said = find_said(receipt, network, topic, **(which or {}))
    forged = reseal(network, said.data, topic.model, network.keys[topic.signer], **changes)
    return replace_record(receipt, network, lambda data: forged if data == said.data else data)


def replace_record(receipt: Receipt, network: Network, change: Callable[[bytes], bytes | None]) -> Receipt:
    """Return the receipt with every envelope of its record changed, or dropped where None comes out; in order again."""
    changed = [one for one in map(change, receipt.record) if one is not None]
    said = [open_message(one, network.network_id, network.genesis, JOB_TOPICS) for one in changed]
    return replace(receipt, record=tuple(one.data for one in sorted(said, key=get_order)))


def drop(receipt: Receipt, network: Network, topic: Topic[Any], **which: object) -> Receipt:
    """Return the receipt without one message."""
    said = find_said(receipt, network, topic, **which)
    return replace_record(receipt, network, lambda data: None if data == said.data else data)


def open_body(network: Network, data: bytes, model: type[M]) -> M:
    """Return the body of an envelope."""
    return open_envelope(data, network.network_id, model).body
