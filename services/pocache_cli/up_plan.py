"""What ``pocache up`` makes: who takes part, under which rules, and whether a network that is there already is that one.

Owns the command's arguments, the names and numbers of a new network, and the refusal of arguments that an existing one
contradicts. Starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pocache.runtime.network import ChainConfig, NetworkDirectory
    from pocache_cli.bootstrap_beacon import BeaconPlan
    from pocache_cli.local_network import WorkerProcess

DIRECTORY_DEFAULT: Final = Path(".pocache")
NETWORK_FOLDER: Final = "network"
USERS_DEFAULT, WORKERS_DEFAULT, VERIFIERS_DEFAULT = 3, 2, 5
USER_NAMES: Final = ("ada", "grace", "edsger", "barbara", "alan", "frances", "donald", "radia")
GENERATOR_PREFIX: Final = "worker-"
VERIFIER_PREFIX: Final = "verifier-"
WITNESS_PREFIX: Final = "witness-"
MEMBERS_MAX: Final = 16
"""Processes of a threshold beacon, on one machine."""
_THRESHOLD: Final = re.compile(r"([1-9][0-9]?)-of-([1-9][0-9]?)")

SECTIONS: Final[Mapping[str, Mapping[str, object]]] = {
    "audit": {
        "lottery_share": "1/5",
        "bind_delay_ms": 1_000,
        "window_rounds": 20,
        "commitment_lag_rounds_max": 10,
    },
    "deadlines": {"queue_ticks": 600, "lease_ticks": 300, "seal_ticks": 120, "opening_ticks": 60},
    "ejection": {},
}
"""Rounds of one second: who waits at a terminal sees the payout in half a minute."""
LEVY: Final = "1/3"
"""λ: what audits of a fifth of all jobs cost under `fixed-fee-committee`."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's arguments; counts are None where they were not given."""

    folder: Path
    model: str | None
    users: int | None
    workers: int | None
    verifiers: int | None
    witnesses: int | None
    beacon: str | None
    rules: str | None
    port: int
    gateway_port: int | None
    log_level: str
    as_json: bool


def name_users(count: int) -> tuple[str, ...]:
    """Return the users' names: people first, then numbers."""
    return (*USER_NAMES[:count], *(f"user-{number}" for number in range(len(USER_NAMES) + 1, count + 1)))


def name_parties(prefix: str, count: int) -> tuple[str, ...]:
    """Return ``prefix-1`` to ``prefix-count``."""
    return tuple(f"{prefix}{number}" for number in range(1, count + 1))


def plan_beacon(text: str | None) -> BeaconPlan:
    """Return where rounds come from: ``local`` (the default), ``T-of-N``, ``quicknet``. Raises ConfigError."""
    from pocache.protocol.beacon import QUICKNET
    from pocache.protocol.errors import ConfigError
    from pocache_cli.bootstrap_beacon import BeaconPlan

    if text in (None, "local"):
        return BeaconPlan()
    if text == "quicknet":
        return BeaconPlan("relay", relayed=QUICKNET)
    shares = _THRESHOLD.fullmatch(text or "")
    if shares is None or not 1 <= int(shares[1]) <= int(shares[2]) <= MEMBERS_MAX:
        raise ConfigError(f"{text!r} is no beacon: local, quicknet, or T-of-N with 1 ≤ T ≤ N ≤ {MEMBERS_MAX}")
    return BeaconPlan("threshold", threshold=int(shares[1]), member_count=int(shares[2]))


def plan_processes(roles: Mapping[str, str]) -> tuple[WorkerProcess, ...]:
    """Return the worker processes: generators share one engine, verifiers another, so that nobody checks itself."""
    from pocache_cli.local_network import WorkerProcess

    workers = [name for name, role in roles.items() if role == "worker"]
    verifiers = tuple(name for name in workers if name.startswith(VERIFIER_PREFIX))
    generators = tuple(name for name in workers if name not in verifiers)
    return (
        WorkerProcess("generators", generators, roles="generate"),
        WorkerProcess("verifiers", verifiers, roles="verify"),
    )


def verify_counts(options: Options, roles: Mapping[str, str]) -> None:
    """Refuse numbers that an existing network does not have. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError

    verifiers = sum(name.startswith(VERIFIER_PREFIX) for name in roles)
    witnesses = sum(name.startswith(WITNESS_PREFIX) for name in roles)
    found = {
        "users": sum(role == "user" for role in roles.values()) - witnesses,
        "witnesses": witnesses,
        "workers": sum(role == "worker" for role in roles.values()) - verifiers,
        "verifiers": verifiers,
    }
    for name, count in found.items():
        wanted = getattr(options, name)
        if wanted not in (None, count):
            raise ConfigError(f"the network here has {count} {name}: for {wanted}, choose another --dir")


def verify_beacon(options: Options, chain: ChainConfig, roles: Mapping[str, str]) -> None:
    """Refuse another beacon than an existing network has. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError

    if options.beacon is None:
        return
    plan = plan_beacon(options.beacon)
    members = sum(role == "beacon" for role in roles.values())
    if plan.source != chain.source or (plan.source == "threshold" and plan.member_count != members):
        raise ConfigError(
            f"the network here has a {chain.source} beacon: for {options.beacon}, choose another --dir"
        )


def verify_rules(options: Options, directory: NetworkDirectory) -> None:
    """Refuse other rules than an existing network has. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError

    name = directory.genesis.rules.name
    if options.rules not in (None, name):
        raise ConfigError(f"the network here is paid by {name}: for {options.rules}, choose another --dir")
