"""Every draw that public randomness decides: seeds, the stream, and what is drawn from it (docs/protocol.md 6).

All integers, so that anybody who has the round and the commitment draws the same lottery, corner, verifiers and
positions. Refused: inputs of a seed with another size than the protocol's, empty ranges, stakes out of order.

Not covered: that the round is later than what it judges (beacon.bind_round, and the log), and that it was signed
(beacon.verify_round). A draw from a round that was known before is no draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256, shake_256
from itertools import pairwise
from typing import Final

from pocache.protocol.encoding import lp
from pocache.protocol.errors import ChallengeError
from pocache.protocol.ids import Digest, JobId, NetworkId, ParticipantId
from pocache.protocol.limits import (
    LAYER_COUNT_MAX,
    LEAF_COUNT_MAX,
    MEMBERS_MAX,
    MICRO_MAX,
    ROUND_MAX,
    SAMPLE_COUNT_MAX,
)

STREAM_DOMAIN: Final = b"pocache/v1/xof"
_SEED_DOMAIN: Final = "pocache/v1/"
_DIGEST_BYTES: Final = 32
_STAGE_MAX: Final = 2**32 - 1
_WORD_BYTES: Final = 8
_WORD_VALUES: Final = 2**64
_BUFFER_WORDS_FIRST: Final = 64


class Tag(StrEnum):
    """What a seed is for: two draws of one round never share a stream."""

    AUDIT = "audit"
    CORNER = "corner"
    VERIFIERS = "verifiers"
    COMMITTEE = "committee"
    POSITIONS = "positions"
    RECHECK = "recheck"


def compute_seed(
    tag: Tag,
    *,
    network: NetworkId,
    chain_hash: bytes,
    round_number: int,
    randomness: bytes,
    root: Digest,
    leaf_count: int,
    job_id: JobId,
    stage: int,
) -> Digest:
    """Return the seed of one draw, or raise ChallengeError (docs/protocol.md 6.1).

    SHA256(lp("pocache/v1/" ‖ tag), lp(network), lp(chain hash), lp(u64 round), lp(randomness), lp(root),
    lp(u64 N), lp(job id), lp(u32 stage)); lp is a u32 length prefix, all integers big-endian.
    """
    if not isinstance(tag, Tag):
        raise ChallengeError(f"no draw is called {tag!r}")
    digests = {
        "network": network,
        "chain hash": chain_hash,
        "randomness": randomness,
        "root": root,
        "job id": job_id,
    }
    for name, digest in digests.items():
        if len(digest) != _DIGEST_BYTES:
            raise ChallengeError(f"seed: the {name} has {_DIGEST_BYTES} bytes, not {len(digest)}")
    _verify_range("round", round_number, 1, ROUND_MAX)
    _verify_range("leaf count", leaf_count, 1, LEAF_COUNT_MAX)
    _verify_range("stage", stage, 0, _STAGE_MAX)
    body = lp(
        f"{_SEED_DOMAIN}{tag}".encode(),
        network,
        chain_hash,
        round_number.to_bytes(8, "big"),
        randomness,
        root,
        leaf_count.to_bytes(8, "big"),
        job_id,
        stage.to_bytes(4, "big"),
    )
    return Digest(sha256(body).digest())


class DeterministicStream:
    """An endless sequence of 64-bit words: SHAKE256("pocache/v1/xof" ‖ seed), read big-endian."""

    __slots__ = ("_buffer", "_state", "_words_read")

    def __init__(self, seed: Digest) -> None:
        """Start at the first word of a 32-byte seed."""
        if len(seed) != _DIGEST_BYTES:
            raise ChallengeError(f"a stream's seed has {_DIGEST_BYTES} bytes, not {len(seed)}")
        self._state = shake_256(STREAM_DOMAIN + seed)
        self._buffer = b""
        self._words_read = 0

    def next_u64(self) -> int:
        """Return the next word."""
        start = self._words_read * _WORD_BYTES
        if start == len(self._buffer):
            # hashlib cannot squeeze on, only again from the start: doubling keeps the cost linear.
            self._buffer = self._state.digest(max(_BUFFER_WORDS_FIRST * _WORD_BYTES, 2 * len(self._buffer)))
        self._words_read += 1
        return int.from_bytes(self._buffer[start : start + _WORD_BYTES], "big")

    def below(self, bound: int) -> int:
        """Return an unbiased integer in 0 … bound-1, for a bound in 1 … 2^64.

        Words at or above the largest multiple of the bound are rejected; the first that is left, modulo the bound.
        """
        _verify_range("bound of a draw", bound, 1, _WORD_VALUES)
        limit = _WORD_VALUES - _WORD_VALUES % bound
        while (word := self.next_u64()) >= limit:
            pass
        return word % bound


def is_drawn(stream: DeterministicStream, numerator: int, denominator: int) -> bool:
    """Return whether a lottery of probability numerator/denominator is won: below(denominator) < numerator."""
    _verify_range("denominator of a share", denominator, 1, _WORD_VALUES)
    _verify_range("numerator of a share", numerator, 0, denominator)
    return stream.below(denominator) < numerator


def draw_subset(stream: DeterministicStream, n_of: int, count: int) -> tuple[int, ...]:
    """Return `count` distinct integers of 0 … n_of-1 in ascending order, every subset equally likely.

    Floyd's algorithm: for j = n_of-count … n_of-1, t = below(j+1); take t, or j where t is taken already.
    """
    _verify_range("population of a draw", n_of, 0, _WORD_VALUES)
    _verify_range("size of a subset", count, 0, n_of)
    chosen: set[int] = set()
    for last in range(n_of - count, n_of):
        candidate = stream.below(last + 1)
        chosen.add(last if candidate in chosen else candidate)
    return tuple(sorted(chosen))


@dataclass(frozen=True, slots=True)
class Corner:
    """How much of the pass an audit runs: layers 0 … layer_max over positions 0 … position_max, both inclusive.

    `full_depth` adds what lies behind the last layer: the final hidden state, the scores and the token check.
    """

    layer_max: int
    position_max: int
    full_depth: bool

    def __post_init__(self) -> None:
        _verify_range("corner's layer", self.layer_max, 0, LAYER_COUNT_MAX - 1)
        _verify_range("corner's position", self.position_max, 0, LEAF_COUNT_MAX - 1)


def compute_full_corner(layer_count: int, leaf_count: int) -> Corner:
    """Return the corner of an audit that runs everything."""
    _verify_range("layer count", layer_count, 1, LAYER_COUNT_MAX)
    _verify_range("leaf count", leaf_count, 1, LEAF_COUNT_MAX)
    return Corner(layer_max=layer_count - 1, position_max=leaf_count - 1, full_depth=True)


def draw_corner(
    stream: DeterministicStream,
    *,
    layer_count: int,
    leaf_count: int,
    prompt_count: int,
    full_share: tuple[int, int],
) -> Corner:
    """Return where an audit stops: in a share of audits nowhere, else at a depth, then at a position.

    docs/protocol.md 6.4: full with probability numerator/denominator; else layer_max = below(layer_count), then position_max uniform from
    the first output position to the last leaf. No depth is safe for a cheat, as each has probability 1/layer_count.
    """
    full = compute_full_corner(layer_count, leaf_count)
    _verify_range("prompt count", prompt_count, 1, leaf_count)
    if is_drawn(stream, *full_share):
        return full
    layer_max = stream.below(layer_count)
    output_first = prompt_count - 1
    position_max = output_first + stream.below(leaf_count - output_first)
    return Corner(layer_max=layer_max, position_max=position_max, full_depth=False)


def draw_positions(
    stream: DeterministicStream, corner: Corner, *, prompt_count: int, sample_count: int
) -> tuple[int, ...]:
    """Return the positions to compare, ascending and distinct: min(sample_count, all of the corner's).

    The corner's last position always; then, uniformly from the output positions before it, as many as make half of
    all (rounded up), or all of them where there are fewer; the rest uniformly from what is left of the corner. An
    output position p has p >= prompt_count - 1.
    """
    _verify_range("sample count", sample_count, 1, SAMPLE_COUNT_MAX)
    _verify_range("prompt count", prompt_count, 1, corner.position_max + 1)
    output_first = prompt_count - 1
    position_count = min(sample_count, corner.position_max + 1)
    output_before_last = corner.position_max - output_first
    output_count = min((position_count + 1) // 2 - 1, output_before_last)
    chosen = {output_first + index for index in draw_subset(stream, output_before_last, output_count)}
    chosen.add(corner.position_max)
    left = [position for position in range(corner.position_max) if position not in chosen]
    chosen.update(left[index] for index in draw_subset(stream, len(left), position_count - len(chosen)))
    return tuple(sorted(chosen))


def draw_order(
    stream: DeterministicStream, stakes: Sequence[tuple[ParticipantId, int]]
) -> tuple[ParticipantId, ...]:
    """Return all participants in the order in which sortition draws them, by stake, without replacement.

    Each draw is t = below(stake not drawn yet) and takes the first participant, in the order given, at which the
    running sum of the stakes not drawn yet exceeds t. The order given must be ascending by id, each once, every stake
    above zero, or ChallengeError: one snapshot has one order.
    """
    _verify_stakes(stakes)
    tree = _StakeTree([stake for _, stake in stakes])
    return tuple(stakes[tree.take(stream.below(tree.total))][0] for _ in stakes)


class _StakeTree:
    """Running sums of stakes in a binary indexed tree: one draw costs O(log n), with the linear walk's result."""

    def __init__(self, stakes: Sequence[int]) -> None:
        self.total = sum(stakes)
        self._stakes = list(stakes)
        self._sums = [0, *stakes]
        for node in range(1, len(self._sums)):
            parent = node + (node & -node)
            if parent < len(self._sums):
                self._sums[parent] += self._sums[node]

    def take(self, ticket: int) -> int:
        """Remove and return the first index at which the running sum exceeds the ticket."""
        node = 0
        step = 1 << (len(self._stakes).bit_length() - 1)
        while step:
            if node + step < len(self._sums) and self._sums[node + step] <= ticket:
                node += step
                ticket -= self._sums[node]
            step >>= 1
        index, stake = node, self._stakes[node]
        self._stakes[index] = 0
        self.total -= stake
        node += 1
        while node < len(self._sums):
            self._sums[node] -= stake
            node += node & -node
        return index


def _verify_stakes(stakes: Sequence[tuple[ParticipantId, int]]) -> None:
    _verify_range("number of members", len(stakes), 0, MEMBERS_MAX)
    for participant, stake in stakes:
        _verify_range(f"stake of {participant}", stake, 1, MICRO_MAX)
    _verify_range("sum of stakes", sum(stake for _, stake in stakes), 0, _WORD_VALUES)
    ids = [participant for participant, _ in stakes]
    if any(after <= before for before, after in pairwise(ids)):
        raise ChallengeError("stakes must be ascending by participant id, each once")


def _verify_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ChallengeError(f"{name} must be in {low} … {high}, not {value}")
