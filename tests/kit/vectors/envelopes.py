"""Vectors of envelopes and signed notes (docs/protocol.md 2, 4.10)."""

from __future__ import annotations

import hashlib
from typing import Any

from kit.network import Network, make_key, make_network
from kit.vectors.encodings import list_json, list_msgpack
from kit.vectors.keys import list_keys, list_signatures
from kit.vectors.words import Sections, Vector, flip
from pocache.protocol.checkpoint import (
    Checkpoint,
    cosign_checkpoint,
    merge_cosignatures,
    parse_note,
    sign_checkpoint,
)
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import Digest
from pocache.protocol.keys import SigningKey
from pocache.wire import messages as m
from pocache.wire.codec import encode_value
from pocache.wire.envelope import compute_preimage, open_envelope, parse_envelope


def make_envelopes() -> Sections:
    """Participant ids, signatures, JSON, msgpack and envelopes."""
    return {
        "keys": list_keys(),
        "signatures": list_signatures(),
        "json": list_json(),
        "msgpack": list_msgpack(),
        "envelopes": list_envelopes(make_network()),
        "notes": list_notes(make_network()),
    }


def list_envelopes(network: Network) -> list[Vector]:
    """Envelopes of one message, well and wrongly made; each is signed over what it says."""
    key = make_key("vector")
    body = {"job_id": bytes(32), "attempt": 3}
    good = seal_value(network, key, m.ChallengeRequestV1.kind, body)
    parsed = parse_envelope(good)
    fields: dict[str, Any] = {
        "kind": parsed.kind,
        "payload": parsed.payload,
        "kid": parsed.kid,
        "sig": parsed.sig,
    }
    cases: list[tuple[str, str, bytes]] = [
        ("good", parsed.kind, good),
        ("asked for another kind", "window-closed.v1", good),
    ]
    bodies: list[tuple[str, Any]] = [
        ("attempt 0", {**body, "attempt": 0}), ("attempt 16", {**body, "attempt": 16}), ("attempt 17", {**body, "attempt": 17}),
        ("true for an integer", {**body, "attempt": True}), ("text for an integer", {**body, "attempt": "3"}), ("nil", {**body, "attempt": None}),
        ("short digest", {**body, "job_id": bytes(31)}), ("long digest", {**body, "job_id": bytes(33)}), ("text for bytes", {**body, "job_id": "0" * 32}),
        ("missing field", {"attempt": 3}), ("unknown field", {**body, "more": 1}), ("other order", dict(reversed(body.items()))),
        ("a list", (bytes(32), 3)), ("nothing", {}),
    ]  # fmt: skip
    cases += [(name, parsed.kind, seal_value(network, key, parsed.kind, value)) for name, value in bodies]
    cases += [
        (f"a field {name} {what}", parsed.kind, encode_value(value, bytes_max=2_000_000))
        for name in fields
        for what, value in (
            ("missing", {one: fields[one] for one in fields if one != name}),
            ("of another type", {**fields, name: 7}),
            ("that is empty", {**fields, name: fields[name][:0]}),
            ("that is doubled", {**fields, name: fields[name] * 2}),
        )
    ]
    cases += [
        ("another order", parsed.kind, encode_value(dict(reversed(fields.items())))),
        ("another spelling", parsed.kind, b"\xde\x00\x04" + good[1:]),
        ("something more", parsed.kind, encode_value({**fields, "more": 1})),
        ("bytes behind", parsed.kind, good + b"\xc0"),
        ("another signer", parsed.kind, encode_value({**fields, "kid": make_key("other").participant_id})),
    ]
    cases += [(f"bit {bit}", parsed.kind, flip(good, bit)) for bit in range(3, 8 * len(good), 61)]
    cases += [
        (
            f"text of {length} characters",
            "job-abandoned.v1",
            seal_value(network, key, "job-abandoned.v1", {"job_id": bytes(32), "reason": "é" * length}),
        )
        for length in (4096, 4097)
    ]
    cases += [
        (
            f"time {time}",
            "checkpoint.v1",
            seal_value(network, key, "checkpoint.v1", {"size": 0, "root": bytes(32), "at_ms": time}),
        )
        for time in (2**53, 2**53 + 1, -1)
    ]
    models = {
        model.kind: model
        for model in (m.ChallengeRequestV1, m.WindowClosedV1, m.JobAbandonedV1, m.CheckpointV1)
    }
    result: list[Vector] = []
    for name, kind, data in cases:
        for where in (network.network_id, bytes(32)) if name == "good" else (network.network_id,):
            try:
                opened = open_envelope(data, where, models[kind])  # type: ignore[arg-type]
                found: Any = {"id": opened.envelope_id.hex(), "sender": opened.sender}
            except PocacheError:
                found = None
            result.append(
                {"is": name, "network": where.hex(), "kind": kind, "data": data.hex(), "opened": found}
            )
    return result


def list_notes(network: Network) -> list[Vector]:
    """Signed notes of the log, with and without witnesses, and what is nearly one."""
    root = Digest(hashlib.sha256(b"root").digest())
    good = sign_checkpoint(network.network_id, 7, root, make_key("log"))
    lines = [
        cosign_checkpoint(network.network_id, Checkpoint("", 7, root), make_key(name), 1_800_000_000)
        for name in ("a", "b")
    ]
    origin, _, _, _, line = good.decode("utf-8").removesuffix("\n").split("\n")
    head = f"{origin}\n7\n"
    encoded = good.decode("utf-8").split("\n")[2]

    def note(size: str = "7", digest: str = encoded, signed: str = line, name: str = origin) -> bytes:
        return f"{name}\n{size}\n{digest}\n\n{signed}\n".encode()

    cases = [
        good,
        merge_cosignatures(good, lines),
        note(name="any other origin"),
        note(size="0"),
        note(size=str(2**53)),
    ]
    cases += [note(size=size) for size in ("", "07", "-1", "+7", "7.0", str(2**53 + 1), "9" * 17, "٧", "7 ")]
    cases += [
        note(digest=digest)
        for digest in ("", encoded[:-1], encoded + "=", encoded[:-2] + "1=", "AAAA", encoded + " ")
    ]
    cases += [note(signed=line + "\n" + "\n".join([line] * count)) for count in (31, 32)] + [
        note(signed=line.replace("—", "-"))
    ]
    dash, name, data = line.split(" ")
    cases += [
        note(signed=f"{dash} {one} {other}")
        for one, other in (
            ("", data), ("a+b", data), ("a\u00a0b", data), ("a\ufeffb", data), ("a\u0085b", data), ("a\u2003b", data),
            (name, ""), (name, "AAAAAA=="), (name, "AAAAAAA="), (name, data + " "), (name, data[:-1]), (name, " " + data),
        )
    ]  # fmt: skip
    cases += [
        good[:-1],
        good + b"\n",
        b"",
        b"\n\n\n\n\n",
        head.encode(),
        good.replace(b"\n\n", b"\n"),
        good.replace(b"\n", b"\r\n"),
    ]
    cases += [
        note(signed=line + "\x7f"),
        note(name="a\tb"),
        note(name="\ufeffa"),
        b"\xff" + good,
    ]
    result: list[Vector] = []
    for one in cases:
        try:
            found = parse_note(one)
            names = [[line.name, line.key_hash.hex(), line.signature.hex()] for line in found.signatures]
            parsed: Any = [
                found.checkpoint.origin,
                str(found.checkpoint.size),
                found.checkpoint.root.hex(),
                names,
            ]
        except PocacheError:
            parsed = None
        result.append({"data": one.hex(), "parsed": parsed})
    return result


def seal_value(network: Network, key: SigningKey, kind: str, value: Any) -> bytes:
    """Return a signed envelope around any value."""
    payload = encode_value(value)
    sig = key.sign(compute_preimage(network.network_id, kind, payload))
    return encode_value({"kind": kind, "payload": payload, "kid": key.participant_id, "sig": sig})
