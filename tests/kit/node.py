"""Node.js for tests: where it is, and what the second verifier says about receipts."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from pocache.receipt.report import Report, Status
from pocache.receipt.trust import TrustRoots

ROOT: Final = Path(__file__).parents[2]
JS: Final = ROOT / "tests" / "js"
VERIFY_JS: Final = ROOT / "shared" / "pocache" / "receipt" / "web" / "verify.js"
CURVES: Final = JS / "node_modules" / "@noble" / "curves" / "bls12-381.js"
PAIRING: Final = "R8.pairing"
_VERSION_MIN: Final = 20
_SECONDS_MAX: Final = 7_200


@dataclass(frozen=True)
class Judgement:
    """What the second verifier says about one receipt."""

    is_valid: bool
    failed: str | None
    """The first step that fails, in the first verifier's numbering: the pairing is a part of R8."""
    statuses: tuple[tuple[str, str], ...]
    internal: str | None
    detail: str


def find_node() -> str:
    """Return the program; skip loudly where it or the packages are missing, fail where everything is required."""
    node = shutil.which("node") or shutil.which("node", path=sysconfig.get_path("scripts"))
    if node is None or _get_version(node) < _VERSION_MIN or not CURVES.is_file():
        what = "THE SECOND VERIFIER IS NOT TESTED: install Node.js 20 or later, and run `npm ci` in tests/js"
        if os.environ.get("POCACHE_REQUIRE") == "all":
            pytest.fail(what)
        pytest.skip(what)
    return node


def run_node(script: Path, *args: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script with some standard input, its output and errors kept."""
    command = [find_node(), "--no-warnings", script, *args]
    return subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", check=False, timeout=_SECONDS_MAX
    )


def judge_all(receipts: Iterable[tuple[bytes, TrustRoots]], *, pairing: bool = True) -> list[Judgement]:
    """Return the second verifier's judgement on every receipt, all in one process."""
    lines = [
        json.dumps(
            {"trust": trust.model_dump(), "data": base64.b64encode(data).decode("ascii"), "pairing": pairing}
        )
        for data, trust in receipts
    ]
    done = run_node(JS / "receipts.mjs", text="".join(line + "\n" for line in lines))
    assert done.returncode == 0, done.stderr[-2_000:]
    answers = [_read_judgement(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines), done.stderr[-2_000:]
    return answers


def get_statuses(report: Report) -> tuple[tuple[str, str], ...]:
    """Return a report's steps in the second verifier's words."""
    words = {
        Status.HOLDS: "ok",
        Status.FAILED: "failed",
        Status.NOT_APPLICABLE: "not-applicable",
        Status.UNCHECKED: "not-checked",
        Status.NOT_REACHED: "not-checked",
    }
    return tuple((one.step.value, words[one.status]) for one in report.steps)


def _read_judgement(answer: dict[str, Any]) -> Judgement:
    statuses: Sequence[list[str]] = answer["steps"]
    return Judgement(
        is_valid=answer["valid"],
        failed=answer["failed"] and answer["failed"].partition(".")[0],
        statuses=tuple((step, status) for step, status in statuses),
        internal=answer["internal"],
        detail=answer["detail"],
    )


def _get_version(node: str) -> int:
    done = subprocess.run([node, "--version"], capture_output=True, encoding="ascii", check=False)
    return int(done.stdout.lstrip("v").partition(".")[0]) if done.returncode == 0 else 0
