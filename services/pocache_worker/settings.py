"""A worker process's own settings: its identities, roles, model, device and, on a demonstration, how it cheats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pocache.engine.reference import REFERENCE_NAME
from pocache.protocol.errors import ConfigError
from pocache.runtime.config import Settings
from pocache_worker.cheats import Cheat, parse_cheats

_ROLES = ("generate", "verify")
JOBS_MAX: Final = 256
"""Jobs of one identity at once, at most: a quarter of what all workers of a model may have in hand unanswered."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What one worker process was told, beside what every process is."""

    identities: tuple[str, ...]
    generates: bool
    verifies: bool
    model: str
    device: str | None
    threads: int | None
    jobs_max: int
    """Jobs that one identity generates at once."""
    cheats: Mapping[str, Cheat]


def read_worker_settings(settings: Settings) -> WorkerSettings:
    """Read the ``POCACHE_WORKER_*`` variables. Raises ConfigError naming the one that is wrong."""
    variables = settings.variables
    identities = _split(variables.get("POCACHE_WORKER_IDENTITIES", settings.name))
    if not identities or len(set(identities)) != len(identities):
        raise ConfigError("POCACHE_WORKER_IDENTITIES must name at least one key, and each once")
    if settings.database_url is not None and len(identities) > 1:
        raise ConfigError(
            "POCACHE_DATABASE_URL is one database; with several identities use POCACHE_STATE_DIR"
        )
    roles = _split(variables.get("POCACHE_WORKER_ROLES", ",".join(_ROLES)))
    if not roles or not set(roles) <= set(_ROLES):
        raise ConfigError(
            f"POCACHE_WORKER_ROLES is {','.join(roles)!r}; it may be {', '.join(_ROLES)}, or both"
        )
    model = variables.get("POCACHE_WORKER_MODEL", REFERENCE_NAME)
    if not model:
        raise ConfigError(
            f"set POCACHE_WORKER_MODEL to a model's directory or id, to fake:NAME, or to {REFERENCE_NAME}"
        )
    device = variables.get("POCACHE_WORKER_DEVICE")
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"POCACHE_WORKER_DEVICE is {device!r}; it may be cpu or cuda")
    threads = variables.get("POCACHE_WORKER_THREADS")
    if threads is not None and not (threads.isdecimal() and 1 <= int(threads) <= 1_024):
        raise ConfigError(f"POCACHE_WORKER_THREADS is {threads!r}; it must be a whole number from 1 to 1024")
    jobs_max = variables.get("POCACHE_WORKER_JOBS_MAX", "1")
    if not (jobs_max.isdecimal() and 1 <= int(jobs_max) <= JOBS_MAX):
        raise ConfigError(
            f"POCACHE_WORKER_JOBS_MAX is {jobs_max!r}; it must be a whole number from 1 to {JOBS_MAX}"
        )
    return WorkerSettings(
        identities=identities,
        generates="generate" in roles,
        verifies="verify" in roles,
        model=model,
        device=device,
        threads=None if threads is None else int(threads),
        jobs_max=int(jobs_max),
        cheats=parse_cheats(
            variables.get("POCACHE_WORKER_CHEAT", ""), identities, is_demo=settings.directory.genesis.demo
        ),
    )


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
