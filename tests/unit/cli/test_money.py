"""``pocache withdraw`` and ``pocache statement``: what is refused before anything is sent, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kit.network import make_key
from pocache.job import RefusedError
from pocache.protocol.errors import ConfigError
from pocache.protocol.limits import MICRO_MAX
from pocache.runtime.network import NetworkDirectory
from pocache.wire import messages as m
from pocache_cli import money as module
from pocache_cli.bootstrap import NetworkPlan, create_network
from pocache_cli.money import statement, verify_owner, withdraw
from pocache_ledger.accounts import compute_subject

ADA = make_key("ada").participant_id
NONCE = "0f" * 16


@pytest.fixture
def directory(tmp_path: Path) -> NetworkDirectory:
    (tmp_path / "nats.url").write_text("nats://127.0.0.1:1")
    return create_network(tmp_path, NetworkPlan("local", ("ada", "grace"), ("worker-1",)))


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_an_accepted_withdrawal_is_told_with_its_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*asked: object) -> m.WithdrawalAcceptedV1:
        assert asked == ("/net", "ada", "stake", MICRO_MAX, bytes.fromhex(NONCE))
        return m.WithdrawalAcceptedV1(participant=ADA, request=b"", matures_tick=9, entry=2**53 - 1)

    monkeypatch.setattr(module, "_withdraw", answer)
    arguments = ("ada", str(MICRO_MAX), "--bucket", "stake", "--nonce", NONCE, "--network-dir", "/net")
    result = run(withdraw, *arguments, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "name": "ada",
        "participant": ADA,
        "bucket": "stake",
        "amount_micro": MICRO_MAX,
        "nonce": NONCE,
        "entry": 2**53 - 1,
        "matures_tick": 9,
    }
    told = run(withdraw, *arguments).stdout
    assert NONCE in told
    assert "round 9" in told


@pytest.mark.parametrize("amount", ["0", "-5", "0.5", "1e3", str(MICRO_MAX + 1), "all"])
def test_amounts_that_are_none_are_wrong_usage(amount: str) -> None:
    result = run(withdraw, "--", "ada", amount)
    assert result.exit_code == 2
    assert "AMOUNT_MICRO" in result.stderr


@pytest.mark.parametrize("nonce", ["", "0f", "0F" * 16, "0f" * 17, "zz" * 16])
def test_a_nonce_is_16_bytes_in_hexadecimal(nonce: str) -> None:
    assert run(withdraw, "ada", "5", "--nonce", nonce).exit_code == 2


def test_a_refusal_is_exit_code_1_with_the_ledgers_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_asked: object) -> m.WithdrawalAcceptedV1:
        raise RefusedError("E204", "5 more are locked in jobs")

    monkeypatch.setattr(module, "_withdraw", refuse)
    result = run(withdraw, "ada", "5", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "event": "error",
        "code": "E204",
        "reason": "5 more are locked in jobs",
    }


def test_only_an_owner_whose_key_is_here_withdraws(directory: NetworkDirectory) -> None:
    verify_owner(directory, "ada")
    verify_owner(directory, "worker-1")
    for name in ("operator", "ledger", "nobody"):
        with pytest.raises(ConfigError, match="ada, grace, worker-1"):
            verify_owner(directory, name)
        result = run(withdraw, name, "5", "--network-dir", str(directory.path))
        assert result.exit_code == 2
        assert "no participant" in result.stderr
    (directory.path / "keys" / "ada.seed").unlink()
    with pytest.raises(ConfigError, match="only its owner"):
        verify_owner(directory, "ada")


def make_line(operation: str, account: str, subject: bytes = b"a deposit") -> m.StatementLineV1:
    return m.StatementLineV1(
        entry=3,
        at_ms=1_700_000_000_123,
        operation=operation,
        subject=subject,
        cause=bytes(32),
        account=account,
        amount_micro=-(2**53) - 1,
    )


def test_a_statement_names_accounts_jobs_and_exact_amounts(monkeypatch: pytest.MonkeyPatch) -> None:
    job = b"\xab" * 32
    lines = [
        make_line("deposit", ADA),
        make_line("hold", f"stake:{ADA}", compute_subject(job, "generator_stake", 1, 0)),
        make_line("withdrawal", f"unbonding:{ADA}"),
    ]

    async def answer(*asked: object) -> tuple[str, str, list[m.StatementLineV1]]:
        assert asked == ("/net", "ada", 7)
        return "ada", ADA, lines

    monkeypatch.setattr(module, "_read_statement", answer)
    arguments = ("ada", "--after", "7", "--network-dir", "/net")
    result = run(statement, *arguments, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["participant"], told["after"]) == (ADA, 7)
    assert [(one["account"], one["job"]) for one in told["lines"]] == [
        ("available", None),
        ("stake", job.hex()),
        ("unbonding", None),
    ]
    assert {one["amount_micro"] for one in told["lines"]} == {-(2**53) - 1}
    assert told["lines"][0]["at"] == "2023-11-14T22:13:20.123+00:00"
    rows = run(statement, *arguments).stdout.splitlines()
    assert len(rows) == 1 + len(lines)
    assert "-9,007,199,254,740,993" in rows[1]


def test_without_a_name_the_only_owner_is_meant(directory: NetworkDirectory) -> None:
    result = run(statement, "--network-dir", str(directory.path))
    assert result.exit_code == 2
    assert "say whose" in result.stderr
