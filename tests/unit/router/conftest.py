"""A router in memory that has seen one round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.network import Network, make_network
from kit.routing import RouterHarness, make_router


@pytest.fixture(scope="session")
def network() -> Network:
    """Short deadlines, two attempts, room for three jobs."""
    return make_network(
        deadlines={"queue_ticks": 5, "lease_ticks": 3},
        bounds={"attempt_max": 2, "open_jobs_max": 3, "submission_age_ms_max": 60_000},
    )


@pytest.fixture
def router(network: Network) -> Iterator[RouterHarness]:
    """A router with an empty outbox."""
    harness = make_router(network)
    yield harness
    harness.close()
