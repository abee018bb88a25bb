"""Receipts with something changed, from a seed: bytes, elements, lists, whole receipts, and fields signed again.

``make_mutant`` gives the same mutant for the same number. The classes whose names begin with ``signed`` are signed by
whoever would have to sign them, so that they come past the signatures and fail, if they do, at what they say; a field
that nobody checks may be changed so without anybody noticing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from kit.endings import ENDINGS, Played, play
from kit.network import Network, make_key
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import Digest
from pocache.receipt.dossier import JOB_TOPICS
from pocache.receipt.format import LogProof, Receipt, encode_binary, encode_json
from pocache.receipt.trust import TrustRoots
from pocache.wire import messages as m
from pocache.wire.codec import decode_value, encode_value
from pocache.wire.envelope import ENVELOPE_BYTES_MAX, compute_envelope_id, compute_preimage, parse_envelope
from pocache.wire.topics import Role

NAMES: Final = ("user", "poor", "worker", "stranger", *(f"verifier-{number}" for number in range(1, 9)))
LISTS: Final = ("record", "rounds", "snapshots", "epochs")
CARRIED: Final = frozenset({"submission", "result", "lease", "challenge", "opening", "claim"})
"""Fields that hold somebody's own envelope."""
NUMBERS: Final = (0, 1, 2, 255, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**64 - 1, -1, -(2**63))
_TRIES_MAX: Final = 100


@dataclass(frozen=True)
class Mutant:
    """One changed receipt, and how it came about."""

    name: str
    data: bytes
    trust: TrustRoots

    @property
    def must_fail(self) -> bool:
        """Whether nobody signed what it says: neither a forger, nor the same keys in another history of the same job."""
        return "signed" not in self.name and "swapped" not in self.name


def make_mutant(number: int, seed: str = "mutants") -> Mutant:
    """Return the mutant of this number: another receipt than any that was played."""
    source = random.Random(f"{seed} {number}")
    for _ in range(_TRIES_MAX):
        ending = source.choice(ENDINGS)
        name = source.choice(tuple(_CLASSES))
        played = play(ending)
        data = _CLASSES[name](source, played)
        if data is not None and data not in (encode_binary(played.receipt), encode_json(played.receipt)):
            return Mutant(f"{number}: {ending}, {name}", data, played.loopback.trust)
    raise AssertionError("nothing can be changed")


def put(receipt: Receipt, **parts: Any) -> Receipt:
    """Return a receipt with some of its parts exchanged."""
    return replace(receipt, **parts)


def put_proof(log: LogProof, **parts: Any) -> LogProof:
    """Return the log's proofs with some of them exchanged."""
    return replace(log, **parts)


def encode_either(source: random.Random, receipt: Receipt) -> bytes:
    """Return a receipt in one of its two forms."""
    return source.choice((encode_binary, encode_json))(receipt)


# --- bytes ---------------------------------------------------------------------------------------------------------


def mutate_bytes(source: random.Random, data: bytes) -> bytes:
    """Return bytes with a bit turned over, or a piece cut out, doubled, put elsewhere, or replaced."""
    start = source.randrange(len(data))
    end = min(len(data), start + source.choice((1, 1, 2, 4, 32, 200)))
    piece = data[start:end]
    match source.randrange(8):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:end] + piece + data[end:]
        case 2:
            return data[:start] + source.randbytes(len(piece)) + data[end:]
        case 3:
            return data[:start]
        case _:
            flipped = bytes([data[start] ^ 1 << source.randrange(8)])
            return data[:start] + flipped + data[start + 1 :]


def _change_file(source: random.Random, played: Played) -> bytes:
    return mutate_bytes(source, encode_either(source, played.receipt))


def _change_envelope(source: random.Random, played: Played) -> bytes | None:
    """Change bytes of one envelope: of its signature as likely as of its payload."""
    receipt = played.receipt
    name = source.choice((*LISTS, "model", "log"))
    if name == "model":
        return encode_either(source, replace(receipt, model=mutate_bytes(source, receipt.model)))
    if name == "log":
        if receipt.log is None:
            return None
        field = source.choice(("checkpoint", "latest"))
        return encode_either(
            source,
            put(
                receipt,
                log=put_proof(receipt.log, **{field: mutate_bytes(source, getattr(receipt.log, field))}),
            ),
        )
    elements = list(getattr(receipt, name))
    if not elements:
        return None
    index = source.randrange(len(elements))
    elements[index] = _change_part(source, elements[index])
    return encode_either(source, put(receipt, **{name: tuple(elements)}))


def _change_part(source: random.Random, data: bytes) -> bytes:
    envelope = parse_envelope(data)
    fields: dict[str, Any] = {
        "kind": envelope.kind,
        "payload": envelope.payload,
        "kid": envelope.kid,
        "sig": envelope.sig,
    }
    name = source.choice(("payload", "sig", "kid", "kind", "all"))
    if name == "all":
        return mutate_bytes(source, data)
    if isinstance(fields[name], str):
        at = source.randrange(len(fields[name]))
        fields[name] = fields[name][:at] + source.choice("UA27za.") + fields[name][at + 1 :]
    else:
        fields[name] = mutate_bytes(source, fields[name])
    return encode_value(fields, bytes_max=2 * ENVELOPE_BYTES_MAX)


def _change_genesis(source: random.Random, played: Played) -> bytes | None:
    genesis = mutate_bytes(source, played.receipt.genesis)
    return encode_either(source, replace(played.receipt, genesis=genesis)) if genesis.isascii() else None


# --- elements and lists -----------------------------------------------------------------------------------------------


def mutate_list(source: random.Random, elements: Sequence[Any]) -> list[Any]:
    """Return a list with an element dropped, doubled, moved, exchanged, or all of them turned round."""
    changed = list(elements)
    if not changed:
        return changed
    one, other = source.randrange(len(changed)), source.randrange(len(changed))
    match source.randrange(5):
        case 0:
            del changed[one]
        case 1:
            changed.insert(other, changed[one])
        case 2:
            changed[one], changed[other] = changed[other], changed[one]
        case 3:
            changed.reverse()
        case _:
            changed.insert(other, changed.pop(one))
    return changed


def _change_list(source: random.Random, played: Played) -> bytes:
    name = source.choice(LISTS)
    return encode_either(
        source, put(played.receipt, **{name: tuple(mutate_list(source, getattr(played.receipt, name)))})
    )


def _change_log(source: random.Random, played: Played) -> bytes | None:
    log = played.receipt.log
    if log is None:
        return None
    name = source.choice(("inclusion", "consistency", "digest", "swap", "none"))
    changed: LogProof | None
    if name == "none":
        changed = None
    elif name == "swap":
        changed = put_proof(log, checkpoint=log.latest, latest=log.checkpoint)
    elif name == "digest":
        extra = (Digest(source.randbytes(32)),)
        field = source.choice(("inclusion", "consistency"))
        changed = put_proof(
            log, **{field: source.choice((getattr(log, field) + extra, extra + getattr(log, field)[1:]))}
        )
    else:
        changed = put_proof(log, **{name: tuple(mutate_list(source, getattr(log, name)))})
    return encode_either(source, replace(played.receipt, log=changed))


def _swap(source: random.Random, played: Played) -> bytes | None:
    """Put something of another receipt in the place of what is here."""
    other = play(source.choice(ENDINGS)).receipt
    name = source.choice((*LISTS, "model", "genesis", "log", "element", "element"))
    if name != "element":
        return encode_either(source, put(played.receipt, **{name: getattr(other, name)}))
    name = source.choice(LISTS)
    mine, theirs = list(getattr(played.receipt, name)), getattr(other, name)
    if not theirs:
        return None
    mine[source.randrange(len(mine) + 1) :][:1] = [source.choice(theirs)]
    mine.insert(source.randrange(len(mine) + 1), source.choice(theirs))
    return encode_either(source, put(played.receipt, **{name: tuple(mine)}))


# --- fields, signed again ----------------------------------------------------------------------------------------------


def mutate_value(source: random.Random, value: Any) -> Any:
    """Return another value: mostly of the same type and near by, sometimes of another."""
    if source.randrange(12) == 0:
        return source.choice((None, True, 0, "", b"", (), {}, "text", b"\x00" * 32))
    match value:
        case bool():
            return not value
        case int():
            near = (value + 1, value - 1, value * 2, value + source.randrange(1, 5_000))
            return max(-(2**63), min(source.choice((*near, *near, source.choice(NUMBERS))), 2**64 - 1))
        case bytes():
            return mutate_bytes(source, value) if value else b"\x01"
        case str():
            return source.choice(
                (value + "x", value[:-1], value[::-1], make_key(source.choice(NAMES)).participant_id)
            )
        case dict() if value:
            name = source.choice(tuple(value))
            if source.randrange(12) == 0:
                return {one: kept for one, kept in value.items() if one != name}
            return {**value, name: mutate_value(source, value[name])}
        case tuple() if value:
            if source.randrange(3) == 0:
                return tuple(mutate_list(source, value))
            index = source.randrange(len(value))
            return (*value[:index], mutate_value(source, value[index]), *value[index + 1 :])
        case _:
            return source.choice((1, "text", b"\x00" * 32))


class Forger:
    """Who signs what again, on one network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.keys = {key.participant_id: key for key in (*network.keys.values(), *map(make_key, NAMES))}

    def reseal(self, data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
        """Return an envelope with its body changed and signed by the same key; the body need not be one any more."""
        envelope = parse_envelope(data)
        payload = encode_value(change(decode_value(envelope.payload)))
        preimage = compute_preimage(self.network.network_id, envelope.kind, payload)
        fields = {
            "kind": envelope.kind,
            "payload": payload,
            "kid": envelope.kid,
            "sig": self.keys[envelope.kid].sign(preimage),
        }
        return encode_value(fields, bytes_max=ENVELOPE_BYTES_MAX)

    def mutate(self, source: random.Random, data: bytes) -> bytes:
        """Return an envelope with one field changed, its own or one of an envelope that it carries."""
        return self.reseal(data, lambda body: self._mutate_body(source, body))

    def _mutate_body(self, source: random.Random, body: Any) -> Any:
        if not isinstance(body, dict) or not body:  # what an earlier change left of it
            return mutate_value(source, body)
        name = source.choice(tuple(body))
        value = body[name]
        if isinstance(value, bytes) and name in CARRIED and source.randrange(8):
            return {**body, name: self.mutate(source, value)}
        if name == "parties" and isinstance(value, tuple) and source.randrange(2):
            index = source.randrange(len(value))
            return {
                **body,
                name: (*value[:index], self._mutate_body(source, value[index]), *value[index + 1 :]),
            }
        return (
            mutate_value(source, body)
            if source.randrange(20) == 0
            else {**body, name: mutate_value(source, value)}
        )

    def sort(self, record: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return envelopes in a record's order, also where their bodies are none."""
        return tuple(sorted(record, key=self._get_order))

    def _get_order(self, data: bytes) -> tuple[int, bytes]:
        envelope = parse_envelope(data)
        signers = [self.network.genesis.signer(topic.signer) for topic in JOB_TOPICS]
        places = [
            place
            for place, topic in enumerate(JOB_TOPICS)
            if topic.model.kind == envelope.kind and envelope.kid == signers[place]
        ]
        preimage = compute_preimage(self.network.network_id, envelope.kind, envelope.payload)
        return (places or [0])[0], compute_envelope_id(preimage, envelope.kid)


def _forge_record(source: random.Random, played: Played) -> bytes | None:
    """Change one to three fields in the record, each signed again, in the record's order."""
    forger = Forger(played.loopback.network)
    record = list(played.receipt.record)
    try:
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            index = source.randrange(len(record))
            record[index] = forger.mutate(source, record[index])
    except PocacheError:
        return None
    return encode_either(source, replace(played.receipt, record=forger.sort(record)))


def _forge_elsewhere(source: random.Random, played: Played) -> bytes | None:
    """Change a field of the model's entry, a round, a snapshot, an epoch or a checkpoint, signed again."""
    forger, receipt = Forger(played.loopback.network), played.receipt
    name = source.choice((*LISTS[1:], "model", "log"))
    try:
        if name == "model":
            return encode_either(source, replace(receipt, model=forger.mutate(source, receipt.model)))
        if name == "log":
            if receipt.log is None:
                return None
            field = source.choice(("checkpoint", "latest"))
            forged = forger.mutate(source, getattr(receipt.log, field))
            return encode_either(source, put(receipt, log=put_proof(receipt.log, **{field: forged})))
        elements = list(getattr(receipt, name))
        if not elements:
            return None
        index = source.randrange(len(elements))
        elements[index] = forger.mutate(source, elements[index])
        return encode_either(source, put(receipt, **{name: tuple(elements)}))
    except PocacheError:
        return None


def _drop_said(source: random.Random, played: Played) -> bytes:
    """Leave one or two messages of the record out: no signature is needed for silence."""
    record = list(played.receipt.record)
    for _ in range(min(source.choice((1, 2)), len(record))):
        del record[source.randrange(len(record))]
    return encode_either(source, replace(played.receipt, record=tuple(record)))


def _say_more(source: random.Random, played: Played) -> bytes | None:
    """Add a message that was said about another job, made to be about this one and signed again."""
    forger = Forger(played.loopback.network)
    data = source.choice(play(source.choice(ENDINGS)).receipt.record)
    kid = parse_envelope(data).kid
    if kid not in forger.keys:
        return None
    try:
        forged = forger.reseal(data, lambda body: {**body, "job_id": bytes(played.job_id)})
    except PocacheError:
        return None
    return encode_either(
        source, replace(played.receipt, record=forger.sort([*played.receipt.record, forged]))
    )


def _forge_outcome(source: random.Random, played: Played) -> bytes | None:
    """Change the outcome or the payout in several fields at once: where the rules themselves decide."""
    forger = Forger(played.loopback.network)
    kinds = {
        m.OutcomeV1.kind,
        m.PayoutSettledV1.kind,
        m.StageSealedV1.kind,
        m.OpeningsClosedV1.kind,
        m.AuditOpenedV1.kind,
    }
    record = list(played.receipt.record)
    places = [index for index, data in enumerate(record) if parse_envelope(data).kind in kinds]
    if not places:
        return None
    try:
        for index in source.sample(places, min(len(places), source.choice((1, 1, 2)))):
            record[index] = forger.mutate(source, record[index])
    except PocacheError:
        return None
    assert parse_envelope(record[places[0]]).kid in {
        played.loopback.network.genesis.signer(role)
        for role in Role
        if role.value in played.loopback.network.genesis.signers
    }
    return encode_either(source, replace(played.receipt, record=forger.sort(record)))


_CLASSES: Final[dict[str, Callable[[random.Random, Played], bytes | None]]] = {
    "bytes of the file": _change_file,
    "bytes of an envelope": _change_envelope,
    "bytes of the genesis": _change_genesis,
    "a list": _change_list,
    "the log's proofs": _change_log,
    "swapped with another": _swap,
    "left out": _drop_said,
    "signed again": _forge_record,
    "signed again, once more": _forge_record,
    "signed again elsewhere": _forge_elsewhere,
    "signed outcome": _forge_outcome,
    "signed addition": _say_more,
}
