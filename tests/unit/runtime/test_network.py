"""The genesis and the directory that a network is kept in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kit.network import Network, make_key, make_network
from pocache.protocol.errors import ConfigError
from pocache.runtime.network import Genesis, Model, NetworkDirectory, read_secret, write_secret
from pocache.wire.topics import Role


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


@pytest.fixture
def directory(network: Network, tmp_path: Path) -> NetworkDirectory:
    """A directory with the genesis, the model and the operator's key."""
    directory = NetworkDirectory(tmp_path / "network")
    directory.write_genesis(network.genesis)
    directory.write_model("kit", network.model_envelope)
    write_secret(directory.path / "keys" / "operator.seed", network.keys[Role.OPERATOR].seed_text)
    return directory


# --- genesis ----------------------------------------------------------------------------------------------


def test_the_network_id_is_the_hash_of_canonical_json(network: Network) -> None:
    """Computed here by other means: the domain, keys sorted, no spaces, ASCII. Order and layout are no part of it."""
    fields = network.genesis.model_dump()
    assert fields.pop("witnesses") == (), "a field that is left out where there are none"
    assert fields.pop("ejection") is None, "one that networks of before it do not have"
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert network.network_id == hashlib.sha256(b"pocache/genesis/v1\0" + text.encode()).digest()
    reordered = json.dumps(dict(reversed(json.loads(text).items())), indent=3)
    assert Genesis.model_validate_json(reordered).network_id == network.network_id


def test_witnesses_are_part_of_the_network_and_named_once(network: Network) -> None:
    witness = make_network().keys[Role.ROUTER].participant_id
    assert b"witnesses" not in network.genesis.canonical_json()
    named = make_network(witnesses=(witness,)).genesis  # type: ignore[arg-type]
    assert named.network_id != network.network_id
    assert Genesis.model_validate_json(named.canonical_json()) == named
    with pytest.raises(ValueError, match="named once"):
        make_network(witnesses=(witness, witness))  # type: ignore[arg-type]


def test_a_name_in_another_script_is_escaped() -> None:
    """Canonical JSON is ASCII whatever the name, so that its bytes are the same everywhere."""
    genesis = make_network().genesis.model_copy(update={"name": "réseau"})
    assert b"r\\u00e9seau" in genesis.canonical_json()


@pytest.mark.parametrize(
    "sections",
    [
        {"rules": {"name": "unified-pool", "beta": "6"}},
        {"rules": {"name": "fixed-fee-committee"}},
        {"audit": {"lottery_share": "1/21"}},
        {"deadlines": {"lease_ticks": 61}},
        {"bounds": {"attempt_max": 2}},
        {"name": "another"},
        {"demo": False},
    ],
)
def test_every_part_of_the_genesis_makes_another_network(network: Network, sections: dict[str, Any]) -> None:
    fields = {**json.loads(network.genesis.canonical_json()), **sections}
    assert Genesis.model_validate_json(json.dumps(fields)).network_id != network.network_id


@pytest.mark.parametrize(
    "sections",
    [
        {"rules": {"gamma": "1"}},
        {"audit": {"lottery_share": "0.05"}},
        {"audit": {"lottery_share": "3/2"}},
        {"audit": {"lottery_share": "1/0"}},
        {"audit": {"sample_count": 1}},
        {"audit": {"bind_delay_ms": 1.5}},
        {"deadlines": {"lease_ticks": 0}},
        {"deadlines": {"lease_ticks": "60"}},
        {"bounds": {"attempt_max": 17}},
        {"rules": {"stage_max": 1}},
        {"version": 2},
    ],
)
def test_a_genesis_that_means_nothing_is_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_network(**sections)


def test_the_whole_and_nothing_are_shares() -> None:
    genesis = make_network(audit={"lottery_share": "0/1", "full_depth_share": "1/1"}).genesis
    assert genesis.share(genesis.audit.lottery_share) == (0, 1)
    assert genesis.share(genesis.audit.full_depth_share) == (1, 1)


# --- the directory ------------------------------------------------------------------------------------------


def test_what_was_written_is_read(directory: NetworkDirectory, network: Network) -> None:
    opened = NetworkDirectory(directory.path)
    assert opened.genesis == network.genesis
    assert opened.genesis.network_id == network.network_id
    (model,) = opened.load_models().values()
    assert model.entry == network.model.entry
    assert opened.participants() == {"operator": network.keys[Role.OPERATOR].participant_id}


def test_another_genesis_does_not_replace_one(directory: NetworkDirectory) -> None:
    with pytest.raises(ConfigError, match="another network"):
        directory.write_genesis(make_network(bounds={"attempt_max": 2}).genesis)


def test_an_empty_directory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pocache up"):
        _ = NetworkDirectory(tmp_path).genesis


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fields: fields["signers"].pop("ledger"), "ledger"),
        (lambda fields: fields["chain"].update(scheme="rot13"), "rot13"),
        (lambda fields: fields["chain"].update(public_key_hex="00" * 96), "genesis"),
        (lambda fields: fields["rules"].update(alpha="1.2"), "1.2"),
        (lambda fields: fields["rules"].update(beta="0"), "beta > 0"),
        (lambda fields: fields.update(surprise=1), "surprise"),
        (lambda fields: fields["signers"].update(router="UNOBODY"), "router"),
    ],
)
def test_a_genesis_that_cannot_be_is_a_configuration_error(
    directory: NetworkDirectory, change: Any, words: str
) -> None:
    """Whichever part of it is wrong, the file is named and so is the part; no other error comes out."""
    file = directory.path / "genesis.json"
    fields = json.loads(file.read_bytes())
    change(fields)
    file.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=words) as caught:
        _ = NetworkDirectory(directory.path).genesis
    assert str(file) in str(caught.value)


def test_a_genesis_that_is_no_json(directory: NetworkDirectory) -> None:
    (directory.path / "genesis.json").write_bytes(b"\xff\xfe not json")
    with pytest.raises(ConfigError, match="not a genesis"):
        _ = NetworkDirectory(directory.path).genesis


# --- models -------------------------------------------------------------------------------------------------


def test_an_entry_of_another_signer_is_refused(directory: NetworkDirectory, network: Network) -> None:
    """Only the operator adds models: whoever adds one sets prices and thresholds."""
    for signer in (network.keys[Role.ROUTER], make_key("mallory")):
        directory.write_model("kit", network.seal(signer, network.model.entry))
        with pytest.raises(ConfigError, match="not signed by the operator"):
            directory.load_models()


def test_an_entry_of_another_network_is_refused(directory: NetworkDirectory) -> None:
    other = make_network(bounds={"attempt_max": 2})
    directory.write_model("kit", other.model_envelope)
    with pytest.raises(ConfigError, match="not a model entry of this network"):
        directory.load_models()


@pytest.mark.parametrize(
    "changes",
    [
        {"row_schema": b"{}"},
        {"row_schema": b"not json"},
        {"row_schema": b"[]"},
        {"profile": b"{}"},
        {"layer_count": 3},
        {"prompt_token_micro": 10**12 + 1},
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(
    directory: NetworkDirectory, network: Network, changes: dict[str, Any]
) -> None:
    """Router and ledger would price the same job differently, or verifiers compare by nothing."""
    entry = network.model.entry.model_copy(update=changes)
    directory.write_model("kit", network.seal(network.keys[Role.OPERATOR], entry))
    with pytest.raises(ConfigError, match=r"kit\.entry is not a model entry"):
        directory.load_models()


def test_economics_with_a_negative_payout_are_refused_with_the_inequality(tmp_path: Path) -> None:
    """β below α, and verifying dearer than generating: at stage 2 somebody would owe the pool."""
    cheap = make_network(rules={"alpha": "20", "beta": "1"})
    directory = NetworkDirectory(tmp_path)
    directory.write_genesis(cheap.genesis)
    entry = cheap.model.entry.model_copy(update={"verify_token_micro": 5_000})
    directory.write_model("kit", cheap.seal(cheap.keys[Role.OPERATOR], entry))
    with pytest.raises(ConfigError, match=r"β\(Cg\+Cv\) ≥ αCv is violated"):
        directory.load_models()


def test_a_model_knows_its_profile_set(network: Network) -> None:
    assert Model(network.model.entry).profile_set == network.model.profile_set


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777, 0o610])
def test_a_key_that_others_may_read_is_refused(directory: NetworkDirectory, mode: int) -> None:
    file = directory.path / "keys" / "operator.seed"
    assert directory.signing_key("operator")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:03o}.*chmod 600"):
        directory.signing_key("operator")


def test_secrets_are_written_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "one.seed"
    write_secret(file, "secret")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0
    assert read_secret(file) == "secret"


def test_a_secret_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "one.seed"
    write_secret(file, "first")
    with pytest.raises(FileExistsError):
        write_secret(file, "second")
    assert read_secret(file) == "first"


def test_a_missing_key_is_named(directory: NetworkDirectory) -> None:
    with pytest.raises(ConfigError, match=r"nobody\.seed"):
        directory.signing_key("nobody")


def test_a_file_that_is_no_key_is_named(directory: NetworkDirectory) -> None:
    write_secret(directory.path / "keys" / "broken.seed", "SUNOTAKEY")
    with pytest.raises(ConfigError, match=r"broken\.seed holds no key"):
        directory.signing_key("broken")


def test_who_ejects_is_another_network_than_who_does_not() -> None:
    """The section is in the hashed bytes where there is one, its default with it; a share of more than the whole is refused."""
    plain, ejecting, spelt = (
        one.genesis
        for one in (
            make_network(),
            make_network(ejection={}),
            make_network(ejection={"bond_share": "1/2"}),
        )
    )
    assert b"ejection" not in plain.canonical_json()
    assert b'"ejection":{"bond_share":"1/2"}' in ejecting.canonical_json()
    assert plain.network_id != ejecting.network_id == spelt.network_id
    assert (plain.bond_share, ejecting.bond_share) == (None, (1, 2))
    with pytest.raises(ValueError, match="more than the whole"):
        make_network(ejection={"bond_share": "3/2"})
