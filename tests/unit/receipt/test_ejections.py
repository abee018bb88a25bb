"""Ejections through all services, and their audit: who crosses is out and pays for it, and nobody else does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from kit.forging import reseal
from kit.loopback import MONEY_MICRO, SECTIONS, Habit, Loopback
from kit.network import STACK, make_key
from kit.recorded import STORED_MS
from pocache.bus.port import StreamRecord
from pocache.protocol.errors import EjectedError
from pocache.protocol.ids import EnvelopeId, JobId, ParticipantId
from pocache.protocol.sprt import EJECT_Q16, WEIGHTS_Q16, judge_jobs
from pocache.readmodel import queries
from pocache.readmodel.model import ReadModel
from pocache.receipt.audit import A_EJECTION, A_MONEY, AuditReport, Divergence
from pocache.receipt.dossier import Said
from pocache.receipt.ejections import Ejections
from pocache.receipt.export import Entry
from pocache.receipt.format import encode_json
from pocache.receipt.verify import verify_receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role, Topic
from pocache_cli.audit import audit_entries

EJECTING: Mapping[str, Mapping[str, Any]] = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "lottery_share": "1/1", "full_depth_share": "1/1"},
    "ejection": {},
}
JOBS = 4
"""Grade 3 says 5 bits of 20, and one job's tokens say at most 6."""
WORKER = make_key("worker").participant_id


@cache
def play() -> tuple[Loopback, tuple[JobId, ...], JobId]:
    """A generator that also verifies, four audited jobs that it did not do quite well, and one that it is not leased."""
    loopback = Loopback(EJECTING, habits={"worker": Habit(is_last_missed=True)})
    member = m.MemberV1(
        generates=True,
        verifies=True,
        model_ids=(loopback.network.model.model_id,),
        stack=STACK,
        announced_ms=loopback.clock_ms,
    )
    loopback.say(t.MEMBER_ANNOUNCED, member, make_key("worker"), worker=WORKER)
    jobs = tuple(loopback.play() for _ in range(JOBS))
    loopback.tick(2)
    return loopback, jobs, loopback.play()


def audit(record: Sequence[Entry] | None = None) -> AuditReport:
    loopback = play()[0]
    entries = [*loopback.rounds, *(loopback.record if record is None else record)]
    return audit_entries(loopback.header, entries, loopback.trust)


def read(topic: Topic[Any]) -> list[Any]:
    """Return all that was said on a topic."""
    loopback = play()[0]
    found = (one.data for one in loopback.record if topic.matches(one.subject))
    return [loopback.network.open(data, topic.model) for data in found]


def change(topic: Topic[Any], make: Callable[[Entry], list[Entry]]) -> AuditReport:
    """Audit the record with the last message of a topic replaced, the sequence numbers closed up."""
    record = list(play()[0].record)
    place = max(number for number, one in enumerate(record) if topic.matches(one.subject))
    record[place : place + 1] = make(record[place])
    return audit([replace(one, sequence=number) for number, one in enumerate(record, 1)])


def forge(topic: Topic[Any], **changes: Any) -> Callable[[Entry], list[Entry]]:
    network = play()[0].network
    key = network.keys[topic.signer]
    return lambda one: [replace(one, data=reseal(network, one.data, topic.model, key, **changes))]


def only(report: AuditReport) -> Divergence:
    """Return the one divergence there is, of this step."""
    assert [one.step for one in report.divergences] == [A_EJECTION]
    return report.divergences[0]


def test_no_audit_convicts_it_and_together_they_eject_it() -> None:
    loopback, jobs, _ = play()
    assert [loopback.find(t.OUTCOME_DECIDED, one).case for one in jobs] == ["agree"] * JOBS
    (ejection,) = read(t.WORKER_EJECTED)
    assert (ejection.participant, ejection.model_id) == (WORKER, loopback.network.model.model_id)
    assert (ejection.test, ejection.job_count, ejection.job_id) == ("grades", JOBS, jobs[-1])
    assert ejection.grade_sum_q16 >= EJECT_Q16 > ejection.grade_sum_q16 - WEIGHTS_Q16[3]
    assert ejection.token_sum_q16 >= EJECT_Q16, "its tokens by themselves would have"


def test_half_of_its_stake_is_the_treasurys() -> None:
    """Also what was locked in the job that ejected it: the rest is taken as soon as that is free."""
    bonds = read(t.BOND_TAKEN)
    assert {(one.stake_micro, one.bond_micro) for one in bonds} == {(MONEY_MICRO, MONEY_MICRO // 2)}
    assert sum(one.taken_micro for one in bonds) == MONEY_MICRO // 2
    assert bonds[-1].open_micro == 0
    last = [one for one in read(t.STAKE_POSTED) if one.participant == WORKER][-1]
    assert (last.stake_micro, last.free_micro) == (MONEY_MICRO - MONEY_MICRO // 2,) * 2


def test_it_gets_no_further_lease_and_is_told_why() -> None:
    loopback, _, job_id = play()
    (denial,) = loopback.denied
    assert (denial.code, denial.job_id) == (EjectedError.code, job_id)
    assert "ask the operator" in denial.reason
    assert loopback.find(t.PAYOUT_SETTLED, job_id).case == "refunded"
    tasks = [one for one in loopback.services[Role.ROUTER].dump()["jobs"] if job_id in one]
    assert tasks, "the job was offered to the others and waited for them"


def test_it_is_drawn_for_the_model_no_more() -> None:
    first, *_, last = read(t.SNAPSHOT_TAKEN)[1:]
    assert WORKER in {one.participant for one in first.members}
    assert {one.participant for one in last.members} == {
        make_key(name).participant_id for name in play()[0].verifiers
    }


def test_receipts_and_record_are_sound() -> None:
    loopback, jobs, _ = play()
    assert audit().divergences == []
    assert audit().ejections == 1
    report = verify_receipt(encode_json(loopback.get_receipt(jobs[-1])), loopback.trust)
    assert report.is_valid, report


def test_a_record_that_ends_between_the_outcome_and_the_ejection_is_sound_so_far() -> None:
    record = play()[0].record
    place = next(number for number, one in enumerate(record) if t.WORKER_EJECTED.matches(one.subject))
    for end in (place, place + 1, place + 2):
        assert audit(record[:end]).divergences == []


def test_a_crossing_without_an_ejection_is_found() -> None:
    loopback, jobs, _ = play()
    record = [
        one
        for one in loopback.record
        if not t.WORKER_EJECTED.matches(one.subject) and not t.BOND_TAKEN.matches(one.subject)
    ]
    found = only(audit([replace(one, sequence=number) for number, one in enumerate(record, 1)]))
    assert (found.job_id, found.stated) == (jobs[-1], "none")
    assert f"by grades after {JOBS} jobs" in found.computed
    assert WORKER in found.what


@pytest.mark.parametrize(
    ("changes", "stated"),
    [
        ({"job_count": JOBS + 1}, f"after {JOBS + 1} jobs"),
        ({"test": "tokens"}, "by tokens"),
        ({"token_sum_q16": EJECT_Q16}, str(EJECT_Q16)),
        ({"outcome": b"\x07" * 32}, "0707"),
    ],
)
def test_an_ejection_that_says_otherwise_is_found_with_both_values(
    changes: dict[str, Any], stated: str
) -> None:
    report = change(t.WORKER_EJECTED, forge(t.WORKER_EJECTED, **changes))
    found, *others = report.divergences
    assert (found.step, stated in found.stated, stated in found.computed) == (A_EJECTION, True, False)
    assert all("ejection" in one.what for one in others), "the bond was for another one"


@pytest.mark.parametrize(
    ("stored", "is_found"),
    [
        ((0, 1, 2, 3, 4), False),
        ((0, 1, 2, 4, 3), False),
        ((0, 1, 2, 4, 5, 6, 3), False),
        ((0, 2, 1, 4, 3), False),
        ((0, 1, 2, *range(4, 13), 3), True),
        ((0, 1, 2, 4, 5), True),
    ],
)
def test_one_outcome_may_have_been_stored_late(stored: tuple[int, ...], is_found: bool) -> None:
    """Decided as four of grade 3, then clean ones; stored in another order the sum crosses later, or never."""
    loopback, jobs, _ = play()
    model = loopback.network.model
    body = loopback.find(t.OUTCOME_DECIDED, jobs[0])
    ejections = Ejections(loopback.network.genesis, loopback.network.models)
    assert loopback.find(t.COMMITMENT_RECORDED, jobs[0]).generator == WORKER

    def make(number: int) -> Said[m.OutcomeV1]:
        shown = tuple(
            one.model_copy(update={"grade": 3 if number < 4 else 0, "tokens": None})
            for one in body.comparisons
        )
        job = {"job_id": bytes([number]) * 32, "comparisons": shown}
        outcome = body.model_copy(update=job)
        return Said(t.OUTCOME_DECIDED, outcome, ParticipantId("pool"), EnvelopeId(bytes([number]) * 32), b"")

    for number in stored:
        ejections.take_outcome(make(number), WORKER, model.model_id)
    record = judge_jobs([3] * 4)
    ejection = m.EjectionV1(
        participant=WORKER,
        model_id=model.model_id,
        test="grades",
        job_id=bytes([3]) * 32,
        outcome=bytes([3]) * 32,
        job_count=4,
        grade_sum_q16=record.sum_q16,
        token_sum_q16=record.token_sum_q16,
    )
    said = Said(t.WORKER_EJECTED, ejection, ParticipantId("pool"), EnvelopeId(bytes(32)), b"")
    ejections.take(said)
    assert [one.what.startswith("the ejection") for one in ejections.find_divergences()] == [True] * is_found


def test_an_ejection_without_a_crossing_is_found() -> None:
    """Of a worker whose sums are below: what they are is shown."""
    verifier = make_key("verifier-1").participant_id

    def add(one: Entry) -> list[Entry]:
        (forged,) = forge(t.WORKER_EJECTED, participant=verifier)(one)
        return [one, replace(forged, subject=t.WORKER_EJECTED.subject(participant=verifier))]

    report = change(t.WORKER_EJECTED, add)
    found = next(one for one in report.divergences if one.what.startswith("the ejection"))
    assert found.computed == "0 audited jobs with sums 0, 0: open"
    assert any("may be drawn" in one.stated for one in report.divergences), "a snapshot still has it"


def test_a_second_ejection_is_found() -> None:
    def repeat(one: Entry) -> list[Entry]:
        return [one, *forge(t.WORKER_EJECTED, job_count=JOBS + 1)(one)]

    assert only(change(t.WORKER_EJECTED, repeat)).what.startswith("a second ejection")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"taken_micro": MONEY_MICRO}, "the bond of"),
        ({"bond_micro": MONEY_MICRO}, "the bond of"),
        ({"ejection": b"\x07" * 32}, "the bond's ejection of"),
    ],
)
def test_a_bond_that_says_otherwise_is_found(changes: dict[str, Any], what: str) -> None:
    report = change(t.BOND_TAKEN, forge(t.BOND_TAKEN, **changes))
    found = [one for one in report.divergences if one.step == A_EJECTION]
    assert found
    assert found[0].what.startswith(what)


def test_what_a_bond_takes_was_somebodys() -> None:
    """More than the worker ever had is money from nowhere."""
    report = change(t.BOND_TAKEN, forge(t.BOND_TAKEN, taken_micro=2 * MONEY_MICRO))
    (found,) = [one for one in report.divergences if one.step == A_MONEY]
    assert WORKER in found.what


def test_a_bond_that_was_spared_is_found() -> None:
    """The ledger has paid a job that was decided after the ejection, and took nothing for it."""
    loopback = Loopback(EJECTING, habits={"worker": Habit(is_last_missed=True)})
    for _ in range(JOBS):
        loopback.play()
    loopback.generator = "verifier-1"
    loopback.keys[make_key("worker").participant_id] = "worker"
    loopback.play()
    record = [one for one in loopback.record if not t.BOND_TAKEN.matches(one.subject)]
    entries = [*loopback.rounds, *(replace(one, sequence=number) for number, one in enumerate(record, 1))]
    report = audit_entries(loopback.header, entries, loopback.trust)
    assert (only(report).what.startswith("the bond of"), only(report).stated) == (True, "none")
    sound = audit_entries(loopback.header, [*loopback.rounds, *loopback.record], loopback.trust)
    assert sound.divergences == []


def test_it_is_the_same_under_committees_and_the_reserve_gets_nothing() -> None:
    rules = {"name": "fixed-fee-committee", "committee_size": 3, "levy": "2"}
    verifiers = tuple(f"verifier-{number}" for number in range(1, 6))
    loopback = Loopback(
        {**EJECTING, "rules": rules}, verifiers=verifiers, habits={"worker": Habit(is_last_missed=True)}
    )
    jobs = [loopback.play() for _ in range(JOBS)]
    assert [loopback.find(t.PAYOUT_SETTLED, one).case for one in jobs] == ["agree"] * JOBS
    network = loopback.network
    bonds = [one for one in loopback.record if t.BOND_TAKEN.matches(one.subject)]
    assert sum(network.open(one.data, m.BondTakenV1).taken_micro for one in bonds) == MONEY_MICRO // 2
    report = audit_entries(loopback.header, [*loopback.rounds, *loopback.record], loopback.trust)
    assert (report.divergences, report.ejections) == ([], 1)


def test_a_network_whose_genesis_ejects_nobody_ejects_nobody() -> None:
    """As all of before there were ejections; one that is said there all the same is nothing that it can say."""
    sections = {name: one for name, one in EJECTING.items() if name != "ejection"}
    loopback = Loopback(sections, habits={"worker": Habit(is_last_missed=True)})
    for _ in range(JOBS + 1):
        assert loopback.find(t.PAYOUT_SETTLED, loopback.play()).case == "agree"
    entries = [*loopback.rounds, *loopback.record]
    assert audit_entries(loopback.header, entries, loopback.trust).divergences == []
    (ejection,) = read(t.WORKER_EJECTED)
    loopback.say(
        t.WORKER_EJECTED, ejection, loopback.network.keys[Role.VERIFIER], participant=ejection.participant
    )
    assert not any(t.BOND_TAKEN.matches(one.subject) for one in loopback.record)
    entries = [*loopback.rounds, *loopback.record]
    found = only(audit_entries(loopback.header, entries, loopback.trust))
    assert found.computed.startswith("none: by its genesis")


def test_the_read_model_shows_who_and_what_it_cost() -> None:
    loopback, jobs, _ = play()
    model = ReadModel(loopback.network.genesis, loopback.network.models)
    try:
        model.apply(
            [
                StreamRecord(one.subject, one.data, {}, one.stream, one.sequence, STORED_MS)
                for one in loopback.record
            ]
        )
        with model.reading() as connection:
            (ejection,) = queries.list_ejections(connection, WORKER)
            (test,) = queries.list_job_tests(connection, WORKER)
            person = queries.get_participant(connection, WORKER)
            faults = queries.list_faults(connection)
    finally:
        model.close()
    assert person is not None
    assert faults == []
    assert (test["standing"], test["token_sum_q16"]) == ("ejected", ejection["token_sum_q16"])
    assert (ejection["job_id"], ejection["test"], ejection["job_count"]) == (jobs[-1], "grades", JOBS)
    assert ejection["taken_micro"] == ejection["bond_micro"] == person["lost_micro"] == MONEY_MICRO // 2
    assert (ejection["open_micro"], person["stake_micro"]) == (0, MONEY_MICRO // 2)
