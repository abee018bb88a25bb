"""Which jobs share a pass, and what happens when a pass is too large."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocache.engine.memory import is_out_of_memory, run_split
from pocache.engine.packing import PACK_TOKENS_FULL, PackItem, compute_packs
from pocache.engine.slab import GRAIN_TOKENS, compute_capacity
from pocache.protocol.errors import EngineError

ITEMS = st.lists(
    st.builds(PackItem, st.integers(1, 900), st.integers(1, 9), st.integers(0, 300)), max_size=30
)


@given(ITEMS, st.integers(1, 2_000), st.integers(1, 800))
def test_each_job_is_in_one_pack_within_the_bounds(
    items: list[PackItem], tokens_max: int, logits_max: int
) -> None:
    packs = compute_packs(items, tokens_max=tokens_max, logits_max=logits_max)
    assert sorted(index for pack in packs for index in pack) == list(range(len(items)))
    for pack in packs:
        depths = [items[index].layer_count for index in pack]
        assert depths == sorted(depths, reverse=True)
        if len(pack) > 1:
            assert sum(items[index].token_count for index in pack) <= tokens_max
            assert sum(items[index].logit_count for index in pack) <= logits_max


def test_a_shallow_job_rides_along_only_while_the_pass_is_small() -> None:
    deep, shallow = PackItem(PACK_TOKENS_FULL, 8), PackItem(10, 4)
    assert compute_packs([shallow, PackItem(10, 8)], logits_max=1) == [[1, 0]]
    assert compute_packs([shallow, deep], logits_max=1) == [[1], [0]]
    assert compute_packs([PackItem(10, 5), deep], logits_max=1) == [[1, 0]]


def test_capacity_is_rounded_up_and_bounded() -> None:
    assert compute_capacity([10, 70], 8, 10_000) == (8, 2 * GRAIN_TOKENS)
    assert compute_capacity([10, 70], 8, 256) == (2, 2 * GRAIN_TOKENS)
    assert compute_capacity([10, 70], 8, 150) == (2, 70)
    assert compute_capacity([10, 70], 8, 130) is None


def test_what_fails_together_is_halved_until_it_passes() -> None:
    tried: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("too large")
        return [10 * item for item in items]

    assert run_split(work, range(7), _raise) == [10 * item for item in range(7)]
    assert tried == [7, 3, 1, 2, 4, 2, 2]


def test_only_what_fails_alone_fails() -> None:
    def work(items: Sequence[int]) -> list[object]:
        if 3 in items:
            raise RuntimeError("three")
        return list(items)

    found = run_split(work, range(5), lambda item, error: (item, str(error)))
    assert found == [0, 1, 2, (3, "three"), 4]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_too_large_alone_is_an_engine_error(error: Exception) -> None:
    def work(_items: Sequence[int]) -> list[int]:
        raise error

    assert is_out_of_memory(error)
    with pytest.raises(EngineError, match="out of memory"):
        run_split(work, [1], _raise)


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(EngineError("no"))


def _raise(_item: int, error: Exception) -> int:
    raise error
