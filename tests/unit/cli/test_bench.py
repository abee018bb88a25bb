"""``pocache bench``: what it prints for scripts, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "pocache_cli.main", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_json_is_the_machine_and_a_row_a_line() -> None:
    done = run("beacon", "--json")
    assert done.returncode == 0, done.stderr
    machine, *rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert machine["cores"] >= 1
    assert {row["benchmark"] for row in rows} == {"beacon"}
    assert all(row["ratio"] == row["median_ms"] / row["baseline_ms"] > 0 for row in rows)


def test_an_unknown_benchmark_is_refused_with_the_names_that_there_are() -> None:
    done = run("beacon", "nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nonsense" in done.stderr
    assert "pipeline" in done.stderr
