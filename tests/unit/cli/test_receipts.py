"""``pocache verify``, ``explain``, ``receipt`` and ``audit``: what they print, how they exit, what they load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pocache.receipt.format import decode_receipt, encode_binary
from pocache.receipt.report import Step
from pocache_cli.main import main

FOLDER = Path(__file__).parents[2] / "vectors" / "receipts"
TRUST = ("--trust", str(FOLDER / "trust.json"))
ROOT = Path(__file__).parents[3]

BLOCKED = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
from pocache_cli.main import main
main({arguments!r})
"""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def call_without(blocked: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter in which some packages cannot be imported."""
    code = BLOCKED.format(blocked=blocked, arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'services'}", "PATH": "/usr/bin:/bin"},
    )


@pytest.mark.parametrize(
    "name", ["agree", "confirm_prior", "refused", "refunded", "no_opening", "equivocation"]
)
def test_a_receipt_that_holds_exits_with_0_and_prints_every_step(name: str) -> None:
    result = call("verify", str(FOLDER / f"{name}.json"), *TRUST)
    assert result.exit_code == 0, result.output
    for step in Step:
        assert f"\n{step.value} " in "\n" + result.output
    assert "VALID" in result.output.splitlines()[-1]
    assert "INVALID" not in result.output


def test_the_binary_form_is_verified_alike(tmp_path: Path) -> None:
    file = tmp_path / "receipt"
    file.write_bytes(encode_binary(decode_receipt((FOLDER / "agree.json").read_bytes())))
    assert call("verify", str(file), *TRUST).exit_code == 0


def test_json_says_what_was_compared() -> None:
    result = call("verify", str(FOLDER / "lottery.json"), *TRUST, "--json")
    answer = json.loads(result.stdout)
    assert (answer["valid"], answer["failed"], answer["case"]) == (True, None, "agree")
    assert [one["step"] for one in answer["steps"]] == [step.value for step in Step]
    assert all(one["compared"] for one in answer["steps"])


def test_a_receipt_that_does_not_hold_exits_with_1_and_names_the_step(tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    data = (FOLDER / "agree.json").read_text()
    file.write_text(data.replace('"rounds":["', '"rounds":["AAAA', 1))
    result = call("verify", str(file), *TRUST)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("INVALID at R3")
    answer = json.loads(call("verify", str(file), *TRUST, "--json").stdout)
    assert (answer["valid"], answer["failed"]) == (False, "R3")


def test_wrong_usage_exits_with_2(tmp_path: Path) -> None:
    bad = tmp_path / "trust.json"
    bad.write_text("{}")
    receipt = str(FOLDER / "agree.json")
    for arguments in (
        ("verify",),
        ("verify", "none.json", *TRUST),
        ("verify", receipt, "--trust", str(bad)),
        ("verify", receipt, "--trust", str(tmp_path / "none")),
        ("verify", receipt, "--network-dir", str(tmp_path)),
        ("verify", receipt, *TRUST, "--recompute"),
        ("verify", receipt, *TRUST, "--model", "fake:kit"),
        ("explain", "what", *TRUST),
        ("receipt", "abc"),
        ("receipt", "0" * 64, "--json"),
        ("audit", "--network-dir", str(tmp_path)),
        ("audit", *TRUST, "--from", receipt, "--export", receipt),
    ):
        assert call(*arguments).exit_code == 2, arguments


def test_trust_is_read_from_the_network_directory(tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_bytes((FOLDER / "trust.json").read_bytes())
    assert call("verify", str(FOLDER / "agree.json"), "--network-dir", str(tmp_path)).exit_code == 0


def test_verifying_needs_no_torch_and_no_bus() -> None:
    """What a base install has is enough; a blocked import is one that would have failed."""
    blocked = {"torch", "transformers", "numpy", "nats", "nkeys", "sqlalchemy", "safetensors", "tokenizers"}
    done = call_without(blocked, "verify", str(FOLDER / "confirm_prior.json"), *TRUST)
    assert (done.returncode, done.stderr) == (0, "")
    assert "VALID: confirm_prior" in done.stdout
    done = call_without(blocked, "audit", "--from", str(FOLDER / "record.jsonl.gz"), *TRUST, "--json")
    assert (done.returncode, json.loads(done.stdout)["sound"]) == (0, True)
    done = call_without(blocked, "explain", str(FOLDER / "no_challenge.json"), *TRUST)
    assert done.returncode == 0
    # The blocker blocks: fetching one needs the bus.
    assert "blocked: " in call_without(blocked, "receipt", "0" * 64).stderr


def test_recomputing_runs_the_prefill_and_finds_the_cheat() -> None:
    """The engine without a model: the honest verifiers' rows are this machine's, the cheat's are not."""
    result = call(
        "verify", str(FOLDER / "confirm_prior.json"), *TRUST, "--recompute", "--model", "fake:kit", "--json"
    )
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["valid"]) == (0, True)
    verdicts = {(one["expected_mismatch"], one["verdict"]) for one in answer["recomputed"]}
    assert verdicts == {(True, "mismatch"), (False, "match")}
    assert len(answer["recomputed"]) == 5
    other = call("verify", str(FOLDER / "confirm_prior.json"), *TRUST, "--recompute", "--model", "fake:other")
    assert other.exit_code == 2


def test_explaining_a_receipt_says_that_it_was_verified(tmp_path: Path) -> None:
    result = call("explain", str(FOLDER / "confirm_prior.json"), *TRUST)
    assert result.exit_code == 0
    assert "convicted" in result.output
    assert "All of it was verified" in result.output.splitlines()[-1]
    answer = json.loads(call("explain", str(FOLDER / "no_challenge.json"), *TRUST, "--json").stdout)
    assert answer["case"] == "no_challenge"
    assert any("lottery" in one for one in answer["sentences"])
    file = tmp_path / "receipt.json"
    file.write_text((FOLDER / "agree.json").read_text().replace('"rounds":["', '"rounds":["AAAA', 1))
    result = call("explain", str(file), *TRUST)
    assert result.exit_code == 1
    assert "does not hold" in result.output


def test_auditing_an_export_prints_the_first_divergence_with_both_values(tmp_path: Path) -> None:
    import gzip

    result = call("audit", "--from", str(FOLDER / "record.jsonl.gz"), *TRUST)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith("SOUND")
    lines = gzip.decompress((FOLDER / "record.jsonl.gz").read_bytes()).splitlines(keepends=True)
    # The last message of RECORD stays: the gap lies before it.
    del lines[-2]
    file = tmp_path / "record.jsonl"
    file.write_bytes(b"".join(lines))
    result = call("audit", "--from", str(file), *TRUST)
    assert result.exit_code == 1
    assert "DIVERGES: message" in result.output
    assert "step A1: the record has a gap: it says" in result.output
    answer = json.loads(call("audit", "--from", str(file), *TRUST, "--json").stdout)
    assert (answer["sound"], answer["first"]["step"]) == (False, "A1")
    wrong = tmp_path / "trust.json"
    wrong.write_text((FOLDER / "trust.json").read_text().replace('"network_id": "', '"network_id": "00', 1))
    assert call("audit", "--from", str(file), "--trust", str(wrong)).exit_code == 2
