"""`pocache economics`: the JSON that scripts read, the table that people read, and its refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pocache_cli.economics import economics

ARGUMENTS = [
    "--rules",
    "unified-pool",
    "--alpha",
    "6/5",
    "--beta",
    "5",
    "--cg-micro",
    "1000000",
    "--cv-micro",
    "100000",
    "--stages",
    "6",
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(economics, list(arguments))


def get_rows(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)["rows"]
    return rows


def test_json_has_every_case_and_every_k() -> None:
    found = [(row["case"], row["k"]) for row in get_rows(*ARGUMENTS)]
    confirmations = [(case, k) for case in ("confirm_generator", "confirm_prior") for k in range(2, 7)]
    assert found == [("no_challenge", 0), ("agree", 1), *confirmations, ("void", 6)]


def test_json_rows_have_exactly_the_published_fields_and_numbers() -> None:
    rows = {(row["case"], row["k"]): row for row in get_rows(*ARGUMENTS)}
    assert rows["confirm_prior", 3] == {
        "case": "confirm_prior",
        "k": 3,
        "pool_micro": 7_820_000,
        "generator_micro": 0,
        "user_micro": 1_320_000,
        "deciding_verifier_micro": 5_880_000,
        "prior_verifier_micro": 620_000,
        "losing_verifiers": 1,
    }
    assert rows["void", 6]["prior_verifier_micro"] == 5 * 500_000


def test_every_row_adds_up() -> None:
    parts = ("generator_micro", "user_micro", "deciding_verifier_micro", "prior_verifier_micro")
    for row in get_rows("--alpha", "7/3", "--beta", "11/7", "--cg-micro", "1000003", "--cv-micro", "99991"):
        assert row["pool_micro"] == sum(row[part] for part in parts)


def test_amounts_beyond_two_to_the_53_stay_exact() -> None:
    row = get_rows("--alpha", "1", "--beta", "1", "--cg-micro", str(2**60 + 1), "--cv-micro", "1")[0]
    assert row["generator_micro"] == 2 * (2**60 + 1)


def test_a_negative_payout_is_refused_with_the_inequality() -> None:
    """β(Cg+Cv) = 1.1 M and αCv = 2 M: the deciding verifier of stage 2 would owe money."""
    result = run("--alpha", "20", "--beta", "1", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "β(Cg+Cv) ≥ αCv is violated" in result.stderr
    assert "-900000" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--alpha", "1.2"),
        ("--alpha", "0"),
        ("--beta", "5/0"),
        ("--beta", "-1"),
        ("--cg-micro", "-1"),
        ("--cg-micro", "1.5"),
        ("--cv-micro", str(2**63)),
        ("--cg-micro", str(2**63 - 1)),
        ("--stages", "0"),
        ("--stages", "17"),
        ("--rules", "free-lunch"),
    ],
)
def test_unusable_parameters_exit_2_and_leave_stdout_empty(arguments: tuple[str, str]) -> None:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")


def test_the_table_names_cases_and_amounts() -> None:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(economics, ARGUMENTS)
    assert result.exit_code == 0
    assert "confirm_generator" in result.stdout
    assert "5,880,000" in result.stdout
