"""The audit of a whole record: sound where it is, and where it is not it says which job, which step, which values."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kit.forging import reseal
from kit.loopback import SECTIONS, Habit, Loopback
from kit.network import make_key
from pocache.protocol.errors import CodecError, LimitError, ReceiptError
from pocache.protocol.ids import JobId
from pocache.receipt.audit import A_LOG, A_MONEY, A_RECORD, AuditReport, Divergence
from pocache.receipt.export import Entry, Header, open_export, read_entries, read_header, write_export
from pocache.receipt.trust import load_trust
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role, Topic
from pocache_cli.audit import audit_entries, audit_file

FOLDER = Path(__file__).parents[2] / "vectors" / "receipts"
MIXED = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": "1/2"}}


@cache
def play() -> tuple[Loopback, tuple[JobId, ...]]:
    """A network with jobs of several endings: unaudited, audited, convicted, given up."""
    loopback = Loopback(MIXED)
    jobs = [loopback.play() for _ in range(2)]
    jobs += [loopback.play(challenge=True), loopback.play(seed=None)]
    loopback.habits = {"worker": Habit("a cheat")}
    jobs.append(loopback.play(challenge=True))
    loopback.habits = {"worker": Habit(commits_twice=True)}
    jobs.append(loopback.play())
    loopback.habits = {"worker": Habit(commits=False)}
    jobs.append(loopback.play())
    return loopback, tuple(jobs)


def audit(record: Sequence[Entry] | None = None) -> AuditReport:
    loopback, _ = play()
    entries = [*loopback.rounds, *(loopback.record if record is None else record)]
    return audit_entries(loopback.header, entries, loopback.trust)


def find(topic: Topic[Any], job_id: bytes | None = None, number: int = 0) -> int:
    """Return the place in the record of a message of a topic, about a job where one is given."""
    record = play()[0].record
    places = [
        place
        for place, one in enumerate(record)
        if topic.matches(one.subject) and (job_id is None or one.subject.endswith(job_id.hex()))
    ]
    return places[number]


def renumber(record: Sequence[Entry]) -> list[Entry]:
    """Return the record with its sequence numbers closed up, as whoever runs the bus could."""
    return [replace(one, sequence=number) for number, one in enumerate(record, 1)]


def forge(topic: Topic[Any], job_id: bytes | None = None, **changes: Any) -> AuditReport:
    """Audit the record with one message changed, signed again by its service."""
    loopback, _ = play()
    place = find(topic, job_id)
    record = list(loopback.record)
    key = loopback.network.keys[topic.signer]
    data = reseal(loopback.network, record[place].data, topic.model, key, **changes)
    record[place] = replace(record[place], data=data)
    return audit(record)


def first(report: AuditReport) -> Divergence:
    assert not report.is_sound
    return report.divergences[0]


def test_an_honest_record_is_sound() -> None:
    report = audit()
    assert report.divergences == []
    assert report.jobs == len(play()[1])
    assert (report.jobs_open, report.messages) == (0, len(play()[0].record))
    assert report.commitments == report.checkpoints == len(play()[1]) - 1
    assert report.seeds_open == 1
    assert report.to_dict()["sound"] is True


@pytest.mark.parametrize("name", ["receipts", "receipts-committee"])
def test_the_captured_record_is_sound(name: str) -> None:
    """From a network of processes under either rule set, one job of which was still waiting."""
    folder = FOLDER.parent / name
    report = audit_file(folder / "record.jsonl.gz", load_trust(folder / "trust.json"))
    assert report.divergences == []
    assert report.jobs_open == 1
    assert report.commitments >= 8


def test_a_record_that_ends_anywhere_is_sound_so_far() -> None:
    """Jobs that are running lack what was not said yet, and that is no divergence."""
    record = play()[0].record
    for end in (1, len(record) // 3, len(record) // 2, len(record) - 3):
        assert audit(record[:end]).divergences == []


@pytest.mark.parametrize("number", range(8))
def test_a_message_removed_anywhere_is_missed(number: int) -> None:
    """By its sequence number; and by the steps, even where the numbers are closed up."""
    record = list(play()[0].record)
    removed = record.pop(random.Random(number).randrange(1, len(record) - 1))
    report = audit(record)
    assert (first(report).step, first(report).what) == (A_RECORD, "the record has a gap")
    assert first(report).sequence == removed.sequence + 1


def test_a_removed_log_entry_is_missed_though_the_numbers_were_closed_up() -> None:
    """Whoever runs the bus leaves out a commitment and all that was said about its job."""
    _, jobs = play()
    record = [one for one in play()[0].record if not one.subject.endswith(jobs[1].hex())]
    report = audit(renumber(record))
    assert A_LOG in {one.step for one in report.divergences}
    assert any("gap" in one.what for one in report.divergences)


def test_a_rewritten_log_entry_is_missed_though_it_is_signed() -> None:
    """The store records another result of the same generator in the place of the first."""
    loopback, jobs = play()
    network = loopback.network
    place = find(t.COMMITMENT_RECORDED, jobs[0])
    recorded = loopback.network.open(loopback.record[place].data, m.CommitmentRecordedV1)
    result = reseal(network, recorded.result, m.ResultV1, root=b"\x07" * 32)
    report = forge(t.COMMITMENT_RECORDED, jobs[0], result=result)
    divergence = first(report)
    assert (divergence.step, divergence.what) == (A_LOG, "root of the log of size 1")
    assert divergence.stated != divergence.computed != ""


def test_a_log_that_is_grown_again_from_a_rewritten_entry_contradicts_its_own_checkpoints() -> None:
    report = forge(t.CHECKPOINT, None, root=b"\x07" * 32, note=b"")
    assert first(report).step == A_LOG


def test_two_checkpoints_of_one_size_are_a_fork() -> None:
    loopback, _ = play()
    record = list(loopback.record)
    place = find(t.CHECKPOINT)
    key = loopback.network.keys[Role.COMMITMENTS]
    fork = reseal(loopback.network, record[place].data, m.CheckpointV1, key, root=b"\x07" * 32, note=b"")
    record.insert(place + 1, replace(record[place], data=fork))
    assert first(audit(renumber(record))).what == "checkpoints of one size"


def test_a_second_commitment_of_an_attempt_is_found() -> None:
    loopback, jobs = play()
    record = list(loopback.record)
    place = find(t.COMMITMENT_RECORDED, jobs[0])
    key = loopback.network.keys[Role.COMMITMENTS]
    second = reseal(loopback.network, record[place].data, m.CommitmentRecordedV1, key, log_index=1)
    record.insert(place + 1, replace(record[place], data=second))
    assert any(one.what == "commitments of one attempt" for one in audit(renumber(record)).divergences)


@pytest.mark.parametrize(
    ("topic", "changes", "step"),
    [
        (t.JOB_ADMITTED, {"generation_max_micro": 1}, "R4"),
        (t.COMMITMENT_RECORDED, {"received_ms": 2**52}, "R6"),
        (t.AUDIT_OPENED, {"randomness": b"\x01" * 32}, "R9"),
        (t.VERIFIER_DRAWN, {"place": 1}, "R11"),
        (t.STAGE_SEALED, {"sealed_ms": 2**52}, "R12"),
        (t.OUTCOME_DECIDED, {"case": "void"}, "R16"),
        (t.PAYOUT_SETTLED, {"generation_micro": 1}, "R17"),
    ],
)
def test_a_forged_message_is_found_at_its_step_with_both_values(
    topic: Topic[Any], changes: dict[str, Any], step: str
) -> None:
    _, jobs = play()
    divergence = first(forge(topic, jobs[2], **changes))
    assert (divergence.step, divergence.job_id) == (step, jobs[2])
    assert divergence.what
    assert divergence.stated or divergence.what


def test_a_later_snapshot_that_was_passed_over_is_found() -> None:
    """A receipt cannot see it; the record can."""
    loopback, jobs = play()
    record = list(loopback.record)
    place = find(t.SNAPSHOT_TAKEN)
    snapshot = loopback.network.open(record[place].data, m.SnapshotV1)
    key = loopback.network.keys[Role.VERIFIER]
    later = reseal(
        loopback.network, record[place].data, m.SnapshotV1, key, number=99, taken_ms=snapshot.taken_ms + 1
    )
    record.insert(place + 1, replace(record[place], data=later))
    found = [one for one in audit(renumber(record)).divergences if one.job_id == jobs[2]]
    assert [one.step for one in found] == ["R11"]
    assert "the latest before its round" in found[0].computed


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, "the number of a snapshot"),
        ({"number": 3}, "the number of a snapshot"),
    ],
)
def test_a_snapshot_that_is_altered_after_the_round_is_found(changes: dict[str, int], what: str) -> None:
    """Said again with other stakes: the first stays what draws are held against, and the second is named."""
    loopback, _ = play()
    place = find(t.SNAPSHOT_TAKEN)
    assert sum(t.SNAPSHOT_TAKEN.matches(one.subject) for one in loopback.record) == 1
    snapshot = loopback.network.open(loopback.record[place].data, m.SnapshotV1)
    poorer = tuple(one.model_copy(update={"stake_micro": 1}) for one in snapshot.members)
    key = loopback.network.keys[Role.VERIFIER]
    data = reseal(loopback.network, loopback.record[place].data, m.SnapshotV1, key, members=poorer, **changes)
    drawn = find(t.VERIFIER_DRAWN)
    record = [*loopback.record[:drawn], replace(loopback.record[place], data=data), *loopback.record[drawn:]]
    found = [one for one in audit(renumber(record)).divergences if not one.job_id]
    assert [(one.step, one.what.startswith(what)) for one in found] == [("R11", True)]


@pytest.mark.parametrize(
    ("number", "key", "what"),
    [
        (2, b"another key", "the hash of the key of the epoch before epoch 2"),
        (2, None, "the hash of the key of the epoch before epoch 2"),
        (3, b"the key", "the number of an epoch"),
    ],
)
def test_an_epochs_key_that_is_not_the_announced_one_is_found(
    number: int, key: bytes | None, what: str
) -> None:
    """Whoever chose the key after the fact could have chosen the seeds."""
    loopback, _ = play()
    record = list(loopback.record)
    place = find(t.EPOCH)
    signer = loopback.network.keys[Role.ROUTER]
    padded = b"the key".ljust(32)
    announced = reseal(
        loopback.network, record[place].data, m.EpochV1, signer, key_hash=hashlib.sha256(padded).digest()
    )
    record[place] = replace(record[place], data=announced)

    def publish(number: int, key: bytes | None) -> list[Divergence]:
        previous = None if key is None else key.ljust(32)
        data = reseal(loopback.network, announced, m.EpochV1, signer, number=number, previous_key=previous)
        told = [*record[: place + 1], replace(record[place], data=data), *record[place + 1 :]]
        return [one for one in audit(renumber(told)).divergences if "epoch" in one.what and not one.job_id]

    assert publish(2, b"the key") == []
    assert [one.what for one in publish(number, key)] == [what]


@pytest.mark.parametrize("topic", [t.SNAPSHOT_TAKEN, t.EPOCH], ids=lambda topic: topic.pattern)
def test_what_was_stored_again_after_a_crash_is_no_divergence(topic: Topic[Any]) -> None:
    loopback, _ = play()
    again = [*loopback.record, loopback.record[find(topic)]]
    assert audit(renumber(again)).is_sound


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ({"entries": 128, "at_ms": 0}, None),
        ({"entries": 64, "at_ms": 2}, "entries of the journal at a checkpoint"),
        ({"entries": 1, "at_ms": 2}, "entries of the journal at a checkpoint"),
    ],
)
def test_a_journal_that_was_taken_back_is_found(second: dict[str, int], what: str | None) -> None:
    """Two heads of one length, or one of a shorter journal: somebody has begun again from a copy."""
    loopback, _ = play()
    key = loopback.network.keys[Role.LEDGER]

    def say(head: int, entries: int, at_ms: int) -> Entry:
        body = m.JournalCheckpointV1(entries=entries, head=bytes([head]) * 32, at_ms=at_ms)
        return Entry("RECORD", 0, t.JOURNAL_CHECKPOINT.subject(), loopback.network.seal(key, body))

    record = [*loopback.record, say(1, 64, 1), say(1, 64, 1), say(2, **second)]
    found = audit(renumber(record)).divergences
    assert [(one.step, one.what) for one in found] == ([] if what is None else [(A_MONEY, what)])


def test_a_message_by_the_wrong_service_or_on_the_wrong_subject_is_found() -> None:
    loopback, jobs = play()
    place = find(t.OUTCOME_DECIDED, jobs[2])
    record = list(loopback.record)
    body = loopback.network.open(record[place].data, m.OutcomeV1)
    forged = loopback.network.seal(loopback.network.keys[Role.LEDGER], body)
    record[place] = replace(record[place], data=forged)
    assert (first(audit(record)).step, first(audit(record)).sequence) == (A_RECORD, record[place].sequence)
    record[place] = replace(loopback.record[place], subject=t.OUTCOME_DECIDED.subject(job=jobs[0]))
    assert first(audit(record)).what.startswith("the job that the subject names")


def test_a_second_payout_is_found() -> None:
    loopback, jobs = play()
    place = find(t.PAYOUT_SETTLED, jobs[2])
    record = list(loopback.record)
    key = loopback.network.keys[Role.LEDGER]
    again = reseal(loopback.network, record[place].data, m.PayoutSettledV1, key, attempt=0)
    record.append(replace(record[place], data=again))
    assert any("a job that was over" in one.what for one in audit(renumber(record)).divergences)


def test_money_from_nowhere_is_found() -> None:
    """A deposit that was never made: what was locked and lost had no cover."""
    loopback, _ = play()
    user = make_key(loopback.user).participant_id
    record = [one for one in loopback.record if one.subject != t.DEPOSITED.subject(participant=user)]
    found = [one for one in audit(renumber(record)).divergences if one.step == A_MONEY]
    assert [user in one.what for one in found] == [True]
    assert int(found[0].stated) < 0


def test_a_network_that_was_not_pinned_is_refused() -> None:
    loopback, _ = play()
    with pytest.raises(ReceiptError, match="the network"):
        audit_entries(loopback.header, [], loopback.trust.model_copy(update={"network_id": "00" * 32}))


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["record.jsonl", "record.jsonl.gz"])
def test_an_export_is_audited_like_the_bus(tmp_path: Path, name: str) -> None:
    loopback, _ = play()
    file = tmp_path / name
    entries = [*loopback.rounds, *loopback.record]
    assert write_export(file, loopback.header, entries) == len(entries)
    with open_export(file, "rb") as stream:
        assert read_header(stream.readline()) == loopback.header
        assert list(read_entries(stream)) == entries
    assert audit_file(file, loopback.trust).to_dict() == audit().to_dict()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"[]\n",
        b"{}\n",
        b'{"stream":"RECORD"}\n',
        b'{"data":"?","sequence":1,"stream":"R","subject":"s"}\n',
        b"{",
    ],
)
def test_a_line_that_is_none_is_refused(tmp_path: Path, line: bytes) -> None:
    loopback, _ = play()
    file = tmp_path / "record.jsonl"
    write_export(file, loopback.header, [])
    file.write_bytes(file.read_bytes() + line)
    with pytest.raises(CodecError):
        audit_file(file, loopback.trust)


def test_a_line_beyond_the_bus_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    file.write_bytes(b'{"kind":"' + b"x" * 3_000_000 + b'"}\n')
    with pytest.raises(LimitError):
        audit_file(file, play()[0].trust)
    file.write_bytes(b"")
    with pytest.raises(CodecError):
        audit_file(file, play()[0].trust)


def test_a_compressed_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    loopback, _ = play()
    file = tmp_path / "record.jsonl.gz"
    write_export(file, Header(loopback.header.genesis, loopback.header.models), loopback.record)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CodecError):
        audit_file(file, loopback.trust)
