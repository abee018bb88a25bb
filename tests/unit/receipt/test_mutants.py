"""A valid receipt with anything changed is rejected, by the right step, and never by a crash.

Mutants are seeded: of bytes in every place (bit flips, bytes removed, doubled, swapped), of elements (dropped, doubled,
moved, replaced by another receipt's), in both forms. A share of them runs always, 20,000 under ``soak``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from pocache.receipt.format import LogProof, Receipt, decode_receipt, encode_binary, encode_json
from pocache.receipt.report import Step
from pocache.receipt.trust import TrustRoots, load_trust
from pocache.receipt.verify import verify_receipt
from pocache.wire.envelope import parse_envelope

FOLDER: Final = Path(__file__).parents[2] / "vectors" / "receipts"
NAMES: Final = (
    "agree",
    "confirm_prior",
    "equivocation",
    "lottery",
    "no_challenge",
    "no_opening",
    "refunded",
    "refused",
)
LISTS: Final = ("record", "rounds", "snapshots", "epochs")
FAST, SOAK = 400, 20_000

FORM: Final = frozenset({Step.FORMAT})
ENVELOPES: Final = frozenset({Step.ENVELOPES})
LOG: Final = frozenset({Step.LOG})

DROPPED: Final[dict[str, frozenset[Step]]] = {
    "job-admitted.v1": frozenset({Step.SUBMISSION}),
    "hold-request.v1": frozenset({Step.SUBMISSION, Step.PAYOUT}),
    "hold-placed.v1": frozenset({Step.SUBMISSION, Step.LEASE, Step.OUTCOME, Step.PAYOUT}),
    "hold-refused.v1": frozenset({Step.SUBMISSION, Step.OUTCOME, Step.PAYOUT}),
    "commitment-recorded.v1": ENVELOPES,
    "audit-opened.v1": frozenset({Step.ROUNDS, Step.AUDIT}),
    "window-closed.v1": frozenset({Step.ROUNDS}),
    "equivocation.v1": frozenset({Step.AUDIT}),
    "evidence.v1": frozenset({Step.AUDIT}),
    "opening-accepted.v1": frozenset({Step.OPENINGS}),
    "openings-closed.v1": frozenset({Step.ROUNDS}),
    "stage-bound.v1": frozenset({Step.ROUNDS, Step.SORTITION}),
    "verifier-drawn.v1": frozenset({Step.SORTITION, Step.OUTCOME}),
    "stage-sealed.v1": frozenset({Step.POSITIONS}),
    "outcome.v1": frozenset({Step.OUTCOME}),
    "payout-settled.v1": frozenset({Step.PAYOFF}),
    "job-abandoned.v1": frozenset({Step.PAYOFF}),
}
"""The steps that miss a message of each kind."""


@dataclass(frozen=True)
class Mutant:
    """What was done, the bytes that came out, and the steps that may reject them."""

    what: str
    data: bytes
    steps: frozenset[Step]


@cache
def load(name: str) -> Receipt:
    return decode_receipt((FOLDER / f"{name}.json").read_bytes())


@cache
def trust() -> TrustRoots:
    return load_trust(FOLDER / "trust.json")


def verify_rejected(mutant: Mutant) -> None:
    report = verify_receipt(mutant.data, trust())
    assert report.failure is not None, f"{mutant.what}: accepted"
    assert not report.failure.is_internal, f"{mutant.what}: {report.failure.reason}"
    assert report.failure.step in mutant.steps, (
        f"{mutant.what}: {report.failure.step}: {report.failure.reason}"
    )


def change(receipt: Receipt, **fields: Any) -> Receipt:
    """Return the receipt with some of its parts replaced."""
    return replace(receipt, **fields)


def encode(draw: random.Random, receipt: Receipt) -> bytes:
    return encode_json(receipt) if draw.random() < 0.3 else encode_binary(receipt)


def flip(draw: random.Random, data: bytes) -> bytes:
    """Change one thing about bytes: a bit, a byte, their number, their order."""
    kind = draw.randrange(5)
    at = draw.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes([draw.choice([0, 1, 0x7F, 0x80, 0xC0, 0xFF])]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at + 1 :]
    if kind == 3:
        return data[:at] + data[at : at + draw.randint(1, 8)] * 2 + data[at + 8 :]
    other = draw.randrange(len(data))
    low, high = sorted((at, other))
    return data[:low] + data[high:] + data[low:high]


def mutate_file(draw: random.Random, name: str) -> Mutant | None:
    """Change bytes of the file as it stands, in either form."""
    data = encode(draw, load(name))
    # Mostly the front, where all the structure of a msgpack map is, or anywhere.
    changed = flip(draw, data)
    steps = frozenset({Step.FORMAT, Step.TRUST, Step.ENVELOPES, Step.LOG})
    return None if changed == data else Mutant(f"{name}: bytes of the file", changed, steps)


def mutate_envelope(draw: random.Random, name: str) -> Mutant | None:
    """Change bytes of one envelope, wherever it stands."""
    receipt = load(name)
    places = [(one, index) for one in LISTS for index in range(len(getattr(receipt, one)))] + [("model", 0)]
    field, index = draw.choice(places)
    if field == "model":
        changed = flip(draw, receipt.model)
        mutant = replace(receipt, model=changed)
        is_same = changed == receipt.model
    else:
        items = list(getattr(receipt, field))
        changed = flip(draw, items[index])
        is_same = changed == items[index]
        items[index] = changed
        mutant = change(receipt, **{field: tuple(items)})
    return None if is_same else Mutant(f"{name}: bytes of {field} {index}", encode(draw, mutant), ENVELOPES)


def mutate_genesis(draw: random.Random, name: str) -> Mutant | None:
    receipt = load(name)
    changed = flip(draw, receipt.genesis)
    if changed == receipt.genesis or not changed.isascii():
        return None
    steps = frozenset({Step.TRUST})
    return Mutant(f"{name}: bytes of the genesis", encode(draw, replace(receipt, genesis=changed)), steps)


def mutate_log(draw: random.Random, name: str) -> Mutant | None:
    """Change the log's proofs: digests flipped, dropped, doubled, moved, checkpoints changed or swapped."""
    receipt = load(name)
    log = receipt.log
    if log is None:
        return Mutant(
            f"{name}: proofs of nothing", encode(draw, replace(receipt, log=load("agree").log)), ENVELOPES
        )
    kind = draw.randrange(6)
    steps = LOG
    if kind == 0:
        field = draw.choice(["checkpoint", "latest"])
        fields: dict[str, Any] = {field: flip(draw, getattr(log, field))}
        changed = replace(log, **fields)
        steps = ENVELOPES
    elif kind == 1:
        changed = replace(log, checkpoint=log.latest, latest=log.checkpoint)
    elif kind == 2:
        other = load(draw.choice(NAMES)).log
        changed = log if other is None else other
        steps = LOG
    else:
        field = draw.choice(["inclusion", "consistency"])
        fields = {field: shuffle(draw, getattr(log, field), bytes(32))}
        changed = replace(log, **fields)
    if changed == log or not all(len(one) == 32 for one in (*changed.inclusion, *changed.consistency)):
        return None
    if kind == 2 and is_own(changed, log):
        return None
    return Mutant(f"{name}: log {kind}", encode(draw, replace(receipt, log=changed)), steps)


def is_own(one: LogProof, other: LogProof) -> bool:
    return (one.checkpoint, one.inclusion) == (other.checkpoint, other.inclusion)


def shuffle(draw: random.Random, items: tuple[bytes, ...], filler: bytes) -> tuple[bytes, ...]:
    """Drop, double, move, replace or add one element."""
    kind = draw.randrange(5) if items else 4
    at = draw.randrange(len(items)) if items else 0
    if kind == 0:
        return items[:at] + items[at + 1 :]
    if kind == 1:
        return (*items[:at], items[at], *items[at:])
    if kind == 2:
        moved = list(items)
        moved.insert(draw.randrange(len(items)), moved.pop(at))
        return tuple(moved)
    if kind == 3:
        return (*items[:at], bytes([items[at][0] ^ 1]) + items[at][1:], *items[at + 1 :])
    return (*items[:at], filler, *items[at:])


def mutate_lists(draw: random.Random, name: str) -> Mutant | None:
    """Double or move an element of a list: what is there once, in one order."""
    receipt = load(name)
    field = draw.choice([one for one in LISTS if getattr(receipt, one)])
    items = list(getattr(receipt, field))
    at = draw.randrange(len(items))
    if draw.random() < 0.5:
        items.insert(draw.randrange(len(items) + 1), items[at])
    else:
        items.insert(draw.randrange(len(items)), items.pop(at))
    if tuple(items) == getattr(receipt, field):
        return None
    mutant = change(receipt, **{field: tuple(items)})
    return Mutant(f"{name}: order or number of {field}", encode(draw, mutant), ENVELOPES)


def mutate_dropped(draw: random.Random, name: str) -> Mutant | None:
    """Leave an element out."""
    receipt = load(name)
    field = draw.choice([one for one in LISTS if getattr(receipt, one)])
    items = list(getattr(receipt, field))
    dropped = items.pop(draw.randrange(len(items)))
    kind = parse_envelope(dropped).kind
    expected = {
        "rounds": frozenset({Step.ROUNDS}),
        "snapshots": frozenset({Step.SORTITION}),
        "epochs": frozenset({Step.LEASE}),
    }
    steps = expected.get(field) or DROPPED[kind]
    mutant = change(receipt, **{field: tuple(items)})
    return Mutant(f"{name}: without {kind}", encode(draw, mutant), steps)


def mutate_swapped(draw: random.Random, name: str) -> Mutant | None:
    """Put an element of another receipt of the same network in the place of one of the same kind, or beside it."""
    receipt, other = load(name), load(draw.choice([one for one in NAMES if one != name]))
    field = draw.choice([one for one in LISTS if getattr(receipt, one) and getattr(other, one)])
    items, theirs = list(getattr(receipt, field)), list(getattr(other, field))
    at = draw.randrange(len(items))
    kind = parse_envelope(items[at]).kind
    same = [one for one in theirs if parse_envelope(one).kind == kind and one not in items]
    if not same:
        return None
    chosen = draw.choice(same)
    if draw.random() < 0.5:
        items[at] = chosen
    else:
        items.insert(at, chosen)
    mutant = change(receipt, **{field: tuple(items)})
    steps = (
        ENVELOPES
        if field == "record"
        else frozenset({Step.ENVELOPES, Step.ROUNDS, Step.SORTITION, Step.LEASE})
    )
    return Mutant(f"{name}: {kind} of another receipt", encode(draw, mutant), steps)


def mutate_model(draw: random.Random, name: str) -> Mutant | None:
    """The entry is replaced by some other envelope of the network."""
    receipt = load(name)
    chosen = draw.choice([*receipt.record, *receipt.rounds, b"", b"\x80"])
    return Mutant(f"{name}: another model", encode(draw, replace(receipt, model=chosen)), ENVELOPES)


MUTATORS: Final[tuple[Callable[[random.Random, str], Mutant | None], ...]] = (
    mutate_file,
    mutate_file,
    mutate_envelope,
    mutate_envelope,
    mutate_genesis,
    mutate_log,
    mutate_lists,
    mutate_dropped,
    mutate_swapped,
    mutate_model,
)


def generate(seed: int, count: int) -> Iterator[Mutant]:
    """Yield mutants, each another receipt than it was made of."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        mutant = draw.choice(MUTATORS)(draw, draw.choice(NAMES))
        if mutant is not None:
            made += 1
            yield mutant


@pytest.mark.parametrize("name", NAMES)
def test_the_captured_receipts_hold(name: str) -> None:
    """As a network of processes gave them out: real clocks, a real bus."""
    for data in (encode_json(load(name)), encode_binary(load(name))):
        report = verify_receipt(data, trust())
        assert report.failure is None
        assert report.is_valid
        assert report.case == {"lottery": "agree"}.get(name, name)


@pytest.mark.parametrize("mutator", sorted({one.__name__ for one in MUTATORS}))
def test_every_kind_of_mutant_is_made(mutator: str) -> None:
    """A mutator that makes nothing would prove nothing."""
    make = globals()[mutator]
    draw = random.Random(7)
    made = [make(draw, draw.choice(NAMES)) for _ in range(30)]
    assert sum(one is not None for one in made) >= 5


def test_mutants_are_rejected_by_the_right_step() -> None:
    for mutant in generate(1, FAST):
        verify_rejected(mutant)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(10))
def test_many_mutants_are_rejected_by_the_right_step(seed: int) -> None:
    for mutant in generate(1_000 + seed, SOAK // 10):
        verify_rejected(mutant)


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_of_the_smallest_envelope_counts(name: str) -> None:
    """No byte of an envelope is without meaning."""
    receipt = load(name)
    smallest = min(receipt.record, key=len)
    at = receipt.record.index(smallest)
    for place in range(0, len(smallest), 3):
        changed = smallest[:place] + bytes([smallest[place] ^ 1 << place % 8]) + smallest[place + 1 :]
        record = (*receipt.record[:at], changed, *receipt.record[at + 1 :])
        verify_rejected(
            Mutant(f"{name}: byte {place}", encode_binary(replace(receipt, record=record)), ENVELOPES)
        )
