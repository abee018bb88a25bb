"""The integer comparison against exact fractions and 200-digit logarithms, on ordinary and hostile rows."""

from __future__ import annotations

import struct
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from math import isqrt

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pocache.protocol.encoding import FloatFormat, RowKind
from pocache.protocol.matching import (
    LOG2_CEIL_Q16,
    LOG2_FLOOR_Q16,
    ONE_Q16,
    KindThreshold,
    MatchingProfile,
    Verdict,
    compare,
    compute_half_log2_q16,
    compute_log2_distance_q16,
)

relaxed = settings(deadline=None, max_examples=150)
F16, F32 = FloatFormat.F16, FloatFormat.F32
LETTERS = {F16: ("H", "e", 0x7C00), F32: ("I", "f", 0x7F800000)}


def pack_bits(fmt: FloatFormat, bits: list[int]) -> bytes:
    return struct.pack(f"<{len(bits)}{LETTERS[fmt][0]}", *bits)


def unpack_exact(fmt: FloatFormat, row: bytes) -> list[Fraction]:
    return [Fraction(value) for (value,) in struct.iter_unpack(f"<{LETTERS[fmt][1]}", row)]


def compute_reference(ours: bytes, theirs: bytes, fmt: FloatFormat) -> int:
    """The definition: exact sums of squares, then one logarithm of 200 digits."""
    a, b = unpack_exact(fmt, ours), unpack_exact(fmt, theirs)
    numerator = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    denominator = sum(y * y for y in b)
    if not numerator:
        return LOG2_FLOOR_Q16
    if not denominator:
        return LOG2_CEIL_Q16
    ratio = Fraction(numerator, 1) / denominator
    with localcontext(Context(prec=200, Emax=999_999, Emin=-999_999)):
        exact = (Decimal(ratio.numerator).ln() - Decimal(ratio.denominator).ln()) / Decimal(2).ln() * 2**15
        nearest = exact.to_integral_value()
        if abs(exact - nearest) < Decimal(10) ** -180:  # a power of two, or beyond what 200 digits tell
            power = int(nearest) >> 15
            assert ratio == (Fraction(2) ** power)
            floored = nearest
        else:
            floored = exact.to_integral_value(rounding=ROUND_FLOOR)
    return min(max(int(floored), LOG2_FLOOR_Q16), LOG2_CEIL_Q16)


@st.composite
def finite_bits(draw: st.DrawFn, fmt: FloatFormat) -> int:
    """Bits of any finite float, hostile ones often: zeros, subnormals, the largest, either sign."""
    top = LETTERS[fmt][2]
    one = 0x3C00 if fmt is F16 else 0x3F800000
    magnitude = draw(
        st.one_of(
            st.integers(0, top - 1),
            st.integers(one - 64, one + 64),
            st.sampled_from([0, 1, top - 1, top // 31 if fmt is F16 else 0x00800000]),
        )
    )
    sign = draw(st.booleans())
    return magnitude | (0x8000 if fmt is F16 else 0x80000000) * sign


@st.composite
def row_pairs(draw: st.DrawFn) -> tuple[FloatFormat, bytes, bytes]:
    """Two unrelated rows, or one and its neighbour that differs in the last bits of a few floats."""
    fmt = draw(st.sampled_from([F16, F32]))
    theirs = draw(st.lists(finite_bits(fmt), min_size=1, max_size=12))
    if draw(st.booleans()):
        ours = draw(st.lists(finite_bits(fmt), min_size=len(theirs), max_size=len(theirs)))
    else:
        shifts = draw(st.lists(st.integers(0, 3), min_size=len(theirs), max_size=len(theirs)))
        ours = [bits ^ shift for bits, shift in zip(theirs, shifts, strict=True)]
    top = LETTERS[fmt][2]
    assume(all(bits & top != top for bits in ours))
    return fmt, pack_bits(fmt, ours), pack_bits(fmt, theirs)


@relaxed
@given(pair=row_pairs())
@example(pair=(F32, struct.pack("<2f", 3.0e38, 1.0e-45), struct.pack("<2f", -3.0e38, -0.0)))
@example(pair=(F32, struct.pack("<2f", 1.0e-45, 0.0), struct.pack("<2f", 3.4e-38, 1.2e-38)))
@example(pair=(F32, struct.pack("<2f", 1.0, 2.0**-40), struct.pack("<2f", 2.0**-149, 1.0)))
@example(pair=(F32, struct.pack("<2f", 2.0**-30, 1.0), struct.pack("<2f", 0.0, 1.0)))
@example(pair=(F16, struct.pack("<2e", 65504.0, 0.0), struct.pack("<2e", -65504.0, 2.0**-24)))
@example(pair=(F32, struct.pack("<2f", 2.0**64, 1.0), struct.pack("<2f", 2.0**63, 0.0)))
def test_distance_is_the_exact_floor(pair: tuple[FloatFormat, bytes, bytes]) -> None:
    fmt, ours, theirs = pair
    assert compute_log2_distance_q16(ours, theirs, fmt) == compute_reference(ours, theirs, fmt)


@relaxed
@given(exponent=st.integers(-20, 20), tiny=st.integers(40, 100), up=st.booleans())
def test_distance_next_to_a_whole_power_is_still_the_exact_floor(exponent: int, tiny: int, up: bool) -> None:
    """A quotient within 2⁻⁸⁰ … 2⁻²⁰⁰ of a power of two, where the first precision cannot tell."""
    power, dust = 2.0**exponent, 2.0 ** (exponent - tiny)
    if up:  # |ours − theirs|² = power² + dust²: just above
        ours, theirs = (1.0 + power, dust), (1.0, 0.0)
        assume(struct.unpack("<f", struct.pack("<f", ours[0]))[0] == ours[0])
    else:  # the dust is in the divisor: just below
        ours, theirs = (1.0 + power, dust), (1.0, dust)
        assume(struct.unpack("<f", struct.pack("<f", ours[0]))[0] == ours[0])
    packed = struct.pack("<2f", *ours), struct.pack("<2f", *theirs)
    result = compute_log2_distance_q16(*packed, F32)
    assert result == compute_reference(*packed, F32)
    assert result == exponent * ONE_Q16 - (0 if up else 1)


@relaxed
@given(
    whole=st.integers(-30, 30),
    part=st.integers(0, 127),
    bits=st.integers(20, 260),
    factor=st.integers(1, 2**80),
)
@example(whole=0, part=64, bits=70, factor=1)
@example(whole=-1, part=1, bits=260, factor=3)
def test_logarithm_next_to_a_step_is_still_the_exact_floor(
    whole: int, part: int, bits: int, factor: int
) -> None:
    """Quotients on both sides of 2^(whole + part/128), as near as 2^-bits: no fixed precision tells them."""
    root = 2**part << (bits * 128)
    for _ in range(7):
        root = isqrt(root)  # ⌊2^(part/128) · 2^bits⌋
    scale = 2**bits
    step = (whole * 128 + part) << 8
    up, down = factor << max(whole, 0), factor << max(-whole, 0)
    assert compute_half_log2_q16((root + 1) * up, scale * down) >= step
    assert compute_half_log2_q16(root * up, scale * down) <= step - (part != 0)
    if bits >= 24:  # nearer than the next step
        assert compute_half_log2_q16((root + 1) * up, scale * down) == step
        assert compute_half_log2_q16(root * up, scale * down) == step - (part != 0)


@relaxed
@given(pair=row_pairs())
def test_a_permutation_or_a_common_sign_changes_nothing(pair: tuple[FloatFormat, bytes, bytes]) -> None:
    fmt, ours, theirs = pair
    expected = compute_log2_distance_q16(ours, theirs, fmt)
    letter, _, _ = LETTERS[fmt]
    sign = 0x8000 if fmt is F16 else 0x80000000
    for change in (lambda bits: bits[::-1], lambda bits: [value ^ sign for value in bits]):
        rows = [
            pack_bits(fmt, change([bits for (bits,) in struct.iter_unpack(f"<{letter}", row)]))
            for row in (ours, theirs)
        ]
        assert compute_log2_distance_q16(rows[0], rows[1], fmt) == expected


@relaxed
@given(
    logs=st.lists(st.integers(-30, 30), min_size=1, max_size=12),
    centre=st.integers(-20 * ONE_Q16, 0),
    scale=st.integers(1, 4 * ONE_Q16),
    limits=st.lists(st.integers(-(2**22), 2**24), min_size=4, max_size=4),
)
def test_verdict_is_that_of_exact_statistics(
    logs: list[int], centre: int, scale: int, limits: list[int]
) -> None:
    """Rows 2^log apart: mean and peak of ⌊(log − centre)/scale⌋, recomputed with fractions."""
    mean_low, mean_high = sorted(limits[:2])
    peak_low, peak_high = sorted(limits[2:])
    threshold = KindThreshold(RowKind.V, 3, centre, scale)
    profile = MatchingProfile((threshold,), mean_low, mean_high, peak_low, peak_high, {})
    key = (RowKind.V, 3)
    ours = {place: {key: struct.pack("<2f", 1.0, 2.0**log)} for place, log in enumerate(logs)}
    theirs = {place: {key: struct.pack("<2f", 1.0, 0.0)} for place in range(len(logs))}
    result = compare(profile, ours, theirs, F32)
    steps = [Fraction((log * ONE_Q16 - centre) * ONE_Q16, scale).__floor__() for log in logs]
    steps = [max(step, -4 * ONE_Q16) for step in steps]
    mean, peak = Fraction(sum(steps), len(steps)).__floor__(), max(steps)
    assert (result.mean_q16, result.peak_q16, result.row_count) == (mean, peak, len(logs))
    assert result.worst == (steps.index(peak), RowKind.V, 3)
    if mean > mean_high or peak > peak_high:
        assert result.verdict is Verdict.MISMATCH
    elif mean <= mean_low and peak <= peak_low:
        assert result.verdict is Verdict.MATCH
    else:
        assert result.verdict is Verdict.INCONCLUSIVE
