"""The commitment store on a small network: a lottery that takes nothing, short windows and deadlines."""

from __future__ import annotations

import pytest

from kit.network import Harness, Network, make_network
from pocache_commitments.service import CommitmentsService

AUDIT = {
    "lottery_share": "0/1",
    "full_depth_share": "1/4",
    "sample_count": 4,
    "bind_delay_ms": 3_000,
    "window_rounds": 6,
}
DEADLINES = {"opening_ticks": 3}


@pytest.fixture
def network() -> Network:
    """A network that audits only what is challenged."""
    return make_network(audit=AUDIT, deadlines=DEADLINES)


@pytest.fixture
def harness(network: Network) -> Harness:
    """The service on a database in memory, two rounds old."""
    made = Harness(CommitmentsService(network.genesis, network.models), network)
    made.pass_rounds(2)
    return made
