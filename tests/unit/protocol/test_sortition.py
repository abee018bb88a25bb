"""Who can be drawn and with which weight: nobody for its owner, no owner for more than its share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocache.protocol.errors import ChallengeError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.sortition import compute_weights

A, B, C, D, E, OWNER = (ParticipantId(name) for name in ("A", "B", "C", "D", "E", "owner"))
STAKES = ((A, 10), (B, 20), (C, 30), (D, 40))


def weigh(**changes: object) -> dict[ParticipantId, int]:
    terms: dict[str, object] = {
        "stakes": STAKES,
        "owners": {},
        "parties": (),
        "excluded": (),
        "share_max": (1, 1),
        **changes,
    }
    return dict(compute_weights(**terms))  # type: ignore[arg-type]


def test_without_owners_and_cap_a_stake_is_its_weight() -> None:
    assert weigh() == dict(STAKES)
    assert list(weigh(stakes=reversed(STAKES))) == [A, B, C, D]


def test_parties_and_the_excluded_are_out() -> None:
    assert weigh(parties=(A, E), excluded=(B,)) == {C: 30, D: 40}


@pytest.mark.parametrize("owners", [{A: OWNER, B: OWNER}, {B: A}, {A: B}])
def test_nobody_verifies_for_its_owner(owners: dict[ParticipantId, ParticipantId]) -> None:
    """A generates: B, which is the same owner's, or A's own, or A's owner, is not drawn."""
    assert weigh(owners=owners, parties=(A,)) == {C: 30, D: 40}


def test_nobody_verifies_for_a_user_that_owns_it() -> None:
    """The owner as a user of its own network: its workers are no judges of its jobs."""
    assert weigh(owners={A: OWNER, D: OWNER}, parties=(C, OWNER)) == {B: 20}


def test_one_owner_counts_no_more_than_its_share() -> None:
    """T = 100, L = 50: of B and D, 60 together, each counts 5/6."""
    assert weigh(owners={B: OWNER, D: OWNER}, share_max=(1, 2)) == {A: 10, B: 16, C: 30, D: 33}


def test_keys_without_an_owner_are_capped_one_by_one() -> None:
    assert weigh(share_max=(1, 3)) == {A: 10, B: 20, C: 30, D: 33}


def test_a_cap_leaves_everybody_a_chance() -> None:
    assert weigh(stakes=((A, 1), (B, 1), (C, 1)), share_max=(1, 10)) == {A: 1, B: 1, C: 1}


@pytest.mark.parametrize("share", [(0, 1), (2, 1), (1, 0)])
def test_a_share_that_is_none_is_refused(share: tuple[int, int]) -> None:
    with pytest.raises(ChallengeError, match="share"):
        weigh(share_max=share)


@given(
    stakes=st.lists(st.integers(1, 10**15), min_size=1, max_size=12),
    owner_of=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    denominator=st.integers(1, 10),
)
def test_dividing_a_stake_over_keys_gains_nothing(
    stakes: list[int], owner_of: list[int], denominator: int
) -> None:
    """What one owner weighs is at most its share, but for a unit a key; nobody weighs more than its stake."""
    names = [ParticipantId(f"P{number:02}") for number in range(len(stakes))]
    owners = {name: ParticipantId(f"O{owner_of[number]}") for number, name in enumerate(names)}
    found = weigh(stakes=tuple(zip(names, stakes, strict=True)), owners=owners, share_max=(1, denominator))
    limit = max(1, sum(stakes) // denominator)
    for owner in set(owners.values()):
        keys = [name for name in names if owners[name] == owner]
        assert sum(found[name] for name in keys) <= limit + len(keys)
    assert all(1 <= found[name] <= stake for name, stake in zip(names, stakes, strict=True))
