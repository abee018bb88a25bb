"""``pocache api-keys``: issued for those whose keys are here, shown once, revoked by id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pocache.storage.api_keys import open_api_keys
from pocache_cli.bootstrap import NetworkPlan, create_network
from pocache_cli.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return create_network(tmp_path / "net", NetworkPlan("test", ("ada",), ("worker-1",))).path


def run(*arguments: str, folder: Path) -> Result:
    command = ["api-keys", *arguments, "--network-dir", str(folder)]
    return CliRunner().invoke(main, command, env={"POCACHE_NATS_URL": None, "POCACHE_STATE_DIR": None})


def run_json(*arguments: str, folder: Path) -> Any:
    result = run(*arguments, "--json", folder=folder)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_from_issue_to_revocation(folder: Path) -> None:
    issued = run_json("issue", "ada", "--label", "laptop", "--concurrent", "3", folder=folder)
    with open_api_keys(f"sqlite:///{folder / 'state' / 'gateway.sqlite'}") as store:
        found = store.find(issued["key"])
        assert found is not None
        assert (found.account, found.limits.concurrent_max) == ("ada", 3)
        (listed,) = run_json("list", folder=folder)["keys"]
        assert (listed["key_id"], listed["label"], listed["revoked_ms"]) == (found.key_id, "laptop", None)
        assert issued["key"] not in json.dumps(listed)
        assert "laptop" in run("list", folder=folder).stdout
        assert run_json("revoke", found.key_id, folder=folder)["revoked"]
        assert store.find(issued["key"]) is None
    again = run("revoke", found.key_id, folder=folder)
    assert again.exit_code == 2
    assert "no key" in again.stderr


@pytest.mark.parametrize("account", ["nobody", "ledger", "operator", "../ada"])
def test_an_account_that_cannot_sign_gets_no_key(folder: Path, account: str) -> None:
    result = run("issue", account, folder=folder)
    assert (result.exit_code, result.stdout) == (2, "")


def test_the_key_alone_is_on_standard_output(folder: Path) -> None:
    result = run("issue", "ada", folder=folder)
    assert result.stdout.startswith("sk-pocache-")
    assert len(result.stdout.splitlines()) == 1
