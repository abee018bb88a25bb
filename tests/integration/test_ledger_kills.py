"""``kill -9`` of a ledger under load, at random moments: nothing acknowledged is lost, nothing is applied twice.

The ledger is a process of its own that acknowledges over a pipe after each commit (``kit.ledger_load``). After each kill
its database must be in exactly one of the model's states: not before the last acknowledged message, and not further
than the batch that was in hand.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from kit.ledger import make_ledger
from kit.ledger_load import BATCH, Load, State, get_network
from pocache.storage.store import APPLIED, OUTBOX, Store
from pocache.wire.topics import STAKE_POSTED
from pocache_ledger.accounts import get_entry_count, verify_journal
from pocache_ledger.migrations import upgrade
from pocache_ledger.tables import ACCOUNTS

KILLS, KILLS_SOAK = 5, 50
JOBS_PER_KILL = 6
PAUSE_S_MAX = 0.03
"""Several batches: a kill falls anywhere between two acknowledgements, commits included."""
OVERLAP_MAX = 40
"""How far back a restarted ledger is told things again."""


@contextmanager
def run_ledger(url: str, seed: int, job_count: int, start: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a ledger from one of the messages on; it is ended with the block."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests.parent / "shared"), str(tests.parent / "services")]
    arguments = [url, *(str(number) for number in (seed, job_count, start))]
    with subprocess.Popen(
        [sys.executable, "-m", "kit.ledger_load", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_acknowledged(
    process: subprocess.Popen[bytes], acknowledged: int, enough: int, pause_s: float
) -> int:
    """Return what was acknowledged: at least ``enough``, and whatever comes for so long after that."""
    assert process.stdout is not None
    pending = b""
    while True:
        timeout = None if acknowledged < enough else pause_s
        if not select.select([process.stdout], [], [], timeout)[0]:
            return acknowledged
        chunk = os.read(process.stdout.fileno(), 4_096)
        if not chunk:
            return acknowledged
        *lines, pending = (pending + chunk).split(b"\n")
        acknowledged = int(lines[-1]) if lines else acknowledged
        if acknowledged >= enough and timeout is not None:
            return acknowledged


def read_state(url: str) -> State:
    """Return what is in the database, once the killed ledger's session is gone; its journal must be whole."""
    with closing(Store(url, prepare=upgrade, writer_wait_s=60.0)) as store, store.begin() as connection:
        verify_journal(connection)
        balances = {row.name: row.balance_micro for row in connection.execute(sa.select(ACCOUNTS))}
        return State(
            {name: balance for name, balance in balances.items() if balance},
            connection.execute(sa.select(sa.func.count()).select_from(APPLIED)).scalar_one(),
            get_entry_count(connection),
        )


@dataclass(frozen=True)
class Announced:
    """What a ledger said, refusals aside: one that is delivered again is judged again, by what the account has then."""

    events: list[str]
    """Subjects in their order."""
    stakes: dict[str, list[str]]
    """Message ids of what was said about a participant's stake, in their order: once a batch, after its last change."""

    def verify_like(self, expected: Announced) -> None:
        """Assert that this was said by a ledger that took the same messages, in batches, where the other took each alone."""
        assert self.events == expected.events
        assert self.stakes.keys() == expected.stakes.keys()
        for subject, said in self.stakes.items():
            whole = iter(expected.stakes[subject])
            assert all(one in whole for one in said), f"{subject}: not in the order of what happened"
            assert said[-1] == expected.stakes[subject][-1], f"{subject}: the last stake is another"


def read_outbox(url: str) -> Announced:
    """Return what was announced, each once."""
    with closing(Store(url, prepare=upgrade)) as store:
        return read_announced(store)


def read_announced(store: Store) -> Announced:
    """Return what lies in an outbox."""
    with store.begin() as connection:
        rows = connection.execute(
            sa.select(OUTBOX.c.message_id, OUTBOX.c.subject)
            .where(OUTBOX.c.subject.not_like("refusals.%"))
            .order_by(OUTBOX.c.number)
        ).all()
    assert len({row.message_id for row in rows}) == len(rows), "something was announced twice"
    stakes: dict[str, list[str]] = {}
    for row in rows:
        if STAKE_POSTED.matches(row.subject):
            stakes.setdefault(row.subject, []).append(row.message_id)
    return Announced([row.subject for row in rows if row.subject not in stakes], stakes)


def kill_again_and_again(url: str, kills: int, seed: int) -> None:
    """Kill the ledger so many times, then let it finish; compare with the model after each."""
    draw = random.Random(seed)
    job_count = JOBS_PER_KILL * kills
    load = Load(seed, job_count)
    total = len(load.messages)
    acknowledged = 0
    for kill in range(1, kills + 1):
        start = max(0, acknowledged - draw.randint(0, OVERLAP_MAX))
        enough = draw.randint(acknowledged + 1, max(acknowledged + 1, total * kill // (kills + 1)))
        with run_ledger(url, seed, job_count, start) as process:
            heard = read_acknowledged(process, start, enough, draw.uniform(0, PAUSE_S_MAX))
            process.send_signal(signal.SIGKILL)
            # What it said before it died is acknowledged too.
            assert process.stdout is not None
            heard = max([heard, *map(int, process.stdout.read().split(b"\n")[:-1])])
            assert process.wait() == -signal.SIGKILL, "it ended by itself: there was no kill"
        acknowledged = max(acknowledged, heard)
        assert acknowledged < total, "it was through before the kill"
        state = read_state(url)
        possible = load.states[acknowledged : acknowledged + BATCH + 1]
        assert state in possible, f"kill {kill} at {acknowledged}: {describe(state, possible[0])}"
    with run_ledger(url, seed, job_count, acknowledged) as process:
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait() == 0
    state = read_state(url)
    assert state == load.states[-1], describe(state, load.states[-1])
    reference = make_ledger(get_network())
    for message in load.messages:
        reference.clock_ms = message.clock_ms
        reference.apply(message.delivery)
    read_outbox(url).verify_like(read_announced(reference.store))
    reference.close()


def describe(found: State, expected: State) -> str:
    """Return where two states differ."""
    names = sorted({*found.balances, *expected.balances})
    differing = {
        name: (found.balances.get(name, 0), expected.balances.get(name, 0))
        for name in names
        if found.balances.get(name, 0) != expected.balances.get(name, 0)
    }
    return (
        f"applied {found.applied}, entries {found.entries}; in the model {expected.applied}, {expected.entries}; "
        f"found and modelled balances that differ: {differing}"
    )


def test_a_killed_ledger_loses_and_repeats_nothing(database_url: str) -> None:
    """A few kills on each database; ``make soak`` has ten times as many."""
    kill_again_and_again(database_url, KILLS, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_ledger_killed_fifty_times_loses_and_repeats_nothing(database_url: str) -> None:
    """Fifty kills, on each database."""
    kill_again_and_again(database_url, KILLS_SOAK, seed=2)
