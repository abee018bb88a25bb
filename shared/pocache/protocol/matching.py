"""The deciding comparison, in exact integers (docs/protocol.md 7).

Owns the distance of two rows, the calibration profile's numbers, and the verdict over all compared rows. No
float takes part, so every implementation reaches the same verdict bit for bit. Refuses to give a verdict
without numbers: no rows, different rows, rows of another size, floats that are not finite, or a row that the
profile does not know raise MatchingError.

Not covered here: which rows had to be compared (the caller demands them), and whether they open a committed root
(``merkle``). What the score rows say about tokens is decided in ``token_check`` and is part of the verdict.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from math import dist, floor, hypot, inf, log2
from operator import mul, sub
from struct import unpack
from typing import Any, Final, TypeAlias

from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, get_row_format, is_finite, lp
from pocache.protocol.errors import MatchingError
from pocache.protocol.ids import Digest
from pocache.protocol.limits import LAYER_COUNT_MAX, TEXT_BYTES_MAX
from pocache.protocol.matching_limits import (
    LIMIT_KEYS,
    MATCH_TAIL,
    MISMATCH_TAIL,
    Limits,
    RoutingLimits,
    TokenLimits,
    compute_binomial_limit,
)
from pocache.protocol.token_check import (
    TokenBounds,
    TokenStatistics,
    compute_margin_q16,
    compute_token_bounds,
    compute_token_grade,
    compute_token_statistics,
    is_token_match,
    is_token_mismatch,
)

FRACTION_BITS: Final = 16
ONE_Q16: Final = 1 << FRACTION_BITS
LOG2_CEIL_Q16: Final = 40 * ONE_Q16
"""Distance of any row from the zero row, and the largest that is told apart."""
LOG2_FLOOR_Q16: Final = -LOG2_CEIL_Q16
"""Distance of equal rows, and the smallest that is told apart."""

STANDARD_FLOOR_Q16: Final = -4 * ONE_Q16
"""A row counts as at most four scales nearer than its honest centre.

Rows that come out bit for bit equal (distance −40) would otherwise carry a mean over any number of bad ones.
"""

PROFILE_KIND: Final = "matching-profile.v1"
PROFILE_SET_DOMAIN: Final = b"pocache/profile-set/v1"
_PROFILE_DOMAIN: Final = b"pocache/profile/v1"
_LIMITS_DOMAIN: Final = b"pocache/profile-limits/v1"
_ABOUT_ITEMS_MAX: Final = 256
_LIMIT_NAMES: Final = (
    "mean_match_max_q16",
    "mean_mismatch_min_q16",
    "peak_match_max_q16",
    "peak_mismatch_min_q16",
)

_LOG_STEPS: Final = FRACTION_BITS - 1
"""Squarings after the whole part: half a base-2 logarithm with 16 fractional bits has 15 of its own."""
_LOG_BITS: Final = 58
"""Fraction bits of the first try, so that a mantissa is two digits of CPython's integers."""
_LOG_SLACK: Final = 1 << 34
"""More than 15 truncated squarings can lose, in units of the last fraction bit (each at most ×4 + 3)."""
_ESTIMATE_SLACK: Final = 1 / 1024
"""How near to a whole number float64 decides nothing: far more than its error."""

Rows: TypeAlias = Mapping[int, Mapping[RowKey, bytes]]
"""Position → row → its bytes."""

Row: TypeAlias = tuple[int, RowKind, int, int]
"""Position, kind, layer and log-distance of a compared row."""


class Verdict(StrEnum):
    """What a comparison says about a job."""

    MATCH = "match"
    MISMATCH = "mismatch"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class KindThreshold:
    """Honest centre and spread of the log-distance of one row kind at one layer, from calibration."""

    kind: RowKind
    layer: int
    centre_q16: int
    scale_q16: int

    def __post_init__(self) -> None:
        if not isinstance(self.kind, RowKind) or self.kind is RowKind.RAW_DIGEST:
            raise MatchingError(f"{self.kind!r} is not a row kind that can be compared")
        _check_range("layer", self.layer, 0, LAYER_COUNT_MAX - 1)
        _check_range("centre_q16", self.centre_q16, LOG2_FLOOR_Q16, LOG2_CEIL_Q16)
        _check_range("scale_q16", self.scale_q16, 1, LOG2_CEIL_Q16)


@dataclass(frozen=True)
class MatchingProfile:
    """Thresholds for one (model, generator stack, verifier stack), and what is known about their measurement.

    ``thresholds`` are in ascending (kind, layer) order without repetition. The four limits are standardised:
    whole scales times 2¹⁶; those of the mean hold where ``limits`` has none for the sample's size. Without token limits no
    score row can be judged. ``about`` says which model, stacks and schema the profile is for, and at what
    false-reject rate it was measured; it is part of the digest and no part of the verdict.
    """

    thresholds: tuple[KindThreshold, ...]
    mean_match_max_q16: int
    mean_mismatch_min_q16: int
    peak_match_max_q16: int
    peak_mismatch_min_q16: int
    about: Mapping[str, str | int] = field(hash=False)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        keys = [(row.kind, row.layer) for row in self.thresholds]
        if not keys or any(left >= right for left, right in pairwise(keys)):
            raise MatchingError("thresholds are one per kind and layer, at least one, in ascending order")
        for name in _LIMIT_NAMES:
            _check_range(name, getattr(self, name), -(2**63), 2**63 - 1)
        if self.mean_match_max_q16 > self.mean_mismatch_min_q16:
            raise MatchingError("a mean cannot both match and mismatch: mean_match_max > mean_mismatch_min")
        if self.peak_match_max_q16 > self.peak_mismatch_min_q16:
            raise MatchingError("a peak cannot both match and mismatch: peak_match_max > peak_mismatch_min")
        _check_about(self.about)
        object.__setattr__(self, "about", dict(sorted(self.about.items())))

    def digest(self) -> Digest:
        """Return SHA256 over the numbers as i64 big-endian and ``about`` as sorted length-prefixed texts.

        Where there are further limits, SHA256(lp(domain, that digest) ‖ their bytes).
        """
        parts = [lp(_PROFILE_DOMAIN), struct.pack(">I", len(self.thresholds))]
        parts += [
            struct.pack(">BHqq", row.kind, row.layer, row.centre_q16, row.scale_q16)
            for row in self.thresholds
        ]
        parts.append(struct.pack(">4q", *(getattr(self, name) for name in _LIMIT_NAMES)))
        for key, value in self.about.items():
            tag = b"i" if isinstance(value, int) else b"s"
            parts.append(lp(key.encode(), tag, str(value).encode()))
        digest = sha256(b"".join(parts)).digest()
        if not self.limits.is_empty:
            digest = sha256(lp(_LIMITS_DOMAIN, digest) + self.limits.to_bytes()).digest()
        return Digest(digest)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-safe values; ``from_dict`` reads exactly this."""
        rows = [[row.kind.name, row.layer, row.centre_q16, row.scale_q16] for row in self.thresholds]
        limits = {name: getattr(self, name) for name in _LIMIT_NAMES}
        more = self.limits.to_dict()
        return {"kind": PROFILE_KIND, "thresholds": rows, **limits, "about": dict(self.about), **more}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MatchingProfile:
        """Return the profile that ``to_dict`` wrote. Raises MatchingError for any other shape."""
        expected = {"kind", "thresholds", "about", *_LIMIT_NAMES}
        is_complete = isinstance(data, Mapping) and expected <= set(data) <= expected | LIMIT_KEYS
        if not is_complete or data["kind"] != PROFILE_KIND:
            raise MatchingError(f"not a {PROFILE_KIND} with exactly the fields {sorted(expected)}")
        if not isinstance(data["thresholds"], list | tuple):
            raise MatchingError("thresholds are a list")
        return cls(
            thresholds=tuple(_parse_threshold(row) for row in data["thresholds"]),
            about=data["about"],
            limits=Limits.from_dict(data),
            **{name: data[name] for name in _LIMIT_NAMES},
        )

    def with_about(self, **items: str | int) -> MatchingProfile:
        """Return the profile that says more about itself."""
        return replace(self, about={**self.about, **items})


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits that hold for a sample of this size."""

    mean_match_max_q16: int
    mean_mismatch_min_q16: int
    peak_match_max_q16: int
    peak_mismatch_min_q16: int
    grades_q16: tuple[int, ...] = ()
    tokens: TokenBounds | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A verdict with the numbers that it rests on.

    ``mean_q16`` and ``peak_q16`` are standardised; ``worst`` is the row of the peak, the first in order of
    position, kind and layer; ``rows`` holds every row's raw log-distance in that order.
    """

    verdict: Verdict
    mean_q16: int
    peak_q16: int
    row_count: int
    worst: tuple[int, RowKind, int]
    rows: tuple[Row, ...]
    position_count: int
    bounds: Bounds
    tokens: TokenStatistics | None = None
    """None where no output position was compared at full depth, or where the other side is no generator."""
    outlier_count: int = 0
    """Positions with a row above the cut; of models with routed experts alone."""
    is_too_exact: bool = False
    """Output rows nearer than decoding comes: a signal, never part of the verdict."""
    grade: int = 0
    """How rare the numbers are among honest jobs, 0 to 3: what the test over a worker's jobs adds up."""


_FULL_DEPTH_KINDS: Final = frozenset({RowKind.HIDDEN, RowKind.SCORES})


def compare(
    profile: MatchingProfile, ours: Rows, theirs: Rows, fmt: FloatFormat, *, checks_tokens: bool = False
) -> Comparison:
    """Compare all rows and judge (docs/protocol.md 7.3).

    ``theirs`` is the side whose norm divides. ``checks_tokens`` says that it generated: then the score rows also tell
    whether its tokens are the ones that our logits draw. Both sides hold the same positions and the same rows at each.
    Raises MatchingError; nothing is a match by default.
    """
    rows: list[Row] = []
    margins: list[int | None] = []
    for position, (kind, layer), our_row, their_row in _pair_rows(ours, theirs):
        log2_q16 = compute_log2_distance_q16(our_row, their_row, get_row_format(kind, fmt))
        rows.append((position, kind, layer, log2_q16))
        if checks_tokens and kind is RowKind.SCORES:
            margins.append(compute_margin_q16(our_row, their_row))
    return judge(profile, rows, margins)


def judge(profile: MatchingProfile, rows: Iterable[Row], margins: Sequence[int | None] = ()) -> Comparison:
    """Return the verdict over measured rows, in order of position, and over the margins of output tokens, if any.

    Per row: z = standardised log₂ of the relative L2 distance. mean = ⌊Σz / n⌋, peak = max z. Mismatch when any
    statistic is above its mismatch limit; match when all are within their match limits; else inconclusive. Raises
    MatchingError for no rows, rows that the profile does not know, and margins that it has no limits for.
    """
    rows, limits = tuple(rows), profile.limits
    standards = _standardise(profile, rows)
    peak = max(standards)
    first = rows[standards.index(peak)]
    position_peaks: dict[int, int] = {}
    for (position, _, _, _), standard in zip(rows, standards, strict=True):
        position_peaks[position] = max(standard, position_peaks.get(position, standard))
    tokens = None if not margins else compute_token_statistics(_get_token_limits(limits), margins)
    bounds = compute_bounds(
        profile,
        len(position_peaks),
        is_full_depth=any(kind in _FULL_DEPTH_KINDS for _, kind, _, _ in rows),
        token_count=len(margins),
    )
    mean = compute_mean_q16(standards, 0 if limits.routing is None else limits.routing.trim_permille)
    outlier_count = 0
    if limits.routing is None:
        is_mismatch, is_match = _judge_rows(bounds, mean, peak)
    else:
        outlier_count = sum(one > limits.routing.cut_q16 for one in position_peaks.values())
        is_mismatch, is_match = _judge_routed(
            limits.routing, bounds, mean, outlier_count, len(position_peaks)
        )
    grade = sum(mean > limit for limit in bounds.grades_q16)
    if tokens is not None and bounds.tokens is not None:
        is_mismatch = is_mismatch or is_token_mismatch(tokens, bounds.tokens)
        is_match = is_match and is_token_match(tokens, bounds.tokens)
        grade = max(grade, compute_token_grade(_get_token_limits(limits), tokens))
    return Comparison(
        verdict=Verdict.MISMATCH if is_mismatch else Verdict.MATCH if is_match else Verdict.INCONCLUSIVE,
        mean_q16=mean,
        peak_q16=peak,
        row_count=len(rows),
        worst=first[:3],
        rows=rows,
        position_count=len(position_peaks),
        bounds=bounds,
        tokens=tokens,
        outlier_count=outlier_count,
        is_too_exact=_is_too_exact(limits.exact_max_q16, rows, standards),
        grade=grade,
    )


def compute_bounds(
    profile: MatchingProfile, position_count: int, *, is_full_depth: bool, token_count: int
) -> Bounds:
    """Return the limits for a sample: of the mean by its positions, of tokens by their number."""
    found = profile.limits.find_mean(position_count, is_full_depth=is_full_depth)
    tokens = profile.limits.tokens
    return Bounds(
        mean_match_max_q16=profile.mean_match_max_q16 if found is None else found.match_max_q16,
        mean_mismatch_min_q16=profile.mean_mismatch_min_q16 if found is None else found.mismatch_min_q16,
        peak_match_max_q16=profile.peak_match_max_q16,
        peak_mismatch_min_q16=profile.peak_mismatch_min_q16,
        grades_q16=() if found is None else found.grades_q16,
        tokens=compute_token_bounds(tokens, token_count) if tokens is not None and token_count else None,
    )


def compute_mean_q16(standards: Sequence[int], trim_permille: int) -> int:
    """Return ⌊mean⌋ of standardised distances, without the largest ⌊n · trim / 1000⌋ of them."""
    kept = sorted(standards)[: len(standards) - len(standards) * trim_permille // 1_000]
    return sum(kept) // len(kept)


def _judge_rows(bounds: Bounds, mean: int, peak: int) -> tuple[bool, bool]:
    """Return whether mean or peak mismatch, and whether both match; limits themselves still match."""
    is_mismatch = mean > bounds.mean_mismatch_min_q16 or peak > bounds.peak_mismatch_min_q16
    return is_mismatch, mean <= bounds.mean_match_max_q16 and peak <= bounds.peak_match_max_q16


def _judge_routed(
    routing: RoutingLimits, bounds: Bounds, mean: int, outlier_count: int, position_count: int
) -> tuple[bool, bool]:
    """Return the same by the trimmed mean and the binomial tail of the outliers' count: no maximum decides."""
    most, least = (
        compute_binomial_limit(position_count, routing.outlier_rate_q32, tail)
        for tail in (MISMATCH_TAIL, MATCH_TAIL)
    )
    is_mismatch = mean > bounds.mean_mismatch_min_q16 or outlier_count > most
    return is_mismatch, mean <= bounds.mean_match_max_q16 and outlier_count <= least


def _standardise(profile: MatchingProfile, rows: Sequence[Row]) -> list[int]:
    """Return each row's standardised distance; MatchingError for none, or one without a threshold."""
    thresholds = {(row.kind, row.layer): row for row in profile.thresholds}
    standards = []
    for _, kind, layer, log2_q16 in rows:
        threshold = thresholds.get((kind, layer))
        if threshold is None:
            raise MatchingError(f"the profile has no threshold for the row {(kind, layer)!r}")
        standards.append(compute_standard_q16(threshold, log2_q16))
    if not standards:
        raise MatchingError("no rows to compare: no verdict without numbers")
    return standards


def _get_token_limits(limits: Limits) -> TokenLimits:
    if limits.tokens is None:
        raise MatchingError("the profile has no token limits: calibrate the model again")
    return limits.tokens


def _is_too_exact(limit: int | None, rows: Sequence[Row], standards: Sequence[int]) -> bool:
    """Whether K and V at output positions lie nearer than decoded rows do, in the mean."""
    scored = {position for position, kind, _, _ in rows if kind is RowKind.SCORES}
    output = [
        standard
        for (position, kind, _, _), standard in zip(rows, standards, strict=True)
        if position in scored and kind not in _FULL_DEPTH_KINDS
    ]
    return limit is not None and bool(output) and sum(output) // len(output) < limit


def compute_standard_q16(threshold: KindThreshold, log2_q16: int) -> int:
    """Return max(⌊(log-distance − centre) / scale⌋ in Q16, STANDARD_FLOOR_Q16); calibration uses the same."""
    standard = ((log2_q16 - threshold.centre_q16) << FRACTION_BITS) // threshold.scale_q16
    return max(standard, STANDARD_FLOOR_Q16)


def compute_profile_set_digest(profiles: Iterable[MatchingProfile]) -> Digest:
    """Return the digest of a set of profiles, which a job binds: sorted digests, each once."""
    digests = sorted({profile.digest() for profile in profiles})
    return Digest(sha256(lp(PROFILE_SET_DOMAIN, *digests)).digest())


def compute_log2_distance_q16(ours: bytes, theirs: bytes, fmt: FloatFormat) -> int:
    """Return ⌊2¹⁶ · log₂(‖ours − theirs‖₂ / ‖theirs‖₂)⌋, clamped to LOG2_FLOOR_Q16 … LOG2_CEIL_Q16.

    Exactly the mathematical floor: each float is a whole multiple of 2⁻²⁴ (f16) or 2⁻¹⁴⁹ (f32), a common
    power of two cancels in the quotient, and the logarithm's bits come from squaring. Equal rows give the
    floor (−0 equals 0), any other against a zero row the ceiling. Raises MatchingError for empty rows, rows
    of different or broken size, and floats that are not finite.
    """
    if len(ours) != len(theirs) or not ours or len(ours) % fmt.size:
        raise MatchingError(f"rows of {len(ours)} and {len(theirs)} bytes cannot be compared as {fmt.value}")
    if ours != theirs:
        found = _estimate_log2_distance_q16(ours, theirs, fmt)
        if found is not None:
            return min(max(found, LOG2_FLOOR_Q16), LOG2_CEIL_Q16)
    if not (is_finite(ours, fmt) and is_finite(theirs, fmt)):
        raise MatchingError("a row has floats that are not finite")
    if ours == theirs:
        return LOG2_FLOOR_Q16
    return _compute_log2_distance_q16(ours, theirs, fmt)


def _estimate_log2_distance_q16(ours: bytes, theirs: bytes, fmt: FloatFormat) -> int | None:
    """Return the floor where float64 proves it, None where only integers can tell; most rows are proved so.

    Every float16 and float32 is a float64, and no square of one or of a difference over- or underflows there. Each
    difference, square and addition of positive terms is off by 2⁻⁵³ of itself at most: for the widest row, of 2¹⁶ floats,
    both norms, however they are added up, by less than 2⁻³⁶ of themselves, and the result, with the logarithm's own error,
    by less than 2⁻¹⁸. So an estimate further than 2⁻¹⁰ from every whole number has the exact result's floor.
    """
    layout = f"<{len(ours) // fmt.size}{'e' if fmt is FloatFormat.F16 else 'f'}"
    their_floats = unpack(layout, theirs)
    distance, norm = dist(unpack(layout, ours), their_floats), hypot(*their_floats)
    if not 0 < distance < inf or not 0 < norm < inf:  # a NaN is neither
        return None
    estimate = log2(distance / norm) * ONE_Q16
    whole = floor(estimate)
    return whole if _ESTIMATE_SLACK < estimate - whole < 1 - _ESTIMATE_SLACK else None


def _compute_log2_distance_q16(ours: bytes, theirs: bytes, fmt: FloatFormat) -> int:
    """Return the same by integers alone."""
    if fmt is FloatFormat.F16:
        table = _f16_integers()
        layout = f"<{len(ours) // 2}H"
        ours_int = list(map(table.__getitem__, unpack(layout, ours)))
        theirs_int = list(map(table.__getitem__, unpack(layout, theirs)))
    else:
        ours_int, theirs_int = _scale_f32(ours, theirs)
    difference = list(map(sub, ours_int, theirs_int))
    numerator = sum(map(mul, difference, difference))
    if not numerator:
        return LOG2_FLOOR_Q16
    denominator = sum(map(mul, theirs_int, theirs_int))
    if not denominator:
        return LOG2_CEIL_Q16
    return min(max(compute_half_log2_q16(numerator, denominator), LOG2_FLOOR_Q16), LOG2_CEIL_Q16)


def compute_half_log2_q16(numerator: int, denominator: int) -> int:
    """Return ⌊2¹⁶ · ½ · log₂(numerator / denominator)⌋ of two positive integers, exactly.

    The whole part e is where 2ᵉ ≤ quotient < 2ᵉ⁺¹; the mantissa's square then gives one fractional bit per
    step. Truncation only lowers the mantissa, by less than the slack: where a bit could go either way within
    it, the precision is doubled. That ends: only whole powers of two lie exactly on a step, and their
    mantissa is 1 without any truncation.
    """
    exponent = numerator.bit_length() - denominator.bit_length()
    scaled = denominator << exponent if exponent >= 0 else denominator
    aligned = numerator << -exponent if exponent < 0 else numerator
    if aligned < scaled:
        exponent -= 1
        aligned <<= 1
    bits = _LOG_BITS
    while True:
        fraction = _compute_log2_fraction((aligned << bits) // scaled, bits)
        if fraction is not None:
            return (exponent << _LOG_STEPS) + fraction
        bits *= 2


def _compute_log2_fraction(mantissa: int, bits: int) -> int | None:
    """Return ⌊2¹⁵ · log₂ m⌋ of 1 ≤ m < 2 given as ⌊m · 2^bits⌋; None when that many bits cannot tell."""
    two = 2 << bits
    doubtful = two - _LOG_SLACK
    fraction = 0
    for _ in range(_LOG_STEPS):
        mantissa = (mantissa * mantissa) >> bits
        fraction <<= 1
        if mantissa >= two:
            mantissa >>= 1
            fraction |= 1
        elif mantissa >= doubtful:
            return None
    return fraction


def _scale_f32(ours: bytes, theirs: bytes) -> tuple[list[int], list[int]]:
    """Return both float32 rows as integers, multiples of one power of two.

    The power is the smallest exponent present, rounded down to a multiple of 16, so that ordinary rows become
    small integers and 16 tables serve all rows. A top byte is the sign and the exponent's upper seven bits.
    """
    tops = ours[3::4] + theirs[3::4]
    least = 2 * min(tops.translate(_CLEAR_SIGN))
    factors, offsets = _f32_tables(least & ~15)
    layout = f"<{len(ours) // 4}I"
    return (
        [bits * factors[bits >> 23] + offsets[bits >> 23] for bits in unpack(layout, ours)],
        [bits * factors[bits >> 23] + offsets[bits >> 23] for bits in unpack(layout, theirs)],
    )


_CLEAR_SIGN: Final = bytes(byte & 0x7F for byte in range(256))


@lru_cache(maxsize=16)
def _f32_tables(base: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return factor and offset by sign and exponent: value = bits · factor + offset, units of exponent base.

    A float32 is ±(mantissa + 2²³ if the exponent is not 0) · 2^(max(exponent, 1) − 150); the offset adds the
    implicit bit and takes sign and exponent back out of ``bits``. Exponents below ``base`` never occur.
    """
    factors, offsets = [], []
    for high in range(512):
        exponent = high & 0xFF
        factor = 1 << max(max(exponent, 1) - base, 0)
        if high & 0x100:
            factor = -factor
        factors.append(factor)
        offsets.append(factor * ((1 << 23 if exponent else 0) - (high << 23)))
    return tuple(factors), tuple(offsets)


@lru_cache(maxsize=1)
def _f16_integers() -> tuple[int, ...]:
    """Return every finite float16, by its bits, as a multiple of 2⁻²⁴."""
    subnormal = range(1 << 10)
    normal = (((bits & 1023) | 1024) << ((bits >> 10) - 1) for bits in range(1 << 10, 1 << 15))
    positive = (*subnormal, *normal)
    return (*positive, *(-value for value in positive))


def _pair_rows(ours: Rows, theirs: Rows) -> Iterator[tuple[int, RowKey, bytes, bytes]]:
    """Yield both sides' rows by position, kind, layer. Raises MatchingError where a side lacks something."""
    if ours.keys() != theirs.keys():
        raise MatchingError("the two sides opened different positions")
    for position in sorted(ours):
        our_rows, their_rows = ours[position], theirs[position]
        if our_rows.keys() != their_rows.keys():
            raise MatchingError(f"the two sides opened different rows at position {position}")
        for key in sorted(our_rows):
            yield position, key, our_rows[key], their_rows[key]


def _parse_threshold(row: object) -> KindThreshold:
    match row:
        case [str(name), int(layer), int(centre_q16), int(scale_q16)] if name in RowKind.__members__:
            return KindThreshold(RowKind[name], layer, centre_q16, scale_q16)
        case _:
            raise MatchingError(f"a threshold is [kind, layer, centre, scale], not {row!r}"[:200])


def _check_about(about: object) -> None:
    if not isinstance(about, Mapping) or len(about) > _ABOUT_ITEMS_MAX:
        raise MatchingError(f"about is a map of at most {_ABOUT_ITEMS_MAX} items")
    for key, value in about.items():
        if type(key) is not str or type(value) not in (str, int):
            raise MatchingError("about maps texts to texts and integers")
        if isinstance(value, int):
            _check_range("a number in about", value, -(2**63), 2**63 - 1)
        for text in (key, str(value)):
            if not _is_short_utf8(text):
                raise MatchingError(f"a text in about is not UTF-8 of at most {TEXT_BYTES_MAX} bytes")


def _is_short_utf8(text: str) -> bool:
    try:
        return len(text.encode()) <= TEXT_BYTES_MAX
    except UnicodeEncodeError:  # a lone surrogate, which JSON lets through
        return False


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise MatchingError(f"{name} is {value!r}, outside {least} … {most}")
