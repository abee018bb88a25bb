"""A ledger with a user, workers and verifiers that have money."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.jobs import Job
from kit.ledger import FUNDS, LedgerHarness, make_ledger
from kit.network import Network, make_key, make_network


@pytest.fixture(scope="session")
def network() -> Network:
    """A network whose ledger waits three rounds for what must come first."""
    return make_network(deadlines={"queue_ticks": 3}, rules={"lease_fee_micro": 700})


@pytest.fixture
def job(network: Network) -> Job:
    """A job of ``user`` that ``worker`` generates."""
    return Job(network)


@pytest.fixture
def ledger(network: Network) -> Iterator[LedgerHarness]:
    """A ledger in memory; everybody has the same amounts, and nothing is in the outbox."""
    harness = make_ledger(network)
    harness.fund(make_key("user"), available=FUNDS)
    for name in ("worker", "verifier-1", "verifier-2", "verifier-3"):
        harness.fund(make_key(name), available=FUNDS, stake=FUNDS)
    harness.drain()
    yield harness
    harness.close()
