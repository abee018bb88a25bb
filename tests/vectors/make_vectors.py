"""Make the vectors that both verifiers are held against: ``python tests/vectors/make_vectors.py``, from the repository.

Everything follows from fixed seeds: the same files come out every time, and a test says so. What they contain is in
README.md beside them. To be run again when the protocol gets another version, and then only with another file name.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / name) for name in ("tests", "shared", "services")]

from kit.network import Network, make_key, make_network  # noqa: E402
from kit.points import BASE, ORDER, SMALL_ORDER, add, decode, encode, multiply  # noqa: E402
from pocache.protocol.challenge import DeterministicStream, draw_order  # noqa: E402
from pocache.protocol.checkpoint import (  # noqa: E402
    Checkpoint,
    cosign_checkpoint,
    merge_cosignatures,
    parse_note,
    sign_checkpoint,
)
from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, RowSchema, decode_leaf, encode_leaf  # noqa: E402
from pocache.protocol.errors import PocacheError  # noqa: E402
from pocache.protocol.ids import Digest, ParticipantId  # noqa: E402
from pocache.protocol.keys import SigningKey, decode_participant, verify_signature  # noqa: E402
from pocache.protocol.matching import (  # noqa: E402
    KindThreshold,
    MatchingProfile,
    compare,
    compute_log2_distance_q16,
    compute_profile_set_digest,
)
from pocache.protocol.merkle import (  # noqa: E402
    MerkleTree,
    hash_leaf,
    verify_consistency,
    verify_inclusion,
    verify_multiproof,
)
from pocache.protocol.payoff import Case, Rational, UnifiedPool, VerifierStanding, settle  # noqa: E402
from pocache.receipt.strict_json import read_json  # noqa: E402
from pocache.wire import messages as m  # noqa: E402
from pocache.wire.codec import decode_value, encode_value  # noqa: E402
from pocache.wire.envelope import compute_preimage, open_envelope, parse_envelope  # noqa: E402

FOLDER: Final = Path(__file__).parent
VERSION: Final = 1
Vector = dict[str, Any]


def is_accepted(check: Callable[[], object]) -> bool:
    """Return whether a check does not refuse; anything but a refusal is a bug and comes through."""
    try:
        check()
    except PocacheError:
        return False
    return True


# --- leaves -------------------------------------------------------------------------------------------------------


def make_leaves() -> dict[str, list[Vector]]:
    """Leaves of several schemas, whole and broken in every way that 3.3 names."""
    schemas = [
        RowSchema("sketch", FloatFormat.F32, 2, 4, 4, 4),
        RowSchema("sketch", FloatFormat.F16, 3, 5, 5, 5, has_scores=False),
        RowSchema("raw", FloatFormat.F16, 1, 2, 3, 4, has_hidden=False),
        RowSchema("raw", FloatFormat.F32, 2, 1, 2, 3, has_hidden=False, has_scores=False),
    ]
    schemas.append(schemas[0].restrict(0))
    digests = [{"schema": one.to_dict(), "digest": one.digest().hex()} for one in schemas]
    cases: list[Vector] = []
    for number, (schema, scored) in enumerate(product(schemas, (False, True))):
        source = random.Random(f"leaf {number}")
        position = source.randrange(90_000)
        rows = {key: make_row(source, schema, key) for key in schema.row_keys(scored=scored)}
        leaf = encode_leaf(schema, position, rows)
        for name, data in break_leaf(leaf, schema):
            for at, asked in ((position, scored), (position + 1, scored), (position, not scored)):
                cases.append(judge_leaf(name, schema, at, asked, data))
    return {"schemas": digests, "leaves": cases}


def make_row(source: random.Random, schema: RowSchema, key: RowKey) -> bytes:
    """Return finite floats of a row's size."""
    wide = key[0] is RowKind.SCORES or schema.float_format is FloatFormat.F32
    size = schema.row_bytes(key[0]) // (4 if wide else 2)
    return struct.pack(f"<{size}{'f' if wide else 'e'}", *(source.uniform(-9, 9) for _ in range(size)))


def break_leaf(leaf: bytes, schema: RowSchema) -> list[tuple[str, bytes]]:
    """Return a leaf and what is nearly one."""
    full, head = b"\x00\x00\x80\x7f" if schema.float_format is FloatFormat.F32 else b"\x00\x7c", 22
    return [
        ("whole", leaf),
        ("too short", leaf[:-1]),
        ("too long", leaf + b"\x00"),
        ("another domain", b"q" + leaf[1:]),
        ("another layer count", leaf[:19] + b"\x00\x09" + leaf[21:]),
        ("another flag", leaf[:21] + bytes([leaf[21] ^ 1]) + leaf[22:]),
        ("infinite first float", leaf[:head] + full + leaf[head + len(full) :]),
        ("NaN last float", leaf[:-1] + b"\xff"),
        (
            "largest finite first float",
            leaf[:head]
            + b"\xff" * (len(full) - 2)
            + (b"\x7f\x7f" if len(full) == 4 else b"\xff\x7b")
            + leaf[head + len(full) :],
        ),
        ("empty", b""),
    ]


def judge_leaf(name: str, schema: RowSchema, position: int, scored: bool, data: bytes) -> Vector:
    """Return what the decoder says about a leaf."""
    try:
        rows: Any = [
            [kind, layer, row.hex()]
            for (kind, layer), row in decode_leaf(schema, position, scored, data).items()
        ]
    except PocacheError:
        rows = None
    return {
        "is": name,
        "schema": schema.to_dict(),
        "position": position,
        "scored": scored,
        "data": data.hex(),
        "rows": rows,
    }


# --- distances ----------------------------------------------------------------------------------------------------


def make_distances() -> dict[str, list[Vector]]:
    """Rows and their exact log-distance, and whole comparisons."""
    cases = [judge_distance(name, "f16", ours, theirs) for name, ours, theirs in list_f16()]
    cases += [
        judge_distance(name, "f32", ours, theirs) for name, ours, theirs in [*list_f32(), *list_steps()]
    ]
    return {"distances": cases, "profiles": list_profiles(), "comparisons": list_comparisons()}


def judge_distance(name: str, fmt: str, ours: bytes, theirs: bytes) -> Vector:
    """Return the distance of two rows; null where there is none."""
    try:
        distance: Any = compute_log2_distance_q16(ours, theirs, FloatFormat(fmt))
    except PocacheError:
        distance = None
    return {"is": name, "format": fmt, "ours": ours.hex(), "theirs": theirs.hex(), "log2_q16": distance}


def list_f16() -> list[tuple[str, bytes, bytes]]:
    """Float16 rows: ordinary, subnormal, extreme, broken."""
    source = random.Random("f16")
    finite = [bits for bits in range(1 << 16) if bits & 0x7C00 != 0x7C00]
    rows = [
        ("random bits", pack("H", source.choices(finite, k=16)), pack("H", source.choices(finite, k=16)))
        for _ in range(40)
    ]
    for exponent in range(-20, 4):
        theirs = [source.gauss(0, 1) for _ in range(8)]
        ours = [one * (1 + 2.0**exponent) for one in theirs]
        rows.append((f"near 2^{exponent}", pack("e", ours), pack("e", theirs)))
    rows += [
        ("equal", pack("H", [1, 2]), pack("H", [1, 2])),
        ("minus zero", pack("H", [0x8000, 0]), pack("H", [0, 0x8000])),
        ("against zero", pack("H", [1]), pack("H", [0])),
        ("smallest against largest", pack("H", [1]), pack("H", [0x7BFF])),
        ("largest against smallest", pack("H", [0x7BFF]), pack("H", [1])),
        ("negated", pack("H", [0xFBFF]), pack("H", [0x7BFF])),
        ("subnormals", pack("H", [1, 2, 0x3FF]), pack("H", [2, 2, 0x400])),
        ("infinite", pack("H", [0x7C00]), pack("H", [1])),
        ("NaN", pack("H", [1]), pack("H", [0x7E01])),
        ("empty", b"", b""),
        ("broken", b"\x01", b"\x02"),
        ("other sizes", pack("H", [1]), pack("H", [1, 2])),
    ]
    return rows


def list_f32() -> list[tuple[str, bytes, bytes]]:
    """Float32 rows over the whole range of exponents."""
    source = random.Random("f32")
    finite: Callable[[], int] = lambda: source.choice((0, 1 << 31)) | source.randrange(0x7F800000)  # noqa: E731
    rows = [
        ("random bits", pack("I", [finite() for _ in range(8)]), pack("I", [finite() for _ in range(8)]))
        for _ in range(40)
    ]
    for exponent in range(-30, 6):
        theirs = [source.gauss(0, 1) for _ in range(8)]
        ours = [one * (1 + source.choice((-1, 1)) * 2.0**exponent) for one in theirs]
        rows.append((f"near 2^{exponent}", pack("f", ours), pack("f", theirs)))
    for power in range(-45, 46, 3):
        rows.append(
            (f"exactly 2^{power}", pack("f", [2.0**power, 0.0]), pack("f", [0.0, 1.0])[4:] + pack("f", [0.0]))
        )
    rows += [
        ("minus zero", pack("I", [1 << 31]), pack("I", [0])),
        ("against zero", pack("f", [1.0]), pack("f", [0.0])),
        ("smallest against largest", pack("I", [1]), pack("I", [0x7F7FFFFF])),
        ("largest against smallest", pack("I", [0x7F7FFFFF]), pack("I", [1])),
        ("one unit apart", pack("I", [0x3F800001] * 3), pack("I", [0x3F800000] * 3)),
        ("one subnormal apart", pack("I", [0x3F800000, 1]), pack("I", [0x3F800000, 0])),
        ("infinite", pack("I", [0xFF800000]), pack("I", [1])),
        ("NaN", pack("I", [1]), pack("I", [0x7FC00000])),
        ("broken", b"\x01\x02\x03", b"\x01\x02\x03"),
    ]
    return rows


def list_steps() -> list[tuple[str, bytes, bytes]]:
    """Float32 rows whose distance is as near to a step of 2^-16 as eight floats allow, from below and from above.

    Against the unit row the squared distance is a sum of squares of floats: taken greedily, each closes the gap to
    2^(k/2^15) by some 2^-23, so that eight leave less than 2^-150, far beyond the precision of a first try.
    """
    getcontext().prec = 120
    rows = []
    for k in (1, 2, 3, 1000, 16_384, 32_767, 32_769, 65_535, 98_304, -1, -16_383, -32_767, -400_001):
        target = Fraction(Decimal(2) ** (Decimal(k) / 32_768))
        parts = list_parts(target)
        theirs = pack("f", [0.0] * 8 + [1.0])
        below = pack("f", [*parts, 1.0])
        above = pack("f", [*parts[:-1], next_float(parts[-1]), 1.0])
        rows += [(f"just below step {k}", below, theirs), (f"just above step {k}", above, theirs)]
    return rows


def list_parts(target: Fraction) -> list[float]:
    """Return eight float32 whose squares add up to just below the target."""
    left, parts = target, []
    for _ in range(8):
        root = Fraction(Decimal(left.numerator) / Decimal(left.denominator)).limit_denominator(10**60)
        part = as_float32(float(Decimal(root.numerator) / Decimal(root.denominator)) ** 0.5)
        while Fraction(part) ** 2 >= left:
            part = next_float(part, -1)
        parts.append(part)
        left -= Fraction(part) ** 2
    return parts


def as_float32(value: float) -> float:
    """Return the nearest float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def next_float(value: float, step: int = 1) -> float:
    """Return the next float32 above a positive one, or below."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0] + step
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def pack(code: str, values: list[Any]) -> bytes:
    """Return little-endian numbers."""
    return struct.pack(f"<{len(values)}{code}", *values)


def make_profile(mean: int, peak: int, about: dict[str, str | int]) -> MatchingProfile:
    """Return a profile of one layer."""
    kinds = ((RowKind.K, 0), (RowKind.V, 0), (RowKind.HIDDEN, 0))
    return MatchingProfile(
        thresholds=tuple(
            KindThreshold(kind, layer, -1_300_001 + kind, 65_536 - kind) for kind, layer in kinds
        ),
        mean_match_max_q16=mean,
        mean_mismatch_min_q16=mean + 65_536,
        peak_match_max_q16=peak,
        peak_mismatch_min_q16=peak + 65_536,
        about=about,
    )


ABOUTS: Final[tuple[dict[str, str | int], ...]] = (
    {},
    {"stack": "fake/1", "count": -(2**63), "b": 2**63 - 1},
    # Beyond the basic plane: by code points it comes after the private use area, by UTF-16 units before.
    {"\U0001f600": "x", "\uffee": "y", "é": "ü", "a\u0000": 0},
)


def list_profiles() -> list[Vector]:
    """Profiles and their digests, and documents that are none."""
    good = [make_profile(400_000, 500_000, about).to_dict() for about in ABOUTS]
    bad: list[Vector] = [
        {**good[0], "kind": "matching-profile.v2"},
        {**good[0], "thresholds": []},
        {**good[0], "thresholds": list(reversed(good[0]["thresholds"]))},
        {**good[0], "thresholds": [["RAW_DIGEST", 0, 0, 1]]},
        {**good[0], "thresholds": [["K", 0, 0, 0]]},
        {**good[0], "thresholds": [["K", True, 0, 1]]},
        {**good[0], "mean_match_max_q16": 2**62},
        {**good[0], "about": {"a": 1.5}},
        {**good[0], "about": {"a": True}},
        {**good[0], "about": {"a": "x" * 4097}},
        {**good[0], "more": 1},
    ]
    result: list[Vector] = []
    for one in (*good, *bad):
        text = json.dumps(one)
        try:
            profile = MatchingProfile.from_dict(json.loads(text))
            digests: Any = [profile.digest().hex(), compute_profile_set_digest((profile,)).hex()]
        except PocacheError:
            digests = None
        result.append({"json": text, "digests": digests})
    return result


def list_comparisons() -> list[Vector]:
    """Comparisons of a few rows with their verdict: each of the three, and none at all."""
    result: list[Vector] = []
    for number, (exponent, fmt) in enumerate(
        product((-30, -22, -18, -14, -13, -12, -10, -4, 2), FloatFormat)
    ):
        source = random.Random(f"comparison {number}")
        profile = make_profile(400_000, 500_000, ABOUTS[0])
        sides: list[dict[int, dict[RowKey, bytes]]] = [{}, {}]
        for position in (3, 7):
            for kind in (RowKind.K, RowKind.V, RowKind.HIDDEN)[: 1 + number % 3]:
                values = [source.gauss(0, 1) for _ in range(6)]
                other = [one * (1 + 2.0**exponent * source.choice((-1, 1))) for one in values]
                for side, row in zip(sides, (other, values), strict=True):
                    side.setdefault(position, {})[kind, 0] = pack("e" if fmt is FloatFormat.F16 else "f", row)
        found = compare(profile, sides[0], sides[1], fmt)
        rows = [
            [
                [position, [[kind, layer, row.hex()] for (kind, layer), row in side[position].items()]]
                for position in side
            ]
            for side in sides
        ]
        numbers = [found.verdict.value, found.mean_q16, found.peak_q16, found.row_count]
        result.append(
            {
                "profile": json.dumps(profile.to_dict()),
                "format": fmt.value,
                "ours": rows[0],
                "theirs": rows[1],
                "found": numbers,
            }
        )
    return result


# --- Merkle proofs -------------------------------------------------------------------------------------------------


def make_merkle() -> dict[str, list[Vector]]:
    """Proofs over trees of every shape, and each with something wrong."""
    trees: dict[int, MerkleTree] = {}
    for size in (1, 2, 3, 5, 7, 8, 11, 21):
        trees[size] = MerkleTree()
        for index in range(size):
            trees[size].append(bytes([index]))
    source = random.Random("merkle")
    return {
        "inclusions": list_inclusions(trees),
        "consistencies": list_consistencies(trees[21]),
        "multiproofs": list_multiproofs(trees, source),
    }


def vary_proof(proof: tuple[Digest, ...]) -> list[tuple[Digest, ...]]:
    """Return a proof, and it too long, too short, in another order, with another digest."""
    other = Digest(hashlib.sha256(b"other").digest())
    varied = [proof, (*proof, other), (other, *proof)]
    if proof:
        varied += [proof[:-1], proof[1:], (*proof[:-1], other)]
    if len(proof) > 1:
        varied.append(tuple(reversed(proof)))
    return varied


def to_hex(digests: tuple[Digest, ...]) -> list[str]:
    """Return digests as texts."""
    return [one.hex() for one in digests]


def list_inclusions(trees: dict[int, MerkleTree]) -> list[Vector]:
    """Audit paths."""
    result: list[Vector] = []
    for size in (1, 2, 3, 7, 8, 21):
        tree = trees[size]
        for index in dict.fromkeys((0, size // 2, size - 1)):
            genuine = tree.inclusion_proof(index)
            for proof in vary_proof(genuine):
                elsewhere = ((index + 1, size), (index, size + 1)) if proof is genuine else ()
                for at, total in ((index, size), *elsewhere):
                    leaf, root = hash_leaf(bytes([index])), tree.root()
                    valid = is_accepted(lambda: verify_inclusion(leaf, at, total, proof, root))
                    case = {
                        "leaf": leaf.hex(),
                        "index": at,
                        "size": total,
                        "proof": to_hex(proof),
                        "root": root.hex(),
                    }
                    result.append({**case, "valid": valid})
    return result


def list_consistencies(tree: MerkleTree) -> list[Vector]:
    """Proofs of growth."""
    result: list[Vector] = []
    for old, new in product((0, 1, 3, 4, 7, 8, 12, 20, 21), (0, 1, 7, 8, 21)):
        roots = (tree.root(old), tree.root(new))
        proof = tree.consistency_proof(old, new) if old <= new else ()
        for one in vary_proof(proof):
            valid = is_accepted(lambda: verify_consistency(old, new, *roots, one))
            case = {"old_size": old, "new_size": new, "old_root": roots[0].hex(), "new_root": roots[1].hex()}
            result.append({**case, "proof": to_hex(one), "valid": valid})
    return result


def list_multiproofs(trees: dict[int, MerkleTree], source: random.Random) -> list[Vector]:
    """Multiproofs of a few leaves."""
    result: list[Vector] = []
    for size, tree in trees.items():
        for count in dict.fromkeys((1, (size + 1) // 2, size)):
            indices = sorted(source.sample(range(size), count))
            genuine = tree.multiproof(indices)
            for proof in vary_proof(genuine):
                elsewhere = ((1, size), (0, size + 1)) if proof is genuine else ()
                for shift, total in ((0, size), *elsewhere):
                    leaves = {index + shift: hash_leaf(bytes([index])) for index in indices}
                    valid = is_accepted(lambda: verify_multiproof(leaves, total, proof, tree.root()))
                    pairs = [[index, leaf.hex()] for index, leaf in leaves.items()]
                    case = {"leaves": pairs, "size": total, "proof": to_hex(proof), "root": tree.root().hex()}
                    result.append({**case, "valid": valid})
    result.append(
        {
            "leaves": [],
            "size": 5,
            "proof": [trees[5].root().hex()],
            "root": trees[5].root().hex(),
            "valid": False,
        }
    )
    return result


# --- keys, encodings, envelopes ------------------------------------------------------------------------------------


def make_envelopes() -> dict[str, list[Vector]]:
    """Participant ids, signatures, JSON, msgpack and envelopes."""
    return {
        "keys": list_keys(),
        "signatures": list_signatures(),
        "json": list_json(),
        "msgpack": list_msgpack(),
        "envelopes": list_envelopes(make_network()),
        "notes": list_notes(make_network()),
    }


def spell(key: bytes, prefix: int = 20 << 3) -> str:
    """Return the NKey text of any 32 bytes, a key or not."""
    import base64
    import binascii

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


def flip(data: bytes, bit: int) -> bytes:
    """Return bytes with one bit turned over."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def tag(value: object) -> object:
    """Return a decoded value so that JSON can hold it: integers and bytes as marked texts, maps as pairs."""
    match value:
        case bool() | None:
            return value
        case int():
            return f"i{value}"
        case bytes():
            return f"b{value.hex()}"
        case str():
            return f"s{value}"
        case dict():
            return {"map": [[tag(key), tag(one)] for key, one in value.items()]}
        case _:
            assert isinstance(value, (list, tuple))
            return [tag(one) for one in value]


JSON_TEXTS: Final = (
    "{}",
    "[]",
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "01",
    "-1",
    "+1",
    "1.0",
    "1e3",
    ".5",
    "1.",
    "NaN",
    "Infinity",
    "-Infinity",
    "9007199254740993",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    '{"a":1,"a":1}',
    '{"a":1,"\\u0061":2}',
    '{"a":{"b":1},"b":{"b":1}}',
    "{a:1}",
    "{'a':1}",
    '{"a":1,}',
    "[1,]",
    "[,1]",
    "[1 2]",
    '{"a" :\t1\r\n}',
    '"\\ud83d\\ude00"',
    '"\\n\\/\\"\\\\\\b\\f\\r\\t"',
    '"\\x41"',
    '"\\u12"',
    '"\\u00zz"',
    '"\x01"',
    '"\n"',
    '"\x7f"',
    '"abc',
    '"é"',
    '"\u2028"',
    " 1 ",
    "\u00a01",
    "\ufeff1",
    "1 1",
    "",
    " ",
    '{"a"}',
    '{"a":}',
    "{1:2}",
    "[[[[[[[[]]]]]]]]",
    "[[[[[[[[[]]]]]]]]]",
    '{"a":[[[[[[[1]]]]]]]}',
    '{"a":[[[[[[[[1]]]]]]]]}',
    "nul",
    "nulll",
    "True",
    "[true,false,null]",
    '{"":""}',
    '{"__proto__":1}',
    '{"constructor":{"prototype":1}}',
    "//",
    "/**/1",
    "9" * 5_000,
)


def list_json() -> list[Vector]:
    """Texts, and what they say where they say one thing only."""
    data = [text.encode() for text in JSON_TEXTS] + [
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b"\x80",
        b'{"a":"\xf0\x9f\x98\x80"}',
    ]
    return [{"data": one.hex(), **judge_value(lambda: read_json(one, bytes_max=10_000))} for one in data]


def judge_value(read: Callable[[], object]) -> Vector:
    """Return what a reader says: a value, or that it refuses."""
    try:
        return {"valid": True, "value": tag(read())}
    except PocacheError:
        return {"valid": False}


def list_msgpack() -> list[Vector]:
    """Encodings in every form, cut, extended and with bits turned over."""
    source = random.Random("msgpack")
    values: list[Any] = [
        {"a": 1, "b": (b"\x00\x01", "text", None, True, False)},
        {
            "n": (
                0,
                127,
                128,
                255,
                256,
                65_535,
                65_536,
                2**32 - 1,
                2**32,
                2**64 - 1,
                -1,
                -32,
                -33,
                -128,
                -129,
                -(2**15),
                -(2**31),
                -(2**63),
            )
        },
        {"é\U0001f600": {"x": {"y": ({"z": ()},)}}},
        tuple(range(20)),
        {"k" * 40: b"v" * 300, "l": "w" * 300},
    ]
    encoded = [encode_value(one) for one in values]
    wide = [
        "c400",
        "c50001ff",
        "c60000000100",
        "d90161",
        "da000161",
        "db0000000161",
        "dc000101",
        "dd0000000101",
        "de0001a16101",
        "df00000001a16101",
        "cc05",
        "cd0005",
        "ce00000005",
        "cf0000000000000005",
        "d0ff",
        "d1ffff",
        "d2ffffffff",
        "d3ffffffffffffffff",
    ]
    bad = [
        "",
        "c1",
        "ca00000000",
        "cb0000000000000000",
        "d40000",
        "c70000",
        "c70001",
        "c8000001",
        "d5000000",
        "82a16101a16102",
        "8101c0",
        "81c40161c0",
        "81c0c0",
        "a1ff",
        "a2c080",
        "a3eda080",
        "91",
        "9101ff",
        "dd00010001",
        "df00010001",
        "dcffff",
        "9191919191919191c0",
        "919191919191919191c0",
        "81a16181a16181a16181a16181a16181a16181a16181a16181a161c0",
        "c403ff",
        "d903",
    ]
    cases = [*encoded, *map(bytes.fromhex, wide + bad)]
    for data in encoded:
        cases += [flip(data, source.randrange(8 * len(data))) for _ in range(60)]
        cases += [data[: source.randrange(len(data))] for _ in range(6)] + [data + b"\xc0"]
    cases += [source.randbytes(source.randrange(1, 12)) for _ in range(120)]
    return [{"data": one.hex(), **judge_value(lambda: decode_value(one))} for one in cases]


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
    cases += [note(signed=line + "\n" + "\n".join([line] * count)) for count in (30, 31)] + [
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
        note(name="x" * 17_000),
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
        result.append({"data": one.hex() if len(one) < 5_000 else "", "length": len(one), "parsed": parsed})
    return [one for one in result if one["data"] or not one["length"]]


def seal_value(network: Network, key: SigningKey, kind: str, value: Any) -> bytes:
    """Return a signed envelope around any value."""
    payload = encode_value(value)
    sig = key.sign(compute_preimage(network.network_id, kind, payload))
    return encode_value({"kind": kind, "payload": payload, "kid": key.participant_id, "sig": sig})


# --- sortition and payoffs -----------------------------------------------------------------------------------------


def make_sortition() -> dict[str, list[Vector]]:
    """Orders of many members, with stakes from one to the largest, and stakes that have none."""
    result: list[Vector] = []
    for number, (count, top) in enumerate(((1, 1), (2, 2**62), (7, 1), (20, 10), (40, 2**57), (150, 10**9))):
        source = random.Random(f"sortition {number}")
        names = sorted(spell(source.randbytes(32)) for _ in range(count))
        result.append(judge_order(number, [(name, source.randint(1, top)) for name in names]))
    names = [spell(bytes([one]) * 32) for one in (1, 2)]
    bad: list[list[tuple[str, int]]] = [
        [(names[0], 1), (names[0], 1)],
        [(names[1], 1), (names[0], 1)],
        [(names[0], 0)],
    ]
    result += [
        judge_order(one, [(name, stake) for name, stake in sorted(stakes)] if len(stakes) > 2 else stakes)
        for one, stakes in enumerate(bad)
    ]
    return {"orders": result}


def judge_order(number: int, stakes: list[tuple[str, int]]) -> Vector:
    """Return the order that a seed gives; null where the stakes are refused."""
    seed = Digest(hashlib.sha256(b"sortition %d" % number).digest())
    try:
        order: Any = list(
            draw_order(DeterministicStream(seed), [(ParticipantId(name), stake) for name, stake in stakes])
        )
    except PocacheError:
        order = None
    return {"seed": seed.hex(), "stakes": [[name, str(stake)] for name, stake in stakes], "order": order}


def make_payoffs() -> dict[str, list[Vector]]:
    """Settlements under ``unified-pool``: every case with every number of stages, who opened and who did not."""
    source = random.Random("payoffs")
    result: list[Vector] = []
    names = ["generator", "v1", "v2", "v3"]
    for case in (one for one in Case if one.value not in ("acquittal", "conviction")):
        for count in range(4):
            for opened in product((True, False), repeat=count):
                costs = (source.choice((0, 1, 999, 10**6 + 7)), source.choice((0, 1, 998, 10**9 + 9)))
                last = names[count] if count else None
                for deciding, prior in dict.fromkeys(
                    ((None, None), (last, None), (last, "v1"), (None, "v1"))
                ):
                    result.append(judge_payoff(case, costs, opened, deciding, prior))
    unusual = [("1/3", "7/11", 5), ("1", "1/1000000", 2), ("6/5", "5", 16)]
    for alpha, beta, stages in unusual:
        result += [
            judge_payoff(Case.CONFIRM_PRIOR, (cg, cv), (True, True), "v2", "v1", alpha, beta, stages)
            for cg in (0, 10, 2**62)
            for cv in (0, 10, 10**6, 2**60)
        ]
    result.append(judge_payoff(Case.AGREE, (5, 5), (True,), "v1", None, user="v1"))
    result.append(judge_payoff(Case.AGREE, (5, 5), (True,), "v1", None, user="generator"))
    return {"settlements": result}


def judge_payoff(
    case: Case,
    costs: tuple[int, int],
    opened: tuple[bool, ...],
    deciding: str | None,
    prior: str | None,
    alpha: str = "6/5",
    beta: str = "5",
    stage_max: int = 3,
    user: str = "user",
) -> Vector:
    """Return what a settlement pays; null where the standings are refused."""
    verifiers = [
        VerifierStanding(ParticipantId(f"v{stage}"), stage, one) for stage, one in enumerate(opened, 1)
    ]
    vector: Vector = {
        "rules": [alpha, beta, stage_max], "case": case.value, "costs": [str(one) for one in costs], "user": user,
        "opened": list(opened), "deciding": deciding, "prior": prior,
    }  # fmt: skip
    try:
        found = settle(
            UnifiedPool(Rational.parse(alpha), Rational.parse(beta), stage_max),
            case=case, cg=costs[0], cv=costs[1], user=ParticipantId(user), generator=ParticipantId("generator"),
            verifiers=verifiers, deciding=name_party(deciding), prior=name_party(prior),
        )  # fmt: skip
    except PocacheError:
        return {**vector, "found": None}
    payouts = sorted(
        [name.lower() if name == "TREASURY" else name, str(amount)] for name, amount in found.payouts
    )
    return {**vector, "found": {"payouts": payouts, "pool": str(found.pool), "slashed": list(found.slashed)}}


def name_party(name: str | None) -> ParticipantId | None:
    """Return a name as a participant's."""
    return None if name is None else ParticipantId(name)


MAKERS: Final[dict[str, Callable[[], dict[str, list[Vector]]]]] = {
    "leaves_v1": make_leaves,
    "distances_v1": make_distances,
    "merkle_v1": make_merkle,
    "envelopes_v1": make_envelopes,
    "sortition_v1": make_sortition,
    "payoffs_v1": make_payoffs,
}


def write_text(name: str) -> str:
    """Return the text of one file."""
    sections = MAKERS[name]()
    parts = [f'"version":{VERSION}']
    for section, cases in sections.items():
        lines = ",\n ".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
        parts.append(f'"{section}":[\n {lines}\n]')
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    """Write every file."""
    for name in MAKERS:
        text = write_text(name)
        (FOLDER / f"{name}.json").write_text(text, encoding="ascii")
        print(f"{name}.json: {len(text)} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
