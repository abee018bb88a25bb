"""A process's own settings, from ``POCACHE_*`` variables: where its network directory, bus, keys and state are.

What the network as a whole agrees on is in the genesis (``pocache.runtime.network``), not here. Refuses variables of
our prefix that nobody reads, so that a misspelt one is not silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pocache.protocol.errors import ConfigError
from pocache.runtime.network import NetworkDirectory
from pocache.runtime.telemetry import LEVELS

PREFIX: Final = "POCACHE_"
DRAIN_S_DEFAULT: Final = 25.0

VARIABLES: Final[Mapping[str, str]] = {
    "POCACHE_NETWORK_DIR": "directory with genesis.json, models/ and keys (default: ./.pocache/network)",
    "POCACHE_NATS_URL": "where the bus is (default: the url file in the network directory)",
    "POCACHE_STATE_DIR": "where the service keeps its database (default: state/ in the network directory)",
    "POCACHE_DATABASE_URL": "SQLAlchemy URL instead of an SQLite file in the state directory",
    "POCACHE_NAME": "which key of the network directory to use (default: the service's name; for a worker: worker-1)",
    "POCACHE_HEALTH_HOST": "where /livez, /readyz and /metrics are served (default: 127.0.0.1)",
    "POCACHE_HEALTH_PORT": "their port (default: 0, any free one; its number is logged)",
    "POCACHE_TRACES": "where each job's trace goes: otlp=URL of a collector's HTTP endpoint, or file=FOLDER (default: nowhere)",
    "POCACHE_LOG_LEVEL": "debug, info, warning or error (default: info)",
    "POCACHE_DRAIN_S": "seconds a stopping service may take to finish what it has in hand (default: 25)",
    "POCACHE_WORKER_IDENTITIES": "worker only: comma-separated key names, all served by one process and one engine",
    "POCACHE_WORKER_ROLES": "worker only: generate, verify or generate,verify (default: generate,verify)",
    "POCACHE_WORKER_MODEL": "worker only: directory or id of the model, fake:NAME for the engine without one, or reference (default)",
    "POCACHE_WORKER_CHEAT": "worker only, demonstration networks only: how to be dishonest",
    "POCACHE_WORKER_DEVICE": "worker only: cpu or cuda (default: cuda where there is one)",
    "POCACHE_WORKER_THREADS": "worker only: torch threads (default: torch's own)",
    "POCACHE_WORKER_JOBS_MAX": "worker only: jobs that each identity generates at once (default: 1)",
    "POCACHE_BEACON_ENDPOINTS": "beacon relay only: comma-separated URLs of drand HTTP servers; one ending in /v2 is asked "
    "by chain hash and one ending in /v2/beacons by beacon id, both in drand's v2 paths, any other in its v1 paths",
    "POCACHE_BEACON_TIMEOUT_S": "beacon relay only: seconds that one request may take (default: 5)",
    "POCACHE_BEACON_HEDGE_MS": "beacon relay only: milliseconds until the next server is asked beside a silent one "
    "(default: 300)",
    "POCACHE_GATEWAY_HOST": "gateway only: where it listens (default: 127.0.0.1)",
    "POCACHE_GATEWAY_PORT": "gateway only: its port (default: 8080; 0 is any free one, which is logged)",
    "POCACHE_GATEWAY_PUBLIC_URL": "gateway only: what receipt_url begins with (default: nothing, a path)",
    "POCACHE_GATEWAY_TOKENIZERS": "gateway only: MODEL=DIRECTORY of its tokenizer, several with commas between "
    "(default: where a local network's models came from)",
    "POCACHE_GATEWAY_BODY_BYTES_MAX": "gateway only: the largest body of a request (default: 1000000)",
    "POCACHE_GATEWAY_CONNECTIONS_MAX": "gateway only: open connections (default: 2000)",
    "POCACHE_GATEWAY_OPEN_JOBS_MAX": "gateway only: jobs in hand at once; more are answered 429 (default: 1000)",
    "POCACHE_GATEWAY_SEND_TIMEOUT_S": "gateway only: seconds that a client may leave what it was sent unread (default: 30)",
    "POCACHE_GATEWAY_RECEIPT_WAIT_S_MAX": "gateway only: seconds that a request for a receipt may wait (default: 120)",
    "POCACHE_GATEWAY_RECONNECT_S": "gateway only: seconds that a streaming client which went away may take to come back "
    "before its job is cancelled (default: 0)",
    "POCACHE_GATEWAY_EXPLORER": "gateway only: on or off, the pages under /explorer (default: on where the reader's key is)",
    "POCACHE_GATEWAY_EXPLORER_TEXTS": "gateway only: shown or hidden, prompts, outputs and receipts on the explorer's pages, "
    "to everybody (default: hidden)",
    "POCACHE_REQUIRE": "tests only: `all` turns a skip for a missing tool into a failure",
    "POCACHE_PYTHON": "Makefile only: the interpreter that makes the virtual environment",
}
"""Every variable that this project reads, and what for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one process was told."""

    directory: NetworkDirectory
    nats_url: str
    state_dir: Path
    database_url: str | None
    name: str
    health_host: str
    health_port: int
    log_level: str
    drain_s: float
    variables: Mapping[str, str]
    """All ``POCACHE_*`` variables, for what only one service reads."""

    def database(self, name: str) -> str:
        """Return the SQLAlchemy URL of a service's database."""
        if self.database_url is not None:
            return self.database_url
        self.state_dir.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self.state_dir / name}.sqlite"


def load_settings(environ: Mapping[str, str], *, name_default: str) -> Settings:
    """Read the settings. Raises ConfigError naming the variable that is wrong and what it may be."""
    variables = {key: value for key, value in environ.items() if key.startswith(PREFIX)}
    unknown = sorted(set(variables) - set(VARIABLES))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known are {', '.join(VARIABLES)}")
    path = Path(variables.get("POCACHE_NETWORK_DIR", ".pocache/network")).absolute()
    level = variables.get("POCACHE_LOG_LEVEL", "info")
    if level not in LEVELS:
        raise ConfigError(f"POCACHE_LOG_LEVEL is {level!r}; it may be {', '.join(LEVELS)}")
    return Settings(
        directory=NetworkDirectory(path),
        nats_url=variables.get("POCACHE_NATS_URL") or _read_url(path),
        state_dir=Path(variables.get("POCACHE_STATE_DIR", path / "state")).absolute(),
        database_url=variables.get("POCACHE_DATABASE_URL"),
        name=variables.get("POCACHE_NAME", name_default),
        health_host=variables.get("POCACHE_HEALTH_HOST", "127.0.0.1"),
        health_port=read_number(variables, "POCACHE_HEALTH_PORT", 0, 0, 65_535),
        log_level=level,
        drain_s=float(read_number(variables, "POCACHE_DRAIN_S", int(DRAIN_S_DEFAULT), 1, 86_400)),
        variables=variables,
    )


def _read_url(path: Path) -> str:
    file = path / "nats.url"
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"set POCACHE_NATS_URL, or start the network with `pocache up` ({file} is missing)"
        ) from None


def read_number(variables: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """Return the whole number in a variable. Raises ConfigError that says what it may be."""
    text = variables.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ConfigError(f"{name} is {text!r}; it must be a whole number from {least} to {most}")
    return int(text)
