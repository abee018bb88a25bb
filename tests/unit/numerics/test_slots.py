"""A batch of slots draws and sketches what each job would by itself."""

from __future__ import annotations

import hashlib

import pytest
import torch

from pocache.numerics.sampler import NOISE_CELLS_MAX, Sampler
from pocache.numerics.sketch import Sketcher
from pocache.numerics.slots import SlotSampler, SlotSketcher
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import FloatFormat, RowKind, RowSchema

CPU = torch.device("cpu")
SAMPLINGS = (
    Sampling(),
    Sampling(temperature_micro=1_000_000),
    Sampling(700_000, top_k=5),
    Sampling(1_300_000, top_p_micro=600_000),
    Sampling(900_000, top_k=40, top_p_micro=900_000),
    Sampling(500_000, top_k=1_000_000),
)


def make_seed(index: int) -> bytes:
    return hashlib.sha256(bytes([index])).digest()


@pytest.mark.parametrize("vocab_size", [50, NOISE_CELLS_MAX // 2 + 1])
def test_tokens_and_scores_are_those_of_each_job_alone(vocab_size: int) -> None:
    """Over the end of a block of noise as well: the larger vocabulary draws one position at a time."""
    generator = torch.Generator().manual_seed(3)
    slots = SlotSampler(len(SAMPLINGS), vocab_size, CPU)
    alone = []
    for slot, sampling in enumerate(SAMPLINGS):
        slots.join(slot, sampling, make_seed(slot))
        alone.append(Sampler(sampling, make_seed(slot), vocab_size))
    positions = [7 * slot for slot in range(len(SAMPLINGS))]
    for _ in range(4):
        logits_BV = 3 * torch.randn(len(SAMPLINGS), vocab_size, generator=generator)
        tokens_B, scores_B3, ok_B = slots.sample(0, logits_BV, torch.tensor(positions), positions)
        for slot, sampler in enumerate(alone):
            token, scores_3 = sampler.sample(logits_BV[slot], positions[slot])
            assert int(tokens_B[slot]) == token
            assert torch.equal(scores_B3[slot], scores_3)
        assert bool(ok_B.all())
        positions = [position + 1 for position in positions]


def test_a_slot_given_to_another_job_forgets_the_first() -> None:
    slots = SlotSampler(3, 50, CPU)
    for slot in range(3):
        slots.join(slot, SAMPLINGS[1], make_seed(slot))
    logits_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    slots.sample(0, logits_BV, torch.tensor([4, 4, 4]), [4, 4, 4])
    slots.move(2, 0)
    slots.join(2, Sampling(), make_seed(9))
    tokens_B, _, _ = slots.sample(0, logits_BV, torch.tensor([5, 5, 5]), [5, 5, 5])
    expected = [
        Sampler(sampling, make_seed(seed), 50).sample(logits_BV[slot], 5)[0]
        for slot, (sampling, seed) in enumerate([(SAMPLINGS[1], 2), (SAMPLINGS[1], 1), (Sampling(), 9)])
    ]
    assert tokens_B.tolist() == expected


def test_ties_take_the_lowest_token() -> None:
    slots = SlotSampler(1, 9, CPU)
    slots.join(0, Sampling(), make_seed(0))
    logits_BV = torch.zeros(1, 9)
    logits_BV[0, 4:] = 1.0
    assert slots.sample(0, logits_BV, torch.tensor([0]), [0])[0].tolist() == [4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_slot_that_is_not_finite_is_flagged_and_the_others_go_on(bad: float) -> None:
    slots = SlotSampler(2, 9, CPU)
    for slot in range(2):
        slots.join(slot, SAMPLINGS[1], make_seed(slot))
    logits_BV = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    expected, _, _ = slots.sample(0, logits_BV, torch.tensor([3, 3]), [3, 3])
    logits_BV[0, 2] = bad
    tokens_B, _, ok_B = slots.sample(0, logits_BV, torch.tensor([3, 3]), [3, 3])
    assert ok_B.tolist() == [False, True]
    assert int(tokens_B[1]) == int(expected[1])
    assert 0 <= int(tokens_B[0]) < 9


@pytest.mark.parametrize("encoding", ["sketch", "raw"])
@pytest.mark.parametrize("widths", [(6, 6, 10), (6, 4, 10)])
def test_rows_are_those_of_each_jobs_sketcher(encoding: str, widths: tuple[int, int, int]) -> None:
    """In the order of a leaf, whether keys and values come in one group or in two."""
    key, value, hidden = widths
    schema = RowSchema(
        encoding=encoding,  # type: ignore[arg-type]
        float_format=FloatFormat.F32,
        layer_count=2,
        key_width=3 if encoding == "sketch" else key,
        value_width=3 if encoding == "sketch" else value,
        hidden_width=3 if encoding == "sketch" else hidden,
    )
    groups = [(key, (0, 1, 2, 3)), (hidden, (4,))]
    if key != value:
        groups = [(key, (0, 2)), (value, (1, 3)), (hidden, (4,))]
    slots = SlotSketcher(schema, groups, 2, CPU)
    sketchers = [Sketcher(b"n", b"s", bytes([index]), schema) for index in range(2)]
    for slot, sketcher in enumerate(sketchers):
        slots.join(slot, sketcher)
    vectors = {row: torch.randn(2, width) for width, rows in groups for row in rows}
    found = slots.sketch(0, [torch.stack([vectors[row] for row in rows], dim=1) for _, rows in groups])
    keys = [(RowKind.K, 0), (RowKind.V, 0), (RowKind.K, 1), (RowKind.V, 1), (RowKind.HIDDEN, 0)]
    for slot, sketcher in enumerate(sketchers):
        expected = torch.cat(
            [sketcher.sketch(*name, vectors[row][slot : slot + 1])[0] for row, name in enumerate(keys)]
        )
        assert torch.allclose(found[slot], expected, rtol=1e-5, atol=1e-6)
