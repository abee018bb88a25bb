"""Which tokenizer the gateway finds for a network's models: by where `pocache up` says that they came from, or by its own setting."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kit.network import Network
from pocache.engine.reference import get_reference_dir
from pocache.protocol.errors import ConfigError
from pocache.runtime.network import NetworkDirectory
from pocache_gateway.catalogue import Catalogue, load_catalogue

TEXT = "def main() -> None:"


def load(network: Network, folder: Path, source: str) -> Catalogue:
    """Return the catalogue of a network whose model came from ``source``."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "models" / f"{network.model.model_id.hex()}.source").write_text(source + "\n")
    return load_catalogue(NetworkDirectory(folder), network.models, {})


def encode(catalogue: Catalogue) -> list[int] | None:
    codec = catalogue.served[0].codec
    return None if codec is None else list(codec.encode_plain(TEXT))


def test_the_shipped_model_has_its_tokenizer_by_name_and_by_directory(
    network: Network, tmp_path: Path
) -> None:
    by_name = encode(load(network, tmp_path, "reference"))
    assert by_name
    assert encode(load(network, tmp_path, str(get_reference_dir()))) == by_name


def test_a_model_of_a_hub_has_the_one_that_lies_in_the_cache(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert encode(load(network, tmp_path, "some/model")) is None
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(get_reference_dir(), repository / "snapshots" / commit)
    assert encode(load(network, tmp_path, "some/model")) == encode(load(network, tmp_path, "reference"))


def test_without_one_it_is_served_by_token_ids_alone(network: Network, tmp_path: Path) -> None:
    for source in ("/nowhere/at/all", "not an id", "../up"):
        assert encode(load(network, tmp_path, source)) is None


def test_a_setting_for_no_model_is_refused(network: Network, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no model"):
        load_catalogue(NetworkDirectory(tmp_path), network.models, {"other": "reference"})
