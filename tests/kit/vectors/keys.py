"""Vectors of participant ids and signatures, with points that no honest key has (docs/protocol.md 1.3)."""

from __future__ import annotations

import base64
import binascii
import hashlib

from kit.network import make_key
from kit.points import BASE, ORDER, SMALL_ORDER, add, decode, encode, multiply
from kit.vectors.words import Vector, flip, is_accepted
from pocache.protocol.keys import SigningKey, decode_participant, verify_signature


def spell(key: bytes, prefix: int = 20 << 3) -> str:
    """Return the NKey text of any 32 bytes, a key or not."""
    body = bytes([prefix]) + key
    return (
        base64.b32encode(body + binascii.crc_hqx(body, 0).to_bytes(2, "little")).decode("ascii").rstrip("=")
    )


def list_keys() -> list[Vector]:
    """Participant ids: keys, points of small and mixed order, points that are none, other spellings."""
    good = decode_participant(make_key("vector").participant_id)
    point = decode(good)
    texts = [spell(encode(multiply(BASE, number))) for number in (1, 2, 12_345)]
    texts += [spell(encode(multiply(SMALL_ORDER, number))) for number in range(8)]
    texts += [spell(encode(add(point, multiply(SMALL_ORDER, number)))) for number in range(8)]
    texts += [
        spell(number.to_bytes(32, "little"))
        for number in (0, 1, 2, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255 - 1, 2**255, 2**256 - 1)
    ]
    texts += [spell(hashlib.sha256(bytes([number])).digest()) for number in range(8)]
    whole = spell(good)
    texts += [
        spell(good, 21 << 3),
        whole.lower(),
        whole[:-1],
        whole + "A",
        whole[:-1] + "1",
        whole[:9] + "=" + whole[10:],
        "",
        "U" * 56,
    ]
    texts += [whole[:at] + ("A" if whole[at] != "A" else "B") + whole[at + 1 :] for at in (0, 1, 30, 53, 55)]
    result: list[Vector] = []
    for text in texts:
        is_key = is_accepted(lambda: decode_participant(text))
        result.append({"text": text, "key": decode_participant(text).hex() if is_key else None})
    return result


def list_signatures() -> list[Vector]:
    """Signatures, and what strict verifiers refuse: s beyond the order, R of small or mixed order."""
    seed = hashlib.sha256(b"vector").digest()
    key, message = SigningKey.generate(seed), b"\xffpocache vector"
    name, public = key.participant_id, decode_participant(key.participant_id)
    digest = hashlib.sha512(seed).digest()
    secret = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
    good = key.sign(message)
    s = int.from_bytes(good[32:], "little")

    def craft(commitment: bytes, nonce: int) -> bytes:
        challenge = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little") % ORDER
        return commitment + ((nonce + challenge * secret) % ORDER).to_bytes(32, "little")

    cases = [
        ("good", message, good),
        ("another message", message + b"!", good),
        ("empty message", b"", key.sign(b"")),
    ]
    cases += [
        (f"s + {n} times the order", message, good[:32] + (s + n * ORDER).to_bytes(32, "little"))
        for n in (1, 2, 7)
    ]
    cases += [
        (f"R of small order {n}", message, craft(encode(multiply(SMALL_ORDER, n)), 0)) for n in range(8)
    ]
    cases += [
        (f"R with torsion {n}", message, craft(encode(add(multiply(BASE, 77), multiply(SMALL_ORDER, n))), 77))
        for n in range(8)
    ]
    cases += [
        ("short", message, good[:-1]),
        ("zeros", message, bytes(64)),
        ("no point", message, b"\xff" * 32 + good[32:]),
    ]
    cases += [(f"bit {bit}", message, flip(good, bit)) for bit in (0, 7, 255, 256, 300, 511)]
    return [
        {
            "is": what,
            "participant": name,
            "message": text.hex(),
            "signature": sig.hex(),
            "valid": is_accepted(lambda: verify_signature(name, text, sig)),
        }
        for what, text, sig in cases
    ]
