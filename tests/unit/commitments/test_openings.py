"""Openings: every way to be wrong, with its code; parts; that a wrong one may be sent again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kit.committing import Holder, Job, poison_leaf, to_wire
from kit.network import Harness, Network, make_key
from pocache.protocol.challenge import Corner
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import CARRIED_BYTES_MAX, PAYLOAD_BYTES_MAX
from pocache.wire.messages import ChallengeRequestV1, OpeningAcceptedV1, OpeningV1, OutcomeV1
from pocache.wire.topics import (
    CHALLENGE_ISSUED,
    CHALLENGE_REQUESTED,
    OPENING_ACCEPTED,
    OPENING_SUBMITTED,
    OPENINGS_CLOSED,
    OUTCOME_DECIDED,
    RESULT_COMPLETED,
    STAGE_SEALED,
)
from pocache_commitments import openings


@dataclass
class Dispute:
    """A stage whose positions are drawn, and all who hold leaves in it."""

    harness: Harness
    job: Job
    verifier: Holder
    positions: tuple[int, ...]

    @property
    def generator(self) -> Holder:
        """The generator."""
        return self.job.generator

    def submit(self, opening: OpeningV1, signer: SigningKey | None = None) -> str:
        """Deliver an opening; return its refusal's code, or nothing."""
        before = self.harness.dump()
        decision = self.harness.deliver(OPENING_SUBMITTED, opening, signer or self.job.worker)
        if decision.action == "ack":
            return ""
        assert self.harness.dump() == before
        return self.harness.refusal().code

    def submit_parts(self, *cuts: int, order: tuple[int, ...]) -> list[str]:
        """Open in parts, cut at these indices of the positions, in this order; return the codes."""
        bounds = [0, *cuts, len(self.positions)]
        runs = [self.positions[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]
        return [
            self.submit(self.generator.open(self.job, runs[part], part=part, part_count=len(runs)))
            for part in order
        ]


def start(harness: Harness, network: Network, corner: Corner | None = None) -> Dispute:
    """Bring a job to where its first stage's positions are drawn: five of seven."""
    job = Job(network)
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker)
    harness.deliver(CHALLENGE_REQUESTED, ChallengeRequestV1(job_id=job.job_id, attempt=1), job.user)
    harness.pass_rounds(4)
    verifier = job.make_holder("verifier-1", 1, corner or job.full_corner)
    harness.deliver(STAGE_SEALED, job.make_stage(verifier, sealed_ms=harness.clock_ms, sample_count=5))
    harness.pass_rounds(3)
    issued = harness.outbox_of(CHALLENGE_ISSUED)
    return Dispute(harness, job, verifier, unpack_tokens(issued[0].positions))


@pytest.fixture
def dispute(harness: Harness, network: Network) -> Dispute:
    """A dispute at full depth."""
    return start(harness, network)


def test_a_valid_opening_is_passed_on(dispute: Dispute) -> None:
    """Whole, as its party signed it: positions, leaves and multiproof."""
    opening = dispute.generator.open(dispute.job, dispute.positions)
    assert dispute.submit(opening) == ""
    (emission,) = dispute.harness.drain()
    body: Any = emission.body
    assert emission.topic is OPENING_ACCEPTED
    assert (body.participant, body.stage, body.retry) == (dispute.job.worker.participant_id, 1, 0)
    assert dispute.harness.last is not None
    assert body.opening == dispute.harness.last.data
    assert dispute.job.network.open(body.opening, OpeningV1) == opening


def test_an_opening_too_large_to_be_passed_on_is_refused(
    dispute: Dispute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E104; in smaller parts it is taken."""
    whole = dispute.generator.open(dispute.job, dispute.positions)
    size = len(dispute.job.network.seal(dispute.job.worker, whole))
    monkeypatch.setattr(openings, "CARRIED_BYTES_MAX", size - 1)
    assert dispute.submit(whole) == "E104"
    assert dispute.submit_parts(2, order=(0, 1)) == ["", ""]


def test_the_largest_opening_that_is_passed_on_fits_a_message(network: Network) -> None:
    """The record's own fields and envelope around a carried envelope stay within one message."""
    accepted = OpeningAcceptedV1(
        job_id=bytes(32),
        attempt=16,
        stage=16,
        retry=1,
        participant=network.participant("worker"),
        opening=bytes(CARRIED_BYTES_MAX),
    )
    assert len(network.seal(network.key("commitments"), accepted)) <= PAYLOAD_BYTES_MAX


def spoil(position_index: int, leaf: bytes) -> Callable[[Dispute, OpeningV1], dict[str, Any]]:
    """Return a change that puts another leaf in one place."""

    def change(_dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
        leaves = list(opening.leaves)
        leaves[position_index] = leaf
        return {"leaves": tuple(leaves)}

    return change


def forge(dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
    """Another worker's honest-looking rows."""
    forger = dispute.job.make_holder("worker", 0, dispute.job.full_corner, flavour="forged")
    return {"leaves": (forger.leaves[dispute.positions[0]], *opening.leaves[1:])}


def poison(dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
    """A float that is not a number."""
    schema = dispute.job.network.model.schema
    return {"leaves": (poison_leaf(schema, opening.leaves[0]), *opening.leaves[1:])}


def swap(_dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
    """Right leaves in the wrong order."""
    return {"leaves": (opening.leaves[1], opening.leaves[0], *opening.leaves[2:])}


def reverse(dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
    """Positions and leaves together in the wrong order."""
    return {"positions": pack_tokens(dispute.positions[::-1]), "leaves": opening.leaves[::-1]}


def repeat(dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
    """One position twice, in the place of another."""
    positions = (dispute.positions[0], *dispute.positions[:1], *dispute.positions[2:])
    return {
        "positions": pack_tokens(positions),
        "leaves": (opening.leaves[0], *opening.leaves[:1], *opening.leaves[2:]),
    }


def add_unasked(dispute: Dispute, opening: OpeningV1) -> dict[str, Any]:
    """One position more than was asked, with its leaf and a proof for all of them."""
    unasked = next(position for position in range(7) if position not in dispute.positions)
    positions = tuple(sorted((*dispute.positions, unasked)))
    return dispute.generator.open(dispute.job, positions).model_dump()


def leave_out(dispute: Dispute, _opening: OpeningV1) -> dict[str, Any]:
    """One position less, in itself well proven."""
    return dispute.generator.open(dispute.job, dispute.positions[:-1]).model_dump()


FORGERIES: dict[str, tuple[Callable[[Dispute, OpeningV1], dict[str, Any]], str]] = {
    "another leaf": (forge, "E301"),
    "garbage leaf": (spoil(0, b"\x00" * 10), "E303"),
    "empty leaf": (spoil(1, b""), "E303"),
    "nan": (poison, "E303"),
    "leaves swapped": (swap, "E303"),
    "positions reversed": (reverse, "E303"),
    "position repeated": (repeat, "E303"),
    "position too many": (add_unasked, "E303"),
    "position too few": (leave_out, "E303"),
    "leaf missing": (lambda _, opening: {"leaves": opening.leaves[:-1]}, "E303"),
    "leaf too many": (lambda _, opening: {"leaves": (*opening.leaves, opening.leaves[-1])}, "E303"),
    "leaf truncated": (lambda _, o: {"leaves": (o.leaves[0][:-4], *o.leaves[1:])}, "E303"),
    "leaf too long": (lambda _, o: {"leaves": (o.leaves[0] + bytes(4), *o.leaves[1:])}, "E303"),
    "position cut": (lambda _, opening: {"positions": opening.positions[:-1]}, "E105"),
    "proof truncated": (lambda _, opening: {"proof": opening.proof[:-32]}, "E301"),
    "proof torn": (lambda _, opening: {"proof": opening.proof[:-1]}, "E301"),
    "proof too long": (lambda _, opening: {"proof": opening.proof + bytes(32)}, "E301"),
    "proof changed": (
        lambda _, opening: {"proof": bytes([opening.proof[0] ^ 1]) + opening.proof[1:]},
        "E301",
    ),
    "part outside": (lambda _, opening: {"part": 1}, "E303"),
    "another stage": (lambda _, opening: {"stage": 2}, "E207"),
    "another retry": (lambda _, opening: {"retry": 1}, "E207"),
    "another attempt": (lambda _, opening: {"attempt": 2}, "E207"),
}


@pytest.mark.parametrize(("change", "code"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_wrong_opening_is_refused_and_the_right_one_still_taken(
    dispute: Dispute, change: Callable[[Dispute, OpeningV1], dict[str, Any]], code: str
) -> None:
    """It leaves no trace: before the deadline its sender may do better."""
    honest = dispute.generator.open(dispute.job, dispute.positions)
    wrong = OpeningV1(
        **{**{name: getattr(honest, name) for name in OpeningV1.model_fields}, **change(dispute, honest)}
    )
    assert dispute.submit(wrong) == code
    assert dispute.submit(honest) == ""


def test_an_opening_from_a_stranger_is_refused(dispute: Dispute) -> None:
    """Also with the generator's own leaves: E209."""
    opening = dispute.generator.open(dispute.job, dispute.positions)
    assert dispute.submit(opening, make_key("worker-2")) == "E209"
    assert dispute.submit(opening, dispute.job.user) == "E209"


def test_a_party_does_not_open_with_anothers_leaves(dispute: Dispute) -> None:
    """The verifier cannot show rows that it did not seal."""
    forger = dispute.job.make_holder("x", 0, dispute.job.full_corner, flavour="other")
    assert dispute.submit(forger.open(dispute.job, dispute.positions), dispute.verifier.key) == "E301"


def test_an_opening_of_an_unknown_job_is_refused(dispute: Dispute) -> None:
    """E207."""
    opening = dispute.generator.open(dispute.job, dispute.positions, job_id=bytes(32))
    assert dispute.submit(opening) == "E207"


def test_a_replayed_opening_is_refused(dispute: Dispute) -> None:
    """The same envelope by the dispatcher, the same part in a new one by its number: E208 both."""
    opening = dispute.generator.open(dispute.job, dispute.positions)
    assert dispute.submit(opening) == ""
    dispute.harness.drain()
    assert dispute.submit(opening) == "E208"
    again = dispute.generator.open(dispute.job, dispute.positions[:2], part_count=2)
    assert dispute.submit(again) == "E208"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_parts_come_in_any_order(dispute: Dispute, order: tuple[int, ...]) -> None:
    """Only all of them are an opening."""
    dispute.submit(dispute.verifier.open(dispute.job, dispute.positions), dispute.verifier.key)
    dispute.harness.drain()
    assert dispute.submit_parts(2, 3, order=order[:2]) == ["", ""]
    assert [topic for topic, _ in dispute.harness.outbox()] == [OPENING_ACCEPTED] * 2
    assert dispute.submit_parts(2, 3, order=order[2:]) == [""]
    assert [topic for topic, _ in dispute.harness.outbox()] == [OPENING_ACCEPTED, OPENINGS_CLOSED]


@pytest.mark.parametrize(
    ("accepted", "refused"),
    [
        # (part, part_count, indices of the positions)
        (None, (0, 2, range(5))),
        (None, (1, 1, range(1, 5))),
        (None, (0, 2, range(1, 3))),
        (None, (1, 2, range(1, 4))),
        (None, (1, 3, range(1))),
        (None, (1, 3, range(4, 5))),
        ((0, 2, range(2)), (1, 2, range(1, 5))),
        ((0, 2, range(2)), (1, 2, range(3, 5))),
        ((0, 2, range(2)), (1, 3, range(2, 4))),
        ((2, 3, range(2, 5)), (0, 3, range(2))),
        ((0, 3, range(3)), (2, 3, range(3, 5))),
    ],
)
def test_parts_are_the_positions_in_order_without_gap_or_overlap(
    dispute: Dispute, accepted: tuple[int, int, range] | None, refused: tuple[int, int, range]
) -> None:
    """Beside every part there is room for the others, so nobody completes an opening that is not whole."""

    def make(part: int, part_count: int, indices: range) -> OpeningV1:
        positions = tuple(dispute.positions[index] for index in indices)
        return dispute.generator.open(dispute.job, positions, part=part, part_count=part_count)

    if accepted is not None:
        assert dispute.submit(make(*accepted)) == ""
        dispute.harness.drain()
    assert dispute.submit(make(*refused)) == "E303"


def test_a_verifier_opens_the_rows_of_its_corner(harness: Harness, network: Network) -> None:
    """Its leaves hold the layers of its corner and nothing behind them; the generator's hold everything."""
    dispute = start(harness, network, Corner(0, 4, False))
    assert max(dispute.positions) == 4
    assert dispute.submit(dispute.verifier.open(dispute.job, dispute.positions), dispute.verifier.key) == ""
    assert dispute.submit(dispute.generator.open(dispute.job, dispute.positions)) == ""


def test_a_verifier_that_sealed_other_layers_cannot_open(harness: Harness, network: Network) -> None:
    """Leaves of another schema than its corner's are malformed, though its root is over them."""
    job = Job(network)
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker)
    harness.deliver(CHALLENGE_REQUESTED, ChallengeRequestV1(job_id=job.job_id, attempt=1), job.user)
    harness.pass_rounds(4)
    shallow = job.make_holder("verifier-1", 1, Corner(0, 6, False))
    claim = Holder(shallow.key, 1, Corner(1, 6, False), shallow.leaves)
    harness.deliver(STAGE_SEALED, job.make_stage(claim, sealed_ms=harness.clock_ms))
    harness.pass_rounds(3)
    positions = unpack_tokens(harness.outbox_of(CHALLENGE_ISSUED)[0].positions)
    dispute = Dispute(harness, job, claim, positions)
    assert dispute.submit(claim.open(job, positions), claim.key) == "E303"


def test_nothing_is_opened_before_it_is_asked(harness: Harness, network: Network) -> None:
    """E207: the positions are not drawn yet."""
    job = Job(network)
    harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms), job.worker)
    harness.deliver(CHALLENGE_REQUESTED, ChallengeRequestV1(job_id=job.job_id, attempt=1), job.user)
    harness.pass_rounds(4)
    verifier = job.make_holder("verifier-1", 1, job.full_corner)
    harness.deliver(STAGE_SEALED, job.make_stage(verifier, sealed_ms=harness.clock_ms))
    harness.drain()
    dispute = Dispute(harness, job, verifier, (4, 6))
    assert dispute.submit(job.generator.open(job, (4, 6))) == "E207"


def test_after_the_deadline_an_opening_is_refused(dispute: Dispute) -> None:
    """E206: the stage's openings are closed."""
    dispute.harness.pass_rounds(3)
    (closed,) = dispute.harness.outbox_of(OPENINGS_CLOSED)
    assert len(closed.missing) == 2
    assert dispute.submit(dispute.generator.open(dispute.job, dispute.positions)) == "E206"


@pytest.mark.parametrize("how", ["outcome", "equivocation"])
def test_after_the_outcome_an_opening_is_refused(dispute: Dispute, how: str) -> None:
    """E206; and the deadline of the forgotten stage says nothing."""
    harness, job = dispute.harness, dispute.job
    if how == "outcome":
        outcome = OutcomeV1(
            job_id=job.job_id,
            attempt=1,
            case="equivocation",
            stage=1,
            corner=to_wire(job.full_corner),
            verifiers=(),
            deciding=None,
            prior=None,
            is_challenged=False,
            claims=(),
            comparisons=(),
            reason="two results",
        )
        assert harness.deliver(OUTCOME_DECIDED, outcome).action == "ack"
    else:
        harness.deliver(RESULT_COMPLETED, job.make_result(harness.clock_ms, root=bytes(32)), job.worker)
        harness.drain()
    assert dispute.submit(dispute.generator.open(job, dispute.positions)) == "E206"
    harness.pass_rounds(5)
    assert harness.outbox() == []
