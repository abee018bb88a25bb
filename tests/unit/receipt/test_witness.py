"""Witnesses of the log: honest growth is cosigned, a fork is not; a receipt shows who cosigned it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.loopback import Loopback
from kit.network import make_key
from pocache.protocol.checkpoint import (
    cosign_checkpoint,
    find_cosigners,
    merge_cosignatures,
    parse_note,
    sign_checkpoint,
    verify_checkpoint,
)
from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import Digest, JobId
from pocache.protocol.merkle import MerkleTree
from pocache.receipt.audit import AuditReport
from pocache.receipt.export import Entry
from pocache.receipt.format import Receipt, decode_receipt, encode_binary, encode_json
from pocache.receipt.report import Step, StepResult
from pocache.receipt.trust import TrustRoots, load_trust
from pocache.receipt.verify import verify_receipt
from pocache.receipt.witness import ForkError, Witness
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode
from pocache.wire.envelope import parse_envelope
from pocache.wire.topics import Role
from pocache_cli.audit import audit_entries
from pocache_cli.witness import report_fork

NAMES = ("witness-1", "witness-2")
TIME_S = 1_700_000_000


@pytest.fixture(scope="module")
def loopback() -> Loopback:
    """A network with two witnesses, and three jobs that are over."""
    network = Loopback(witnesses=NAMES)
    for _ in range(3):
        network.play()
    return network


def make_witness(loopback: Loopback, folder: Path, name: str = NAMES[0]) -> Witness:
    genesis = loopback.network.genesis
    log_key = genesis.signer(Role.COMMITMENTS)
    return Witness(genesis.network_id, log_key, make_key(name), folder / f"{name}.note")


def ask(loopback: Loopback, old_size: int, new_size: int = 0, name: str = NAMES[0]) -> Any:
    store = loopback.services[Role.COMMITMENTS]
    query = m.ConsistencyQueryV1(old_size=old_size, new_size=new_size)
    return store.ask(t.CONSISTENCY_QUERY, query, m.ConsistencyReplyV1, make_key(name))


def make_reply(loopback: Loopback, tree: MerkleTree, old_size: int) -> m.ConsistencyReplyV1:
    """Return what a log of another tree would answer, with the log's own signature."""
    key = loopback.network.keys[Role.COMMITMENTS]
    note = sign_checkpoint(loopback.network.network_id, len(tree), tree.root(), key)
    proof = tree.consistency_proof(old_size) if old_size <= len(tree) else ()
    return m.ConsistencyReplyV1(old_size=old_size, new_size=len(tree), note=note, proof=proof)


def make_other_tree(size: int) -> MerkleTree:
    tree = MerkleTree()
    for index in range(size):
        tree.append(b"rewritten %d" % index)
    return tree


def send(loopback: Loopback, name: str, cosigned: m.CheckpointCosignedV1) -> list[str]:
    """Send a line to the store, and return the codes that it is refused with."""
    key = make_key(name)
    before = len(loopback._pending)
    loopback.say(t.CHECKPOINT_COSIGNED, cosigned, key, user=key.participant_id)
    return [one.body.code for one in loopback._pending[before:] if isinstance(one.body, m.RefusalV1)]


def test_growth_is_cosigned_and_remembered(loopback: Loopback, tmp_path: Path) -> None:
    witness = make_witness(loopback, tmp_path)
    assert witness.seen_size == 0
    first = witness.cosign(ask(loopback, 0, 1), TIME_S)
    assert (first.size, witness.seen_size) == (1, 1)
    again = make_witness(loopback, tmp_path)
    assert again.seen_size == 1
    cosigned = again.cosign(ask(loopback, 1), TIME_S)
    assert cosigned.size == 3
    network, log_key = loopback.network.network_id, loopback.network.genesis.signer(Role.COMMITMENTS)
    note = verify_checkpoint(cosigned.note, network, log_key)
    assert set(find_cosigners(network, note, [make_key(NAMES[0]).participant_id])) == {
        make_key(NAMES[0]).participant_id
    }
    assert make_witness(loopback, tmp_path).cosign(ask(loopback, 3), TIME_S).size == 3


@pytest.mark.parametrize("size", [3, 5], ids=["same size", "longer"])
def test_a_fork_is_refused_with_both_notes(loopback: Loopback, tmp_path: Path, size: int) -> None:
    witness = make_witness(loopback, tmp_path)
    seen = ask(loopback, 0)
    witness.cosign(seen, TIME_S)
    forged = make_reply(loopback, make_other_tree(size), 3)
    with pytest.raises(ForkError) as caught:
        witness.cosign(forged, TIME_S)
    assert (caught.value.seen, caught.value.shown) == (seen.note, forged.note)
    assert witness.seen_size == 3
    assert (tmp_path / f"{NAMES[0]}.note").read_bytes() == seen.note
    evidence = json.loads(report_fork(caught.value, tmp_path / "w.note", as_json=False).read_text())
    assert (evidence["seen"], evidence["shown"]) == (seen.note.decode(), forged.note.decode())


def test_a_shorter_log_is_refused(loopback: Loopback, tmp_path: Path) -> None:
    witness = make_witness(loopback, tmp_path)
    witness.cosign(ask(loopback, 0), TIME_S)
    with pytest.raises(ForkError, match="2 entries; 3 were cosigned"):
        witness.cosign(ask(loopback, 0, 2), TIME_S)


def test_a_lost_memory_is_not_taken_for_a_first_time(loopback: Loopback, tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}.note").write_bytes(b"")
    with pytest.raises(ConfigError, match="not the last checkpoint"):
        make_witness(loopback, tmp_path)


def test_the_store_proves_only_what_it_has(loopback: Loopback) -> None:
    for old_size, new_size in ((4, 0), (0, 4), (3, 2)):
        refusal = loopback.services[Role.COMMITMENTS].ask(
            t.CONSISTENCY_QUERY,
            m.ConsistencyQueryV1(old_size=old_size, new_size=new_size),
            m.ConsistencyReplyV1,
            make_key("anybody"),
        )
        assert isinstance(refusal, m.RefusalV1)
        assert refusal.code == "E207"


def cosign_receipt(folder: Path, names: tuple[str, ...]) -> tuple[Loopback, Receipt]:
    """Play two jobs, have the log cosigned, and return the first one's receipt."""
    network = Loopback(witnesses=NAMES)
    job_id = network.play()
    network.play()
    for name in names:
        cosigned = make_witness(network, folder, name).cosign(ask(network, 0, name=name), TIME_S)
        assert not send(network, name, cosigned)
    return network, network.get_receipt(JobId(job_id))


def pin(loopback: Loopback, names: tuple[str, ...], quorum: int) -> TrustRoots:
    fields = loopback.trust.model_dump()
    fields["witnesses"] = [make_key(name).participant_id for name in names]
    return TrustRoots.model_validate({**fields, "witness_quorum": quorum})


def judge(loopback: Loopback, receipt: Receipt, trust: TrustRoots) -> StepResult | None:
    return verify_receipt(encode_binary(receipt), trust).failure


def test_a_receipt_shows_its_witnesses_and_the_quorum_is_asked_for(tmp_path: Path) -> None:
    network, receipt = cosign_receipt(tmp_path, NAMES)
    assert receipt.log is not None
    assert receipt.log.cosigned.count("\u2014".encode()) == 3
    assert decode_receipt(encode_json(receipt)) == receipt
    assert judge(network, receipt, network.trust) is None
    assert judge(network, receipt, pin(network, NAMES, 2)) is None
    failure = judge(network, receipt, pin(network, (NAMES[0], "another"), 2))
    assert failure is not None
    assert (failure.step, failure.stated, failure.computed) == (Step.LOG, "1", "at least 2")
    missing = replace(receipt, log=replace(receipt.log, cosigned=b""))
    assert judge(network, missing, network.trust) is None
    failure = judge(network, missing, pin(network, NAMES, 1))
    assert failure is not None
    assert failure.step is Step.LOG


def test_no_byte_of_a_cosigned_note_can_be_changed(tmp_path: Path) -> None:
    """Whoever pins no witness is not shown a forged one either."""
    network, receipt = cosign_receipt(tmp_path, NAMES)
    assert receipt.log is not None
    data = receipt.log.cosigned
    lines = data.split(b"\n")
    stranger = cosign_checkpoint(
        network.network.network_id, parse_note(data).checkpoint, make_key("stranger"), TIME_S
    )
    mutants = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 7)]
    mutants += [
        b"\n".join([*lines[:5], lines[6], lines[5], b""]),
        b"\n".join([*lines[:6], lines[5], lines[6], b""]),
        data + stranger.text,
        data[:-1],
        merge_cosignatures(data, []),
    ]
    for mutant in mutants:
        failure = judge(network, replace(receipt, log=replace(receipt.log, cosigned=mutant)), network.trust)
        assert failure is not None, mutant
        assert failure.step is Step.LOG
        assert not failure.is_internal


def test_a_stranger_and_a_line_over_another_log_are_refused(tmp_path: Path) -> None:
    network, receipt = cosign_receipt(tmp_path, ())
    assert receipt.log is not None
    assert receipt.log.cosigned == b""
    cosigned = make_witness(network, tmp_path, "stranger").cosign(ask(network, 0), TIME_S)
    forged = make_witness(network, tmp_path).cosign(make_reply(network, make_other_tree(2), 0), TIME_S)
    assert send(network, "stranger", cosigned) == ["E209"]
    assert send(network, NAMES[0], cosigned) == ["E103"]
    assert send(network, NAMES[0], forged) == ["E103"]
    assert send(network, NAMES[0], cosigned.model_copy(update={"size": 3})) == ["E207"]
    job_id = JobId(decode(m.JobAdmittedV1, parse_envelope(receipt.record[0]).payload).job_id)
    shown = network.get_receipt(job_id)
    assert shown.log is not None
    assert shown.log.cosigned == b""


@pytest.mark.parametrize(
    "text",
    [
        '"witnesses": ["{0}"]',
        '"witness_quorum": 1',
        '"witnesses": ["{0}"], "witness_quorum": 2',
        '"witnesses": ["{0}", "{0}"], "witness_quorum": 1',
    ],
)
def test_a_quorum_that_cannot_be_is_no_trust_file(loopback: Loopback, tmp_path: Path, text: str) -> None:
    file = tmp_path / "trust.json"
    given = text.replace("{0}", make_key(NAMES[0]).participant_id)
    file.write_text(loopback.trust.to_json().rstrip().removesuffix("}") + f", {given}}}")
    with pytest.raises(ConfigError):
        load_trust(file)


# --- the audit --------------------------------------------------------------------------------------------------


def audit(loopback: Loopback, record: list[Entry]) -> AuditReport:
    return audit_entries(loopback.header, [*loopback.rounds, *record], loopback.trust)


def change_checkpoint(loopback: Loopback, size: int, **changes: Any) -> list[Entry]:
    """Return the record with one checkpoint said otherwise by the store itself."""
    record = []
    for one in loopback.record:
        if t.CHECKPOINT.matches(one.subject):
            body = decode(m.CheckpointV1, parse_envelope(one.data).payload)
            if body.size == size:
                key = loopback.network.keys[Role.COMMITMENTS]
                data = loopback.network.seal(key, body.model_copy(update=changes))
                record.append(replace(one, data=data))
                continue
        record.append(one)
    return record


def test_an_honest_record_is_sound(loopback: Loopback) -> None:
    assert audit(loopback, loopback.record).is_sound


def test_the_audit_finds_a_checkpoint_of_a_rewritten_log(loopback: Loopback) -> None:
    """The store signs, in both forms, the root of entries that are not those of the record."""
    tree = make_other_tree(2)
    key = loopback.network.keys[Role.COMMITMENTS]
    note = sign_checkpoint(loopback.network.network_id, 2, tree.root(), key)
    report = audit(loopback, change_checkpoint(loopback, 2, root=tree.root(), note=note))
    assert report.divergences[0].step == "A2"
    assert "root of the log of size 2" in report.divergences[0].what


def test_the_audit_finds_a_note_that_says_something_else(loopback: Loopback) -> None:
    """The envelope tells the record's readers one root, the note tells the witnesses another."""
    key = loopback.network.keys[Role.COMMITMENTS]
    for size, root in ((2, Digest(bytes(32))), (9, make_other_tree(9).root())):
        note = sign_checkpoint(loopback.network.network_id, size, root, key)
        report = audit(loopback, change_checkpoint(loopback, 2, note=note))
        assert not report.is_sound
        assert report.divergences[0].step == "A2"
        assert "note" in report.divergences[0].what


def test_the_audit_finds_two_checkpoints_of_one_size(loopback: Loopback) -> None:
    tree = make_other_tree(3)
    key = loopback.network.keys[Role.COMMITMENTS]
    note = sign_checkpoint(loopback.network.network_id, 3, tree.root(), key)
    fork = m.CheckpointV1(size=3, root=tree.root(), at_ms=0, note=note)
    last = loopback.record[-1]
    entry = Entry(last.stream, last.sequence + 1, t.CHECKPOINT.subject(), loopback.network.seal(key, fork))
    report = audit(loopback, [*loopback.record, entry])
    assert (report.divergences[0].step, report.divergences[0].what) == ("A2", "checkpoints of one size")


# --- what others were shown -----------------------------------------------------------------------------------------


def audit_against(loopback: Loopback, *notes: bytes) -> AuditReport:
    named = {f"note {number}": note for number, note in enumerate(notes)}
    return audit_entries(loopback.header, [*loopback.rounds, *loopback.record], loopback.trust, named)


def make_fork(loopback: Loopback, size: int, *names: str) -> bytes:
    """Return a note that the log's own key signed over entries that are not those of the record, cosigned by these."""
    network, key = loopback.network.network_id, loopback.network.keys[Role.COMMITMENTS]
    note = sign_checkpoint(network, size, make_other_tree(size).root(), key)
    checkpoint = parse_note(note).checkpoint
    lines = [cosign_checkpoint(network, checkpoint, make_key(name), TIME_S) for name in names]
    return merge_cosignatures(note, lines)


def test_the_audit_finds_the_fork_that_a_witness_was_shown(loopback: Loopback) -> None:
    """The record by itself is sound: only who kept what the log signed for it can show that there were two."""
    witness = make_key(NAMES[1]).participant_id
    for size, computed in ((2, None), (9, "none: the log has 3")):
        report = audit_against(loopback, make_fork(loopback, size, NAMES[1]))
        (found,) = report.divergences
        assert found.step == "A2"
        assert found.what == f"root of the log of size {size}, cosigned by {witness}"
        assert found.stated == make_other_tree(size).root().hex()
        assert found.computed != found.stated
        assert computed in (None, found.computed)
    report = audit_against(loopback, make_fork(loopback, 2))
    assert "shown to somebody else" in report.divergences[0].what


def test_the_audit_is_sound_against_what_honest_witnesses_kept(loopback: Loopback, tmp_path: Path) -> None:
    """Their memory, their cosigned note, and the receipt of a job, in both forms."""
    witness = make_witness(loopback, tmp_path)
    cosigned = witness.cosign(ask(loopback, 0), TIME_S)
    memory = (tmp_path / f"{NAMES[0]}.note").read_bytes()
    receipt = Loopback.get_receipt(loopback, read_job(loopback))
    report = audit_against(loopback, memory, cosigned.note, encode_json(receipt), encode_binary(receipt))
    assert report.is_sound
    assert report.witnessed >= 2 + 2 * 2


def read_job(loopback: Loopback) -> JobId:
    """Return the job of the last commitment."""
    found = [
        decode(m.CommitmentRecordedV1, parse_envelope(one.data).payload).job_id
        for one in loopback.record
        if t.COMMITMENT_RECORDED.matches(one.subject)
    ]
    return JobId(found[-1])


@pytest.mark.parametrize(
    "kind", ["unsigned", "by another key", "of another network", "garbage", "false line"]
)
def test_a_note_that_the_log_did_not_sign_is_no_evidence(loopback: Loopback, kind: str) -> None:
    """Or anybody could accuse it."""
    network, root = loopback.network.network_id, make_other_tree(2).root()
    fork = make_fork(loopback, 2, NAMES[0])
    note = {
        "unsigned": fork.split(b"\n\n")[0] + b"\n\n",
        "by another key": sign_checkpoint(network, 2, root, make_key("stranger")),
        "of another network": sign_checkpoint(
            type(network)(bytes(32)), 2, root, loopback.network.keys[Role.COMMITMENTS]
        ),
        "garbage": b"pocache/",
        "false line": fork[:-8] + b"AAAAAA=\n",
    }[kind]
    with pytest.raises(ConfigError, match="shows nothing of this network's log"):
        audit_against(loopback, note)
