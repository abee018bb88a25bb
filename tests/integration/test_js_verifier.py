"""The second verifier, in JavaScript, against the first: the same vectors, the same receipts, the same mutants."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kit.endings import ENDINGS, play
from kit.mutants import Mutant, make_mutant
from kit.node import CURVES, JS, PAIRING, VERIFY_JS, Judgement, get_statuses, judge_all, run_node
from pocache.receipt.format import decode_receipt, encode_binary, encode_json
from pocache.receipt.report import Report
from pocache.receipt.trust import TrustRoots, load_trust
from pocache.receipt.verify import verify_receipt

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
    assert len(files) == 7


def test_a_vector_that_says_otherwise_is_found(tmp_path: Path) -> None:
    """The harness would notice: one digit of a distance, one verdict on a proof, one payout."""
    wrong = 0
    for name, section, change in (
        ("distances_v1", "distances", lambda case: case.update(log2_q16=(case["log2_q16"] or 0) + 1)),
        ("merkle_v1", "multiproofs", lambda case: case.update(valid=not case["valid"])),
        ("envelopes_v1", "msgpack", lambda case: case.update(valid=not case["valid"])),
        ("payoffs_v1", "settlements", lambda case: case.update(found={"pool": "1"})),
    ):
        content = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
        change(content[section][0])
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        wrong += 1
    done = run_node(JS / "vectors.mjs", *sorted(tmp_path.glob("*.json")))
    assert len(json.loads(done.stdout)["failures"]) == wrong


# --- receipts ------------------------------------------------------------------------------------------------------


def test_captured_receipts_hold_step_by_step(captured: dict[str, bytes], trust: TrustRoots) -> None:
    """Of a real network's jobs of every ending, in both forms."""
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


# --- mutants -------------------------------------------------------------------------------------------------------


def judge_mutants(mutants: list[Mutant]) -> Counter[str]:
    """Assert that both verifiers say the same about every mutant; return how many failed at each step."""
    found: Counter[str] = Counter()
    for mutant, judgement in zip(mutants, judge_all((one.data, one.trust) for one in mutants), strict=True):
        report = verify_receipt(mutant.data, mutant.trust)
        verify_same(judgement, report, mutant.name)
        assert mutant.is_signed or not report.is_valid, mutant.name
        found[judgement.failed or "valid"] += 1
    return found


@pytest.mark.timeout(600)
def test_both_name_the_same_step_of_a_mutant() -> None:
    """Mutants fail all over the steps, not only at the first; what nobody signed again never passes."""
    found = judge_mutants([make_mutant(number) for number in range(MUTANTS)])
    assert len(found) >= 15, found
    assert found["valid"] < MUTANTS // 10, found


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
