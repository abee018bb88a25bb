"""Dishonesty on request, for demonstrations and tests: how an identity is told to cheat, and with which engine.

Refused unless the network's genesis says that it is a demonstration. Cheats of the engine are built over it
(``pocache.engine.adversary``); cheats of behaviour are the few flags here that generation and openings look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pocache.engine.adversary import WRAPPER_KINDS, AdversaryKind, build_adversary
from pocache.engine.port import Engine
from pocache.protocol.errors import ConfigError

NEVER_OPENS: Final = "never-opens"
TWO_COMMITMENTS: Final = "two-commitments"
GARBAGE_CLAIMS: Final = "garbage-claims"


@dataclass(frozen=True, slots=True)
class Cheat:
    """What one identity does wrong; the default is honest."""

    engine: AdversaryKind | None = None
    opens: bool = True
    commits_twice: bool = False


HONEST: Final = Cheat()
KINDS: Final = tuple(
    sorted({NEVER_OPENS, TWO_COMMITMENTS, GARBAGE_CLAIMS, *AdversaryKind} - {AdversaryKind.GARBAGE})
)


def parse_cheats(text: str, identities: Sequence[str], *, is_demo: bool) -> dict[str, Cheat]:
    """Read ``KIND`` for all identities or ``NAME:KIND,NAME:KIND``; returns a cheat for each identity.

    Raises ConfigError on a network that is no demonstration, on unknown kinds, and on names served elsewhere.
    """
    cheats = dict.fromkeys(identities, HONEST)
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if entries and not is_demo:
        raise ConfigError("POCACHE_WORKER_CHEAT is for demonstration networks, and this is none: unset it")
    for entry in entries:
        name, is_named, kind = entry.rpartition(":")
        if is_named and name not in cheats:
            raise ConfigError(
                f"POCACHE_WORKER_CHEAT names {name!r}; this process serves {', '.join(identities)}"
            )
        for identity in [name] if is_named else identities:
            cheats[identity] = _parse_kind(kind)
    return cheats


def build_engine(kind: AdversaryKind | None, honest: Engine, build_fresh: Callable[[], Engine]) -> Engine:
    """Return the engine of a cheat: the honest one, something around it, or a fresh one that is tampered with."""
    if kind is None:
        return honest
    return build_adversary(kind, (lambda: honest) if kind in WRAPPER_KINDS else build_fresh)


def _parse_kind(kind: str) -> Cheat:
    if kind == NEVER_OPENS:
        return Cheat(opens=False)
    if kind == TWO_COMMITMENTS:
        return Cheat(commits_twice=True)
    if kind == GARBAGE_CLAIMS:
        return Cheat(engine=AdversaryKind.GARBAGE)
    if kind in KINDS:
        return Cheat(engine=AdversaryKind(kind))
    raise ConfigError(f"POCACHE_WORKER_CHEAT has {kind!r}; there are {', '.join(KINDS)}")
