"""Context sampling: what is due follows from the tokens alone, and just that is taken from a generator."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocache.protocol.context import (
    ContextRule,
    ContextSampler,
    collect_samples,
    compute_due,
    decode_samples,
    encode_samples,
    verify_samples,
)
from pocache.protocol.encoding import FloatFormat, RowKind, RowSchema, encode_leaf
from pocache.protocol.errors import EncodingError, OpeningError
from pocache.protocol.open_mode import OpenIndex, OpenVector

LAYERS = 3
SCHEMA = RowSchema("sketch", FloatFormat.F16, LAYERS, 2, 2, 2, has_hidden=False, has_scores=False)
RULE = ContextRule((1, 4), 2)
TOKENS = tuple(hashlib.shake_256(b"tokens").digest(64))
PROMPT = 10


def make_leaves() -> list[bytes]:
    return [
        encode_leaf(
            SCHEMA,
            position,
            {
                (kind, layer): struct.pack("<2e", position + layer / 4, int(kind))
                for layer in range(LAYERS)
                for kind in (RowKind.K, RowKind.V)
            },
        )
        for position in range(len(TOKENS) - 1)
    ]


def test_known_answer() -> None:
    """Another implementation computes the same indices from these tokens."""
    due = compute_due(range(40), 8, 32, ContextRule((1, 4), 2))
    assert [(index.position, index.layer) for index in due] == KNOWN


KNOWN = [
    (7, 5),
    (7, 25),
    (17, 3),
    (17, 6),
    (24, 0),
    (24, 15),
    (26, 19),
    (26, 26),
    (32, 1),
    (32, 28),
    (35, 6),
    (35, 23),
    (36, 10),
    (36, 29),
    (38, 26),
    (38, 28),
]


def test_a_position_is_due_by_its_tokens_alone() -> None:
    """What comes later moves nothing, but for the last leaf; what came before moves all."""
    due = compute_due(TOKENS, PROMPT, LAYERS, RULE)
    assert due, "nothing was due"
    longer = compute_due((*TOKENS, 1, 2, 3), PROMPT, LAYERS, RULE)
    last = len(TOKENS) - 2
    assert [index for index in due if index.position < last] == [i for i in longer if i.position < last]
    other = compute_due((TOKENS[0] ^ 1, *TOKENS[1:]), PROMPT, LAYERS, RULE)
    assert other != due


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40), st.data())
def test_the_last_leaf_is_always_due_and_the_prompt_never(tokens: list[int], data: st.DataObject) -> None:
    prompt_count = data.draw(st.integers(1, len(tokens) - 1))
    due = compute_due(tokens, prompt_count, LAYERS, RULE)
    assert list(due) == sorted(set(due))
    assert due[-1].position == len(tokens) - 2
    assert all(prompt_count - 1 <= index.position and 0 <= index.layer < LAYERS for index in due)


def test_the_share_is_the_share() -> None:
    due = compute_due(range(4_001), 1, LAYERS, ContextRule((1, 4), 1))
    assert 880 < len(due) < 1_120
    assert {index.layer for index in due} == set(range(LAYERS))


def test_what_is_due_is_taken_and_nothing_else() -> None:
    due = compute_due(TOKENS, PROMPT, LAYERS, RULE)
    samples = collect_samples(SCHEMA, make_leaves(), PROMPT, due)
    assert decode_samples(SCHEMA, encode_samples(samples)) == samples
    assert samples[0].vector == OpenVector(
        struct.pack("<2e", due[0].position + due[0].layer / 4, 1),
        struct.pack("<2e", due[0].position + due[0].layer / 4, 2),
    )
    verify_samples(samples, TOKENS, PROMPT, LAYERS, RULE)
    moved = replace(
        samples[0], index=OpenIndex(samples[0].index.position, (samples[0].index.layer + 1) % LAYERS)
    )
    for wrong, words in (
        (samples[1:], "1 missing, 0 not due"),
        (samples[:-1], "1 missing, 0 not due"),
        ((moved, *samples[1:]), "missing"),
        ((*samples, samples[-1]), "another order"),
        (samples[::-1], "another order"),
        ((), "missing"),
    ):
        with pytest.raises(OpeningError, match=words):
            verify_samples(wrong, TOKENS, PROMPT, LAYERS, RULE)


def test_what_does_not_decode_is_refused() -> None:
    data = encode_samples(
        collect_samples(SCHEMA, make_leaves(), PROMPT, compute_due(TOKENS, PROMPT, LAYERS, RULE))
    )
    with pytest.raises(EncodingError, match="whole samples"):
        decode_samples(SCHEMA, data[:-1])
    nan = data[:6] + struct.pack("<e", float("nan")) + data[8:]
    with pytest.raises(EncodingError, match="not finite"):
        decode_samples(SCHEMA, nan)


def test_rules_and_jobs_out_of_range_are_refused() -> None:
    for share in ((0, 4), (5, 4), (1, 0)):
        with pytest.raises(EncodingError):
            ContextRule(share)
    with pytest.raises(EncodingError):
        ContextRule((1, 4), 0)
    with pytest.raises(EncodingError):
        ContextSampler(ContextRule((1, 4), 4), LAYERS)
    for tokens, prompt_count in (((1,), 1), ((1, 2), 0), ((1, 2), 2)):
        with pytest.raises(EncodingError, match="no output"):
            compute_due(tokens, prompt_count, LAYERS, RULE)
