"""``pocache keys``: a network made, divided for a deployment, and put together again by each process."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pocache.bus.jwt import Claims, read_claims
from pocache.protocol.errors import ConfigError
from pocache.runtime.network import NetworkDirectory, read_secret
from pocache.wire.topics import Role
from pocache_beacon.local import read_bls_secret
from pocache_cli.bootstrap import NetworkPlan, create_network, load_parties
from pocache_cli.deployment import export_network, install_network, load_participants
from pocache_cli.main import main
from pocache_cli.prepare import main as prepare
from pocache_cli.trust import Trust

PARTIES = ("--user", "ada", "--worker", "worker-1", "--worker", "worker-2", "--worker", "verify-worker-1")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["keys", *map(str, arguments)])


def run_json(*arguments: str | Path) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def directory(tmp_path: Path) -> NetworkDirectory:
    run_json("create", "--network-dir", tmp_path / "net", "--name", "test", *PARTIES)
    return NetworkDirectory(tmp_path / "net")


def mount(out: Path, given: Path, secret: str) -> Path:
    """Lay out what a Pod is given: links, as Kubernetes makes them, to files that a group can read."""
    given.mkdir()
    for source, target in (("network", "network"), ("models", "models"), (f"secrets/{secret}", "keys")):
        (given / target).symlink_to(out / source)
    for file in (out / "secrets" / secret).iterdir():
        file.chmod(0o440)
    return given


def test_a_network_is_made_once(tmp_path: Path) -> None:
    made = run_json("create", "--network-dir", tmp_path / "net", "--name", "test", *PARTIES)
    assert made["participants"]["verify-worker-1"] == "worker"
    assert made["network_id"] == NetworkDirectory(tmp_path / "net").genesis.network_id.hex()
    again = run("create", "--network-dir", tmp_path / "net", "--name", "test", *PARTIES)
    assert again.exit_code == 2
    assert "has a network already" in again.stderr


@pytest.mark.parametrize(
    ("text", "share"), [("{}", None), ('{"ejection": null}', None), ('{"ejection": {}}', (1, 2))]
)
def test_a_network_ejects_when_it_is_asked_for(
    tmp_path: Path, text: str, share: tuple[int, int] | None
) -> None:
    sections = tmp_path / "sections.json"
    sections.write_text(text)
    options = ("--network-dir", tmp_path / "net", "--name", "test", "--sections", sections)
    run_json("create", *options, *PARTIES)
    assert NetworkDirectory(tmp_path / "net").genesis.bond_share == share


def test_sections_go_into_the_genesis(tmp_path: Path) -> None:
    sections = tmp_path / "sections.json"
    sections.write_text('{"deadlines": {"opening_ticks": 33}}')
    options = ("--network-dir", tmp_path / "net", "--name", "test", "--sections", sections)
    run_json("create", *options, *PARTIES)
    assert NetworkDirectory(tmp_path / "net").genesis.deadlines.opening_ticks == 33


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ('{"signers": {}}', "may have the sections"),
        ("[]", "may have the sections"),
        ('{"deadlines": {"opening_tics": 3}}', "not a genesis"),
    ],
)
def test_bad_sections_are_wrong_usage(tmp_path: Path, text: str, message: str) -> None:
    sections = tmp_path / "sections.json"
    sections.write_text(text)
    result = run(
        "create", "--network-dir", tmp_path / "net", "--name", "test", "--sections", sections, *PARTIES
    )
    assert result.exit_code == 2
    assert message in result.stderr


def test_export_gives_each_process_its_own_keys(directory: NetworkDirectory, tmp_path: Path) -> None:
    report = run_json("export", "--network-dir", directory.path, "--out", tmp_path / "out")
    secrets = report["secrets"]
    assert secrets["pocache-router"] == [
        "router.signing.seed",
        "router.transport.seed",
        "router.transport.jwt",
    ]
    assert secrets["pocache-beacon"] == [
        "beacon.signing.seed",
        "beacon.transport.seed",
        "beacon.transport.jwt",
        "beacon.bls.hex",
    ]
    assert secrets["pocache-provisioner"] == ["provisioner.transport.seed", "provisioner.transport.jwt"]
    assert {key.split(".")[0] for key in secrets["pocache-worker"]} == {"worker-1", "worker-2"}
    assert set(secrets["pocache-verify-worker"]) == {
        "verify-worker-1.signing.seed",
        "verify-worker-1.transport.seed",
        "verify-worker-1.transport.jwt",
    }
    nats = json.loads((tmp_path / "out" / "network" / "nats.json").read_bytes())
    assert nats == {"core_account": Trust(directory).get_account()}
    written = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert not [name for name in written if name.startswith(("operator", "ada"))], (
        "these stay with their owners"
    )
    for file in (tmp_path / "out" / "secrets").rglob("*.*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("export", "--network-dir", directory.path, "--out", tmp_path / "out").exit_code == 2


def test_the_public_list_says_what_the_keys_say(directory: NetworkDirectory, tmp_path: Path) -> None:
    export_network(directory, tmp_path / "out")
    public = NetworkDirectory(tmp_path / "out" / "network")
    assert load_participants(public) == load_parties(directory)
    (public.path / "participants.json").write_text('{"ada": {"role": "queen"}}')
    with pytest.raises(ConfigError, match="is not a list of participants"):
        load_participants(public)


def test_a_process_puts_its_directory_together(directory: NetworkDirectory, tmp_path: Path) -> None:
    export_network(directory, tmp_path / "out")
    given = mount(tmp_path / "out", tmp_path / "given", "pocache-beacon")
    own = NetworkDirectory(tmp_path / "own")
    for _ in range(2):  # a container that is started again finds what it left
        report = run_json("install", given, "--network-dir", own.path, "--name", "beacon")
        assert len(report["keys"]) == 4
    assert own.genesis == directory.genesis
    assert own.signing_key("beacon").participant_id == directory.genesis.signer(Role.BEACON)
    assert own.transport_seed("beacon") == directory.transport_seed("beacon")
    assert read_bls_secret(own) == read_bls_secret(directory)
    assert set(own.participants()) == {"beacon"}


def test_a_worker_takes_only_its_own_of_a_shared_secret(directory: NetworkDirectory, tmp_path: Path) -> None:
    export_network(directory, tmp_path / "out")
    given = mount(tmp_path / "out", tmp_path / "given", "pocache-worker")
    own = NetworkDirectory(tmp_path / "own")
    install_network(given, own, "worker-2")
    assert set(own.participants()) == {"worker-2"}


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("ledger", None, "no ledger.transport.seed"),
        ("router", "network", "mount the network's network files"),
    ],
)
def test_what_is_not_mounted_is_named(
    directory: NetworkDirectory, tmp_path: Path, name: str, gone: str | None, message: str
) -> None:
    export_network(directory, tmp_path / "out")
    given = mount(tmp_path / "out", tmp_path / "given", "pocache-router")
    if gone is not None:
        (given / gone).unlink()
    result = run("install", given, "--network-dir", tmp_path / "own", "--name", name)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_is_registered_and_exported(directory: NetworkDirectory, tmp_path: Path) -> None:
    described = tmp_path / "model.json"
    prepare("fake:x", described)
    report = run_json("register-model", described, "--network-dir", directory.path)
    assert report["consumer"] == f"generate-{report['model_id']}"
    export_network(directory, tmp_path / "out")
    own = NetworkDirectory(tmp_path / "own")
    install_network(mount(tmp_path / "out", tmp_path / "given", "pocache-router"), own, "router")
    assert [model.hex() for model in own.load_models()] == [report["model_id"]]
    described.write_text('{"name": "half"}')
    assert run("register-model", described, "--network-dir", directory.path).exit_code == 2


def test_nats_config_has_everybody_and_no_seed(directory: NetworkDirectory) -> None:
    report = run_json("nats-config", "--network-dir", directory.path)
    expected = {party.name for party in load_parties(directory)} | {
        "provisioner",
        "deadletters",
        "observer",
        "reader",
    }
    assert set(report["users"]) == expected
    for party in load_parties(directory):
        assert read_secret(directory.path / "transport" / f"{party.name}.seed") not in report["authorization"]
    accounts = re.findall(r"A[A-Z2-7]{55}(?=: )", report["authorization"])
    guests = [party for party in load_parties(directory) if party.role in (Role.USER, Role.WORKER)]
    assert len(set(accounts)) == len(guests) + len({"core", "system", "observer"})
    assert report["core_account"] in accounts
    values = json.loads(run("nats-config", "--network-dir", directory.path, "--format", "helm").stdout)
    # JWTs carry the second they were issued in: what two commands print is the same but for these.
    signed = re.compile(r"eyJ[\w.-]+")
    assert signed.sub("", json.dumps(values)) == signed.sub("", json.dumps(report["helm_values"]))
    auth = signed.sub("", report["authorization"])
    assert signed.sub("", values["configMap"]["merge"]["data"]["auth.conf"]) == auth
    assert signed.sub("", run("nats-config", "--network-dir", directory.path).stdout) == auth


def test_without_a_network_it_is_wrong_usage(tmp_path: Path) -> None:
    for command in (["nats-config"], ["export", "--out", tmp_path / "out"]):
        result = run(*command, "--network-dir", tmp_path / "nothing")
        assert result.exit_code == 2, result.output


def read_own_claims(directory: NetworkDirectory, name: str) -> Claims:
    """Return what a party's JWT says."""
    return read_claims(read_secret(directory.path / "transport" / f"{name}.jwt"))


def test_a_jwt_is_issued_for_a_while(directory: NetworkDirectory) -> None:
    before = read_own_claims(directory, "ada")
    report = run_json("issue", "ada", "--network-dir", directory.path, "--days", "90")
    after = read_own_claims(directory, "ada")
    assert before.expires_s == 0
    assert after.expires_s == report["issued"][0]["expires_s"]
    assert (after.subject, after.issuer) == (before.subject, before.issuer)


def test_a_rotated_party_has_another_key_and_the_old_one_is_revoked(directory: NetworkDirectory) -> None:
    old = read_own_claims(directory, "router")
    report = run_json("rotate", "router", "--network-dir", directory.path, "--signer")
    new = read_own_claims(directory, "router")
    assert report["issued"][0]["public"] == new.subject != old.subject
    assert new.issuer != old.issuer
    token = run_json("nats-config", "--network-dir", directory.path)
    core = next(
        read_claims(line.split(": ")[1])
        for line in token["authorization"].splitlines()
        if line.strip().startswith(token["core_account"])
    )
    assert old.subject in core.body["revocations"]
    assert old.issuer not in {one["key"] for one in core.body["signing_keys"]}


def test_a_revoked_party_is_named(directory: NetworkDirectory) -> None:
    report = run_json("revoke", "worker-1", "--network-dir", directory.path)
    assert report["revoked"] == read_own_claims(directory, "worker-1").subject
    for command in ("issue", "rotate", "revoke"):
        result = run(command, "nobody", "--network-dir", directory.path)
        assert result.exit_code == 2
        assert "nobody here is called nobody; there are: " in result.stderr


def test_a_network_without_accounts_gets_them_once(tmp_path: Path) -> None:
    plan = NetworkPlan("test", ("ada",), ("worker-1",), has_accounts=False)
    old = create_network(tmp_path / "old", plan)
    assert "authorization {" in run("nats-config", "--network-dir", old.path).stdout
    assert run("issue", "ada", "--network-dir", old.path).exit_code == 2
    core = run_json("accounts", "--network-dir", old.path)["core_account"]
    assert run_json("nats-config", "--network-dir", old.path)["core_account"] == core
    assert run("accounts", "--network-dir", old.path).exit_code == 2
