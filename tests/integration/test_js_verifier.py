"""The second verifier, in JavaScript, against the first: the same vectors, the same receipts, the same mutants."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kit.endings import ENDINGS, Played, play
from kit.forging import find_said
from kit.loopback import SECTIONS, Loopback
from kit.mutants import Forger, Mutant, make_mutant
from kit.network import make_key
from kit.node import CURVES, JS, PAIRING, VERIFY_JS, Judgement, get_statuses, judge_all, run_node
from pocache.protocol.checkpoint import cosign_checkpoint, merge_cosignatures, parse_note
from pocache.protocol.commitment import compute_sampling_seed
from pocache.receipt.draws import compute_orders
from pocache.receipt.format import LogProof, Receipt, decode_receipt, encode_binary, encode_json
from pocache.receipt.report import Report
from pocache.receipt.trust import TrustRoots, load_trust
from pocache.receipt.verify import examine_receipt, verify_receipt
from pocache.wire.codec import decode, encode_value
from pocache.wire.envelope import ENVELOPE_BYTES_MAX, parse_envelope
from pocache.wire.messages import CheckpointV1, EpochV1
from pocache.wire.topics import VERIFIER_DRAWN, Role

VECTORS = Path(__file__).parents[1] / "vectors"
RECEIPTS = VECTORS / "receipts"
MUTANTS = 300
MUTANTS_SOAK = 20_000
BATCH = 1_000


@pytest.fixture(scope="module")
def captured() -> dict[str, bytes]:
    """The committed receipts, by ending."""
    found = {file.stem: file.read_bytes() for file in sorted(RECEIPTS.glob("*.json")) if file.stem != "trust"}
    assert len(found) >= 8
    return found


@pytest.fixture(scope="module")
def trust() -> TrustRoots:
    """What the committed receipts' network is trusted by."""
    return load_trust(RECEIPTS / "trust.json")


def verify_same(judgement: Judgement, report: Report, what: str) -> None:
    """Assert that two verifiers say the same about every step, and neither by a bug."""
    failure = report.failure
    assert judgement.internal is None, f"{what}: {judgement.internal}"
    assert failure is None or not failure.is_internal, f"{what}: {failure}"
    stated = None if failure is None else failure.step.value
    assert (judgement.is_valid, judgement.failed) == (report.is_valid, stated), (
        f"{what}: {judgement.failed} ({judgement.detail}), not {failure}"
    )
    statuses = dict(judgement.statuses)
    pairing = statuses.pop(PAIRING)
    if pairing == "failed":
        statuses["R8"] = pairing
    assert tuple(statuses.items()) == get_statuses(report), what


# --- vectors -------------------------------------------------------------------------------------------------------


def test_both_agree_with_the_committed_vectors() -> None:
    """Every case of every file is looked at, and comes out as it is written there."""
    files = sorted(VECTORS.glob("*_v1.json"))
    done = run_node(JS / "vectors.mjs", *files)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["failures"] == []
    sections = {
        f"{file.stem}.{name}": len(cases)
        for file in files
        for name, cases in json.loads(file.read_text(encoding="utf-8")).items()
        if isinstance(cases, list)
    }
    assert report["counts"] == sections
    assert len(files) == 8


def test_a_vector_that_says_otherwise_is_found(tmp_path: Path) -> None:
    """The harness would notice: one digit of a distance, one verdict on a proof, one payout."""
    changes: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("committee_v1", "settlements", {"found": {"pool": "1"}}),
        ("distances_v1", "distances", {"log2_q16": 1}),
        ("envelopes_v1", "msgpack", {"valid": False}),
        ("merkle_v1", "multiproofs", {"valid": False}),
        ("payoffs_v1", "settlements", {"found": {"pool": "1"}}),
    )
    for name, section, change in changes:
        content = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
        content[section][0].update(change)
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    done = run_node(JS / "vectors.mjs", *sorted(tmp_path.glob("*.json")))
    found = [one["section"] for one in json.loads(done.stdout)["failures"]]
    assert found == [f"{name}.{section}" for name, section, _ in changes]


# --- receipts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["receipts", "receipts-committee"])
def test_captured_receipts_hold_step_by_step(folder: str) -> None:
    """Of a real network's jobs of every ending under either rule set, in both forms."""
    captured = {file.stem: file.read_bytes() for file in sorted((VECTORS / folder).glob("*.json"))}
    del captured["trust"]
    trust = load_trust(VECTORS / folder / "trust.json")
    forms = [(name, data, encode_binary(decode_receipt(data))) for name, data in captured.items()]
    named = [(name, data) for name, *both in forms for data in both]
    for (name, data), judgement in zip(named, judge_all((data, trust) for _, data in named), strict=True):
        report = verify_receipt(data, trust)
        assert report.is_valid
        verify_same(judgement, report, name)


def test_played_receipts_hold_step_by_step() -> None:
    played = [play(ending) for ending in ENDINGS]
    judgements = judge_all((encode_json(one.receipt), one.loopback.trust) for one in played)
    for ending, one, judgement in zip(ENDINGS, played, judgements, strict=True):
        report = verify_receipt(encode_json(one.receipt), one.loopback.trust)
        assert report.is_valid
        verify_same(judgement, report, ending)


def test_without_curves_the_pairing_is_said_to_be_unchecked(
    captured: dict[str, bytes], trust: TrustRoots
) -> None:
    """Everything else is looked at all the same; with them it is."""
    for pairing, status in ((False, "not-checked"), (True, "ok")):
        [judgement] = judge_all([(captured["agree"], trust)], pairing=pairing)
        assert judgement.is_valid
        assert dict(judgement.statuses)[PAIRING] == status


def load_forgeries() -> ModuleType:
    """The first verifier's tests of forgeries, with their table and their forgers."""
    path = Path(__file__).parents[1] / "unit" / "receipt" / "test_forgeries.py"
    spec = importlib.util.spec_from_file_location("forgeries", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_forgery_fails_at_the_same_step() -> None:
    """One for each field that a step checks, signed again by whoever must: the table of the first verifier's tests."""
    module = load_forgeries()
    forged = [
        (name, encode_binary(forger(play(ending))), play(ending).loopback.trust, step)
        for name, ending, forger, step in module.FORGERIES
    ]
    judgements = judge_all((data, trust) for _, data, trust, _ in forged)
    for (name, data, trust, step), judgement in zip(forged, judgements, strict=True):
        verify_same(judgement, verify_receipt(data, trust), name)
        assert judgement.failed == step.value, name
    assert len(forged) >= 100


def test_forgeries_that_one_check_alone_finds_fail_at_the_same_step() -> None:
    """A late result, a note that the log did not sign, a published key, somebody drawn whom the rules did not ask."""
    module, played = load_forgeries(), play("agree")
    network = played.loopback.network
    latest = decode(CheckpointV1, parse_envelope(found_log(played.receipt).latest).payload)
    unsigned = latest.note[:-8] + (b"AAAA" if latest.note[-8:-4] != b"AAAA" else b"BBBB") + latest.note[-4:]
    cases = [
        ("R6", module.released(deadline_ms=1)(played)),
        *(("R7", module.check_pointed(field, note=unsigned)(played)) for field in ("checkpoint", "latest")),
    ]
    drawn = find_said(played.receipt, network, VERIFIER_DRAWN).body
    for number in range(1, 4):
        name = make_key(f"verifier-{number}").participant_id
        said = network.seal(
            network.keys[Role.VERIFIER], drawn.model_copy(update={"place": 1, "participant": name})
        )
        record = Forger(network).sort([*played.receipt.record, said])
        step = "R16" if name == draw_second(played) else "R11"
        cases.append((step, replace(played.receipt, record=record)))
    assert [step for step, _ in cases].count("R16") == 1
    asked = [(encode_binary(receipt), played.loopback.trust) for _, receipt in cases]
    for (step, _), (data, trust), judgement in zip(cases, asked, judge_all(asked), strict=True):
        verify_same(judgement, verify_receipt(data, trust), step)
        assert judgement.failed == step


def draw_second(played: Played) -> str:
    """Return whom the round of the first stage drew second."""
    _, case = examine_receipt(encode_binary(played.receipt), played.loopback.trust)
    assert case is not None
    return compute_orders(case)[1][1]


def found_log(receipt: Receipt) -> LogProof:
    """Return the proofs of a receipt that has some."""
    assert receipt.log is not None
    return receipt.log


def test_a_seed_of_a_published_epoch_is_computed_alike() -> None:
    """Right key, wrong key, a key that is not the announced one, an epoch left out."""
    module, played = load_forgeries(), play("epoch_seed")
    network, key, other = played.loopback.network, b"k" * 32, b"o" * 32
    seed = compute_sampling_seed(None, key, played.job_id)

    def epochs(*announced: tuple[int, bytes, bytes | None]) -> tuple[bytes, ...]:
        bodies = [
            EpochV1(number=number, key_hash=sha256(own).digest(), previous_key=published)
            for number, own, published in announced
        ]
        return tuple(network.seal(network.keys[Role.ROUTER], body) for body in bodies)

    leased = module.released(seed=seed)(played)
    shown = [
        ("ok", epochs((1, key, None), (2, other, key))),
        ("not-checked", epochs((1, key, None), (3, other, key))),
        ("not-checked", epochs((1, other, None), (2, other, key))),
        ("not-checked", epochs((1, other, None), (2, key, other))),
        ("not-checked", epochs((1, key, None))),
        ("failed", ()),
    ]
    asked = [(encode_binary(replace(leased, epochs=one)), played.loopback.trust) for _, one in shown]
    for (status, _), (data, trust), judgement in zip(shown, asked, judge_all(asked), strict=True):
        verify_same(judgement, verify_receipt(data, trust), status)
        assert dict(judgement.statuses)["R5"] == status


def test_other_spellings_and_orders_fail_at_the_same_step() -> None:
    """Of the file, of an envelope in it, of the record; and bytes that are no receipt at all."""
    played = play("agree")
    receipt, trust = played.receipt, played.loopback.trust
    text, packed = encode_json(receipt), encode_binary(receipt)
    value = json.loads(text)
    envelope = parse_envelope(receipt.record[0])
    fields = {"sig": envelope.sig, "kind": envelope.kind, "payload": envelope.payload, "kid": envelope.kid}
    turned = encode_value(fields, bytes_max=ENVELOPE_BYTES_MAX)
    kinds = [parse_envelope(data).kind for data in receipt.record]
    first = next(at for at in range(len(kinds)) if kinds[at] == kinds[at + 1])
    swapped = list(receipt.record)
    swapped[first : first + 2] = reversed(swapped[first : first + 2])
    cases = [
        ("R1", text.rstrip(b"\n")),
        ("R1", b" " + text),
        ("R1", text.replace(b'":', b'": ', 1)),
        ("R1", json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode() + b"\n"),
        ("R1", text.replace(b"receipt.v1", b"rece\\u0069pt.v1")),
        ("R1", text.replace(b'"kind":', b'"kind":"receipt.v1","kind":', 1)),
        ("R1", text.replace(b'"log":{', b'"log":{"cosigned":"",', 1)),
        ("R1", text.replace(b"receipt.v1", b"receipt.v2")),
        ("R1", b"\xde\x00\x08" + packed[1:]),
        ("R1", packed + b"\xc0"),
        *(
            ("R1", data)
            for data in (b"", b"{", b"[]\n", b"\x80", b"\x91" * 2_000, b"{" + b"[" * 2_000, b"\xff" * 64)
        ),
        ("R3", encode_binary(replace(receipt, record=(turned, *receipt.record[1:])))),
        ("R3", encode_binary(replace(receipt, record=tuple(swapped)))),
    ]
    for (step, data), judgement in zip(cases, judge_all((data, trust) for _, data in cases), strict=True):
        verify_same(judgement, verify_receipt(data, trust), str(data[:60]))
        assert judgement.failed == step, data[:60]


def test_witnesses_and_their_quorum_are_asked_for_alike() -> None:
    """Every eleventh byte of a cosigned note changed, its lines moved, a stranger's added; quorums that hold or do not."""
    names = ("witness-1", "witness-2")
    loopback = Loopback(witnesses=names)
    receipt = loopback.get_receipt(loopback.play())
    assert receipt.log is not None
    own = decode(CheckpointV1, parse_envelope(receipt.log.latest).payload).note
    network, checkpoint = loopback.network.network_id, parse_note(own).checkpoint
    lines = [
        cosign_checkpoint(network, checkpoint, make_key(name), 1_800_000_000) for name in (*names, "stranger")
    ]
    note = merge_cosignatures(own, lines[:2])
    whole = note.splitlines(keepends=True)
    notes = [note[:at] + bytes([note[at] ^ 1]) + note[at + 1 :] for at in range(0, len(note), 11)]
    notes += [own, merge_cosignatures(own, lines), note[:-1], note + note]
    notes += [b"".join([*whole[:5], whole[6], whole[5]]), b"".join([*whole, whole[5]])]
    good = (b"", note, merge_cosignatures(own, lines[:1]))
    pins = ((), names[:1], names, (*names, "stranger"))
    cases = [(one, ()) for one in notes] + [(one, pinned) for one in good for pinned in pins]
    asked = [
        (
            encode_binary(replace(receipt, log=replace(receipt.log, cosigned=one))),
            pin_witnesses(loopback.trust, pinned),
        )
        for one, pinned in cases
    ]
    failed = []
    for (data, trust), judgement in zip(asked, judge_all(asked), strict=True):
        verify_same(judgement, verify_receipt(data, trust), "cosigned")
        failed.append(judgement.failed)
    assert failed[: len(notes)] == ["R7"] * len(notes)
    # Nobody cosigned, both did, the first did: each under quorums of none, one, two, three.
    none, both, first = ([None] * count + ["R7"] * (4 - count) for count in (1, 3, 2))
    assert failed[len(notes) :] == [*none, *both, *first]


def pin_witnesses(trust: TrustRoots, names: tuple[str, ...]) -> TrustRoots:
    """Return trust roots that ask for the cosignature of every one of these."""
    witnesses = [make_key(name).participant_id for name in names]
    return TrustRoots.model_validate(
        {**trust.model_dump(), "witnesses": witnesses, "witness_quorum": len(names)}
    )


# --- mutants -------------------------------------------------------------------------------------------------------


def judge_mutants(mutants: list[Mutant]) -> Counter[str]:
    """Assert that both verifiers say the same about every mutant; return how many failed at each step."""
    found: Counter[str] = Counter()
    for mutant, judgement in zip(mutants, judge_all((one.data, one.trust) for one in mutants), strict=True):
        report = verify_receipt(mutant.data, mutant.trust)
        verify_same(judgement, report, mutant.name)
        assert not (mutant.must_fail and report.is_valid), mutant.name
        found[judgement.failed or "valid"] += 1
    return found


@pytest.mark.timeout(600)
def test_both_name_the_same_step_of_a_mutant() -> None:
    """Mutants fail all over the steps, not only at the first; what nobody signed again never passes."""
    found = judge_mutants([make_mutant(number) for number in range(MUTANTS)])
    assert len(found) >= 15, found
    assert found["valid"] < MUTANTS // 10, found


def test_both_agree_on_mutants_that_once_told_them_apart() -> None:
    """A seat beyond sortition's order was a crash in one; a DEL in the genesis was spelled in two ways."""
    judge_mutants([make_mutant(number, "soak") for number in (12_763, 13_945)])


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_both_name_the_same_step_of_twenty_thousand_mutants() -> None:
    found: Counter[str] = Counter()
    for first in range(0, MUTANTS_SOAK, BATCH):
        found += judge_mutants([make_mutant(number, "soak") for number in range(first, first + BATCH)])
    assert sum(found.values()) == MUTANTS_SOAK
    assert {f"R{number}" for number in range(1, 19)} <= set(found), found


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_answers_with_its_exit_code(captured: dict[str, bytes], tmp_path: Path) -> None:
    """0: it holds. 1: it does not, and the step is named. 2: the question is not one."""
    receipt, trust_file = RECEIPTS / "no_challenge.json", RECEIPTS / "trust.json"
    done = run_node(VERIFY_JS, receipt, "--trust", trust_file, "--curves", CURVES)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid" in done.stdout.splitlines()[-1]
    changed = tmp_path / "changed.json"
    changed.write_bytes(captured["no_challenge"][:-1])
    done = run_node(VERIFY_JS, changed, "--trust", trust_file, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["valid"], answer["failed"]) == (1, False, "R1")
    absent = tmp_path / "absent.json"
    for args in (
        [],
        [receipt],
        [receipt, "--trust", absent],
        [absent, "--trust", trust_file],
        [receipt, "--trust", receipt],
    ):
        done = run_node(VERIFY_JS, *args)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"network_id": "AB" * 32},
        {"operator": "U"},
        {"more": 1},
        {"profiles": ["x"]},
        {"witness_quorum": 1},
        {"chain_public_key": ""},
    ],
)
def test_trust_files_that_are_none_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    """As the first verifier refuses them: before any receipt is judged."""
    value = {**json.loads((RECEIPTS / "trust.json").read_text(encoding="ascii")), **change}
    file = tmp_path / "trust.json"
    file.write_text(json.dumps(value), encoding="ascii")
    done = run_node(VERIFY_JS, RECEIPTS / "agree.json", "--trust", file)
    assert done.returncode == 2
    assert "trust roots" in done.stderr


def test_a_network_that_ejects_is_known_to_both() -> None:
    """Its genesis has a section that older ones do not have."""
    loopback = Loopback({**SECTIONS, "ejection": {"bond_share": "1/3"}})
    data = encode_json(loopback.get_receipt(loopback.play(challenge=True)))
    (judgement,) = judge_all([(data, loopback.trust)])
    report = verify_receipt(data, loopback.trust)
    assert report.is_valid
    verify_same(judgement, report, "a network that ejects")
