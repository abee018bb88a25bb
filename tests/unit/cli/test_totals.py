"""The operator's question for the totals: how long it waits, and whose answers it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kit.network import Network, make_key, make_network
from pocache.job import RefusedError
from pocache.protocol.errors import EnvelopeError
from pocache.protocol.keys import SigningKey
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache.wire.topics import Role
from pocache_cli.local_network import QUERY_S, TOTALS_S, LocalNetwork

SOUND = m.TotalsReplyV1(
    deposited_micro=7,
    held_micro=7,
    open_pools_micro=0,
    closed_pools_micro=0,
    open_pool_count=0,
    treasury_micro=0,
    reserve_micro=0,
    journal_entries=1,
    journal_intact=True,
)
REFUSED = m.RefusalV1(message_hash=bytes(32), subject="queries.totals", code="E205", reason="ask again later")


class Operator:
    """A bus on which one answer lies ready."""

    def __init__(self, network: Network, body: WireModel, signer: SigningKey) -> None:
        self.network = network
        self.data = network.seal(signer, body)
        self.waited_s: list[float] = []

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        assert subject == t.TOTALS_QUERY.subject()
        self.network.open(data, m.TotalsQueryV1)
        self.waited_s.append(timeout_s)
        return self.data


@pytest.fixture
def network() -> Network:
    return make_network()


def connect(network: Network, operator: Operator) -> LocalNetwork:
    """A network of which only the genesis and the operator's connection are there."""
    directory = SimpleNamespace(genesis=network.genesis, signing_key=lambda name: network.keys[Role(name)])
    return LocalNetwork(cast("Any", directory), cast("Any", None), cast("Any", operator))


async def test_it_waits_for_minutes_unless_told(network: Network) -> None:
    """A journal of years is read for it: no other question takes so long."""
    operator = Operator(network, SOUND, network.keys[Role.LEDGER])
    asking = connect(network, operator)
    assert await asking.query_totals() == SOUND
    assert await asking.query_totals(timeout_s=5.0) == SOUND
    assert operator.waited_s == [TOTALS_S, 5.0]
    assert TOTALS_S >= 10 * QUERY_S


async def test_a_refusal_says_why(network: Network) -> None:
    """Too many ask at once, or the ledger stops."""
    with pytest.raises(RefusedError, match="E205: ask again later"):
        await connect(network, Operator(network, REFUSED, network.keys[Role.LEDGER])).query_totals()


@pytest.mark.parametrize("body", [SOUND, REFUSED], ids=["totals", "refusal"])
async def test_another_than_the_ledger_is_not_believed(network: Network, body: WireModel) -> None:
    """Whoever can answer on the subject cannot say that the money is there."""
    for signer in (make_key("somebody"), network.keys[Role.ROUTER]):
        with pytest.raises(EnvelopeError, match="not signed by the ledger"):
            await connect(network, Operator(network, body, signer)).query_totals()
