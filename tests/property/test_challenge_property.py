"""What holds for every draw, whatever the round said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pocache.protocol.beacon import QUICKNET, bind_round, compute_round_at, compute_round_time_ms
from pocache.protocol.challenge import (
    Corner,
    DeterministicStream,
    draw_corner,
    draw_order,
    draw_positions,
    draw_subset,
)
from pocache.protocol.ids import Digest, ParticipantId

seeds = st.binary(min_size=32, max_size=32).map(Digest)


@given(seed=seeds, bounds=st.lists(st.integers(1, 2**64), max_size=40))
def test_a_draw_lies_below_its_bound_and_repeats(seed: Digest, bounds: list[int]) -> None:
    """The same seed gives the same draws, each in range."""
    first, second = DeterministicStream(seed), DeterministicStream(seed)
    for bound in bounds:
        drawn = first.below(bound)
        assert 0 <= drawn < bound
        assert drawn == second.below(bound)


@given(seed=seeds, n_of=st.integers(0, 300), data=st.data())
def test_a_subset_is_one(seed: Digest, n_of: int, data: st.DataObject) -> None:
    """As many as asked, distinct, ascending, in range."""
    count = data.draw(st.integers(0, n_of))
    subset = draw_subset(DeterministicStream(seed), n_of, count)
    assert len(set(subset)) == count
    assert list(subset) == sorted(subset)
    assert all(0 <= index < n_of for index in subset)


@given(
    seed=seeds,
    prompt_count=st.integers(1, 200),
    output_count=st.integers(1, 200),
    layer_count=st.integers(1, 100),
    sample_count=st.integers(1, 64),
    share=st.integers(0, 4),
)
def test_a_corner_and_its_positions(  # one property, drawn as an audit draws it
    seed: Digest, prompt_count: int, output_count: int, layer_count: int, sample_count: int, share: int
) -> None:
    """The corner ends in the output; its last position is compared; half or all of the output's are in it."""
    leaf_count = prompt_count + output_count - 1
    corner = draw_corner(
        DeterministicStream(seed),
        layer_count=layer_count,
        leaf_count=leaf_count,
        prompt_count=prompt_count,
        full_share=(share, 4),
    )
    assert 0 <= corner.layer_max < layer_count
    assert prompt_count - 1 <= corner.position_max < leaf_count
    if corner.full_depth:
        assert corner == Corner(layer_max=layer_count - 1, position_max=leaf_count - 1, full_depth=True)
    assert corner.full_depth or share < 4
    assert not (corner.full_depth and share == 0)

    positions = draw_positions(
        DeterministicStream(seed), corner, prompt_count=prompt_count, sample_count=sample_count
    )
    assert list(positions) == sorted(set(positions))
    assert positions[0] >= 0
    assert positions[-1] == corner.position_max
    assert len(positions) == min(sample_count, corner.position_max + 1)
    in_output = sum(position >= prompt_count - 1 for position in positions)
    output_size = corner.position_max - (prompt_count - 1) + 1
    assert 2 * in_output >= len(positions) or in_output == output_size


@given(
    seed=seeds,
    stakes=st.dictionaries(st.text("ABC234", min_size=1, max_size=6), st.integers(1, 2**50), max_size=40),
)
def test_sortition_is_a_permutation_by_the_linear_walk(seed: Digest, stakes: dict[str, int]) -> None:
    """Everybody once, and the tree takes whom the definition's walk takes."""
    snapshot = [(ParticipantId(name), stake) for name, stake in sorted(stakes.items())]
    order = draw_order(DeterministicStream(seed), snapshot)
    assert sorted(order) == sorted(stakes)

    stream, left, walked = DeterministicStream(seed), dict(snapshot), []
    while left:
        ticket = stream.below(sum(left.values()))
        for name, stake in left.items():
            if ticket < stake:
                break
            ticket -= stake
        walked.append(name)
        del left[name]
    assert list(order) == walked


@given(since_genesis_ms=st.integers(-(10**6), 10**12), delay_ms=st.integers(0, 10**6))
def test_a_binding_is_the_first_round_strictly_after_the_delay(since_genesis_ms: int, delay_ms: int) -> None:
    """No round lies between an event's delay and the round that it is bound to."""
    time_ms = QUICKNET.genesis_s * 1000 + since_genesis_ms
    bound = bind_round(QUICKNET, time_ms, delay_ms)
    assert compute_round_time_ms(QUICKNET, bound) > time_ms + delay_ms
    if bound > 1:
        assert compute_round_time_ms(QUICKNET, bound - 1) <= time_ms + delay_ms
    assert compute_round_at(QUICKNET, time_ms + delay_ms) == bound - 1
