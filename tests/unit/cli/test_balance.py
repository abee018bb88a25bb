"""``pocache balance``: who may ask about whom, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kit.network import make_key
from pocache.protocol.errors import BusError, ConfigError
from pocache.runtime.network import NetworkDirectory
from pocache_cli import balance as module
from pocache_cli.balance import Balance, balance, plan_questions
from pocache_cli.bootstrap import NetworkPlan, create_network

BALANCES = [Balance("ada", "UADA", 1_000_000, 0, 25), Balance("worker-1", "UWORK", 0, 7, 0, 9)]


@pytest.fixture
def directory(tmp_path: Path) -> NetworkDirectory:
    return create_network(tmp_path, NetworkPlan("local", ("ada", "grace"), ("worker-1",)))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(balance, list(arguments))


def test_json_has_every_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(name: str | None, network_dir: str) -> list[Balance]:
        assert (name, network_dir) == ("ada", "/net")
        return BALANCES[:1]

    monkeypatch.setattr(module, "_ask", answer)
    result = run("ada", "--network-dir", "/net", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "balances": [
            {
                "name": "ada",
                "participant": "UADA",
                "available_micro": 1_000_000,
                "stake_micro": 0,
                "locked_micro": 25,
                "unbonding_micro": 0,
            }
        ]
    }


def test_a_table_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_name: str | None, _network_dir: str) -> list[Balance]:
        return BALANCES

    monkeypatch.setattr(module, "_ask", answer)
    rows = [line.split() for line in run().stdout.splitlines()]
    assert rows == [
        ["available", "staked", "locked", "in", "jobs", "unbonding"],
        ["ada", "1,000,000", "0", "25", "0"],
        ["worker-1", "0", "7", "0", "9"],
    ]


def test_a_bus_that_is_away_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_name: str | None, _network_dir: str) -> list[Balance]:
        raise BusError("no connection")

    monkeypatch.setattr(module, "_ask", fail)
    result = run("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"event": "error", "code": "E801", "reason": "no connection"}


def test_no_network_is_exit_code_2(tmp_path: Path) -> None:
    result = run("--network-dir", str(tmp_path))
    assert result.exit_code == 2
    assert "pocache up" in result.stderr


def test_the_operator_asks_about_anybody(directory: NetworkDirectory) -> None:
    asker, wanted = plan_questions(directory, None)
    assert (asker, set(wanted)) == ("operator", {"ada", "grace", "worker-1"})
    assert plan_questions(directory, "grace") == (
        "operator",
        {"grace": directory.signing_key("grace").participant_id},
    )
    stranger = make_key("stranger").participant_id
    assert plan_questions(directory, stranger) == ("operator", {stranger: stranger})


def test_without_the_operators_key_only_ones_own(directory: NetworkDirectory) -> None:
    (directory.path / "keys" / "operator.seed").unlink()
    assert plan_questions(directory, "ada")[0] == "ada"
    with pytest.raises(ConfigError, match="say whose"):
        plan_questions(directory, None)
    with pytest.raises(ConfigError, match="no participant"):
        plan_questions(directory, make_key("stranger").participant_id)


def test_a_name_that_is_nobodys_is_answered_with_those_there_are(directory: NetworkDirectory) -> None:
    with pytest.raises(ConfigError, match="ada, grace, worker-1"):
        plan_questions(directory, "nobody")
