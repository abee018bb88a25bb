"""What a calibration knows beyond centres and spreads: limits by sample size, of tokens, and of routed models.

Owns the plain values, their bounds and their bytes (docs/protocol.md 7.5), and the exact binomial tail that turns a rate
into a limit for any number of trials. All integers: a rate is a multiple of 2⁻³², a tail one in so many. Refuses values
out of range.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from pocache.protocol.errors import MatchingError
from pocache.protocol.limits import SAMPLE_COUNT_MAX

RATE_ONE: Final = 1 << 32
"""A rate of one."""

STATISTIC_COUNT: Final = 5
"""Statistics that can each reject: mean, peak, mismatched tokens, margin sum, margin peak."""

MISMATCH_TAIL: Final = STATISTIC_COUNT * 100_000
"""One honest job in so many is above a statistic's mismatch limit: 10⁻⁵ per job over all statistics."""
MATCH_TAIL: Final = STATISTIC_COUNT * 1_000
"""The same for the match limit: 10⁻³ of honest jobs are looked at again."""

GRADE_TAILS: Final = (10, 100, 1_000)
"""One honest job in so many reaches grade 1, 2, 3 by one statistic."""

BOUND_FACTOR: Final = 4
"""Tail of a sum of values in 0 … 1 over that of coin flips of the same mean: at most e²/2 (Bentkus 2004, theorem 1.2)."""

TRIAL_COUNT_MAX: Final = 65_536
"""Most positions that are judged at once; a comparison of openings has at most SAMPLE_COUNT_MAX."""

MARGIN_CEIL_Q16: Final = 1 << 40
"""Largest margin that is told apart."""
STANDARD_BOUND_Q16: Final = 1 << 62


@dataclass(frozen=True, slots=True, order=True)
class MeanLimit:
    """Limits of the mean over at least so many positions, at full depth or in shallower corners."""

    is_full_depth: bool
    position_count: int
    grades_q16: tuple[int, int, int]
    """What one honest job in 10, 100 and 1,000 is above: the grades of the test over a worker's jobs."""
    match_max_q16: int
    mismatch_min_q16: int

    def __post_init__(self) -> None:
        if type(self.is_full_depth) is not bool:
            raise MatchingError("is_full_depth is a boolean")
        _check("position_count", self.position_count, 1, SAMPLE_COUNT_MAX)
        values = (*self.grades_q16, self.match_max_q16, self.mismatch_min_q16)
        if len(self.grades_q16) != len(GRADE_TAILS):
            raise MatchingError(f"a mean limit has {len(GRADE_TAILS)} grades")
        for value in values:
            _check("a limit of the mean", value, -STANDARD_BOUND_Q16, STANDARD_BOUND_Q16)
        if any(left > right for left, right in pairwise(self.grades_q16)):
            raise MatchingError("grades ascend")
        if self.match_max_q16 > self.mismatch_min_q16:
            raise MatchingError("a mean cannot both match and mismatch")


@dataclass(frozen=True, slots=True)
class RoutingLimits:
    """How a model with routed experts is judged: honest routing flips make outliers that no maximum may see."""

    trim_permille: int
    """Share of the largest rows that the mean leaves out."""
    cut_q16: int
    """A position with a row above this is an outlier."""
    outlier_rate_q32: int
    """Upper bound on the honest share of such positions."""

    def __post_init__(self) -> None:
        _check("trim_permille", self.trim_permille, 0, 500)
        _check("cut_q16", self.cut_q16, -STANDARD_BOUND_Q16, STANDARD_BOUND_Q16)
        _check("outlier_rate_q32", self.outlier_rate_q32, 0, RATE_ONE)


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """How far honest tokens lie below the verifier's best (docs/protocol.md 7.7)."""

    clip_q16: int
    """Margin from which on a token counts as wholly missed in the margin sum: the calibrated quantile."""
    mismatch_rate_q32: int
    """Upper bound on the honest share of tokens that are not the verifier's best."""
    margin_rate_q32: int
    """Upper bound on the honest mean of min(margin, clip) / clip."""
    peak_match_max_q16: int
    peak_mismatch_min_q16: int

    def __post_init__(self) -> None:
        _check("clip_q16", self.clip_q16, 1, MARGIN_CEIL_Q16)
        _check("mismatch_rate_q32", self.mismatch_rate_q32, 0, RATE_ONE)
        _check("margin_rate_q32", self.margin_rate_q32, 0, RATE_ONE)
        _check("peak_match_max_q16", self.peak_match_max_q16, 0, MARGIN_CEIL_Q16)
        _check("peak_mismatch_min_q16", self.peak_mismatch_min_q16, self.peak_match_max_q16, MARGIN_CEIL_Q16)


@dataclass(frozen=True, slots=True)
class Limits:
    """All of them; what is None or empty was not calibrated."""

    means: tuple[MeanLimit, ...] = ()
    routing: RoutingLimits | None = None
    tokens: TokenLimits | None = None
    exact_max_q16: int | None = None
    """Output rows whose mean is below this are nearer than decoding comes: a signal, never a verdict."""

    def __post_init__(self) -> None:
        keys = [(one.is_full_depth, one.position_count) for one in self.means]
        if any(left >= right for left, right in pairwise(keys)):
            raise MatchingError("mean limits are in ascending order, partial depth first, each once")
        if self.exact_max_q16 is not None:
            _check("exact_max_q16", self.exact_max_q16, -STANDARD_BOUND_Q16, STANDARD_BOUND_Q16)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was calibrated."""
        return self == _NOTHING

    def find_mean(self, position_count: int, *, is_full_depth: bool) -> MeanLimit | None:
        """Return the limits for the most positions that are not more than these; None where there are none."""
        fitting = [
            one
            for one in self.means
            if one.is_full_depth == is_full_depth and one.position_count <= position_count
        ]
        return fitting[-1] if fitting else None

    def to_bytes(self) -> bytes:
        """Return u32 count ‖ each mean (u8 ‖ u32 ‖ i64 ×5) ‖ then routing, tokens, exact, each behind a u8 flag."""
        parts = [struct.pack(">I", len(self.means))]
        for one in self.means:
            numbers = (*one.grades_q16, one.match_max_q16, one.mismatch_min_q16)
            parts.append(struct.pack(">BI5q", one.is_full_depth, one.position_count, *numbers))
        parts.append(
            b"\x00" if self.routing is None else b"\x01" + struct.pack(">3q", *astuple(self.routing))
        )
        parts.append(b"\x00" if self.tokens is None else b"\x01" + struct.pack(">5q", *astuple(self.tokens)))
        exact = self.exact_max_q16
        parts.append(b"\x00" if exact is None else b"\x01" + struct.pack(">q", exact))
        return b"".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return what was calibrated as JSON-safe values."""
        data: dict[str, Any] = {}
        if self.means:
            data["means"] = [
                [
                    int(one.is_full_depth),
                    one.position_count,
                    *one.grades_q16,
                    one.match_max_q16,
                    one.mismatch_min_q16,
                ]
                for one in self.means
            ]
        if self.routing is not None:
            data["routing"] = list(astuple(self.routing))
        if self.tokens is not None:
            data["tokens"] = list(astuple(self.tokens))
        if self.exact_max_q16 is not None:
            data["exact_max_q16"] = self.exact_max_q16
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Limits:
        """Return the limits that ``to_dict`` wrote. Raises MatchingError for any other shape."""
        routing = _read_integers(data, "routing", 3)
        tokens = _read_integers(data, "tokens", 5)
        exact = data.get("exact_max_q16")
        if "exact_max_q16" in data and type(exact) is not int:
            raise MatchingError("exact_max_q16 is an integer")
        return cls(
            means=tuple(_read_mean(row) for row in _read_rows(data)),
            routing=None if routing is None else RoutingLimits(*routing),
            tokens=None if tokens is None else TokenLimits(*tokens),
            exact_max_q16=exact,
        )


_NOTHING: Final = Limits()
LIMIT_KEYS: Final = frozenset({"means", "routing", "tokens", "exact_max_q16"})
"""Keys that a profile may have beside the required ones."""


@lru_cache(maxsize=4_096)
def compute_binomial_limit(trial_count: int, rate_q32: int, tail: int) -> int:
    """Return the smallest c with P(X > c) ≤ 1 / ``tail`` for X of ``trial_count`` trials at a rate, exactly.

    Terms are C(n, k) rᵏ (2³² − r)ⁿ⁻ᵏ out of 2³²ⁿ, taken off the whole from k = 0 on until what is left is within the tail.
    """
    _check("trial_count", trial_count, 0, TRIAL_COUNT_MAX)
    _check("rate_q32", rate_q32, 0, RATE_ONE)
    if rate_q32 == RATE_ONE:
        return trial_count
    whole, other = 1 << (32 * trial_count), RATE_ONE - rate_q32
    term, above = other**trial_count, whole
    for count in range(trial_count):
        above -= term
        if above * tail <= whole:
            return count
        term = term * (trial_count - count) * rate_q32 // ((count + 1) * other)
    return trial_count


def _read_rows(data: Mapping[str, Any]) -> Sequence[Any]:
    rows = data.get("means", [])
    if not isinstance(rows, list | tuple) or ("means" in data and not rows):
        raise MatchingError("means are a list, left out where there are none")
    return rows


def _read_mean(row: object) -> MeanLimit:
    width = 4 + len(GRADE_TAILS)
    if not isinstance(row, list | tuple) or len(row) != width or any(type(one) is not int for one in row):
        raise MatchingError(f"a mean limit is {width} integers")
    if row[0] not in (0, 1):
        raise MatchingError("a mean limit begins with 0 or 1")
    return MeanLimit(bool(row[0]), row[1], tuple(row[2:-2]), row[-2], row[-1])


def _read_integers(data: Mapping[str, Any], key: str, width: int) -> Sequence[int] | None:
    if key not in data:
        return None
    row = data[key]
    if not isinstance(row, list | tuple) or len(row) != width or any(type(one) is not int for one in row):
        raise MatchingError(f"{key} are {width} integers")
    return row


def _check(name: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise MatchingError(f"{name} is {value!r}, outside {least} … {most}")
