"""Every ending has a receipt that holds, in both forms, and one that explains itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kit.endings import ALWAYS, ENDINGS, STATED, Played, play
from kit.loopback import Loopback
from kit.network import make_key
from pocache.protocol.errors import NotAuthorizedError, NotYetError, UnknownJobError
from pocache.protocol.ids import JobId
from pocache.receipt.explain import explain_job
from pocache.receipt.format import decode_receipt, encode_binary, encode_json
from pocache.receipt.report import Report, Status, Step
from pocache.receipt.verify import examine_receipt, verify_receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_commitments import receipts


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_receipt_of_every_ending_holds(ending: str) -> None:
    played = play(ending)
    report = played.verify(played.receipt)
    assert report.failure is None
    assert report.is_valid
    assert report.case == STATED.get(ending, ending)
    assert report.job_id == played.job_id
    assert [one.step for one in report.steps] == list(Step)


@pytest.mark.parametrize("ending", ENDINGS)
def test_both_forms_say_the_same(ending: str) -> None:
    """JSON and msgpack decode to one receipt, and each is its one spelling."""
    receipt = play(ending).receipt
    for data in (encode_json(receipt), encode_binary(receipt)):
        assert decode_receipt(data) == receipt
    json_report = verify_receipt(encode_json(receipt), play(ending).loopback.trust)
    # The number of bytes alone is another.
    assert json_report.steps[1:] == play(ending).verify(receipt).steps[1:]


@pytest.mark.parametrize(
    ("ending", "idle"),
    [
        (
            "no_challenge",
            {Step.CORNER, Step.SORTITION, Step.CLAIMS, Step.OPENINGS, Step.COMPARISONS, Step.OUTCOME},
        ),
        ("refused", set(Step) - {Step.FORMAT, Step.TRUST, Step.ENVELOPES, Step.SUBMISSION}),
        ("refunded", {Step.LEASE, Step.COMMITMENT, Step.LOG, Step.ROUNDS, Step.AUDIT}),
        ("no_opening", {Step.COMPARISONS}),
        ("agree", set()),
    ],
)
def test_steps_without_anything_to_look_at_say_so(ending: str, idle: set[Step]) -> None:
    report = play(ending).verify(play(ending).receipt)
    found = {one.step for one in report.steps if one.status is Status.NOT_APPLICABLE}
    assert idle <= found
    assert all(one.reason for one in report.steps if one.status is Status.NOT_APPLICABLE)
    assert Step.PAYOUT not in found or ending == "refused"


def play_held(interrupt: Callable[[Loopback, JobId], None]) -> Report:
    """Have the lottery's audit match at partial depth, interrupt in the window's rest, and judge the job's receipt."""
    sections = {**ALWAYS, "audit": {**ALWAYS["audit"], "window_rounds": 20}}
    loopback = Loopback(sections)
    job_id = loopback.submit()
    while loopback.find(t.OPENINGS_CLOSED, job_id) is None:
        loopback.act()
        loopback.tick()
    loopback.tick(2)
    assert loopback.find(t.OUTCOME_DECIDED, job_id) is None
    interrupt(loopback, job_id)
    for _ in range(40):
        loopback.act()
        loopback.tick()
    return verify_receipt(encode_binary(loopback.get_receipt(job_id)), loopback.trust)


def test_a_challenge_after_a_partial_match_is_taken_and_has_a_receipt_that_holds() -> None:
    """The window is the user's, whatever the lottery found in a part of the job."""

    def challenge(loopback: Loopback, job_id: JobId) -> None:
        loopback.challenge(job_id)
        assert loopback.find(t.AUDIT_DEEPENED, job_id) is not None

    report = play_held(challenge)
    assert (report.failure, report.case) == (None, "agree")
    assert {one.status for one in report.steps if one.step in (Step.COMPARISONS, Step.OUTCOME)} == {
        Status.HOLDS
    }


def test_an_equivocation_after_a_partial_match_has_a_receipt_that_holds() -> None:
    def contradict(loopback: Loopback, job_id: JobId) -> None:
        key = make_key(loopback.generator)
        recorded = loopback.find(t.COMMITMENT_RECORDED, job_id)
        first = loopback.network.open(recorded.result, m.ResultV1)
        second = first.model_copy(update={"root": b"\x07" * 32})
        loopback.say(t.RESULT_COMPLETED, second, key, worker=key.participant_id, job=job_id)

    report = play_held(contradict)
    assert (report.failure, report.case) == (None, "equivocation")


def test_a_seed_whose_key_is_not_published_is_left_open_and_not_called_checked() -> None:
    report = play("epoch_seed").verify(play("epoch_seed").receipt)
    [lease] = [one for one in report.steps if one.step is Step.LEASE]
    assert lease.status is Status.UNCHECKED
    assert "key of epoch 1" in lease.reason
    assert report.is_valid
    assert not report.is_complete
    assert play("agree").verify(play("agree").receipt).is_complete


def test_steps_say_what_they_compared() -> None:
    report = play("agree").verify(play("agree").receipt)
    assert all(one.compared for one in report.steps)
    assert {"R1", "R18"} <= {one["step"] for one in report.to_dict()["steps"]}


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("no_challenge", ("the lottery passed it by", "R9", "not audited")),
        ("agree", ("Its user challenged it", "match", "R15", "gained")),
        ("confirm_prior", ("mismatch", "convicted", "was slashed")),
        ("no_opening", ("did not open", "R14")),
        ("equivocation", ("signed two results",)),
        ("refused", ("E204", "never began")),
        ("refunded", ("The router gave it up",)),
        ("deepened", ("during the audit",)),
    ],
)
def test_explaining_says_why_in_words_with_steps(ending: str, words: tuple[str, ...]) -> None:
    played = play(ending)
    report, case = examine_receipt(encode_binary(played.receipt), played.loopback.trust)
    assert case is not None
    text = "\n".join(explain_job(case, report.case, {case.user: "ada"}))
    for one in words:
        assert one in text
    assert "ada" in text


# --- who may have one -------------------------------------------------------------------------------------------


def test_only_the_user_and_the_operator_are_shown_a_receipt(played: Played) -> None:
    refusal = played.loopback.ask_receipt(played.job_id, "verifier-1")
    assert isinstance(refusal, m.RefusalV1)
    assert refusal.code == NotAuthorizedError.code


def test_strangers_cannot_tell_a_job_that_is_not_theirs_from_none() -> None:
    loopback = play("agree").loopback
    unknown = loopback.ask_receipt(JobId(bytes(32)), "verifier-1")
    others = loopback.ask_receipt(play("agree").job_id, "verifier-1")
    assert isinstance(unknown, m.RefusalV1)
    assert isinstance(others, m.RefusalV1)
    assert (unknown.code, unknown.reason) == (others.code, others.reason)


def test_a_job_that_is_not_over_has_no_receipt_yet() -> None:
    loopback = Loopback()
    job_id = loopback.submit()
    refusal = loopback.ask_receipt(job_id)
    assert isinstance(refusal, m.RefusalV1)
    assert refusal.code == NotYetError.code


def test_a_part_that_there_is_not_is_refused() -> None:
    played = play("agree")
    refusal = played.loopback.ask_receipt(played.job_id, part=1)
    assert isinstance(refusal, m.RefusalV1)
    assert refusal.code == UnknownJobError.code


def test_parts_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small part size: many parts, one hash."""
    monkeypatch.setattr(receipts, "RECEIPT_PART_BYTES_MAX", 1_000)
    played = play("agree")
    assert played.loopback.get_receipt(played.job_id) == played.receipt
