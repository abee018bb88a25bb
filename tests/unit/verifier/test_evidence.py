"""The pool takes nobody's word for what a party said: it checks the party's own envelope, leaves and multiproof."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from kit.pool import CHEAT, Pool
from pocache.protocol.encoding import pack_tokens
from pocache.wire import messages as m
from pocache.wire import topics as t

POSITIONS = (1, 9)


def start() -> tuple[Pool, m.StageSealedV1]:
    """Return a pool whose first stage is being opened; its store says that everybody opened."""
    pool = Pool().start()
    pool.hold()
    pool.seal()
    return pool, pool.hear(t.STAGE_SEALED)


def forge_leaves(pool: Pool, stage: m.StageSealedV1, _: m.OpeningV1) -> m.OpeningV1:
    """A verifier that shows other rows than it sealed, well-formed and well proven of another tree."""
    pool.rows[1] = CHEAT
    forged = pool.make_opening(stage, stage.parties[1], POSITIONS)
    pool.rows.clear()
    return forged


FORGERIES: dict[str, tuple[Callable[[Pool, m.StageSealedV1, m.OpeningV1], m.OpeningV1], str]] = {
    "other rows": (forge_leaves, "E301"),
    "proof missing": (lambda _, __, one: one.model_copy(update={"proof": b""}), "E301"),
    "proof torn": (lambda _, __, one: one.model_copy(update={"proof": one.proof[:-1]}), "E301"),
    "leaf missing": (lambda _, __, one: one.model_copy(update={"leaves": one.leaves[:1]}), "E303"),
    "leaf cut": (
        lambda _, __, one: one.model_copy(update={"leaves": (one.leaves[0][:-4], one.leaves[1])}),
        "E303",
    ),
    "positions repeated": (
        lambda _, __, one: one.model_copy(
            update={"positions": pack_tokens((1, 1)), "leaves": one.leaves[:1] * 2}
        ),
        "E303",
    ),
    "another stage": (lambda _, __, one: one.model_copy(update={"stage": 2}), "E102"),
    "another look": (lambda _, __, one: one.model_copy(update={"retry": 1}), "E102"),
    "another attempt": (lambda _, __, one: one.model_copy(update={"attempt": 2}), "E102"),
    "another job": (lambda _, __, one: one.model_copy(update={"job_id": bytes(32)}), "E102"),
}


@pytest.mark.parametrize(("forge", "code"), FORGERIES.values(), ids=FORGERIES.keys())
def test_an_opening_that_does_not_hold_is_refused_though_the_store_accepted_it(forge: Any, code: str) -> None:
    """Without its leaves nothing is decided; with the right ones it goes on."""
    pool, stage = start()
    generator, verifier = stage.parties
    honest = pool.make_opening(stage, verifier, POSITIONS)
    fields = {"stage": 1, "retry": 0, "attempt": 1, "job_id": honest.job_id}
    accepted = pool.make_accepted(forge(pool, stage, honest), verifier).model_copy(update=fields)
    pool.tell(t.OPENING_ACCEPTED, accepted, action="term")
    assert pool.harness.refusal().code == code
    pool.accept(stage, generator, POSITIONS)
    closing = pool.make_closing(stage, POSITIONS, (generator.participant, verifier.participant), ())
    pool.tell(t.OPENINGS_CLOSED, closing, action="nak")
    pool.accept(stage, verifier, POSITIONS)
    pool.tell(t.OPENINGS_CLOSED, closing)
    assert pool.outcome.case == "agree"


def test_an_opening_that_its_party_did_not_sign_is_refused() -> None:
    """By another party, by a stranger, or for somebody who has no part in the stage."""
    pool, stage = start()
    generator, verifier = stage.parties
    opening = pool.make_opening(stage, verifier, POSITIONS)
    for signer in (pool.get_key(generator), pool.network.key("stranger")):
        pool.tell(t.OPENING_ACCEPTED, pool.make_accepted(opening, verifier, signer), action="term")
        assert pool.harness.refusal().code == "E102"
    stranger = pool.network.participant("stranger")
    accepted = pool.make_accepted(opening, verifier, pool.network.key("stranger"))
    pool.tell(t.OPENING_ACCEPTED, accepted.model_copy(update={"participant": stranger}), action="term")
    assert pool.harness.refusal().code == "E102"


def test_a_broken_signature_under_an_opening_is_refused() -> None:
    pool, stage = start()
    accepted = pool.make_accepted(pool.make_opening(stage, stage.parties[1], POSITIONS), stage.parties[1])
    torn = accepted.opening[:-1] + bytes([accepted.opening[-1] ^ 1])
    pool.tell(t.OPENING_ACCEPTED, accepted.model_copy(update={"opening": torn}), action="term")
    assert pool.harness.refusal().code == "E103"


CHALLENGES: dict[str, Callable[[Pool], bytes | None]] = {
    "none": lambda _: None,
    "the generator's": lambda pool: pool.make_challenge(pool.job.generator),
    "another job's": lambda pool: pool.make_challenge(job_id=bytes(32)),
    "another attempt's": lambda pool: pool.make_challenge(attempt=2),
}


@pytest.mark.parametrize("make", CHALLENGES.values(), ids=CHALLENGES.keys())
def test_an_audit_that_its_user_did_not_ask_for_is_refused(make: Any) -> None:
    """The user pays for it, so the user's own signature must be there."""
    pool = Pool()
    pool.commit()
    number = pool.harness.pass_rounds()
    body = m.AuditOpenedV1(
        job_id=pool.job.job_id,
        attempt=1,
        reason="challenge",
        round_number=number,
        randomness=hashlib.sha256(pool.network.make_round(number).signature).digest(),
        corner=pool.job.corner(),
        challenge=make(pool),
    )
    pool.tell(t.AUDIT_OPENED, body, action="term")
    assert pool.harness.refusal().code == "E102"
    pool.tell(t.AUDIT_OPENED, body.model_copy(update={"challenge": pool.make_challenge()}))
    pool.play()
    assert pool.outcome.case == "agree"


@pytest.mark.parametrize("name", [name for name in CHALLENGES if name != "none"])
def test_an_audit_is_not_deepened_by_anothers_challenge(name: str) -> None:
    pool = Pool().start()
    pool.tell(t.AUDIT_DEEPENED, pool.make_deepening(challenge=CHALLENGES[name](pool)), action="term")
    assert pool.harness.refusal().code == "E102"


def make_foreign_lease(pool: Pool) -> m.EvidenceV1:
    """A second result under a lease that the router did not sign."""
    lease = pool.network.open(pool.job.lease, m.LeaseV1)
    return pool.make_evidence(lease=pool.network.seal(pool.network.key("stranger"), lease), root=bytes(32))


EVIDENCE: dict[str, Callable[[Pool], m.EvidenceV1]] = {
    "another's": lambda pool: pool.make_evidence(pool.network.key("stranger")),
    "another job's": lambda pool: pool.make_evidence(job_id=bytes(32), root=bytes(32)),
    "another attempt's": lambda pool: pool.make_evidence(attempt=2, root=bytes(32)),
    "under another's lease": make_foreign_lease,
    "the same promise": lambda pool: pool.make_evidence(latest_round=2),
}


@pytest.mark.parametrize("make", EVIDENCE.values(), ids=EVIDENCE.keys())
def test_nobody_is_convicted_by_evidence_that_does_not_hold(make: Any) -> None:
    """The store's word is not enough: the generator's own second signature must contradict its first."""
    pool = Pool()
    pool.commit()
    pool.tell(t.EVIDENCE, make(pool), action="term")
    assert pool.harness.refusal().code == "E102"
    assert pool.listen(t.OUTCOME_DECIDED) == []
    pool.equivocate()
    assert pool.outcome.case == "equivocation"


@pytest.mark.parametrize("field", ["root", "binding", "leaf_count"])
def test_each_part_of_the_promise_convicts(field: str) -> None:
    pool = Pool()
    pool.commit()
    changes: dict[str, Any] = {field: pool.job.leaf_count + 1 if field == "leaf_count" else b"\x0c" * 32}
    evidence = pool.make_evidence(**changes)
    pool.tell(t.EVIDENCE, evidence)
    assert pool.network.envelope_id(evidence.result).hex() in pool.outcome.reason
