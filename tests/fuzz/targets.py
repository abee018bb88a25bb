"""Every decoder that reads what a stranger sent, as a function of bytes: refused by a typed error, or understood.

Anything else that it raises is a crash. Corpora are made from honest material, so that changes of it reach far into
the decoders; nothing here is read from files but the receipts of the vectors.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import httpx

from fuzz.http import make_requests, run_http
from kit.loopback import Loopback
from kit.network import make_key, make_network
from pocache.protocol.beacon import Chain
from pocache.protocol.checkpoint import merge_cosignatures, parse_note, sign_checkpoint
from pocache.protocol.encoding import decode_leaf, unpack_tokens
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import PAYLOAD_BYTES_MAX
from pocache.protocol.merkle import (
    MerkleTree,
    hash_leaf,
    verify_consistency,
    verify_inclusion,
    verify_multiproof,
)
from pocache.receipt.export import read_entries, read_header, write_entry
from pocache.receipt.format import decode_receipt, encode_binary, encode_json
from pocache.receipt.trust import load_trust
from pocache.receipt.verify import read_genesis, verify_receipt
from pocache.service.dispatch import Delivery
from pocache.wire.codec import decode, decode_value, encode, encode_value
from pocache.wire.envelope import compute_preimage, open_envelope, parse_envelope
from pocache.wire.topics import TOPICS, Role
from pocache_beacon.drand import DrandClient, RelaySettings

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "receipts"
MODELS: Final = tuple(sorted({topic.model for topic in TOPICS}, key=lambda model: model.kind))


class CrashError(AssertionError):
    """A decoder understood what it must not, or said it in a way that nobody can act on."""


@dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    run: Callable[[bytes], None]
    """Returns for what is understood; PocacheError for what is refused."""
    make_corpus: Callable[[], Sequence[bytes]]
    bytes_max: int = 65_536

    def feed(self, data: bytes) -> bool:
        """Give it bytes; whether they were understood. Raises whatever is a crash."""
        try:
            self.run(data)
        except PocacheError:
            return False
        return True


# --- the wire ------------------------------------------------------------------------------------------------------


def run_codec(data: bytes) -> None:
    """What is decoded can be encoded, and says the same again."""
    value = decode_value(data)
    if decode_value(encode_value(value)) != value:
        raise CrashError("another value after a round trip")


def run_message(data: bytes) -> None:
    """The first byte chooses the model, the rest is its body."""
    model = MODELS[(data[0] if data else 0) % len(MODELS)]
    body = decode(model, data[1:])
    if decode(model, encode(body)) != body:
        raise CrashError(f"another {model.kind} after a round trip")


def run_envelope(data: bytes) -> None:
    """Parsed, and opened as what it says it is."""
    envelope = parse_envelope(data)
    model = next((model for model in MODELS if model.kind == envelope.kind), MODELS[0])
    open_envelope(data, get_loopback().network.network_id, model)


@cache
def get_loopback() -> Loopback:
    """A network in this process in which jobs of several endings were played."""
    loopback = Loopback()
    loopback.play()
    loopback.play(challenge=True)
    return loopback


def make_envelopes() -> list[bytes]:
    """Return one envelope of each kind that was said."""
    loopback = get_loopback()
    by_kind = {parse_envelope(entry.data).kind: entry.data for entry in (*loopback.record, *loopback.rounds)}
    return list(by_kind.values())


def make_bodies() -> list[bytes]:
    """Return one body of each kind, behind the byte of its model."""
    bodies = []
    for data in make_envelopes():
        envelope = parse_envelope(data)
        number = next(index for index, model in enumerate(MODELS) if model.kind == envelope.kind)
        bodies.append(bytes([number]) + envelope.payload)
    return bodies


# --- what services do with it ----------------------------------------------------------------------------------------

_ROLES: Final = (Role.ROUTER, Role.COMMITMENTS, Role.VERIFIER, Role.LEDGER)


@cache
def get_signed() -> tuple[Loopback, list[tuple[Role, str, str, bytes]]]:
    """A network to be disturbed, and what its services took: role, subject, signer's name, body."""
    loopback = Loopback()
    taken: list[tuple[Role, str, str, bytes]] = []
    names = {make_key(name).participant_id: name for name in ("user", "worker", *loopback.verifiers)}
    deliver = loopback._deliver

    def note(role: Role, delivery: Delivery) -> None:
        envelope = parse_envelope(delivery.data)
        if envelope.kid in names:
            taken.append((role, delivery.subject, names[envelope.kid], envelope.payload))
        deliver(role, delivery)

    loopback._deliver = note  # type: ignore[method-assign]
    loopback.play(challenge=True)
    loopback.play()
    return loopback, taken


def run_service(data: bytes) -> None:
    """A body signed by whoever may sign it, given to the service that takes it: no handler may fail."""
    loopback, taken = get_signed()
    role, subject, name, _ = taken[(data[0] if data else 0) % len(taken)]
    topic = next(one for one in TOPICS if one.matches(subject))
    key, network = make_key(name), loopback.network.network_id
    payload = data[1 : 1 + PAYLOAD_BYTES_MAX]
    sealed = encode_value(
        {
            "kind": topic.model.kind,
            "payload": payload,
            "kid": key.participant_id,
            "sig": key.sign(compute_preimage(network, topic.model.kind, payload)),
        },
        bytes_max=PAYLOAD_BYTES_MAX + 512,
    )
    harness = loopback.services[role]
    delivery = Delivery(
        subject, sealed, topic.stream.value if topic.stream else "", 1_000_000, harness.clock_ms
    )
    decision = harness.apply(delivery)
    harness.drain()
    if decision.action == "halt" or (decision.action == "nak" and decision.delay_s > 1.0):
        raise CrashError(f"the {role.value}'s handler failed on {topic.model.kind}: {decision}")


def make_signed() -> list[bytes]:
    """Return the bodies that the services took, behind the byte of their place."""
    return [bytes([number % 256]) + payload for number, (*_, payload) in enumerate(get_signed()[1])]


# --- trees, leaves, notes ----------------------------------------------------------------------------------------------


def run_multiproof(data: bytes) -> None:
    """Size, indices, leaves and proof from the bytes; what is proved must be in the tree that made the root."""
    leaves = [b"leaf %d" % number for number in range(11)]
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    size = int.from_bytes(data[:2], "big", signed=True)
    count = data[2] % 8 if len(data) > 2 else 0
    rest = data[3:]
    indices = [int.from_bytes(rest[2 * n : 2 * n + 2], "big", signed=True) for n in range(count)]
    rest = rest[2 * count :]
    hashes = [rest[start : start + 32] for start in range(0, len(rest), 32)]
    known = {index: Digest(digest) for index, digest in zip(indices, hashes, strict=False)}
    proof = [Digest(digest) for digest in hashes[count:]]
    root = tree.root()
    with contextlib.suppress(PocacheError):
        verify_inclusion(
            Digest(hashes[0] if hashes else b""), indices[0] if indices else 0, size, proof, root
        )
    with contextlib.suppress(PocacheError):
        verify_consistency(size, len(leaves), root, root, proof)
    verify_multiproof(known, size, proof, root)
    for index, digest in known.items():
        if digest != hash_leaf(leaves[index]):
            raise CrashError("a leaf was proved that is not in the tree")


def make_multiproofs() -> list[bytes]:
    """Return a good one."""
    leaves = [b"leaf %d" % number for number in range(11)]
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    indices = (2, 5, 7)
    head = (
        (11).to_bytes(2, "big") + bytes([len(indices)]) + b"".join(one.to_bytes(2, "big") for one in indices)
    )
    return [head + b"".join(hash_leaf(leaves[one]) for one in indices) + b"".join(tree.multiproof(indices))]


def run_leaf(data: bytes) -> None:
    """A leaf's strict decoding, and a list of tokens."""
    with contextlib.suppress(PocacheError):
        unpack_tokens(data)
    decode_leaf(make_network().model.schema, data[0] if data else 0, bool(len(data) & 1), data[1:])


def make_leaf_corpus() -> list[bytes]:
    """Return leaves of the kit's model."""
    from kit.committing import make_leaves

    leaves = make_leaves(make_network().model.schema, 6, 3)
    return [bytes([position]) + leaf for position, leaf in enumerate(leaves)]


def run_note(data: bytes) -> None:
    """A checkpoint's note."""
    parse_note(data)


def make_notes() -> list[bytes]:
    """Return signed notes."""
    network = make_network()
    note = sign_checkpoint(network.network_id, 7, Digest(bytes(32)), make_key("log"))
    return [note, merge_cosignatures(note, parse_note(note).signatures)]


# --- receipts, exports, genesis ----------------------------------------------------------------------------------------


def run_receipt(data: bytes) -> None:
    """Decoded in either form, and judged: a judge never raises."""
    report = verify_receipt(data, load_trust(VECTORS / "trust.json"))
    if not report.steps:
        raise CrashError("a report without a step")
    receipt = decode_receipt(data)
    if decode_receipt(encode_binary(receipt)) != receipt or decode_receipt(encode_json(receipt)) != receipt:
        raise CrashError("another receipt after a round trip")


@cache
def make_receipts() -> list[bytes]:
    """Return the receipts of the vectors, in both forms."""
    texts = [file.read_bytes() for file in sorted(VECTORS.glob("*.json")) if file.name != "trust.json"]
    receipts = []
    for text in texts:
        try:
            receipts.append(decode_receipt(text))
        except PocacheError:
            continue
    return [*texts, *(encode_binary(one) for one in receipts)]


def run_export(data: bytes) -> None:
    """A header and its entries, or entries alone."""
    head, _, rest = data.partition(b"\n")
    try:
        read_header(head)
    except PocacheError:
        rest = data
    for _ in read_entries(io.BytesIO(rest)):
        pass


def make_exports() -> list[bytes]:
    """Return some lines of an export."""
    return [b"".join(write_entry(entry) for entry in get_loopback().record[:5])]


def run_genesis(data: bytes) -> None:
    """A genesis as a receipt carries it."""
    read_genesis(data)


def make_genesis() -> list[bytes]:
    """Return a good one."""
    genesis = make_network().genesis.canonical_json()
    return [genesis if isinstance(genesis, bytes) else genesis.encode()]


# --- HTTP --------------------------------------------------------------------------------------------------------------


def run_beacon_body(data: bytes) -> None:
    """A drand server's answers, to each question: info, a round, the latest."""
    chain = _get_chain()
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=httpx.ByteStream(data)))
    settings = RelaySettings(endpoints=("http://drand.test/v2/beacons/x", "http://drand.test"))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport) as http:
            client = DrandClient(chain, settings, http, jitter=lambda: 0.0)
            if await client.get_round(3) is not None and b'"signature"' not in data:
                raise CrashError("a round without a signature")
            for endpoint in client.endpoints:
                endpoint.is_pinned = True
                endpoint.rests_until_s = 0.0
            await client.get_round(3)
            await client.get_latest()

    asyncio.run(ask())


@cache
def _get_chain() -> Chain:
    return make_network().chain


def make_beacon_bodies() -> list[bytes]:
    """Return a good round and a chain's info, as servers write them."""
    import json

    made = make_network().make_round(3)
    chain = _get_chain()
    info = {
        "public_key": chain.public_key.hex(),
        "period": chain.period_s,
        "genesis_time": chain.genesis_s,
        "hash": chain.chain_hash.hex(),
        "groupHash": "00" * 32,
        "schemeID": chain.scheme.value,
        "metadata": {"beaconID": "default"},
    }
    return [json.dumps({"round": 3, "signature": made.signature.hex()}).encode(), json.dumps(info).encode()]


TARGETS: Final = (
    Target("codec", run_codec, lambda: [body[1:] for body in make_bodies()]),
    Target("message", run_message, make_bodies),
    Target("envelope", run_envelope, make_envelopes),
    Target("service", run_service, make_signed),
    Target("multiproof", run_multiproof, make_multiproofs, 2_048),
    Target("leaf", run_leaf, make_leaf_corpus, 4_096),
    Target("note", run_note, make_notes, 4_096),
    Target("receipt", run_receipt, make_receipts, 1 << 20),
    Target("export", run_export, make_exports),
    Target("genesis", run_genesis, make_genesis),
    Target("beacon-body", run_beacon_body, make_beacon_bodies, 8_192),
    Target("gateway", run_http, make_requests),
)
