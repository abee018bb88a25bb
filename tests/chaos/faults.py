"""Which faults there are, and the schedule that a seed gives: the same seed, the same faults in the same order.

A schedule says what is done to whom, when within its wave, and for how long. What the network does about it depends on
the machine; what is done to it does not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What can go wrong."""

    KILL = "kill"
    """SIGKILL of a process; it is started again as a supervisor would."""
    PAUSE = "pause"
    """SIGSTOP, and SIGCONT later."""
    CUT = "cut"
    """All connections of a process to the bus end without a goodbye."""
    PARTITION = "partition"
    """The same, and no new one is accepted for a while."""
    STALL = "stall"
    """Connections stay, nothing moves: a consumer too slow for its server."""
    SCRAMBLE = "scramble"
    """Deliveries come twice, late, and in another order."""
    SKEW = "skew"
    """The wall clock of a process is wrong for a while."""
    BUS_KILL = "bus-kill"
    """SIGKILL of nats-server; of the leader of RECORD where there is a cluster."""
    BUS_PAUSE = "bus-pause"
    """SIGSTOP of nats-server."""
    BEACON_OUTAGE = "beacon-outage"
    """No rounds for several periods."""
    LEDGER_DISK = "ledger-disk"
    """The disk of the ledger's database is full."""
    BUS_DISK = "bus-disk"
    """The disk of nats-server is full."""


SERVICES: Final = ("router", "commitments", "verifier", "ledger")
WORKERS: Final = ("generators", "verifiers")
PROCESSES: Final = (*SERVICES, *WORKERS, "beacon")
USERS: Final = "users"
"""The clients' own connections; their process is the test's, which is not killed."""

SKEW_S_MAX: Final = 20.0
"""Wrong by less than a lease lasts, as a machine is that has lost its time server for long."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: ``at`` is when, as a share of its wave, ``for_s`` how long (seconds)."""

    wave: int
    at: float
    kind: Kind
    target: str
    for_s: float = 0.0
    amount: float = 0.0

    def describe(self) -> dict[str, object]:
        """Return it as the report shows it."""
        return {**asdict(self), "kind": self.kind.value}


_WEIGHTS: Final[dict[Kind, int]] = {
    Kind.KILL: 10,
    Kind.PAUSE: 6,
    Kind.CUT: 6,
    Kind.PARTITION: 4,
    Kind.STALL: 4,
    Kind.SCRAMBLE: 5,
    Kind.SKEW: 4,
    Kind.BUS_KILL: 3,
    Kind.BUS_PAUSE: 2,
    Kind.BEACON_OUTAGE: 3,
    Kind.LEDGER_DISK: 2,
    Kind.BUS_DISK: 1,
}
_DURATIONS_S: Final[dict[Kind, tuple[float, float]]] = {
    Kind.PAUSE: (0.5, 12.0),
    Kind.PARTITION: (0.5, 10.0),
    Kind.STALL: (0.5, 10.0),
    Kind.SCRAMBLE: (2.0, 8.0),
    Kind.SKEW: (2.0, 8.0),
    Kind.BUS_PAUSE: (0.5, 6.0),
    Kind.BEACON_OUTAGE: (3.0, 12.0),
    Kind.LEDGER_DISK: (1.0, 4.0),
    Kind.BUS_DISK: (1.0, 4.0),
}
ALL_KINDS: Final = tuple(Kind)


def draw_schedule(
    seed: int, *, waves: int, faults_per_wave: int, kinds: Sequence[Kind] = ALL_KINDS
) -> list[Fault]:
    """Return every fault of a run, in order; each kind at least once where there is room for all."""
    draw = random.Random(f"pocache chaos {seed}")
    count = waves * faults_per_wave
    drawn = list(kinds[:count])
    drawn += draw.choices(list(kinds), [_WEIGHTS[kind] for kind in kinds], k=count - len(drawn))
    draw.shuffle(drawn)
    faults = [
        Fault(
            wave=number // faults_per_wave,
            at=round(draw.random(), 3),
            kind=kind,
            target=_draw_target(kind, draw),
            for_s=round(draw.uniform(*_DURATIONS_S[kind]), 2) if kind in _DURATIONS_S else 0.0,
            amount=round(draw.choice((-1, 1)) * draw.uniform(1.0, SKEW_S_MAX), 2)
            if kind is Kind.SKEW
            else 0.0,
        )
        for number, kind in enumerate(drawn)
    ]
    return sorted(faults, key=lambda fault: (fault.wave, fault.at))


def _draw_target(kind: Kind, draw: random.Random) -> str:
    if kind in {Kind.BUS_KILL, Kind.BUS_PAUSE, Kind.BUS_DISK}:
        return "nats-server"
    if kind is Kind.BEACON_OUTAGE:
        return "beacon"
    if kind is Kind.LEDGER_DISK:
        return "ledger"
    if kind in {Kind.SCRAMBLE, Kind.SKEW}:
        return draw.choice((*SERVICES, *WORKERS))
    if kind in {Kind.CUT, Kind.PARTITION, Kind.STALL}:
        return draw.choice((*PROCESSES, USERS))
    return draw.choice(PROCESSES)
