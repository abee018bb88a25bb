"""``pocache doctor`` over directories: each thing that can be wrong is found, named, and told how to mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.reference import get_reference_dir
from pocache.runtime.network import NetworkDirectory
from pocache_cli import doctor_engine
from pocache_cli.bootstrap import NetworkPlan, create_network, register_model
from pocache_cli.calibrate import build_engine, describe
from pocache_cli.doctor import doctor
from pocache_cli.models import record_source

FAKE = "fake:doctor"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a calibrated model, as `pocache up` makes it."""
    path = tmp_path_factory.mktemp("template") / "network"
    directory = create_network(path, NetworkPlan("local", ("ada",), ("worker-1",)))
    engine = build_engine(FAKE, encoding="sketch", device="cpu", threads=1)
    profile = run_calibration(engine, engine, draw_prompts(engine.capabilities(), count=4), max_tokens=8)
    entry = register_model(directory, describe(engine.capabilities(), profile, "doctor"))
    record_source(directory, entry.model_id, FAKE)
    return path


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> NetworkDirectory:
    """A copy that a test may break."""
    shutil.copytree(template, tmp_path / "network")
    return NetworkDirectory(tmp_path / "network")


def examine(directory: NetworkDirectory, *arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Run the command on a directory alone; return its exit code, and what it found by check."""
    result = CliRunner().invoke(
        doctor, ["--network-dir", str(directory.path), "--offline", "--json", *arguments]
    )
    found: dict[str, list[dict[str, str]]] = {}
    for line in result.stdout.splitlines():
        one = json.loads(line)
        found.setdefault(one["check"], []).append(one)
    return result.exit_code, found


def get_failures(found: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {check: one["detail"] for check, all_ in found.items() for one in all_ if one["status"] == "fail"}


def test_a_sound_directory(directory: NetworkDirectory) -> None:
    code, found = examine(directory)
    assert code == 0
    assert get_failures(found) == {}
    for check in ("genesis", "trust file", "file modes", "keys", "model digest", "engine"):
        assert [one["status"] for one in found[check]] == ["ok"], found[check]
    assert found["bus"][0]["status"] == "skip"
    assert "match" in found["engine"][0]["detail"]


def test_without_the_engine_it_is_skipped_and_says_so(
    directory: NetworkDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_engine, "_examine_engine", None)
    code, found = examine(directory, "--no-engine")
    assert code == 0
    assert found["engine"][0]["status"] == "skip"


def _open_key(path: Path) -> None:
    (path / "keys" / "ada.seed").chmod(0o644)


def _break_key(path: Path) -> None:
    (path / "keys" / "ada.seed").write_text("SUNOTAKEY\n", encoding="ascii")


def _swap_keys(path: Path) -> None:
    shutil.copy(path / "keys" / "ada.seed", path / "keys" / "router.seed")


def _lose_transport(path: Path) -> None:
    (path / "transport" / "ledger.seed").unlink()


def _spoil_trust(path: Path) -> None:
    file = path / "trust.json"
    trust = json.loads(file.read_text())
    file.write_text(json.dumps({**trust, "network_id": "0" * 64}))


def _spoil_entry(path: Path) -> None:
    [file] = (path / "models").glob("*.entry")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _name_other_model(path: Path) -> None:
    [file] = (path / "models").glob("*.source")
    file.write_text("fake:another\n", encoding="utf-8")


def _lose_genesis(path: Path) -> None:
    (path / "genesis.json").unlink()


@pytest.mark.parametrize(
    ("break_it", "check", "word"),
    [
        (_open_key, "file modes", "keys/ada.seed (644)"),
        (_break_key, "keys", "ada.seed"),
        (_swap_keys, "keys", "router"),
        (_lose_transport, "keys", "ledger"),
        (_spoil_trust, "trust file", "pins network"),
        (_spoil_entry, "models", "entry"),
        (_name_other_model, "engine", "runs"),
        (_lose_genesis, "genesis", "no network"),
    ],
)
def test_what_is_wrong_is_found_named_and_told_how_to_mend(
    directory: NetworkDirectory, break_it: Callable[[Path], None], check: str, word: str
) -> None:
    break_it(directory.path)
    code, found = examine(directory)
    assert code == 1
    assert word in get_failures(found)[check]
    assert all(one["remedy"] for all_ in found.values() for one in all_ if one["status"] == "fail")


def test_other_bytes_of_a_model_are_another_model(directory: NetworkDirectory, tmp_path: Path) -> None:
    """A directory whose files are not the registered ones fails before anything is loaded."""
    files = tmp_path / "model"
    files.mkdir()
    (files / "config.json").write_text("{}")
    (files / "model.safetensors").write_bytes(b"weights")
    [file] = (directory.path / "models").glob("*.source")
    file.write_text(f"{files}\n", encoding="utf-8")
    code, found = examine(directory)
    assert code == 1
    assert "registered is" in get_failures(found)["model digest"]
    assert "engine" not in found


def test_the_model_that_ships_is_compared_with_its_own_files(directory: NetworkDirectory) -> None:
    """The source ``reference`` is a name: the files are those of the package, and their digest is checked."""
    [file] = (directory.path / "models").glob("*.source")
    file.write_text("reference\n", encoding="utf-8")
    code, found = examine(directory, "--no-engine")
    assert code == 1, "another model is registered under it"
    assert str(get_reference_dir()) in get_failures(found)["model digest"]


def test_an_engine_outside_its_profile_is_in_doubt(
    directory: NetworkDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose prefill is another model's does not reproduce itself."""
    honest = build_engine(FAKE, encoding="sketch", device="cpu", threads=1)
    other = build_engine("fake:another", encoding="sketch", device="cpu", threads=1)

    class Broken:
        def __getattr__(self, name: str) -> object:
            return getattr(other if name == "verify" else honest, name)

    monkeypatch.setattr("pocache_cli.calibrate.build_engine", lambda *_a, **_k: Broken())
    code, found = examine(directory)
    assert code == 1
    assert "does not reproduce itself" in get_failures(found)["engine"]


def test_no_bus_is_a_failure_that_says_what_to_do(directory: NetworkDirectory) -> None:
    result = CliRunner().invoke(
        doctor, ["--network-dir", str(directory.path), "--no-engine"], env={"POCACHE_NATS_URL": ""}
    )
    assert result.exit_code == 1
    assert "POCACHE_NATS_URL" in result.stdout
    assert "fail" in result.stdout
