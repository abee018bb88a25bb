"""``pocache owner``: what the operator says of whom, and what it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pocache.protocol.errors import ConfigError, SignatureError
from pocache.runtime.network import NetworkDirectory
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role
from pocache_cli.bootstrap import NetworkPlan, create_network
from pocache_cli.main import main
from pocache_cli.owner import find_participant, publish_owner


class Heard:
    """A bus that keeps what is published."""

    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []

    async def publish(self, subject: str, data: bytes, **_options: Any) -> None:
        self.said.append((subject, data))


@pytest.fixture
def directory(tmp_path: Path) -> NetworkDirectory:
    return create_network(tmp_path / "net", NetworkPlan("test", ("ada",), ("worker-1", "worker-2")))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


async def test_the_operator_signs_whose_a_worker_is(directory: NetworkDirectory) -> None:
    bus = Heard()
    worker, owner = (find_participant(directory, name) for name in ("worker-1", "ada"))
    await publish_owner(bus, directory, worker, owner)  # type: ignore[arg-type]
    [(subject, data)] = bus.said
    opened = open_envelope(data, directory.genesis.network_id, m.OwnerV1)
    assert subject == t.OWNER_DECLARED.subject(participant=worker)
    assert opened.sender == directory.genesis.signer(Role.OPERATOR)
    assert (opened.body.participant, opened.body.owner) == (worker, owner)


def test_a_participant_is_a_name_or_a_key(directory: NetworkDirectory) -> None:
    worker = directory.signing_key("worker-1").participant_id
    assert find_participant(directory, "worker-1") == find_participant(directory, worker) == worker
    with pytest.raises(ConfigError):
        find_participant(directory, "nobody")
    with pytest.raises(SignatureError):
        find_participant(directory, worker[:-1] + ("A" if worker[-1] != "A" else "B"))


def test_an_unknown_name_is_exit_code_2(directory: NetworkDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCACHE_NATS_URL", "nats://127.0.0.1:1")
    result = run("owner", "worker-1", "nobody", "--network-dir", str(directory.path))
    assert result.exit_code == 2
    assert "nobody" in result.stderr


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"audit": {"lottery_share": "1/1000"}}, "β_G ≥ s/p − α is violated"),
        ({"audit": {"full_depth_share": "1/4"}}, "β_G ≥ s/p − α is violated for spoof"),
        ({"rules": {"levy": "1/100"}}, "λ ≥ (1+ρ)·q_a·(1+q_r)·φ is violated"),
        ({"rules": {"beta_generator": "5"}}, "β_min = 17.955"),
        ({"rules": {"committee_size": 4}}, "M odd"),
        ({"rules": {"beta_verifier": "2"}}, "β_V ≥ 2Mφ is violated"),
    ],
)
def test_stakes_that_do_not_deter_are_refused_when_a_network_is_made(
    sections: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """The message names the inequality; nothing is left of the attempt, so that the next one can succeed."""
    file, folder = tmp_path / "sections.json", tmp_path / "net"
    file.write_text(json.dumps(sections), encoding="ascii")
    made = ["keys", "create", "--network-dir", str(folder), "--name", "n", "--user", "ada", "--worker", "w"]
    refused = run(*made, "--sections", str(file))
    assert refused.exit_code != 0
    assert words in refused.stderr
    assert not folder.exists()
    assert run(*made).exit_code == 0


def test_keys_create_takes_either_rule_set(tmp_path: Path) -> None:
    """And says when there are too few workers for a committee."""
    made = ["keys", "create", "--name", "n", "--user", "ada", "--worker", "w"]
    file = tmp_path / "sections.json"
    file.write_text(json.dumps({"rules": {"name": "unified-pool"}}), encoding="ascii")
    for number, (options, name) in enumerate(
        [
            ((), "fixed-fee-committee"),
            (("--rules", "unified-pool"), "unified-pool"),
            (("--sections", str(file)), "unified-pool"),
        ]
    ):
        folder = tmp_path / f"net-{number}"
        result = run(*made, "--network-dir", str(folder), *options)
        assert result.exit_code == 0, result.output
        assert NetworkDirectory(folder).genesis.rules.name == name
        assert ("takes 8 workers that verify" in result.stderr) is (name == "fixed-fee-committee")
    folder = tmp_path / "none"
    result = run(
        *made, "--network-dir", str(folder), "--sections", str(file), "--rules", "fixed-fee-committee"
    )
    assert result.exit_code == 2
    assert not folder.exists()
