"""A receipt's two forms, JSON and msgpack, and the one spelling of each (docs/protocol.md 14.1).

Owns which fields a receipt has and how they are written. A receipt is a bundle of envelopes that others signed, with
the genesis and the log's proofs: nothing in it is said by whoever made the bundle. Refused before anything is
verified: more bytes than the limits allow, another version, fields missing or unknown, and every spelling but the
canonical one, so that a receipt can be hashed and compared as a file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from pocache.protocol.errors import CodecError, LimitError, ReceiptError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import (
    CARRIED_BYTES_MAX,
    RECEIPT_BYTES_MAX,
    RECEIPT_ENVELOPES_MAX,
    RECEIPT_TEXT_BYTES_MAX,
)
from pocache.protocol.merkle import DIGEST_BYTES
from pocache.receipt.strict_json import read_json, write_json
from pocache.wire.codec import decode_value, encode_value
from pocache.wire.envelope import ENVELOPE_BYTES_MAX

KIND: Final = "receipt.v1"
GENESIS_BYTES_MAX: Final = 65_536
_PROOF_DIGESTS_MAX: Final = 128
_JSON_FIRST_BYTE: Final = b"{"
_LISTS: Final = ("record", "rounds", "snapshots", "epochs")
_FIELDS: Final = ("kind", "genesis", "model", *_LISTS, "log")
_LOG_FIELDS: Final = ("checkpoint", "inclusion", "latest", "consistency")
_COSIGNED: Final = "cosigned"
"""A field of ``log`` that is there only where witnesses have cosigned."""

assert CARRIED_BYTES_MAX < ENVELOPE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class LogProof:
    """That the commitment's entry is in the log, under its own checkpoint, and that the log only grew since."""

    checkpoint: bytes
    """The ``checkpoint.v1`` envelope that the entry was made with."""
    inclusion: tuple[Digest, ...]
    latest: bytes
    """The last ``checkpoint.v1`` envelope before the job was settled; the same where nothing was added."""
    consistency: tuple[Digest, ...]
    cosigned: bytes = b""
    """The latest checkpoint's note with the lines of witnesses; empty where none has cosigned."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything that it takes to judge one job: bytes as others signed them, not yet opened."""

    genesis: bytes
    """The network's genesis as canonical JSON: its hash is the network id."""
    model: bytes
    """The operator's ``model-entry.v1`` envelope."""
    record: tuple[bytes, ...]
    """Every envelope of the record about this job, by topic and then by envelope id."""
    rounds: tuple[bytes, ...] = ()
    """The ``beacon-round.v1`` envelopes that something was drawn from, ascending."""
    snapshots: tuple[bytes, ...] = ()
    """The ``snapshot.v1`` envelopes that verifiers were drawn from, ascending."""
    epochs: tuple[bytes, ...] = ()
    """The ``epoch.v1`` envelope of the seed's epoch, and the one that publishes its key, where there is one yet."""
    log: LogProof | None = None
    """None for a job without a commitment."""


def encode_json(receipt: Receipt) -> bytes:
    """Return the receipt as JSON: envelopes in base64, digests in hexadecimal. Raises LimitError."""
    lists = {name: [_to_base64(one) for one in getattr(receipt, name)] for name in _LISTS}
    log = None
    if receipt.log is not None:
        log = {
            "checkpoint": _to_base64(receipt.log.checkpoint),
            "inclusion": [one.hex() for one in receipt.log.inclusion],
            "latest": _to_base64(receipt.log.latest),
            "consistency": [one.hex() for one in receipt.log.consistency],
        }
        if receipt.log.cosigned:
            log[_COSIGNED] = _to_base64(receipt.log.cosigned)
    data = write_json(
        {
            "kind": KIND,
            "genesis": receipt.genesis.decode("utf-8"),
            "model": _to_base64(receipt.model),
            **lists,
            "log": log,
        }
    )
    if len(data) > RECEIPT_TEXT_BYTES_MAX:
        raise LimitError(f"a receipt of {len(data)} bytes exceeds {RECEIPT_TEXT_BYTES_MAX}")
    return data


def encode_binary(receipt: Receipt) -> bytes:
    """Return the receipt as msgpack: the same fields, in this order, bytes as they are. Raises LimitError."""
    fields: dict[str, Any] = {"kind": KIND, "genesis": receipt.genesis, "model": receipt.model}
    fields |= {name: getattr(receipt, name) for name in _LISTS}
    fields["log"] = None
    if receipt.log is not None:
        names = (*_LOG_FIELDS, _COSIGNED) if receipt.log.cosigned else _LOG_FIELDS
        fields["log"] = {name: getattr(receipt.log, name) for name in names}
    return encode_value(fields, bytes_max=RECEIPT_BYTES_MAX)


def decode_receipt(data: bytes) -> Receipt:
    """Return the receipt that these bytes are, in whichever form. Raises CodecError, LimitError, ReceiptError."""
    is_json = data[:1] == _JSON_FIRST_BYTE
    bytes_max = RECEIPT_TEXT_BYTES_MAX if is_json else RECEIPT_BYTES_MAX
    if len(data) > bytes_max:
        raise LimitError(f"a receipt of {len(data)} bytes exceeds {bytes_max}")
    value = read_json(data, bytes_max=bytes_max) if is_json else decode_value(data, bytes_max=bytes_max)
    _verify_kind(value)
    _verify_fields(value, _FIELDS, "a receipt")
    receipt = _from_json(value) if is_json else _from_binary(value)
    if len(receipt.genesis) > GENESIS_BYTES_MAX:
        raise LimitError(f"a genesis of {len(receipt.genesis)} bytes exceeds {GENESIS_BYTES_MAX}")
    written = encode_json(receipt) if is_json else encode_binary(receipt)
    if written != data:
        raise CodecError("the receipt is not in its one canonical spelling")
    return receipt


def compute_receipt_hash(data: bytes) -> Digest:
    """Return SHA-256 of a receipt's binary form."""
    return Digest(sha256(data).digest())


def _verify_kind(value: object) -> None:
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise CodecError("not a receipt: no map with a field kind")
    if value["kind"] != KIND:
        raise ReceiptError(f"the receipt is of kind {value['kind'][:64]!r}; this release reads {KIND}")


def _verify_fields(value: object, fields: Sequence[str], what: str) -> None:
    if not isinstance(value, Mapping) or set(value) != set(fields):
        raise CodecError(f"{what} has exactly the fields {', '.join(fields)}")


def _verify_log_fields(log: object) -> None:
    has_cosigned = isinstance(log, Mapping) and _COSIGNED in log
    _verify_fields(log, (*_LOG_FIELDS, _COSIGNED) if has_cosigned else _LOG_FIELDS, "log")


def _from_json(value: Mapping[str, Any]) -> Receipt:
    if not isinstance(value["genesis"], str):
        raise CodecError("genesis: a text is expected")
    log = value["log"]
    if log is not None:
        _verify_log_fields(log)
        log = {
            "checkpoint": _from_base64("log.checkpoint", log["checkpoint"]),
            "inclusion": [_from_hex(one) for one in _read_list("log.inclusion", log["inclusion"])],
            "latest": _from_base64("log.latest", log["latest"]),
            "consistency": [_from_hex(one) for one in _read_list("log.consistency", log["consistency"])],
            **({_COSIGNED: _from_base64("log.cosigned", log[_COSIGNED])} if _COSIGNED in log else {}),
        }
    lists = {name: [_from_base64(name, one) for one in _read_list(name, value[name])] for name in _LISTS}
    genesis = value["genesis"].encode("utf-8", "surrogatepass")
    return _from_binary(
        {"genesis": genesis, "model": _from_base64("model", value["model"]), **lists, "log": log}
    )


def _from_binary(value: Mapping[str, Any]) -> Receipt:
    log = value["log"]
    if log is not None:
        _verify_log_fields(log)
        log = LogProof(
            checkpoint=_read_bytes("log.checkpoint", log["checkpoint"]),
            inclusion=_read_digests("log.inclusion", log["inclusion"]),
            latest=_read_bytes("log.latest", log["latest"]),
            consistency=_read_digests("log.consistency", log["consistency"]),
            cosigned=_read_bytes("log.cosigned", log.get(_COSIGNED, b"")),
        )
    genesis = _read_bytes("genesis", value["genesis"])
    try:
        genesis.decode("ascii")
    except UnicodeDecodeError:
        raise CodecError("genesis: ASCII is expected") from None
    lists = {name: tuple(_read_bytes(name, one) for one in _read_list(name, value[name])) for name in _LISTS}
    return Receipt(genesis=genesis, model=_read_bytes("model", value["model"]), log=log, **lists)


def _read_list(name: str, value: object) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise CodecError(f"{name}: a list is expected")
    if len(value) > RECEIPT_ENVELOPES_MAX:
        raise LimitError(f"{name}: {len(value)} elements exceed {RECEIPT_ENVELOPES_MAX}")
    return value


def _read_bytes(name: str, value: object) -> bytes:
    if not isinstance(value, bytes):
        raise CodecError(f"{name}: bytes are expected")
    return value


def _read_digests(name: str, value: object) -> tuple[Digest, ...]:
    digests = _read_list(name, value)
    if len(digests) > _PROOF_DIGESTS_MAX:
        raise LimitError(f"{name}: {len(digests)} digests exceed {_PROOF_DIGESTS_MAX}")
    for one in digests:
        if not isinstance(one, bytes) or len(one) != DIGEST_BYTES:
            raise CodecError(f"{name}: digests of {DIGEST_BYTES} bytes are expected")
    return tuple(Digest(one) for one in digests)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(name: str, value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except (binascii.Error, ValueError):
        raise CodecError(f"{name}: base64 is expected") from None


def _from_hex(value: object) -> bytes:
    try:
        return bytes.fromhex(value if isinstance(value, str) else "?")
    except ValueError:
        raise CodecError("log: a digest in hexadecimal is expected") from None
