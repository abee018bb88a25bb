"""What a worker process is told, and what it refuses to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.network import make_network
from pocache.engine.adversary import AdversaryKind
from pocache.protocol.errors import ConfigError
from pocache.runtime.config import Settings, load_settings
from pocache.runtime.network import NetworkDirectory
from pocache_worker.cheats import HONEST, Cheat, parse_cheats
from pocache_worker.settings import read_worker_settings

NAMES = ("worker-5", "worker-6")


def load(tmp_path: Path, **variables: str) -> Settings:
    NetworkDirectory(tmp_path).write_genesis(make_network().genesis)
    environ = {"POCACHE_NETWORK_DIR": str(tmp_path), "POCACHE_NATS_URL": "nats://127.0.0.1:1"}
    return load_settings({**environ, **variables}, name_default="worker-1")


def test_defaults_are_one_honest_identity_in_both_roles(tmp_path: Path) -> None:
    found = read_worker_settings(load(tmp_path, POCACHE_WORKER_MODEL="fake:x"))
    assert (found.identities, found.generates, found.verifies) == (("worker-1",), True, True)
    assert (found.device, found.threads, found.cheats) == (None, None, {"worker-1": HONEST})


def test_the_model_is_the_reference_model_unless_told_otherwise(tmp_path: Path) -> None:
    assert read_worker_settings(load(tmp_path)).model == "reference"


def test_identities_roles_and_device_are_read(tmp_path: Path) -> None:
    found = read_worker_settings(
        load(
            tmp_path,
            POCACHE_WORKER_MODEL="some/model",
            POCACHE_WORKER_IDENTITIES="worker-5, worker-6",
            POCACHE_WORKER_ROLES="verify",
            POCACHE_WORKER_DEVICE="cpu",
            POCACHE_WORKER_THREADS="2",
            POCACHE_WORKER_CHEAT="worker-6:never-opens",
        )
    )
    assert (found.identities, found.generates, found.verifies) == (NAMES, False, True)
    assert (found.device, found.threads) == ("cpu", 2)
    assert found.cheats == {"worker-5": HONEST, "worker-6": Cheat(opens=False)}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POCACHE_WORKER_MODEL", ""),
        ("POCACHE_WORKER_IDENTITIES", ","),
        ("POCACHE_WORKER_IDENTITIES", "a,a"),
        ("POCACHE_WORKER_ROLES", "generate,settle"),
        ("POCACHE_WORKER_ROLES", ","),
        ("POCACHE_WORKER_DEVICE", "tpu"),
        ("POCACHE_WORKER_THREADS", "0"),
        ("POCACHE_WORKER_THREADS", "many"),
        ("POCACHE_WORKER_JOBS_MAX", "0"),
        ("POCACHE_WORKER_JOBS_MAX", "257"),
        ("POCACHE_WORKER_JOBS_MAX", "all"),
        ("POCACHE_WORKER_CHEAT", "int5"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str) -> None:
    settings = load(tmp_path, **{"POCACHE_WORKER_MODEL": "fake:x", variable: value})
    with pytest.raises(ConfigError, match=variable):
        read_worker_settings(settings)


def test_one_database_is_not_for_several_identities(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        POCACHE_WORKER_MODEL="fake:x",
        POCACHE_WORKER_IDENTITIES="a,b",
        POCACHE_DATABASE_URL="sqlite://",
    )
    with pytest.raises(ConfigError, match="POCACHE_DATABASE_URL"):
        read_worker_settings(settings)


def test_cheats_are_for_all_or_for_one() -> None:
    int4 = Cheat(engine=AdversaryKind.INT4)
    assert parse_cheats("int4", NAMES, is_demo=True) == dict.fromkeys(NAMES, int4)
    assert parse_cheats("worker-5:int4, worker-6:two-commitments", NAMES, is_demo=True) == {
        "worker-5": int4,
        "worker-6": Cheat(commits_twice=True),
    }
    garbage = parse_cheats("worker-6:garbage-claims", NAMES, is_demo=True)
    assert garbage == {"worker-5": HONEST, "worker-6": Cheat(engine=AdversaryKind.GARBAGE)}


def test_no_cheat_outside_a_demonstration() -> None:
    assert parse_cheats("", NAMES, is_demo=False) == dict.fromkeys(NAMES, HONEST)
    with pytest.raises(ConfigError, match="demonstration"):
        parse_cheats("never-opens", NAMES, is_demo=False)


def test_unknown_names_and_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="worker-7"):
        parse_cheats("worker-7:int4", NAMES, is_demo=True)
    with pytest.raises(ConfigError, match="there are"):
        parse_cheats("worker-5:nothing", NAMES, is_demo=True)
