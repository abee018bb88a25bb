"""`pocache economics` for the network's own rules, its incentives and its simulation: output, refusals, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from pocache_cli.economics import economics

COMMITTEE = ("--rules", "fixed-fee-committee")


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(economics, list(arguments))


def get_json(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_has_the_parameters_and_every_outcome() -> None:
    found = get_json(*COMMITTEE, "--committee-size", "3")
    assert (found["rules"], found["beta_generator"], found["committee_size"]) == (
        "fixed-fee-committee",
        "20",
        3,
    )
    rows = {row["case"]: row for row in found["rows"]}
    assert len(rows) == 13
    assert rows["conviction"] == {
        "case": "conviction",
        "verifiers": 4,
        "pool_micro": 1_336_666 + 20_000_000 + 4 * 2_000_000,
        "generator_micro": 0,
        "user_micro": 1_836_666,
        "first_verifier_micro": 2_370_000,
        "other_verifiers_micro": 3 * 2_120_000,
        "treasury_micro": 20_000_000 - 4 * 120_000 - 750_000,
        "reserve_micro": 0,
        "reserve_drawn_micro": 0,
        "losing_verifiers": 0,
    }


def test_json_has_the_incentives_of_both_rule_sets() -> None:
    unified, committee = (get_json("--rules", name)["incentives"] for name in ("unified-pool", COMMITTEE[1]))
    assert unified["is_deterred"] is False
    assert committee["is_deterred"] is True
    assert 17.9 < committee["beta_min"] < 18
    assert committee["attacks"][0]["attack"] == "spoof"
    assert 0.09 < committee["attacks"][0]["lottery_min"] < 0.1
    assert "assumptions" in committee["detection_source"]
    assert committee["truth"][0]["incentive_micro"] == 2_120_000
    assert committee["truth"][1]["lie_micro"] == -92_000
    assert [row["party"] for row in committee["locked_capital"]] == ["user", "generator", "verifiers"]
    assert unified["verifier_beta_min"] is None
    assert 6 < committee["verifier_beta_min"] < 7


def test_fractions_of_a_micro_unit_stay_exact() -> None:
    rows = get_json(*COMMITTEE, "--recheck", "1/7", "--lottery", "1/11", "--levy", "1/4")["incentives"][
        "truth"
    ]
    assert rows[1]["lie_micro"] == "-1280000/7"


def test_the_table_names_outcomes_and_what_deters() -> None:
    result = run(*COMMITTEE)
    assert result.exit_code == 0
    for text in ("acquittal_rechecked", "14,840,000", "β_min 17.955", "spoof", "2,120,000", "220,000"):
        assert text in result.stdout


def test_an_evaluation_gives_the_detection(tmp_path: Path) -> None:
    """The last line of what `pocache evaluate --json` prints; a spoof found half as often takes twice the stake."""
    file = tmp_path / "evaluation.json"
    record = {
        "attacks": [{"name": "spoof", "detected": 0.495}, {"name": "odd", "detected": 1}],
        "profile": "abc",
    }
    file.write_text(f'{{"progress": 1}}\n{json.dumps(record)}\n', encoding="utf-8")
    incentives = get_json(*COMMITTEE, "--detection", str(file))["incentives"]
    assert incentives["beta_min"] == pytest.approx(2 * 17.9553 + 1.2, abs=1e-3)
    assert incentives["is_deterred"] is False
    assert incentives["unpriced_attacks"] == ["odd"]
    assert "profile abc" in incentives["detection_source"]
    file.write_text(json.dumps(record, indent=2), encoding="utf-8")
    assert get_json(*COMMITTEE, "--detection", str(file))["incentives"] == incentives


@pytest.mark.parametrize("content", [b"", b"[]", b"no", b"\xff", b"{}", b'{"attacks": 1}', b" " * 1_000_001])
def test_what_is_no_evaluation_exits_2(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_bytes(content)
    result = run(*COMMITTEE, "--detection", str(file), "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "evaluation" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--levy", "1/10"), "λ ≥ (1+ρ)·q_a·(1+q_r)·φ is violated"),
        (("--beta-generator", "1"), "fees + bounty + bonus < βCg is violated"),
        (("--beta-verifier", "3"), "β_V ≥ 2Mφ is violated"),
        (("--committee-size", "4"), "M odd"),
        (("--phi", "2"), "φ ≤ α is violated"),
        (("--cv-micro", "2000000"), "the treasury would be paid -"),
        (("--beta", "5"), "--beta is no parameter of fixed-fee-committee"),
        (("--stages", "3"), "--stages is no parameter"),
        (("--collusion", "4/3"), "more than 1"),
        (("--lottery", "0.1"), "not a fraction"),
        (("--output-tokens", "0"), "output-tokens"),
        (("--plot", "x.svg"), "add --simulate"),
        (("--detection", "no-such-file"), "no-such-file"),
    ],
)
def test_unusable_parameters_exit_2_with_the_reason(arguments: tuple[str, ...], complaint: str) -> None:
    result = run(*COMMITTEE, *arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


def test_parameters_of_the_other_rules_are_refused() -> None:
    result = run("--rules", "unified-pool", "--levy", "1/2")
    assert result.exit_code == 2
    assert "--levy is no parameter of unified-pool" in result.stderr


# --- simulation -----------------------------------------------------------------------------------------------


def test_the_simulation_is_reproducible_and_says_what_holds(tmp_path: Path) -> None:
    plot = tmp_path / "gains.svg"
    first = get_json("--simulate", "--jobs", "200", "--seed", "3", "--plot", str(plot))
    assert (first["jobs"], first["seed"], first["holds"]) == (200, 3, True)
    assert first["honest"]["unified-pool"]["generator"] == pytest.approx(0.4)
    assert ET.fromstring(plot.read_text(encoding="utf-8")).tag.endswith("svg")
    drawn = plot.read_bytes()
    assert get_json("--simulate", "--jobs", "200", "--seed", "3", "--plot", str(plot)) == first
    assert plot.read_bytes() == drawn


def test_the_simulation_shows_both_rule_sets_to_people() -> None:
    result = run("--simulate", "--jobs", "50")
    assert result.exit_code == 0
    assert "no attack by up to a third of the stake gains" in result.stdout
    assert result.stdout.count("spoofing generator and ring") == 10


def test_the_simulation_fails_when_an_attack_gains() -> None:
    result = run("--simulate", "--jobs", "50", "--beta-generator", "3", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["holds"] is False
    gaining = {row["attack"] for row in found["attacks"] if row["rules"] == COMMITTEE[1] and row["gains"]}
    assert "cheating generator" in gaining


@pytest.mark.parametrize(
    "arguments", [("--jobs", "0"), ("--cg-micro", "0", "--cv-micro", "0"), ("--beta", "0")]
)
def test_a_simulation_of_nothing_exits_2(arguments: tuple[str, ...]) -> None:
    result = run("--simulate", *arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
