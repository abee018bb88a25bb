"""Draws: what each input changes, what is refused, and what a draw always contains."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any

import pytest

from pocache.protocol.challenge import (
    Corner,
    DeterministicStream,
    Tag,
    compute_full_corner,
    compute_seed,
    draw_corner,
    draw_order,
    draw_positions,
    draw_subset,
    is_drawn,
)
from pocache.protocol.errors import ChallengeError
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.limits import (
    LAYER_COUNT_MAX,
    LEAF_COUNT_MAX,
    MEMBERS_MAX,
    MICRO_MAX,
    ROUND_MAX,
    SAMPLE_COUNT_MAX,
)

INPUTS: dict[str, Any] = {
    "network": bytes([1]) * 32,
    "chain_hash": bytes([2]) * 32,
    "round_number": 3,
    "randomness": bytes([4]) * 32,
    "root": bytes([5]) * 32,
    "leaf_count": 6,
    "job_id": bytes([7]) * 32,
    "stage": 8,
}
PROMPT_COUNT = 20


def stream(number: int = 0) -> DeterministicStream:
    return DeterministicStream(Digest(sha256(number.to_bytes(8, "big")).digest()))


def member(number: int) -> ParticipantId:
    return ParticipantId(f"U{number:055d}")


def test_every_input_and_tag_changes_the_seed() -> None:
    """Two draws that differ in anything share nothing."""
    seeds = [compute_seed(tag, **INPUTS) for tag in Tag]
    for name, value in INPUTS.items():
        changed = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
        seeds.append(compute_seed(Tag.AUDIT, **{**INPUTS, name: changed}))
    assert len(set(seeds)) == len(Tag) + len(INPUTS)


def test_swapped_inputs_change_the_seed() -> None:
    """Each digest has its place."""
    swapped = {**INPUTS, "root": INPUTS["randomness"], "randomness": INPUTS["root"]}
    assert compute_seed(Tag.AUDIT, **swapped) != compute_seed(Tag.AUDIT, **INPUTS)


@pytest.mark.parametrize("name", ["network", "chain_hash", "randomness", "root", "job_id"])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_digests_of_another_size_are_refused(name: str, size: int) -> None:
    with pytest.raises(ChallengeError, match="32 bytes"):
        compute_seed(Tag.AUDIT, **{**INPUTS, name: bytes(size)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round_number", 0),
        ("round_number", ROUND_MAX + 1),
        ("leaf_count", 0),
        ("leaf_count", LEAF_COUNT_MAX + 1),
        ("stage", -1),
        ("stage", 2**32),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ChallengeError, match="must be in"):
        compute_seed(Tag.AUDIT, **{**INPUTS, name: value})


def test_a_tag_is_one_of_the_protocols() -> None:
    """A text that only looks like one is refused: a typing error is no new draw."""
    with pytest.raises(ChallengeError, match="no draw"):
        compute_seed("Audit", **INPUTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_streams_seed_has_32_bytes(size: int) -> None:
    with pytest.raises(ChallengeError, match="32 bytes"):
        DeterministicStream(Digest(bytes(size)))


@pytest.mark.parametrize("bound", [-1, 0, 2**64 + 1])
def test_bounds_out_of_range_are_refused(bound: int) -> None:
    """Nothing lies below zero, and a word has 64 bits."""
    with pytest.raises(ChallengeError, match="bound"):
        stream().below(bound)


def test_below_has_no_bias() -> None:
    """3·2^62 leaves a quarter of the words over; without the rejection one third would come twice as often."""
    bound, drawn = 3 * 2**62, Counter[int]()
    source = stream()
    for _ in range(3000):
        drawn[source.below(bound) // 2**62] += 1
    assert all(900 < drawn[third] < 1100 for third in range(3))


@pytest.mark.parametrize(("numerator", "denominator"), [(-1, 2), (3, 2), (0, 0), (1, 2**64 + 1)])
def test_shares_out_of_range_are_refused(numerator: int, denominator: int) -> None:
    """A share lies between nothing and all."""
    with pytest.raises(ChallengeError, match="share"):
        is_drawn(stream(), numerator, denominator)


def test_a_lottery_is_won_as_often_as_it_says() -> None:
    """Never at 0, always at 1, about a fifth at 1/5."""
    source = stream()
    assert not any(is_drawn(source, 0, 5) for _ in range(100))
    assert all(is_drawn(source, 5, 5) for _ in range(100))
    assert 340 < sum(is_drawn(source, 1, 5) for _ in range(2000)) < 460


@pytest.mark.parametrize(("n_of", "count"), [(5, 6), (5, -1), (-1, 0), (0, 1)])
def test_subsets_out_of_range_are_refused(n_of: int, count: int) -> None:
    """No more than there is, no less than nothing."""
    with pytest.raises(ChallengeError):
        draw_subset(stream(), n_of, count)


def test_every_subset_is_equally_likely() -> None:
    """All ten pairs of five, each about 200 times in 2,000."""
    source = stream()
    drawn = Counter(draw_subset(source, 5, 2) for _ in range(2000))
    assert len(drawn) == 10
    assert all(140 < count < 260 for count in drawn.values())


def test_corners_reach_every_depth_and_every_output_position() -> None:
    """Partial corners are uniform over the layers, and lie in the output; the full share is full."""
    source = stream()
    corners = [
        draw_corner(source, layer_count=4, leaf_count=24, prompt_count=PROMPT_COUNT, full_share=(1, 4))
        for _ in range(1600)
    ]
    full = [corner for corner in corners if corner.full_depth]
    partial = [corner for corner in corners if not corner.full_depth]
    assert 330 < len(full) < 470
    assert set(full) == {compute_full_corner(4, 24)}
    depths = Counter(corner.layer_max for corner in partial)
    ends = Counter(corner.position_max for corner in partial)
    assert set(depths) == set(range(4))
    assert set(ends) == set(range(PROMPT_COUNT - 1, 24))
    assert all(240 < count < 360 for count in depths.values())
    assert all(180 < count < 300 for count in ends.values())


def test_a_full_corner_includes_the_last_layer_and_leaf() -> None:
    """Inclusive indices, and the rows behind the last layer."""
    assert compute_full_corner(32, 100) == Corner(layer_max=31, position_max=99, full_depth=True)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_count": 0},
        {"layer_count": LAYER_COUNT_MAX + 1},
        {"leaf_count": 0},
        {"leaf_count": LEAF_COUNT_MAX + 1},
        {"prompt_count": 0},
        {"prompt_count": 25},
        {"full_share": (2, 1)},
        {"full_share": (0, 0)},
    ],
    ids=str,
)
def test_corners_of_what_cannot_be_are_refused(change: dict[str, Any]) -> None:
    """No layers, no leaves, a prompt that leaves no output, a share above one."""
    good: dict[str, Any] = {"layer_count": 4, "leaf_count": 24, "prompt_count": 20, "full_share": (1, 4)}
    draw_corner(stream(), **good)
    with pytest.raises(ChallengeError):
        draw_corner(stream(), **{**good, **change})


@pytest.mark.parametrize(
    ("layer_max", "position_max"), [(-1, 0), (0, -1), (LAYER_COUNT_MAX, 0), (0, LEAF_COUNT_MAX)]
)
def test_a_corner_lies_within_the_limits(layer_max: int, position_max: int) -> None:
    with pytest.raises(ChallengeError, match="corner"):
        Corner(layer_max=layer_max, position_max=position_max, full_depth=False)


def test_positions_of_a_long_prompt_and_a_short_output() -> None:
    """Where the output has fewer than half, all of it is compared."""
    positions = draw_positions(
        stream(), Corner(3, 1001, full_depth=False), prompt_count=1000, sample_count=16
    )
    assert len(positions) == 16
    assert positions[-3:] == (999, 1000, 1001)


def test_positions_may_lie_anywhere() -> None:
    """Over many draws, every position of the corner comes up: nothing is safe to forge."""
    source, corner = stream(), Corner(0, 30, full_depth=False)
    drawn: set[int] = set()
    for _ in range(200):
        drawn.update(draw_positions(source, corner, prompt_count=PROMPT_COUNT, sample_count=4))
    assert drawn == set(range(31))


def test_a_small_corner_is_compared_whole() -> None:
    """More samples than positions: all of them, once."""
    assert draw_positions(stream(), Corner(0, 4, full_depth=False), prompt_count=2, sample_count=16) == (
        0,
        1,
        2,
        3,
        4,
    )


@pytest.mark.parametrize(
    ("prompt_count", "sample_count"), [(0, 4), (32, 4), (20, 0), (20, -1), (20, SAMPLE_COUNT_MAX + 1)]
)
def test_positions_of_what_cannot_be_are_refused(prompt_count: int, sample_count: int) -> None:
    """A corner that ends before the output, no samples, too many."""
    with pytest.raises(ChallengeError):
        draw_positions(
            stream(), Corner(0, 30, full_depth=False), prompt_count=prompt_count, sample_count=sample_count
        )


def test_sortition_follows_the_stake() -> None:
    """First place goes to each in proportion to its stake."""
    source, first = stream(), Counter[ParticipantId]()
    stakes = [(member(0), 1_000), (member(1), 3_000), (member(2), 6_000)]
    for _ in range(2000):
        first[draw_order(source, stakes)[0]] += 1
    assert 140 < first[member(0)] < 260
    assert 520 < first[member(1)] < 680
    assert 1100 < first[member(2)] < 1300


def test_splitting_a_stake_wins_no_first_place() -> None:
    """Ten identities of a tenth each come first as often as one of the whole."""
    source, stakes = stream(), [(member(0), 1000)] + [(member(number), 100) for number in range(1, 11)]
    whole = sum(draw_order(source, stakes)[0] == member(0) for _ in range(1000))
    assert 440 < whole < 560


@pytest.mark.parametrize(
    "stakes",
    [
        [(member(1), 1), (member(0), 1)],
        [(member(0), 1), (member(0), 1)],
        [(member(0), 0)],
        [(member(0), 5), (member(1), -1)],
        [(member(0), MICRO_MAX + 1)],
        [(member(number), MICRO_MAX) for number in range(3)],
        [(member(number), 1) for number in range(MEMBERS_MAX + 1)],
    ],
    ids=["unsorted", "twice", "zero", "negative", "too large", "sum too large", "too many"],
)
def test_a_snapshot_in_disorder_is_refused(stakes: list[tuple[ParticipantId, int]]) -> None:
    """One snapshot has one order: by id, each once, each with a stake."""
    with pytest.raises(ChallengeError):
        draw_order(stream(), stakes)


def test_a_full_snapshot_is_drawn_whole() -> None:
    """As many members as the protocol allows, each exactly once."""
    stakes = [(member(number), 1 + number % 7) for number in range(MEMBERS_MAX)]
    order = draw_order(stream(), stakes)
    assert len(order) == MEMBERS_MAX
    assert set(order) == {participant for participant, _ in stakes}
