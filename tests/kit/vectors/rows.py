"""Vectors of rows: leaves, schemas, distances, profiles and comparisons (docs/protocol.md 3, 7)."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, getcontext
from fractions import Fraction
from itertools import product
from typing import Any, Final

from kit.vectors.words import Sections, Vector
from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, RowSchema, decode_leaf, encode_leaf
from pocache.protocol.errors import PocacheError
from pocache.protocol.matching import (
    KindThreshold,
    MatchingProfile,
    compare,
    compute_log2_distance_q16,
    compute_profile_set_digest,
)
from pocache.protocol.matching_limits import (
    Limits,
    MeanLimit,
    RoutingLimits,
    TokenLimits,
    compute_binomial_limit,
)
from pocache.wire.comparisons import make_comparison


def make_leaves() -> Sections:
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


def make_distances() -> Sections:
    """Rows and their exact log-distance, and whole comparisons."""
    cases = [judge_distance(name, "f16", ours, theirs) for name, ours, theirs in list_f16()]
    cases += [
        judge_distance(name, "f32", ours, theirs) for name, ours, theirs in [*list_f32(), *list_steps()]
    ]
    comparisons = [*list_comparisons(), *list_token_checks(), *list_routed()]
    return {
        "distances": cases,
        "profiles": list_profiles(),
        "comparisons": comparisons,
        "binomials": list_binomials(),
    }


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


LIMITS: Final = (
    Limits(tokens=TokenLimits(655, 1 << 25, 1 << 24, 4_000, 70_000)),
    Limits(
        means=(
            MeanLimit(False, 2, (-9, 0, 2**40), 2**41, 2**42),
            MeanLimit(True, 1, (100_000, 200_000, 300_000), 420_000, 460_000),
            MeanLimit(True, 2, (-80_000, -1_000, 5), 390_000, 400_000),
        ),
        tokens=TokenLimits(655, 0, 0, 0, 2**40),
        exact_max_q16=-100_000,
    ),
    Limits(routing=RoutingLimits(250, 300_000, 1 << 30)),
    Limits(exact_max_q16=0),
)


def list_profiles() -> list[Vector]:
    """Profiles and their digests, and documents that are none."""
    good = [make_profile(400_000, 500_000, about).to_dict() for about in ABOUTS]
    good += [replace(make_profile(1, 2, {}), limits=limits).to_dict() for limits in LIMITS]
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
        {**good[0], "tokens": None},
        {**good[0], "tokens": [0, 0, 0, 0, 0]},
        {**good[0], "tokens": [1, 2**32 + 1, 0, 0, 0]},
        {**good[0], "tokens": [1, 0, 0, 5, 4]},
        {**good[0], "tokens": [1, 0, 0, 0]},
        {**good[0], "routing": [501, 0, 0]},
        {**good[0], "routing": [1, 0, -1]},
        {**good[0], "means": []},
        {**good[0], "means": [[2, 1, 0, 0, 0, 0, 0]]},
        {**good[0], "means": [[1, 257, 0, 0, 0, 0, 0]]},
        {**good[0], "means": [[1, 1, 1, 0, 0, 0, 0]]},
        {**good[0], "means": [[1, 1, 0, 0, 0, 1, 0]]},
        {**good[0], "means": [[1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]},
        {**good[0], "exact_max_q16": None},
        {**good[0], "exact_max_q16": 2**62 + 1},
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
        result.append(judge_comparison(profile, fmt, sides[0], sides[1], checks_tokens=False))
    return result


def list_binomials() -> list[Vector]:
    """Binomial tails: of nothing, of everything, of rates beside each other."""
    rates = (0, 1, 1 << 12, 1 << 22, 17_179_869, 1 << 27, 1 << 31, (1 << 32) - 1, 1 << 32)
    return [
        {"trials": trials, "rate": rate, "tail": tail, "limit": compute_binomial_limit(trials, rate, tail)}
        for trials, rate, tail in product((0, 1, 8, 63, 256), rates, (1, 10, 5_000, 2_000_000))
    ]


def list_token_checks() -> list[Vector]:
    """Score rows beside ordinary ones: gaps from none to the largest, on either side, checked and not."""
    gaps = (0.0, -0.0, -1.0, 2.0**-149, 2.0**-16, 0.009, 0.01, 0.06, 1.0, 17.5, 3e38)
    result: list[Vector] = []
    for number, (gap, theirs_has_it) in enumerate(product(gaps, (False, True))):
        source = random.Random(f"tokens {number}")
        profile = replace(make_profile(400_000, 500_000, ABOUTS[0]), limits=LIMITS[number % 2])
        threshold = KindThreshold(RowKind.SCORES, 0, -1_000_000, 65_536)
        profile = replace(profile, thresholds=(*profile.thresholds, threshold))
        sides: list[dict[int, dict[RowKey, bytes]]] = [{}, {}]
        for position in range(1 + number % 5):
            values = [source.gauss(0, 1) for _ in range(4)]
            near = [one * (1 + 2.0 ** -(21 + number % 3)) for one in values]
            scores = [3.0, 5.0, 0.0]
            moved = [3.0, 5.0, gap if position % 2 == 0 else 0.0]
            for side, row, score in zip(
                sides, (near, values), (scores, moved) if theirs_has_it else (moved, scores), strict=True
            ):
                side[position] = {(RowKind.K, 0): pack("f", row), (RowKind.SCORES, 0): pack("f", score)}
        for checks in (False, True):
            result.append(
                judge_comparison(profile, FloatFormat.F32, sides[0], sides[1], checks_tokens=checks)
            )
    return result


def list_routed() -> list[Vector]:
    """A model with routed experts: outliers of growing number, which the trimmed mean leaves out."""
    result: list[Vector] = []
    for count in range(0, 13, 2):
        source = random.Random(f"routed {count}")
        profile = replace(make_profile(400_000, 500_000, ABOUTS[0]), limits=LIMITS[2])
        sides: list[dict[int, dict[RowKey, bytes]]] = [{}, {}]
        for position in range(12):
            values = [source.gauss(0, 1) for _ in range(4)]
            near = [one * (1 + 2.0 ** (-1 if position < count else -21)) for one in values]
            for side, row in zip(sides, (near, values), strict=True):
                side[position] = {(RowKind.K, 0): pack("f", row), (RowKind.V, 0): pack("f", row)}
        result.append(judge_comparison(profile, FloatFormat.F32, sides[0], sides[1], checks_tokens=True))
    return result


def judge_comparison(
    profile: MatchingProfile,
    fmt: FloatFormat,
    ours: dict[int, dict[RowKey, bytes]],
    theirs: dict[int, dict[RowKey, bytes]],
    *,
    checks_tokens: bool,
) -> Vector:
    """Return two sides and all that their comparison says."""
    found = compare(profile, ours, theirs, fmt, checks_tokens=checks_tokens)
    rows = [
        [[place, [[kind, layer, row.hex()] for (kind, layer), row in side[place].items()]] for place in side]
        for side in (ours, theirs)
    ]
    check = make_comparison(found, stage=1, retry=0, left="U" + "A" * 55, right="U" + "A" * 55).tokens
    return {
        "profile": json.dumps(profile.to_dict()),
        "format": fmt.value,
        "ours": rows[0],
        "theirs": rows[1],
        "checks_tokens": checks_tokens,
        "found": [
            found.verdict.value,
            found.mean_q16,
            found.peak_q16,
            found.row_count,
            found.position_count,
            found.outlier_count,
            found.grade,
            found.bounds.mean_match_max_q16,
            found.bounds.mean_mismatch_min_q16,
            found.is_too_exact,
            None if check is None else list(check.model_dump().values()),
        ],
    }
