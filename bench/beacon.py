"""Rounds: what signing and verifying cost in each scheme, and what a threshold beacon adds to one key.

Nothing here waits, so what is counted is the computing time of one thread, on whatever machine others use as well.
Command: ``make bench ARGS=beacon``. Recorded figures: bench/RESULTS.md.
"""

from __future__ import annotations

import hashlib
import time

from bench.measure import Row, compare
from pocache.protocol import bls
from pocache.protocol.beacon import (
    Scheme,
    compute_public_key,
    compute_secret,
    sign_round,
    verify_round_signature,
)
from pocache.protocol.threshold import (
    combine_partials,
    compute_committee,
    sign_partial,
    split_secret,
    verify_partial,
)

SIZES = ((3, 5), (11, 16))
ROUND = 7


def run() -> list[Row]:
    """Return a row per scheme, and per size of committee."""
    return [
        _verify(Scheme.BLS_UNCHAINED_G1_RFC9380),
        _verify(Scheme.PEDERSEN_BLS_CHAINED),
        *(row for threshold, count in SIZES for row in _threshold(threshold, count)),
    ]


def _verify(scheme: Scheme) -> Row:
    secret = compute_secret(bytes(48))
    public_key = bls.compute_public_key(scheme.arrangement, secret)
    previous = bytes(scheme.arrangement.signature_bytes) if scheme.is_chained else None
    message = hashlib.sha256((previous or b"") + ROUND.to_bytes(8, "big")).digest()
    signature = bls.sign(scheme.arrangement, secret, message, scheme.domain)
    return compare(
        f"verify a round of {scheme}",
        lambda: verify_round_signature(scheme, public_key, ROUND, signature, previous),
        "sign one",
        lambda: bls.sign(scheme.arrangement, secret, message, scheme.domain),
        clock=time.thread_time,
    )


def _threshold(threshold: int, count: int) -> list[Row]:
    secret = compute_secret(bytes(48))
    shares = split_secret(secret, threshold, count, bytes(48))
    committee = compute_committee(threshold, secret, shares)
    public_key = compute_public_key(secret)
    parts = {index: sign_partial(share, ROUND) for index, share in enumerate(shares, start=1)}
    signature = combine_partials(committee, ROUND, parts)

    def verify_whole() -> None:
        verify_round_signature(Scheme.BLS_UNCHAINED_G1_RFC9380, public_key, ROUND, signature)

    return [
        compare(
            f"sign a part, {threshold} of {count}",
            lambda: sign_partial(shares[0], ROUND),
            "sign with the whole key",
            lambda: sign_round(secret, ROUND),
            clock=time.thread_time,
        ),
        compare(
            f"verify a part, {threshold} of {count}",
            lambda: verify_partial(committee, 1, ROUND, parts[1]),
            "verify the round",
            verify_whole,
            clock=time.thread_time,
        ),
        compare(
            f"combine {threshold} parts and verify the round",
            lambda: combine_partials(committee, ROUND, parts),
            "verify the round",
            verify_whole,
            clock=time.thread_time,
        ),
        compare(
            f"check a committee's public shares, {threshold} of {count}",
            lambda: compute_committee(threshold, secret, shares),
            "verify the round",
            verify_whole,
            clock=time.thread_time,
        ),
    ]
