"""From measured honest distances to the thresholds of a matching profile (docs/protocol.md 7.6).

Owns the arithmetic, in integers; ``engine/calibrate.py`` measures. Thresholds are the largest honest value of
each statistic plus a stated margin, and an inconclusive band above them. Refuses to make a profile of no
distances, of distances that do not cover the same rows, and of a margin below ten times. It knows no spread:
every scale is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low

from pocache.protocol.encoding import FloatFormat, RowKey, RowKind, get_row_format
from pocache.protocol.errors import MatchingError
from pocache.protocol.matching import KindThreshold, MatchingProfile, compute_standard_q16

ONE_Q16 = 1 << 16
MARGIN_MIN_Q16 = 217_706
"""log2(10) in Q16, rounded up: the least margin of a threshold over the largest honest value."""

BAND_Q16 = ONE_Q16
"""Width of the inconclusive band: one doubling of the distance."""

CENTRE_MIN_Q16 = {FloatFormat.F32: -24 * ONE_Q16, FloatFormat.F16: -11 * ONE_Q16}
"""Half a unit in the last place: rows that came out equal still differ by this on the next machine."""

LeafDistances = Mapping[RowKey, int]
"""The log2 distances (Q16) of the rows of one position of one honest job."""


def compute_profile(
    leaves: Sequence[LeafDistances],
    *,
    float_format: FloatFormat,
    margin_q16: int = MARGIN_MIN_Q16,
    about: Mapping[str, str | int],
) -> MatchingProfile:
    """Return the profile of honest leaves: centre = median per kind and layer, limit = maximum + margin.

    The mean is bounded by the largest mean over one leaf's rows, over all its corners: the mean of any
    comparison is a weighted average of such means, so no honest comparison of these leaves can exceed it.
    MatchingError.
    """
    if margin_q16 < MARGIN_MIN_Q16:
        raise MatchingError(f"a margin of {margin_q16} (Q16) is less than ten times")
    thresholds = _compute_thresholds(leaves, float_format)
    standards = [
        {key: compute_standard_q16(thresholds[key], distance) for key, distance in leaf.items()}
        for leaf in leaves
    ]
    honest_peak = max(max(leaf.values()) for leaf in standards)
    honest_mean = max(max(_compute_corner_means(leaf)) for leaf in standards)
    peak_match_max, mean_match_max = max(0, honest_peak) + margin_q16, max(0, honest_mean) + margin_q16
    return MatchingProfile(
        thresholds=tuple(thresholds[key] for key in sorted(thresholds)),
        mean_match_max_q16=mean_match_max,
        mean_mismatch_min_q16=mean_match_max + BAND_Q16,
        peak_match_max_q16=peak_match_max,
        peak_mismatch_min_q16=peak_match_max + BAND_Q16,
        about={
            **about,
            "method": "largest honest value plus margin; one doubling inconclusive; scale 1",
            "honest_leaf_count": len(leaves),
            "honest_row_count": sum(len(leaf) for leaf in leaves),
            "honest_peak_max_q16": honest_peak,
            "honest_mean_max_q16": honest_mean,
            "margin_q16": margin_q16,
            "false_reject_ppm_bound95": compute_false_reject_ppm(len(leaves)),
        },
    )


def compute_false_reject_ppm(leaf_count: int) -> int:
    """Return the 95 % upper bound (ppm) on the share of honest leaves over the limits: none of n was.

    Rule of three, 3/n, rounded up. It treats leaves as independent, which those of one job are not quite.
    """
    return min(1_000_000, -(-3_000_000 // leaf_count))


def _compute_thresholds(
    leaves: Sequence[LeafDistances], float_format: FloatFormat
) -> dict[RowKey, KindThreshold]:
    distances: dict[RowKey, list[int]] = {}
    for leaf in leaves:
        for key, distance in leaf.items():
            distances.setdefault(key, []).append(distance)
    layers = {kind: {layer for found, layer in distances if found is kind} for kind in (RowKind.K, RowKind.V)}
    if (
        not distances
        or layers[RowKind.K] != layers[RowKind.V]
        or layers[RowKind.K] != set(range(len(layers[RowKind.K])))
    ):
        raise MatchingError("honest distances must cover K and V of every layer")
    return {
        (kind, layer): KindThreshold(
            kind=kind,
            layer=layer,
            centre_q16=max(median_low(values), CENTRE_MIN_Q16[get_row_format(kind, float_format)]),
            scale_q16=ONE_Q16,
        )
        for (kind, layer), values in distances.items()
    }


def _compute_corner_means(leaf: LeafDistances) -> Iterable[int]:
    """Yield one leaf's mean, rounded up, in each corner it can be part of: depth by depth, then all."""
    total, count = 0, 0
    while (RowKind.K, count // 2) in leaf:
        total += leaf[RowKind.K, count // 2] + leaf[RowKind.V, count // 2]
        count += 2
        yield -(-total // count)
    yield -(-sum(leaf.values()) // len(leaf))
