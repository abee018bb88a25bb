"""Shares of a beacon key: any t make the group's signature, fewer make none, and a false part is found."""

from __future__ import annotations

import itertools

import pytest

from pocache.protocol import bls
from pocache.protocol.beacon import Chain, Scheme, compute_secret, sign_round, verify_round
from pocache.protocol.errors import BeaconError
from pocache.protocol.limits import BEACON_MEMBERS_MAX
from pocache.protocol.threshold import (
    Committee,
    combine_partials,
    compute_committee,
    compute_lagrange_weights,
    find_false_partials,
    sign_partial,
    split_secret,
    verify_partial,
)

SECRET = compute_secret(b"threshold" * 6)
ENTROPY = b"entropy of the polynomial" * 2
SHARES = split_secret(SECRET, 3, 5, ENTROPY)
COMMITTEE = compute_committee(3, SECRET, SHARES)
CHAIN = Chain(Scheme.BLS_UNCHAINED_G1_RFC9380, COMMITTEE.public_key, 0, 3, bytes(32))
ROUND = 77


def make_parts(number: int = ROUND) -> dict[int, bytes]:
    return {index: sign_partial(share, number) for index, share in enumerate(SHARES, start=1)}


@pytest.mark.parametrize("members", list(itertools.combinations(range(1, 6), 3)))
def test_any_three_make_the_groups_signature(members: tuple[int, ...]) -> None:
    """The very bytes that the whole secret would have made, and a drand round like any other."""
    parts = make_parts()
    signature = combine_partials(COMMITTEE, ROUND, {index: parts[index] for index in members})
    assert signature == sign_round(SECRET, ROUND)
    verify_round(CHAIN, ROUND, signature)


def test_more_than_the_threshold_make_it_too() -> None:
    assert combine_partials(COMMITTEE, ROUND, make_parts()) == sign_round(SECRET, ROUND)


def test_fewer_make_none() -> None:
    """Neither by the function, nor by interpolating what they have."""
    parts = make_parts()
    two = {1: parts[1], 2: parts[2]}
    with pytest.raises(BeaconError, match="needs the parts of 3"):
        combine_partials(COMMITTEE, ROUND, two)
    signature = bls.combine_signatures(
        CHAIN.scheme.arrangement, list(two.values()), compute_lagrange_weights([1, 2], at=0)
    )
    with pytest.raises(BeaconError):
        verify_round(CHAIN, ROUND, signature)


@pytest.mark.parametrize(
    "forge",
    [
        lambda parts: parts[1],
        lambda _: sign_partial(SHARES[2], ROUND + 1),
        lambda _: sign_partial(compute_secret(bytes(32)), ROUND),
        lambda _: bytes([0xC0]) + bytes(47),
        lambda _: bytes([0x80]) + bytes(46) + b"\x02",
        lambda parts: parts[3][:-1],
    ],
    ids=["anothers", "of another round", "of a stranger", "identity", "off the curve", "cut"],
)
def test_a_false_part_is_found_and_its_member_named(forge: object) -> None:
    parts = make_parts()
    parts[3] = forge(parts)  # type: ignore[operator]
    with pytest.raises(BeaconError, match=r"of members \(3,\)"):
        combine_partials(COMMITTEE, ROUND, parts)
    assert find_false_partials(COMMITTEE, ROUND, parts) == (3,)
    with pytest.raises(BeaconError, match="part of member 3 in round 77 is false"):
        verify_partial(COMMITTEE, 3, ROUND, parts[3])
    del parts[3]
    assert combine_partials(COMMITTEE, ROUND, parts) == sign_round(SECRET, ROUND)


@pytest.mark.parametrize("index", [0, 6, -1])
def test_a_part_of_nobody_is_refused(index: int) -> None:
    with pytest.raises(BeaconError, match="no member"):
        verify_partial(COMMITTEE, index, ROUND, make_parts()[1])


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (1, 0), (2, BEACON_MEMBERS_MAX + 1)])
def test_impossible_sizes_are_refused(threshold: int, count: int) -> None:
    with pytest.raises(BeaconError, match="must hold"):
        split_secret(SECRET, threshold, count, ENTROPY)


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (1, 3), (5, 5)])
def test_extreme_sizes_work(threshold: int, count: int) -> None:
    shares = split_secret(SECRET, threshold, count, ENTROPY)
    committee = compute_committee(threshold, SECRET, shares)
    parts = {index: sign_partial(share, 9) for index, share in enumerate(shares, start=1)}
    assert combine_partials(committee, 9, parts) == sign_round(SECRET, 9)


def test_shares_hang_on_secret_and_entropy_alone() -> None:
    assert split_secret(SECRET, 3, 5, ENTROPY) == SHARES
    assert not set(split_secret(SECRET, 3, 5, ENTROPY + b"x")) & set(SHARES)
    with pytest.raises(BeaconError, match="entropy"):
        split_secret(SECRET, 3, 5, bytes(31))
    with pytest.raises(BeaconError, match="secret"):
        split_secret(bytes(32), 3, 5, ENTROPY)


def test_a_committee_off_the_polynomial_is_refused() -> None:
    """A share of another polynomial, two swapped, one twice, another group key, another threshold."""
    shares = COMMITTEE.public_shares
    other = compute_committee(3, SECRET, split_secret(SECRET, 3, 5, ENTROPY + b"x")).public_shares
    swapped = (shares[1], shares[0], *shares[2:])
    for threshold, key, public_shares in (
        (3, COMMITTEE.public_key, (*shares[:4], other[4])),
        (3, COMMITTEE.public_key, swapped),
        (3, COMMITTEE.public_key, (*shares[:4], shares[0])),
        (3, shares[0], shares),
        (2, COMMITTEE.public_key, shares),
        (3, COMMITTEE.public_key, (*shares[:4], bytes([0xC0]) + bytes(95))),
    ):
        with pytest.raises(BeaconError):
            Committee(threshold, key, public_shares)


def test_lagrange_weights_interpolate() -> None:
    """f(x) = 3 + 2x + x² from its values at 1, 2 and 5."""
    weights = compute_lagrange_weights([1, 2, 5], at=0)
    assert sum(w * f for w, f in zip(weights, (6, 11, 38), strict=True)) % bls.ORDER == 3
    weights = compute_lagrange_weights([1, 2, 5], at=4)
    assert sum(w * f for w, f in zip(weights, (6, 11, 38), strict=True)) % bls.ORDER == 27
