"""How the verifier pool runs a dispute: what is drawn, asked for, compared and announced."""

from __future__ import annotations

import hashlib

import pytest

from kit.jobs import Job
from kit.network import Harness
from kit.pool import CHEAT, DOUBTFUL, GARBAGE, HONEST, NEARLY, LeasedJob, Pool, read_tokens
from pocache.protocol.encoding import RowKind, unpack_tokens
from pocache.protocol.ids import ParticipantId
from pocache.protocol.payoff import Case, VerifierStanding, settle
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role
from pocache_verifier.service import VerifierService

SHALLOW = {"layer_max": 0, "position_max": 6}


def verify_settles(pool: Pool, outcome: m.OutcomeV1) -> None:
    """The rules of payment accept the outcome, and it empties the pool."""
    settlement = settle(
        pool.network.genesis.rule_set,
        case=Case(outcome.case),
        cg=pool.job.generation_cost(),
        cv=pool.job.verification_cost(outcome.corner.layer_max, outcome.corner.position_max),
        user=pool.job.user.participant_id,
        generator=pool.job.generator.participant_id,
        verifiers=[
            VerifierStanding(ParticipantId(seat.participant), seat.stage, seat.opened)
            for seat in outcome.verifiers
        ],
        deciding=None if outcome.deciding is None else ParticipantId(outcome.deciding),
        prior=None if outcome.prior is None else ParticipantId(outcome.prior),
    )
    assert sum(amount for _, amount in settlement.payouts) == settlement.pool


def opened(outcome: m.OutcomeV1) -> list[bool]:
    return [seat.opened for seat in outcome.verifiers]


def test_the_first_verifier_agrees_with_an_honest_generator() -> None:
    pool = Pool(rows={1: NEARLY}).start()
    verifier = pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.deciding, outcome.prior) == ("agree", 1, verifier, None)
    assert outcome.verifiers == (
        m.VerifierStandingV1(participant=verifier, stage=1, opened=True, upheld=False),
    )
    assert outcome.corner == pool.job.corner()
    verify_settles(pool, outcome)


def test_the_outcome_carries_the_numbers_of_the_comparison() -> None:
    pool = Pool(rows={1: NEARLY}).start()
    verifier = pool.play()
    (comparison,) = pool.outcome.comparisons
    profile, generator = pool.network.model.profile, pool.job.generator.participant_id
    assert (comparison.left, comparison.right, comparison.verdict) == (verifier, generator, "match")
    assert comparison.peak_match_max_q16 == profile.peak_match_max_q16
    assert comparison.mean_mismatch_min_q16 == profile.mean_mismatch_min_q16
    # Two leaves of K and V at two layers and a hidden row, the second with scores.
    assert comparison.row_count == 2 * 5 + 1
    assert abs(comparison.distance_peak_q16 + (20 << 16)) < 1 << 14


def test_the_stake_asked_for_is_that_of_the_whole_job_whatever_the_corner() -> None:
    pool = Pool().start(Job(Pool().network).corner(**SHALLOW))
    request = pool.hold()
    assert request == pool.job.verifier_stake(1, pool.keys[ParticipantId(request.party)])


def test_a_task_has_the_tokens_and_nothing_of_the_generators_rows() -> None:
    pool = Pool().start()
    pool.hold()
    task, _ = pool.take_task()
    result = pool.network.open(pool.job.result(), m.ResultV1)
    prompt = pool.network.open(pool.job.submission, m.SubmissionV1).prompt
    assert read_tokens(task) == unpack_tokens(prompt + result.output)
    assert (task.prompt_count, task.corner, task.seed) == (
        5,
        pool.job.corner(),
        hashlib.sha256(b"seed").digest(),
    )
    assert result.root not in pool.network.seal(pool.job.user, task)


def test_a_sealed_stage_names_the_generator_and_the_verifier() -> None:
    pool = Pool().start(Job(Pool().network).corner(**SHALLOW))
    pool.hold()
    key = pool.seal()
    stage = pool.hear(t.STAGE_SEALED)
    generator, verifier = stage.parties
    assert (generator.participant, generator.stage) == (pool.job.generator.participant_id, 0)
    assert generator.root == pool.network.open(pool.job.result(), m.ResultV1).root
    assert (generator.leaf_count, generator.corner, generator.claim) == (10, pool.job.corner(), None)
    assert (verifier.participant, verifier.stage, verifier.leaf_count) == (key.participant_id, 1, 7)
    assert verifier.corner == stage.corner == pool.job.corner(**SHALLOW)
    claim = open_envelope(verifier.claim or b"", pool.network.network_id, m.ClaimSealedV1)
    assert (claim.sender, claim.body.root) == (key.participant_id, verifier.root)
    assert stage.sample_count == pool.network.genesis.audit.sample_count
    assert stage.sealed_ms == pool.harness.clock_ms


def test_a_garbage_verifier_is_overruled_by_the_next() -> None:
    pool = Pool(rows={1: GARBAGE, 2: NEARLY}).start()
    pool.play()
    second = pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.deciding) == ("confirm_generator", 2, second)
    assert [comparison.verdict for comparison in outcome.comparisons] == ["mismatch", "match"]
    verify_settles(pool, outcome)


def test_a_cheat_is_convicted_by_two_verifiers() -> None:
    pool = Pool(rows={0: CHEAT, 2: NEARLY}).start()
    first = pool.play()
    second = pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.deciding, outcome.prior) == ("confirm_prior", second, first)
    assert [(c.left, c.right, c.verdict) for c in outcome.comparisons] == [
        (first, pool.job.generator.participant_id, "mismatch"),
        (second, pool.job.generator.participant_id, "mismatch"),
        (second, first, "match"),
    ]
    verify_settles(pool, outcome)


def test_a_garbage_verifier_between_does_not_save_a_cheat() -> None:
    pool = Pool(rows={0: CHEAT, 2: GARBAGE, 3: NEARLY}).start()
    first = pool.play()
    pool.play()
    third = pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.deciding, outcome.prior) == (
        "confirm_prior",
        3,
        third,
        first,
    )
    assert opened(outcome) == [True, True, True]
    verify_settles(pool, outcome)


def test_a_cheat_that_only_shows_behind_a_shallow_corner_passes_it() -> None:
    """What lies outside the corner is not compared: a last layer that lies is seen at full depth alone."""

    def compute(kind: RowKind, layer: int) -> float:
        return HONEST if kind in (RowKind.K, RowKind.V) and layer == 0 else CHEAT

    pool = Pool(rows={0: compute}).start(Job(Pool().network).corner(layer_max=0))
    pool.hold()
    pool.seal()
    pool.open(positions=(9,))
    pool.close_window()
    (comparison,) = pool.outcome.comparisons
    assert (comparison.verdict, comparison.row_count) == ("match", 2)


def test_a_verifier_that_never_seals_loses_its_stage() -> None:
    pool = Pool(sections={"deadlines": {"seal_ticks": 3}}).start()
    pool.hold()
    pool.take_task()
    pool.harness.pass_rounds(2)
    assert pool.listen(t.VERIFIER_HOLD_REQUESTED) == []
    pool.harness.pass_rounds()
    second = pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.deciding) == ("confirm_generator", 2, second)
    assert opened(outcome) == [False, True]
    verify_settles(pool, outcome)


def test_rounds_that_come_late_are_no_time_to_seal_in() -> None:
    pool = Pool(sections={"deadlines": {"seal_ticks": 3}}).start()
    pool.hold()
    pool.harness.clock_ms += 1_000 * pool.network.chain.period_s * 100
    pool.harness.pass_rounds(10)
    pool.seal()
    pool.open()
    assert pool.outcome.case == "agree"


def test_a_verifier_that_never_opens_loses_its_stage() -> None:
    pool = Pool().start()
    pool.play(missing={1})
    pool.play()
    outcome = pool.outcome
    assert (outcome.case, opened(outcome)) == ("confirm_generator", [False, True])
    verify_settles(pool, outcome)


def test_a_generator_that_never_opens_ends_the_dispute() -> None:
    pool = Pool().start()
    pool.play(missing={0})
    outcome = pool.outcome
    assert (outcome.case, outcome.deciding, outcome.prior) == ("no_opening", None, None)
    assert (opened(outcome), outcome.comparisons) == ([True], ())
    verify_settles(pool, outcome)


def test_a_refused_stake_passes_to_the_next_in_the_order() -> None:
    pool = Pool().start()
    refused = pool.refuse_hold()
    second = pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage) == ("agree", 1)
    assert refused.party != second and refused.stage == 1


def test_all_candidates_refused_is_void() -> None:
    pool = Pool(verifier_count=2).start()
    pool.refuse_hold()
    pool.refuse_hold()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.verifiers) == ("void", 0, ())
    assert "no verifier for stage 1" in outcome.reason
    verify_settles(pool, outcome)


def test_no_member_at_all_is_void() -> None:
    pool = Pool(verifier_count=0).start()
    assert pool.outcome.case == "void"


def test_running_out_of_verifiers_is_void() -> None:
    pool = Pool(verifier_count=1, rows={1: GARBAGE}).start()
    pool.play()
    pool.draw()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, opened(outcome)) == ("void", 1, [True])
    verify_settles(pool, outcome)


def test_the_last_stage_without_agreement_is_void() -> None:
    pool = Pool(sections={"rules": {"stage_max": 2}}, rows={1: GARBAGE, 2: CHEAT}).start()
    pool.play()
    pool.play()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, opened(outcome)) == ("void", 2, [True, True])
    assert len(outcome.comparisons) == 3
    verify_settles(pool, outcome)


def test_inconclusive_is_looked_at_again_and_then_counts_as_a_match() -> None:
    pool = Pool(rows={1: DOUBTFUL}).start(Job(Pool().network).corner(**SHALLOW))
    pool.hold()
    pool.seal()
    first = pool.open()
    task, key = pool.take_task()
    assert (task.stage, task.retry, task.corner) == (1, 1, pool.job.corner())
    pool.tell(t.CLAIM_SEALED, pool.make_claim(task), key)
    again = pool.open()
    assert again.sample_count == 4 * first.sample_count
    assert again.parties[1].root != first.parties[1].root
    outcome = pool.outcome
    assert (outcome.case, outcome.corner) == ("agree", pool.job.corner())
    assert [(c.retry, c.verdict) for c in outcome.comparisons] == [(0, "inconclusive"), (1, "inconclusive")]
    verify_settles(pool, outcome)


def test_a_challenge_during_a_partial_audit_has_the_match_looked_at_in_full() -> None:
    pool = Pool().start(Job(Pool().network).corner(**SHALLOW))
    pool.hold()
    pool.deepen()
    pool.seal()
    pool.open()
    task, key = pool.take_task()
    assert (task.retry, task.corner) == (1, pool.job.corner())
    pool.tell(t.CLAIM_SEALED, pool.make_claim(task), key)
    pool.open()
    assert (pool.outcome.case, pool.listen(t.OUTCOME_DECIDED)) == ("agree", [])


def start_held() -> Pool:
    """Return a pool whose lottery's audit matched at partial depth; behind the corner the generator cheated."""

    def compute(kind: RowKind, layer: int) -> float:
        return HONEST if kind in (RowKind.K, RowKind.V) and layer == 0 else CHEAT

    pool = Pool(rows={0: compute}).start(Job(Pool().network).corner(layer_max=0))
    pool.play()
    return pool


def test_a_match_at_partial_depth_waits_for_the_end_of_the_window() -> None:
    """Until then its user may still have the whole job looked at."""
    pool = start_held()
    pool.harness.pass_rounds_to(pool.job.committed().window_close_round)
    assert pool.listen(t.OUTCOME_DECIDED) == []
    pool.close_window()
    assert (pool.outcome.case, pool.harness.dump()["openings"]) == ("agree", [])
    pool.harness.pass_rounds(3)
    assert pool.harness.drain() == []


def test_a_match_at_partial_depth_is_final_once_the_window_is_closed() -> None:
    pool = Pool()
    pool.commit()
    pool.close_window()
    pool.audit(pool.job.corner(**SHALLOW))
    pool.play()
    assert pool.outcome.case == "agree"


def test_a_challenge_after_a_match_at_partial_depth_has_it_looked_at_in_full() -> None:
    """In the window's last round, too: what the lottery passed is no excuse."""
    pool = start_held()
    pool.harness.pass_rounds_to(pool.job.committed().window_close_round)
    pool.deepen()
    task, key = pool.take_task()
    assert (task.retry, task.corner, pool.listen(t.OUTCOME_DECIDED)) == (1, pool.job.corner(), [])
    pool.tell(t.CLAIM_SEALED, pool.make_claim(task), key)
    pool.open()
    pool.play()
    outcome = pool.outcome
    assert (outcome.case, [c.verdict for c in outcome.comparisons]) == (
        "confirm_prior",
        ["match", "mismatch", "mismatch", "match"],
    )
    verify_settles(pool, outcome)


def test_equivocation_after_a_match_at_partial_depth_decides_at_once() -> None:
    pool = start_held()
    pool.equivocate()
    outcome = pool.outcome
    assert (outcome.case, outcome.comparisons) == ("equivocation", ())
    verify_settles(pool, outcome)
    pool.close_window()
    assert pool.harness.drain() == []


def test_a_mismatch_at_partial_depth_waits_for_nobody() -> None:
    pool = Pool(rows={0: CHEAT}).start(Job(Pool().network).corner(**SHALLOW))
    pool.play()
    pool.play()
    assert pool.outcome.case == "confirm_prior"


def test_a_prior_with_a_smaller_corner_is_compared_on_what_both_have() -> None:
    pool = Pool(rows={0: CHEAT}).start(Job(Pool().network).corner(**SHALLOW))
    first = pool.play()
    pool.deepen()
    pool.hold()
    second = pool.seal().participant_id
    pool.open(positions=(2, 6, 9))
    outcome = pool.outcome
    assert (outcome.case, outcome.deciding, outcome.prior) == ("confirm_prior", second, first)
    # Positions 2 and 6, K and V of layer 0.
    assert outcome.comparisons[-1].row_count == 4


def test_equivocation_during_a_stage_ends_it() -> None:
    pool = Pool().start()
    pool.hold()
    key = pool.seal()
    stage = pool.hear(t.STAGE_SEALED)
    pool.equivocate()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.verifiers[0].participant) == (
        "equivocation",
        1,
        key.participant_id,
    )
    for envelope in (pool.job.committed().result, pool.make_evidence().result):
        assert pool.network.envelope_id(envelope).hex() in outcome.reason
    verify_settles(pool, outcome)
    everybody = tuple(party.participant for party in stage.parties)
    pool.accept(stage, stage.parties[0], (1,))
    pool.tell(t.OPENINGS_CLOSED, pool.make_closing(stage, (1,), everybody, ()))
    assert pool.harness.drain() == []


def test_equivocation_waits_for_a_stake_that_is_being_locked() -> None:
    """The ledger refuses an outcome that leaves out a stake in its pool."""
    pool = Pool().start()
    pool.equivocate()
    assert pool.listen(t.OUTCOME_DECIDED) == []
    request = pool.hold()
    outcome = pool.outcome
    assert (outcome.case, [seat.participant for seat in outcome.verifiers]) == (
        "equivocation",
        [request.party],
    )


def test_equivocation_without_an_audit_ends_the_job() -> None:
    pool = Pool()
    pool.commit()
    pool.equivocate()
    outcome = pool.outcome
    assert (outcome.case, outcome.stage, outcome.corner) == ("equivocation", 0, pool.job.corner())
    verify_settles(pool, outcome)
    pool.audit()
    assert pool.listen(t.VERIFIER_HOLD_REQUESTED) == []


def test_a_record_that_comes_again_changes_nothing() -> None:
    pool = Pool()
    pool.commit()
    audit = pool.audit()
    request = pool.hold()
    stage_key = pool.seal()
    before, said = pool.harness.dump(), len(pool.harness.drain())
    assert said == 1
    pool.tell(t.JOB_ADMITTED, pool.job.admitted())
    pool.tell(t.COMMITMENT_RECORDED, pool.job.committed().model_copy(update={"log_index": 7}))
    pool.tell(
        t.AUDIT_OPENED, audit.model_copy(update={"reason": "challenge", "challenge": pool.make_challenge()})
    )
    pool.tell(t.HOLD_PLACED, m.HoldPlacedV1(**{**request.model_dump(), "amount_micro": 1}))
    assert pool.harness.dump() == before
    assert (pool.harness.drain(), stage_key.participant_id) == ([], request.party)


def test_other_holds_of_the_job_are_not_the_pools() -> None:
    pool = Pool().start()
    request = pool.hear(t.VERIFIER_HOLD_REQUESTED)
    for purpose in ("escrow", "generator_stake"):
        pool.tell(t.HOLD_PLACED, m.HoldPlacedV1(**{**request.model_dump(), "purpose": purpose}))
        fields = {**request.model_dump(exclude={"amount_micro"}), "purpose": purpose}
        pool.tell(t.HOLD_REFUSED, m.HoldRefusedV1(**fields, code="E204", reason="no money"))
    assert pool.harness.drain() == []


def test_records_that_come_before_what_they_speak_of_wait_for_it() -> None:
    pool = Pool()
    pool.harness.pass_rounds()
    pool.tell(t.COMMITMENT_RECORDED, pool.job.committed(), action="nak")
    pool.tell(t.JOB_ADMITTED, pool.job.admitted())
    deepened = pool.make_deepening()
    pool.tell(t.AUDIT_DEEPENED, deepened, action="nak")
    pool.tell(t.COMMITMENT_RECORDED, pool.job.committed())
    pool.tell(t.AUDIT_DEEPENED, deepened)


def test_an_audit_waits_for_its_round_and_is_refused_with_another() -> None:
    pool = Pool()
    pool.commit()
    number = pool.harness.latest_round + 1
    body = m.AuditOpenedV1(
        job_id=pool.job.job_id,
        attempt=1,
        reason="lottery",
        round_number=number,
        randomness=bytes(32),
        corner=pool.job.corner(),
    )
    pool.tell(t.AUDIT_OPENED, body, action="nak")
    pool.harness.pass_rounds()
    pool.tell(t.AUDIT_OPENED, body, action="term")
    assert pool.harness.refusal().code == "E302"


def test_closed_openings_wait_for_leaves_that_are_on_their_way() -> None:
    pool = Pool().start()
    pool.hold()
    pool.seal()
    stage = pool.hear(t.STAGE_SEALED)
    generator, verifier = stage.parties
    closing = pool.make_closing(stage, (1, 9), (generator.participant, verifier.participant), ())
    pool.accept(stage, generator, (1, 9))
    pool.accept(stage, verifier, (1,), part_count=2)
    pool.tell(t.OPENINGS_CLOSED, closing, action="nak")
    pool.accept(stage, verifier, (9,), part=1, part_count=2)
    pool.tell(t.OPENINGS_CLOSED, closing)
    assert pool.outcome.case == "agree"


@pytest.mark.parametrize("signer", ["worker", "user"])
def test_a_lease_that_the_router_did_not_sign_is_refused(signer: str) -> None:
    pool = Pool()
    pool.harness.pass_rounds()
    pool.tell(t.JOB_ADMITTED, pool.job.admitted())
    lease = pool.network.open(pool.job.lease, m.LeaseV1)
    result = pool.network.open(pool.job.result(), m.ResultV1)
    forged = result.model_copy(update={"lease": pool.network.seal(pool.network.key(signer), lease)})
    body = pool.job.committed().model_copy(update={"result": pool.network.seal(pool.job.generator, forged)})
    pool.tell(t.COMMITMENT_RECORDED, body, action="term")
    assert pool.harness.refusal().code == "E102"


def test_a_result_of_another_than_the_leaseholder_is_refused() -> None:
    pool = Pool()
    pool.harness.pass_rounds()
    pool.tell(t.JOB_ADMITTED, pool.job.admitted())
    result = pool.network.open(pool.job.result(), m.ResultV1)
    other = pool.network.key("other")
    body = pool.job.committed().model_copy(update={"result": pool.network.seal(other, result)})
    pool.tell(t.COMMITMENT_RECORDED, body, action="term")
    changed = {"result": body.result, "generator": other.participant_id}
    pool.tell(t.COMMITMENT_RECORDED, body.model_copy(update=changed), action="term")
    assert {body.code for body in pool.listen(t.REFUSALS[Role.VERIFIER])} == {"E102"}


def test_a_job_whose_escrow_is_refused_is_forgotten() -> None:
    """Nobody paid for keeping its prompt; a refusal of a stake says nothing about the job."""
    pool = Pool()
    pool.tell(t.JOB_ADMITTED, pool.job.admitted())
    refused = m.HoldRefusedV1(
        **pool.job.generator_stake().model_dump(exclude={"amount_micro"}), code="E204", reason="too short"
    )
    pool.tell(t.HOLD_REFUSED, refused)
    assert len(pool.harness.dump()["jobs"]) == 1
    fields = pool.job.escrow().model_dump(exclude={"amount_micro"})
    pool.tell(t.HOLD_REFUSED, m.HoldRefusedV1(**fields, code="E204", reason="deposit too short"))
    assert pool.harness.dump()["jobs"] == []


def make_settlement(pool: Pool, case: str) -> m.PayoutSettledV1:
    fields = {
        "case": case,
        "stage": 0,
        "pool_micro": 0,
        "generation_micro": 0,
        "verification_micro": 0,
        "reserve_micro": 0,
    }
    return m.PayoutSettledV1.model_validate(
        {"job_id": pool.job.job_id, "attempt": 1, **fields, "lines": (), "slashed": ()}
    )


def test_a_settled_job_is_forgotten_but_for_its_name() -> None:
    pool = Pool().start()
    pool.hold()
    task, key = pool.take_task()
    pool.tell(t.CLAIM_SEALED, pool.make_claim(task), key)
    pool.open()
    assert pool.outcome.case == "agree"
    pool.tell(t.PAYOUT_SETTLED, make_settlement(pool, "agree"))
    dump = pool.harness.dump()
    prompt = pool.network.open(pool.job.submission, m.SubmissionV1).prompt
    output = pool.network.open(pool.job.result(), m.ResultV1).output
    assert not any({prompt, output} & set(row) for rows in dump.values() for row in rows)
    assert (dump["comparisons"], dump["openings"], dump["claims"], len(dump["jobs"])) == ([], [], [], 1)
    late = pool.make_claim(task).model_copy(update={"root": bytes(32)})
    pool.tell(t.CLAIM_SEALED, late, key, action="term")
    assert pool.harness.refusal().code == "E206"


def test_nothing_is_decided_about_a_settled_job() -> None:
    pool = Pool()
    pool.commit()
    pool.tell(t.PAYOUT_SETTLED, make_settlement(pool, "no_challenge"))
    pool.equivocate()
    assert pool.listen(t.OUTCOME_DECIDED) == []


def test_a_second_look_uses_no_leaf_of_the_first() -> None:
    pool = Pool(rows={1: DOUBTFUL}).start()
    pool.hold()
    pool.seal()
    stage = pool.hear(t.STAGE_SEALED)
    for party in stage.parties:
        for part, position in enumerate((1, 9)):
            pool.accept(stage, party, (position,), part=part, part_count=2)
    everybody = tuple(party.participant for party in stage.parties)
    pool.tell(t.OPENINGS_CLOSED, pool.make_closing(stage, (1, 9), everybody, ()))
    pool.rows[1] = HONEST
    pool.seal()
    pool.open()
    assert [comparison.verdict for comparison in pool.outcome.comparisons] == ["inconclusive", "match"]


def test_leaves_of_a_stage_that_is_over_are_not_kept() -> None:
    pool = Pool(rows={1: GARBAGE}).start()
    pool.hold()
    pool.seal()
    first = pool.open()
    pool.hold()
    pool.seal()
    pool.accept(first, first.parties[0], (1, 9), part=1, part_count=2)
    assert pool.harness.dump()["openings"] == []


def test_a_submission_other_than_the_jobs_own_is_refused() -> None:
    pool = Pool()
    body = pool.job.admitted()
    changed: list[dict[str, object]] = [
        {"submission": LeasedJob(pool.network, name="other").submission},
        {"user": pool.network.participant("other")},
    ]
    for change in changed:
        pool.tell(t.JOB_ADMITTED, body.model_copy(update=change), action="term")
        assert pool.harness.refusal().code == "E102"


def test_a_commitment_of_a_model_that_is_not_served_is_refused() -> None:
    pool = Pool()
    pool.harness = Harness(VerifierService(pool.network.genesis, {}), pool.network)
    pool.tell(t.JOB_ADMITTED, pool.job.admitted())
    pool.tell(t.COMMITMENT_RECORDED, pool.job.committed(), action="term")
    assert pool.harness.refusal().code == "E201"


def test_a_restarted_pool_goes_on_where_it_stopped(tmp_path: object) -> None:
    pool = Pool()
    url = f"sqlite:///{tmp_path}/verifier.db"
    pool.harness = Harness(VerifierService(pool.network.genesis, pool.network.models), pool.network, url=url)
    pool.start()
    pool.hold()
    pool.seal()
    pool.harness.close()
    pool.harness.open()
    pool.open()
    assert pool.outcome.case == "agree"
    pool.harness.close()


def test_the_job_of_another_attempt_is_refused() -> None:
    pool = Pool()
    pool.commit()
    pool.tell(t.AUDIT_DEEPENED, pool.make_deepening(attempt=2), action="term")
    assert isinstance(pool.job, LeasedJob)
    assert pool.harness.refusal().code == "E102"
