"""The ledger's process while the operator's totals are being read: it goes on, and it stops in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.ledger import FUNDS, LedgerHarness
from kit.network import make_key, make_network
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer
from pocache.protocol.errors import BackpressureError
from pocache.service.process import ServiceProcess
from pocache.service.reports import Report, ReportView
from pocache.service.unit import Inbound
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_ledger.migrations import upgrade
from pocache_ledger.service import LedgerService

USER = make_key("user")
GATE_S = 60.0


class SlowLedger(LedgerService):
    """A ledger whose totals take until the gate is opened, as they would with a journal of years."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.reached = threading.Event()
        self.opened = threading.Event()

    def reports(self) -> Mapping[t.Topic[Any], Report]:
        (make,) = super().reports().values()

        def make_slowly(view: ReportView, inbound: Inbound[Any]) -> Any:
            self.reached.set()
            while not self.opened.wait(0.001):
                view.check()
            return make(view, inbound)

        return {t.TOTALS_QUERY: make_slowly}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerHarness]:
    """A slow ledger on a file, with a user's money."""
    network = make_network()
    harness = LedgerHarness(
        SlowLedger(genesis=network.genesis, models=network.models),
        network,
        url=f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        prepare=upgrade,
    )
    harness.fund(USER, available=FUNDS)
    harness.drain()
    yield harness
    harness.close()


@asynccontextmanager
async def run(ledger: LedgerHarness, bus: NatsBus) -> AsyncIterator[tuple[ServiceProcess, asyncio.Event]]:
    """The ledger's process without consumers: what it answers is all that is wanted of it here."""
    process = ServiceProcess(
        ledger.dispatcher,
        bus,
        consumers=(),
        query_subjects=[topic.filter() for topic in ledger.service.queries()],
        report_subjects=[t.TOTALS_QUERY.filter()],
        name="ledger",
    )
    stop = asyncio.Event()
    running = asyncio.create_task(process.run(stop))
    try:
        async with asyncio.timeout(GATE_S):
            while not process.is_ready and not running.done():
                await asyncio.sleep(0.01)
            yield process, stop
            stop.set()
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def ask(ledger: LedgerHarness, bus: NatsBus, body: Any, subject: str, key: Any) -> asyncio.Task[bytes]:
    """Send a question."""
    data = ledger.network.seal(key, body)
    return asyncio.create_task(bus.request(subject, data, timeout_s=GATE_S))


async def ask_totals(ledger: LedgerHarness, bus: NatsBus) -> asyncio.Task[bytes]:
    """Ask for the totals, and return once they are being read."""
    service = ledger.service
    assert isinstance(service, SlowLedger)
    operator = ledger.network.keys[t.Role.OPERATOR]
    asked = ask(ledger, bus, m.TotalsQueryV1(), t.TOTALS_QUERY.subject(), operator)
    assert await asyncio.to_thread(service.reached.wait, GATE_S)
    return asked


async def test_owners_are_answered_while_the_totals_are_read(
    nats_server: EmbeddedServer, ledger: LedgerHarness
) -> None:
    """And money moves: the state thread waits for no report. The totals are those of before."""
    assert isinstance(ledger.service, SlowLedger)
    settings = NatsSettings(url=nats_server.url, name="ledger")
    async with (
        connect_bus(settings) as bus,
        connect_bus(settings) as asker,
        run(ledger, bus) as (process, _),
    ):
        totals = await ask_totals(ledger, asker)
        await process.submit(lambda: ledger.fund(USER, available=1, reference="meanwhile"))
        me = USER.participant_id
        subject = t.BALANCE_QUERY.subject(participant=me)
        answer = await ask(ledger, asker, m.BalanceQueryV1(participant=me), subject, USER)
        assert ledger.network.open(answer, m.BalanceReplyV1).available_micro == FUNDS + 1
        assert not totals.done()
        ledger.service.opened.set()
        reply = ledger.network.open(await totals, m.TotalsReplyV1)
        assert (reply.held_micro, reply.journal_entries, reply.journal_intact) == (FUNDS, 1, True)


async def test_a_stop_does_not_wait_for_the_totals(
    nats_server: EmbeddedServer, ledger: LedgerHarness
) -> None:
    """The report is given up, who asked is told so in a signed refusal, and the process ends in order."""
    settings = NatsSettings(url=nats_server.url, name="ledger")
    async with connect_bus(settings) as bus, connect_bus(settings) as asker:
        async with run(ledger, bus) as (_, stop):
            totals = await ask_totals(ledger, asker)
            stop.set()
        refusal = ledger.network.open(await totals, m.RefusalV1)
        assert refusal.code == BackpressureError.code
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reports-ledger")]
