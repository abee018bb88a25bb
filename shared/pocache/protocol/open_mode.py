"""Open mode: the verifier is given vectors, says where they occur, and the user checks that (docs/protocol.md 15).

Owns the question, the verifier's search in whole numbers, and the user's own validation. Refuses questions and answers
that are malformed. It is the paper's figure 2. Its result is never an audit and moves no money: the generator knows
which vectors it handed out, so it says nothing about the others. Not covered: that the vectors are those that the
generator committed to (``merkle``), and which of generator and verifier is at fault when a vector is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from pocache.protocol.challenge import DeterministicStream, draw_subset
from pocache.protocol.encoding import RowKey, RowKind, RowSchema, is_finite
from pocache.protocol.errors import EncodingError, MatchingError
from pocache.protocol.limits import LEAF_COUNT_MAX, OPEN_VECTORS_MAX
from pocache.protocol.matching import (
    KindThreshold,
    MatchingProfile,
    compute_log2_distance_q16,
    compute_standard_q16,
)

KINDS: Final = (RowKind.K, RowKind.V)


class OpenVerdict(StrEnum):
    """What a user concludes from an answer; none of them is a verdict of 7.3."""

    MATCHED = "matched"
    """Every vector was found where the user's own copy has it, and no decoy was."""

    UNMATCHED = "unmatched"
    """Vectors were not found: the generator's are wrong, or the verifier did not look. Ask another verifier."""

    FALSE_CLAIM = "false-claim"
    """The verifier says that it found what cannot be there: it did not compute what it claims."""


@dataclass(frozen=True, slots=True, order=True)
class OpenIndex:
    """Where a vector belongs: token position and layer."""

    position: int
    layer: int

    def __post_init__(self) -> None:
        if not (0 <= self.position < LEAF_COUNT_MAX and self.layer >= 0):
            raise EncodingError(f"there is no position {self.position} or layer {self.layer}")


@dataclass(frozen=True, slots=True)
class OpenVector:
    """One layer's K and V of one token, as the row schema encodes them."""

    key_row: bytes
    value_row: bytes

    def get_row(self, kind: RowKind) -> bytes:
        """Return one of the two rows."""
        return self.key_row if kind is RowKind.K else self.value_row


@dataclass(frozen=True, slots=True)
class OpenSample:
    """A vector, and where its owner says that it belongs."""

    index: OpenIndex
    vector: OpenVector


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """What a verifier is told beside the tokens: vectors in no order, with their indices or without.

    ``indices`` is None in the form without: the verifier has to find them. With indices a verifier that has seen more than
    ``unmatched_max`` vectors fail may stop; that tells it how many decoys there are, at most.
    """

    vectors: tuple[OpenVector, ...]
    indices: tuple[OpenIndex, ...] | None
    unmatched_max: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.vectors) <= OPEN_VECTORS_MAX:
            raise EncodingError(f"a question has 1 to {OPEN_VECTORS_MAX} vectors, not {len(self.vectors)}")
        if self.indices is not None and len(self.indices) != len(self.vectors):
            raise EncodingError("a question has one index for each vector, or none at all")
        if self.unmatched_max is not None and (self.indices is None or self.unmatched_max < 0):
            raise EncodingError("how many vectors may fail is a count, and of a question with indices")

    @property
    def layer_max(self) -> int | None:
        """Return the deepest layer that is asked about, None where that is not told."""
        return None if self.indices is None else max(index.layer for index in self.indices)

    @property
    def position_max(self) -> int | None:
        """Return the last position that is asked about, None where that is not told."""
        return None if self.indices is None else max(index.position for index in self.indices)


@dataclass(frozen=True, slots=True)
class OpenKey:
    """What the user keeps to itself: where each vector of the question belongs, None for a decoy."""

    indices: tuple[OpenIndex | None, ...]


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """What the verifier says: vector number → where it found it; and how many layers it ran to know."""

    matches: tuple[tuple[int, OpenIndex], ...]
    layers_run: int


def build_question(
    samples: Sequence[OpenSample], *, indexed: bool, decoy_pairs: int, stream: DeterministicStream
) -> tuple[OpenQuestion, OpenKey]:
    """Return a question over all samples in an order that the stream draws, and what the user keeps.

    With indices a verifier could agree to everything without computing. ``decoy_pairs`` pairs of samples of one layer
    therefore change places: the indices stay the same and no vector occurs twice, so that a decoy is seen by computing
    alone. Without indices there is nothing to agree to, and decoys are refused. MatchingError where there are not as many.
    """
    indices = [sample.index for sample in samples]
    if len(set(indices)) != len(indices):
        raise EncodingError("two samples of one question have the same index")
    truth: list[OpenIndex | None] = list(indices)
    vectors = [sample.vector for sample in samples]
    if decoy_pairs and not indexed:
        raise MatchingError("a question without indices has no decoys: there is nothing to agree to")
    for left, right in _draw_pairs(samples, decoy_pairs, stream):
        vectors[left], vectors[right] = vectors[right], vectors[left]
        truth[left] = truth[right] = None
    order = _draw_permutation(len(samples), stream)
    question = OpenQuestion(
        vectors=tuple(vectors[number] for number in order),
        indices=tuple(indices[number] for number in order) if indexed else None,
    )
    return question, OpenKey(tuple(truth[number] for number in order))


class OpenMatcher:
    """The verifier's side of one question: shown its own rows layer by layer, it says when nothing is left to find.

    A vector matches a row pair when the standardised distances of K and of V (docs/protocol.md 7.2) are both within the
    profile's ``peak_match_max``. Raises MatchingError for vectors that the schema does not have.
    """

    def __init__(self, question: OpenQuestion, schema: RowSchema, profile: MatchingProfile) -> None:
        self._question = question
        self._schema = schema
        self._limit_q16 = profile.peak_match_max_q16
        self._thresholds = {(row.kind, row.layer): row for row in profile.thresholds}
        self._matches: dict[int, OpenIndex] = {}
        self._open = set(range(len(question.vectors)))
        self._layers_run = 0
        for vector in question.vectors:
            for kind in KINDS:
                row = vector.get_row(kind)
                if len(row) != schema.row_bytes(kind) or not is_finite(row, schema.float_format):
                    raise MatchingError(f"a vector's {kind.name} is no row of this schema")
        for index in question.indices or ():
            if index.layer >= schema.layer_count:
                raise MatchingError(f"layer {index.layer} lies outside {schema.layer_count} layers")

    def list_wanted(self, layer: int) -> list[tuple[int, OpenIndex | None]]:
        """Return the vectors to look for in a layer: all that are open, or with indices those that belong there."""
        indices = self._question.indices
        if indices is None:
            return [(number, None) for number in sorted(self._open)]
        return [(number, indices[number]) for number in sorted(self._open) if indices[number].layer == layer]

    def take(self, layer: int, candidates: Mapping[int, Iterable[tuple[int, OpenVector]]]) -> bool:
        """Decide one layer; return whether a deeper one could still hold something.

        ``candidates`` names for each wanted vector the positions where it may be, with the verifier's own rows there: the
        one of its index, or those that lie nearest. The first that matches is taken.
        """
        assert layer == self._layers_run, "layers come in order"
        self._layers_run += 1
        for number, places in candidates.items():
            assert number in self._open, "only what is open is looked for"
            for position, ours in places:
                if self._is_match(layer, ours, self._question.vectors[number]):
                    self._matches[number] = OpenIndex(position, layer)
                    self._open.discard(number)
                    break
        if self._question.indices is not None:
            # What did not match at its index never will.
            self._open -= {n for n in self._open if self._question.indices[n].layer == layer}
            failed = len(self._question.vectors) - len(self._open) - len(self._matches)
            if self._question.unmatched_max is not None and failed > self._question.unmatched_max:
                return False
        return bool(self._open) and self._layers_run < self._schema.layer_count

    def answer(self) -> OpenAnswer:
        """Return what was found."""
        return OpenAnswer(tuple(sorted(self._matches.items())), self._layers_run)

    def _is_match(self, layer: int, ours: OpenVector, theirs: OpenVector) -> bool:
        return all(
            self._compute_standard((kind, layer), ours.get_row(kind), theirs.get_row(kind)) <= self._limit_q16
            for kind in KINDS
        )

    def _compute_standard(self, key: RowKey, ours: bytes, theirs: bytes) -> int:
        threshold: KindThreshold | None = self._thresholds.get(key)
        if threshold is None:
            raise MatchingError(f"the profile has no threshold for the row {key!r}")
        log2_q16 = compute_log2_distance_q16(ours, theirs, self._schema.float_format)
        return compute_standard_q16(threshold, log2_q16)


def verify_answer(question: OpenQuestion, key: OpenKey, answer: OpenAnswer) -> OpenVerdict:
    """Judge an answer by the user's own copy (docs/protocol.md 15.4); raises EncodingError for a malformed one.

    A claim at another index than the user's, or of a decoy, is false whatever else is right.
    """
    if len(key.indices) != len(question.vectors):
        raise EncodingError("the key belongs to another question")
    numbers = [number for number, _ in answer.matches]
    if any(left >= right for left, right in pairwise(numbers)):
        raise EncodingError("an answer names vectors in ascending order, each once")
    if numbers and not 0 <= numbers[0] <= numbers[-1] < len(question.vectors):
        raise EncodingError("an answer names a vector that was not asked about")
    if any(key.indices[number] != index for number, index in answer.matches):
        return OpenVerdict.FALSE_CLAIM
    wanted = sum(index is not None for index in key.indices)
    return OpenVerdict.MATCHED if len(numbers) == wanted else OpenVerdict.UNMATCHED


def _draw_pairs(
    samples: Sequence[OpenSample], count: int, stream: DeterministicStream
) -> list[tuple[int, int]]:
    """Return ``count`` disjoint pairs of sample numbers, each within one layer."""
    layers: dict[int, list[int]] = {}
    for number in _draw_permutation(len(samples), stream):
        layers.setdefault(samples[number].index.layer, []).append(number)
    pairs = [
        pair
        for layer in sorted(layers)
        for pair in zip(layers[layer][::2], layers[layer][1::2], strict=False)
    ]
    if not 0 <= count <= len(pairs) or 2 * count == len(samples):
        raise MatchingError(
            f"{count} pairs of decoys are not to be had of {len(samples)} samples: "
            "it takes two of one layer for each, and one sample that is none"
        )
    return [pairs[place] for place in draw_subset(stream, len(pairs), count)]


def _draw_permutation(count: int, stream: DeterministicStream) -> list[int]:
    """Return 0 … count-1 in an order drawn by Fisher and Yates's shuffle."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = stream.below(last + 1)
        order[last], order[other] = order[other], order[last]
    return order
