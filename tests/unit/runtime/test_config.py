"""Settings from the environment: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocache.protocol.errors import ConfigError
from pocache.runtime.config import VARIABLES, load_settings

URL = {"POCACHE_NATS_URL": "nats://127.0.0.1:1"}


def test_defaults() -> None:
    """Everything beside the bus has one; foreign variables are none of our business."""
    settings = load_settings({**URL, "HOME": "/nowhere"}, name_default="router")
    assert settings.name == "router"
    assert settings.directory.path == Path(".pocache/network").absolute()
    assert settings.state_dir == settings.directory.path / "state"
    assert (settings.health_host, settings.health_port) == ("127.0.0.1", 0)
    assert (settings.log_level, settings.drain_s, settings.database_url) == ("info", 25.0, None)
    assert settings.variables == URL


def test_every_setting_is_read(tmp_path: Path) -> None:
    environ = {
        **URL,
        "POCACHE_NETWORK_DIR": str(tmp_path),
        "POCACHE_STATE_DIR": str(tmp_path / "elsewhere"),
        "POCACHE_DATABASE_URL": "postgresql://db/pocache",
        "POCACHE_NAME": "router-2",
        "POCACHE_HEALTH_HOST": "0.0.0.0",
        "POCACHE_HEALTH_PORT": "65535",
        "POCACHE_LOG_LEVEL": "debug",
        "POCACHE_DRAIN_S": "3",
    }
    settings = load_settings(environ, name_default="router")
    assert settings.nats_url == URL["POCACHE_NATS_URL"]
    assert settings.directory.path == tmp_path
    assert settings.state_dir == tmp_path / "elsewhere"
    assert settings.database("router") == "postgresql://db/pocache"
    assert settings.name == "router-2"
    assert (settings.health_host, settings.health_port) == ("0.0.0.0", 65_535)
    assert (settings.log_level, settings.drain_s) == ("debug", 3.0)


def test_the_database_is_a_file_in_the_state_directory(tmp_path: Path) -> None:
    """The directory is made when it is first needed."""
    settings = load_settings({**URL, "POCACHE_STATE_DIR": str(tmp_path / "state")}, name_default="ledger")
    assert settings.database("ledger") == f"sqlite:///{tmp_path}/state/ledger.sqlite"
    assert (tmp_path / "state").is_dir()


def test_an_unknown_variable_is_refused() -> None:
    """A misspelt setting is not silently ignored; the message lists what there is."""
    with pytest.raises(ConfigError, match="POCACHE_LOGLEVEL") as caught:
        load_settings({**URL, "POCACHE_LOGLEVEL": "debug"}, name_default="router")
    assert all(name in str(caught.value) for name in VARIABLES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POCACHE_LOG_LEVEL", "loud"),
        ("POCACHE_HEALTH_PORT", "-1"),
        ("POCACHE_HEALTH_PORT", "65536"),
        ("POCACHE_HEALTH_PORT", "http"),
        ("POCACHE_HEALTH_PORT", ""),
        ("POCACHE_DRAIN_S", "0"),
        ("POCACHE_DRAIN_S", "1.5"),
        ("POCACHE_DRAIN_S", "86401"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_settings({**URL, name: value}, name_default="router")


def test_the_bus_is_found_by_the_file_that_up_writes(tmp_path: Path) -> None:
    (tmp_path / "nats.url").write_text("nats://127.0.0.1:4222\n")
    settings = load_settings({"POCACHE_NETWORK_DIR": str(tmp_path)}, name_default="router")
    assert settings.nats_url == "nats://127.0.0.1:4222"


def test_without_a_bus_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"POCACHE_NATS_URL.*pocache up"):
        load_settings({"POCACHE_NETWORK_DIR": str(tmp_path)}, name_default="router")
