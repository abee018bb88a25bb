"""Claims: only the one that was asked for, from whom it was asked, in time; everyone else is told why not."""

from __future__ import annotations

import pytest

from kit.pool import DOUBTFUL, GARBAGE, Pool, Rows
from pocache.protocol.keys import SigningKey
from pocache.wire import messages as m
from pocache.wire import topics as t


def verify_refused(pool: Pool, claim: m.ClaimSealedV1, key: SigningKey, code: str) -> None:
    """The claim is refused with that code, and leaves no trace."""
    pool.said += pool.harness.drain()
    before = pool.harness.dump()
    pool.tell(t.CLAIM_SEALED, claim, key, action="term")
    assert pool.harness.dump() == before
    ((topic, body),) = pool.harness.outbox()
    assert isinstance(body, m.RefusalV1) and body.code == code, (topic, body)
    assert body.reason


def make_pool(rows: dict[int, Rows] | None = None) -> tuple[Pool, m.ClaimSealedV1, SigningKey]:
    pool = Pool(sections={"deadlines": {"seal_ticks": 3}}, rows=rows or {}).start()
    pool.hold()
    task, key = pool.take_task()
    return pool, pool.make_claim(task), key


def test_a_verifier_that_was_not_drawn() -> None:
    pool, claim, key = make_pool()
    other = next(one for one in pool.keys.values() if one != key)
    verify_refused(pool, claim, other, "E209")


@pytest.mark.parametrize("who", ["generator", "user"])
def test_a_party_to_the_job_itself(who: str) -> None:
    pool, claim, _ = make_pool()
    verify_refused(pool, claim, getattr(pool.job, who), "E209")


def test_a_stage_that_was_not_reached() -> None:
    pool, claim, key = make_pool()
    verify_refused(pool, claim.model_copy(update={"stage": 2}), key, "E209")


@pytest.mark.parametrize("change", [{"job_id": b"\x77" * 32}, {"attempt": 2}])
def test_an_unknown_job_or_attempt(change: dict[str, object]) -> None:
    pool, claim, key = make_pool()
    verify_refused(pool, claim.model_copy(update=change), key, "E207")


def test_a_second_look_that_was_not_asked_for() -> None:
    pool, claim, key = make_pool()
    verify_refused(pool, claim.model_copy(update={"retry": 1}), key, "E207")


def test_a_job_that_is_not_audited() -> None:
    _, claim, key = make_pool()
    unaudited = Pool()
    unaudited.commit()
    verify_refused(unaudited, claim.model_copy(update={"job_id": unaudited.job.job_id}), key, "E209")


@pytest.mark.parametrize(
    "change",
    [
        {"corner": m.CornerV1(layer_max=0, position_max=9, full_depth=True)},
        {"corner": m.CornerV1(layer_max=1, position_max=8, full_depth=True)},
        {"corner": m.CornerV1(layer_max=1, position_max=9, full_depth=False)},
        {"leaf_count": 9},
        {"leaf_count": 11},
        {"stack": "fake/2"},
    ],
)
def test_another_corner_leaf_count_or_stack_than_asked_for(change: dict[str, object]) -> None:
    pool, claim, key = make_pool()
    verify_refused(pool, claim.model_copy(update=change), key, "E304")
    pool.tell(t.CLAIM_SEALED, claim, key)
    assert pool.hear(t.STAGE_SEALED).stage == 1


def test_a_second_claim_for_the_same_task() -> None:
    pool, claim, key = make_pool()
    pool.tell(t.CLAIM_SEALED, claim, key)
    verify_refused(pool, claim.model_copy(update={"root": b"\x55" * 32}), key, "E208")


def test_the_same_envelope_twice() -> None:
    pool, claim, key = make_pool()
    pool.tell(t.CLAIM_SEALED, claim, key)
    verify_refused(pool, claim, key, "E208")


def test_a_redelivered_claim_has_no_second_effect() -> None:
    pool, claim, key = make_pool()
    pool.tell(t.CLAIM_SEALED, claim, key)
    pool.harness.drain()
    assert pool.harness.last is not None
    assert pool.harness.apply(pool.harness.last).action == "ack"
    assert pool.harness.drain() == []


def test_a_claim_after_its_deadline() -> None:
    pool, claim, key = make_pool()
    pool.harness.pass_rounds(3)
    verify_refused(pool, claim, key, "E206")
    pool.play()
    assert pool.outcome.case == "confirm_generator"


def test_a_claim_for_a_stage_that_is_over() -> None:
    pool, claim, key = make_pool(rows={1: GARBAGE})
    pool.tell(t.CLAIM_SEALED, claim, key)
    pool.open()
    verify_refused(pool, claim.model_copy(update={"root": b"\x55" * 32}), key, "E206")


def test_a_first_claim_during_the_second_look() -> None:
    pool, claim, key = make_pool(rows={1: DOUBTFUL})
    pool.tell(t.CLAIM_SEALED, claim, key)
    pool.open()
    verify_refused(pool, claim.model_copy(update={"root": b"\x55" * 32}), key, "E206")


def test_a_claim_after_the_outcome() -> None:
    pool, claim, key = make_pool()
    pool.tell(t.CLAIM_SEALED, claim, key)
    pool.open()
    verify_refused(pool, claim.model_copy(update={"root": b"\x55" * 32}), key, "E206")


def test_a_claim_whose_opening_never_matched_its_seal_ends_as_missing() -> None:
    """The commitment store refuses such openings; here it is a verifier that did not open."""
    pool, claim, key = make_pool()
    pool.tell(t.CLAIM_SEALED, claim, key)
    pool.open(missing={1})
    pool.play()
    outcome = pool.outcome
    assert (outcome.case, [seat.opened for seat in outcome.verifiers]) == ("confirm_generator", [False, True])
