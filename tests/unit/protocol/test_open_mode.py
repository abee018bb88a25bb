"""Open mode in whole numbers: honest verifiers agree with the user, lazy ones are told apart, and the search ends early."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocache.protocol.challenge import DeterministicStream
from pocache.protocol.encoding import FloatFormat, RowKind, RowSchema
from pocache.protocol.errors import EncodingError, MatchingError
from pocache.protocol.ids import Digest
from pocache.protocol.matching import KindThreshold, MatchingProfile
from pocache.protocol.open_mode import (
    OpenAnswer,
    OpenIndex,
    OpenKey,
    OpenMatcher,
    OpenQuestion,
    OpenSample,
    OpenVector,
    OpenVerdict,
    build_question,
    verify_answer,
)

LAYERS, POSITIONS, WIDTH = 4, 6, 4
SCHEMA = RowSchema("sketch", FloatFormat.F32, LAYERS, WIDTH, WIDTH, WIDTH)
PROFILE = MatchingProfile(
    thresholds=tuple(
        KindThreshold(kind, layer, -20 << 16, 1 << 16)
        for kind in (RowKind.K, RowKind.V)
        for layer in range(LAYERS)
    ),
    mean_match_max_q16=4 << 16,
    mean_mismatch_min_q16=5 << 16,
    peak_match_max_q16=4 << 16,
    peak_mismatch_min_q16=5 << 16,
    about={},
)


def make_stream(seed: int = 0) -> DeterministicStream:
    return DeterministicStream(Digest(seed.to_bytes(32, "big")))


def make_vector(position: int, layer: int, shift: float = 0.0) -> OpenVector:
    rows = [
        struct.pack(
            f"<{WIDTH}f",
            *((7 * position + 3 * layer + kind + 2 + column) ** 0.5 + shift for column in range(WIDTH)),
        )
        for kind in (0, 1)
    ]
    return OpenVector(*rows)


def make_samples(*places: tuple[int, int], shift: float = 0.0) -> list[OpenSample]:
    return [OpenSample(OpenIndex(*place), make_vector(*place, shift)) for place in places]


def search(question: OpenQuestion, *, positions: int = POSITIONS) -> OpenAnswer:
    """Answer as an honest verifier does, with every position a candidate where indices are not told."""
    matcher = OpenMatcher(question, SCHEMA, PROFILE)
    for layer in range(LAYERS):
        candidates = {
            number: [
                (position, make_vector(position, layer))
                for position in (range(positions) if index is None else [index.position])
            ]
            for number, index in matcher.list_wanted(layer)
        }
        if not matcher.take(layer, candidates):
            break
    return matcher.answer()


SPREAD = [(0, 0), (1, 0), (2, 0), (3, 1), (5, 1), (4, 2)]


@pytest.mark.parametrize("indexed", [True, False])
def test_an_honest_pair_matches_in_both_forms(indexed: bool) -> None:
    question, key = build_question(
        make_samples(*SPREAD), indexed=indexed, decoy_pairs=1 if indexed else 0, stream=make_stream()
    )
    assert (question.indices is None) is not indexed
    answer = search(question)
    assert verify_answer(question, key, answer) is OpenVerdict.MATCHED
    assert answer.layers_run == 3, "nothing is left to match behind layer 2"


def test_rounding_passes_and_another_vector_does_not() -> None:
    for shift, verdict in ((1e-6, OpenVerdict.MATCHED), (1e-3, OpenVerdict.UNMATCHED)):
        question, key = build_question(
            make_samples(*SPREAD, shift=shift), indexed=True, decoy_pairs=0, stream=make_stream()
        )
        assert verify_answer(question, key, search(question)) is verdict


def test_one_wrong_half_of_a_vector_is_no_match() -> None:
    for wrong in ("key_row", "value_row"):
        [sample] = make_samples((2, 1))
        forged = replace(
            sample, vector=replace(sample.vector, **{wrong: make_vector(3, 1).get_row(RowKind.K)})
        )
        question, key = build_question([forged], indexed=False, decoy_pairs=0, stream=make_stream())
        answer = search(question)
        assert verify_answer(question, key, answer) is OpenVerdict.UNMATCHED
        assert answer.layers_run == LAYERS, "what is not found is looked for to the end"


def test_a_verifier_that_agrees_to_everything_is_told_by_the_decoys() -> None:
    question, key = build_question(make_samples(*SPREAD), indexed=True, decoy_pairs=1, stream=make_stream())
    assert question.indices is not None
    lazy = OpenAnswer(tuple(enumerate(question.indices)), LAYERS)
    assert verify_answer(question, key, lazy) is OpenVerdict.FALSE_CLAIM
    assert key.indices.count(None) == 2


def test_a_verifier_without_indices_cannot_invent_them() -> None:
    question, key = build_question(make_samples(*SPREAD), indexed=False, decoy_pairs=0, stream=make_stream())
    invented = OpenAnswer(tuple((n, OpenIndex(*place)) for n, place in enumerate(SPREAD)), LAYERS)
    assert verify_answer(question, key, invented) is OpenVerdict.FALSE_CLAIM, (
        "even who knows the set does not know which is which"
    )
    assert verify_answer(question, key, OpenAnswer((), LAYERS)) is OpenVerdict.UNMATCHED


@settings(deadline=None)
@given(st.data())
def test_no_answer_but_the_true_one_is_matched(data: st.DataObject) -> None:
    """Soundness: any other claim, of more, of less or of another place, is something else."""
    indexed = data.draw(st.booleans())
    pairs = data.draw(st.integers(0, 2)) if indexed else 0
    seed = data.draw(st.integers(0, 2**32))
    question, key = build_question(
        make_samples(*SPREAD), indexed=indexed, decoy_pairs=pairs, stream=make_stream(seed)
    )
    truth = search(question)
    places = st.builds(OpenIndex, st.integers(0, POSITIONS - 1), st.integers(0, LAYERS - 1))
    claims = data.draw(st.dictionaries(st.integers(0, len(SPREAD) - 1), places))
    kept = data.draw(st.sets(st.sampled_from([number for number, _ in truth.matches])))
    claimed = {**claims, **{number: index for number, index in truth.matches if number in kept}}
    answer = OpenAnswer(tuple(sorted(claimed.items())), LAYERS)
    expected = answer.matches == truth.matches
    assert (verify_answer(question, key, answer) is OpenVerdict.MATCHED) is expected


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2))
def test_decoys_keep_indices_vectors_and_layers(seed: int, pairs: int) -> None:
    """Nothing but computing tells a decoy: the same indices, no vector twice, each in its own layer."""
    samples = make_samples(*SPREAD)
    question, key = build_question(samples, indexed=True, decoy_pairs=pairs, stream=make_stream(seed))
    assert question.indices is not None
    assert sorted(question.indices) == sorted(sample.index for sample in samples)
    assert len(set(question.vectors)) == len(samples)
    assert key.indices.count(None) == 2 * pairs
    homes = {sample.vector: sample.index for sample in samples}
    for vector, index, truth in zip(question.vectors, question.indices, key.indices, strict=True):
        assert homes[vector].layer == index.layer
        assert (homes[vector] == index) is (truth is not None)


@pytest.mark.parametrize(("places", "pairs"), [(SPREAD, 3), (SPREAD, -1), (SPREAD[:2], 1), (SPREAD[2:4], 1)])
def test_decoys_that_cannot_be_had_are_refused(places: list[tuple[int, int]], pairs: int) -> None:
    with pytest.raises(MatchingError, match="not to be had"):
        build_question(make_samples(*places), indexed=True, decoy_pairs=pairs, stream=make_stream())
    with pytest.raises(MatchingError, match="nothing to agree to"):
        build_question(make_samples(*SPREAD), indexed=False, decoy_pairs=1, stream=make_stream())


def test_a_bound_on_failures_ends_the_search() -> None:
    places = [(position, layer) for layer in range(LAYERS) for position in range(3)]
    question, key = build_question(
        make_samples(*places, shift=0.5), indexed=True, decoy_pairs=0, stream=make_stream()
    )
    assert search(question).layers_run == LAYERS
    bounded = replace(question, unmatched_max=3)
    assert search(bounded).layers_run == 2
    assert verify_answer(bounded, key, search(bounded)) is OpenVerdict.UNMATCHED


def test_what_is_malformed_is_refused() -> None:
    [sample] = make_samples((0, 0))
    question, key = build_question([sample], indexed=True, decoy_pairs=0, stream=make_stream())
    index = OpenIndex(0, 0)
    for matches in (((0, index), (0, index)), ((1, index),), ((-1, index),)):
        with pytest.raises(EncodingError):
            verify_answer(question, key, OpenAnswer(matches, 1))
    with pytest.raises(EncodingError, match="another question"):
        verify_answer(question, OpenKey((index, index)), OpenAnswer((), 1))
    with pytest.raises(EncodingError, match="same index"):
        build_question([sample, sample], indexed=True, decoy_pairs=0, stream=make_stream())
    for bad in ((), (sample.vector,) * 4_097):
        with pytest.raises(EncodingError, match="1 to 4096"):
            OpenQuestion(bad, None)
    with pytest.raises(EncodingError, match="one index for each"):
        OpenQuestion((sample.vector,), (index, index))
    with pytest.raises(EncodingError, match="may fail"):
        OpenQuestion((sample.vector,), None, unmatched_max=1)
    with pytest.raises(EncodingError, match="no position"):
        OpenIndex(-1, 0)


def test_a_matcher_refuses_foreign_rows_and_layers() -> None:
    nan = struct.pack("<4f", float("nan"), 0, 0, 0)
    good = make_vector(0, 0).key_row
    for vector in (OpenVector(good, good[:-4]), OpenVector(nan, good), OpenVector(good, nan)):
        with pytest.raises(MatchingError, match="no row of this schema"):
            OpenMatcher(OpenQuestion((vector,), None), SCHEMA, PROFILE)
    with pytest.raises(MatchingError, match="outside 4 layers"):
        OpenMatcher(OpenQuestion((make_vector(0, 0),), (OpenIndex(0, LAYERS),)), SCHEMA, PROFILE)
    bare = replace(PROFILE, thresholds=PROFILE.thresholds[:LAYERS])
    matcher = OpenMatcher(OpenQuestion((make_vector(0, 0),), None), SCHEMA, bare)
    with pytest.raises(MatchingError, match="no threshold"):
        matcher.take(0, {0: [(0, make_vector(0, 0))]})
