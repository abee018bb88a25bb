"""Committed draws: what version 1 of the protocol drew once, it draws for ever, and a second derivation agrees."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from pocache.protocol.challenge import (
    Corner,
    DeterministicStream,
    Tag,
    compute_seed,
    draw_corner,
    draw_order,
    draw_positions,
    draw_subset,
    is_drawn,
)
from pocache.protocol.ids import Digest, JobId, NetworkId, ParticipantId

VECTORS: dict[str, Any] = json.loads(
    Path(__file__).with_name("challenge_v1.json").read_text(encoding="utf-8")
)
DEPTH = 3


def cases(section: str) -> pytest.MarkDecorator:
    assert VECTORS[section], "a section without vectors would test nothing"
    return pytest.mark.parametrize("case", VECTORS[section])


def stream_of(case: dict[str, Any]) -> DeterministicStream:
    return DeterministicStream(Digest(bytes.fromhex(case["seed"])))


def derive_seed(tag: str, inputs: dict[str, Any]) -> str:
    """docs/protocol.md 6.1 once more, field by field into one hasher, by struct instead of by our own helpers."""
    hasher = hashlib.sha256()

    def put(field: bytes) -> None:
        hasher.update(struct.pack(">L", len(field)))
        hasher.update(field)

    put(b"pocache/v1/" + tag.encode("ascii"))
    put(bytes.fromhex(inputs["network"]))
    put(bytes.fromhex(inputs["chain_hash"]))
    put(struct.pack(">Q", int(inputs["round_number"])))
    put(bytes.fromhex(inputs["randomness"]))
    put(bytes.fromhex(inputs["root"]))
    put(struct.pack(">Q", inputs["leaf_count"]))
    put(bytes.fromhex(inputs["job_id"]))
    put(struct.pack(">L", inputs["stage"]))
    return hasher.hexdigest()


def derive_words(seed: str, count: int) -> tuple[int, ...]:
    """The stream once more: one squeeze, unpacked at once."""
    squeezed = hashlib.shake_256(b"pocache/v1/xof" + bytes.fromhex(seed)).digest(8 * count)
    return struct.unpack(f">{count}Q", squeezed)


def test_every_tag_has_a_vector() -> None:
    """A new tag needs a new vector."""
    assert {case["tag"] for case in VECTORS["seeds"]} == set(Tag)


@cases("seeds")
def test_seeds(case: dict[str, Any]) -> None:
    """Committed, derived here, and computed by the protocol: three times the same."""
    inputs = case["inputs"]
    computed = compute_seed(
        Tag(case["tag"]),
        network=NetworkId(bytes.fromhex(inputs["network"])),
        chain_hash=bytes.fromhex(inputs["chain_hash"]),
        round_number=int(inputs["round_number"]),
        randomness=bytes.fromhex(inputs["randomness"]),
        root=Digest(bytes.fromhex(inputs["root"])),
        leaf_count=inputs["leaf_count"],
        job_id=JobId(bytes.fromhex(inputs["job_id"])),
        stage=inputs["stage"],
    )
    assert computed.hex() == case["seed"] == derive_seed(case["tag"], inputs)


@cases("streams")
def test_streams(case: dict[str, Any]) -> None:
    """The first words, and one far behind the first squeeze."""
    stream = stream_of(case)
    words = [stream.next_u64() for _ in range(case["word_index"] + 1)]
    assert [str(word) for word in words[:4]] == case["first_words"]
    assert str(words[case["word_index"]]) == case["word"]
    assert tuple(words) == derive_words(case["seed"], len(words))


@cases("belows")
def test_bounded_draws(case: dict[str, Any]) -> None:
    """Rejection and modulus, against a filter over the plain words."""
    stream, bound = stream_of(case), int(case["bound"])
    drawn = [str(stream.below(bound)) for _ in case["values"]]
    kept = [word for word in derive_words(case["seed"], 64) if word < 2**64 // bound * bound]
    assert drawn == case["values"] == [str(word % bound) for word in kept[: len(drawn)]]


@cases("lotteries")
def test_lotteries(case: dict[str, Any]) -> None:
    """One stream, several draws."""
    stream = stream_of(case)
    assert [is_drawn(stream, case["numerator"], case["denominator"]) for _ in case["drawn"]] == case["drawn"]


@cases("subsets")
def test_subsets(case: dict[str, Any]) -> None:
    """Floyd's order of draws is part of the protocol."""
    assert list(draw_subset(stream_of(case), case["n_of"], case["count"])) == case["subset"]


@cases("corners")
def test_corners(case: dict[str, Any]) -> None:
    """The lottery for depth first, then the layer, then the position."""
    corner = draw_corner(
        stream_of(case),
        layer_count=case["layer_count"],
        leaf_count=case["leaf_count"],
        prompt_count=case["prompt_count"],
        full_share=(case["full_share"][0], case["full_share"][1]),
    )
    assert corner == Corner(**case["corner"])


@cases("positions")
def test_positions(case: dict[str, Any]) -> None:
    """The output's half first, then the rest."""
    corner = Corner(layer_max=DEPTH, position_max=case["position_max"], full_depth=False)
    positions = draw_positions(
        stream_of(case), corner, prompt_count=case["prompt_count"], sample_count=case["sample_count"]
    )
    assert list(positions) == case["positions"]


@cases("orders")
def test_orders(case: dict[str, Any]) -> None:
    """Sortition, against the linear walk that defines it."""
    stakes = [(ParticipantId(participant), int(stake)) for participant, stake in case["stakes"]]
    assert list(draw_order(stream_of(case), stakes)) == case["order"]
    stream, left, walked = stream_of(case), list(stakes), []
    while left:
        ticket = stream.below(sum(stake for _, stake in left))
        index = 0
        while ticket >= left[index][1]:
            ticket -= left[index][1]
            index += 1
        walked.append(left.pop(index)[0])
    assert walked == case["order"]
