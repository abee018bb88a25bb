"""Accounts on a real server: what a guest that is free to do anything inside its own account can do to everybody else.

The guests here have credentials without any permission set, as if they ran their account themselves: what holds is the
account's border alone. (What their ordinary credentials refuse on top of that is in ``test_permissions.py``.)
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
import pytest
import pytest_asyncio

from pocache.bus.accounts import CORE, compute_exports, compute_user_claims, is_covered
from pocache.bus.jwt import KeyKind, KeyPair, make_key_pair, read_public, sign_claims
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import NatsUser
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.errors import BusError, ConfigError
from pocache.protocol.ids import ModelId
from pocache.runtime.network import CREDENTIALS_TEXT, NetworkDirectory, read_secret
from pocache.service.provisioning import get_consumer_specs, get_stream_specs
from pocache_cli.bootstrap import (
    PROVISIONER,
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    get_workers,
    load_parties,
)
from pocache_cli.trust import Trust

MODEL = ModelId(b"\x11" * 32)
JOB = (b"\x22" * 32).hex()
GENERATE = f"TASKS.generate-{MODEL.hex()}"
PULL = "$JS.API.CONSUMER.MSG.NEXT."
WAIT_S = 30.0
PATIENCE_S = 0.5
"""How long an answer that must not come is waited for; the fences behind it say that the server has seen the request."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

REPLIES = {
    "a verdict": "outcomes.decided.{job}",
    "a payout": "payouts.settled.{job}",
    "a deposit to itself": "accounts.deposited.{me}",
    "another's result": "results.completed.{other}.{job}",
    "another's opening": "openings.submitted.{other}.{job}",
    "a lease for itself": "leases.granted.{me}",
    "a round": "beacon.rounds",
    "a task": "tasks.verify.{other}",
    "a submission": "jobs.submitted",
    "an inbox of a service": "_INBOX.ledger.forged",
    "an inbox of another worker": "_INBOX.worker-2.forged",
    "an acknowledgement of another": "$JS.ACK.TASKS.verify-{other}.1.1.1.1.0",
    "an order to JetStream": "$JS.API.STREAM.PURGE.TASKS",
    "another's dead letter": "dead.RECORD.ledger",
}
"""Where a pull that a worker may make is asked to be answered to."""

REQUESTS = {
    "say a verdict": "outcomes.decided.{job}",
    "say a payout": "payouts.settled.{job}",
    "say a deposit": "accounts.deposited.{me}",
    "say a round": "beacon.rounds",
    "say a snapshot of the verifiers": "snapshots.taken",
    "say a recorded commitment": "commitments.recorded.{job}",
    "grant itself a lease": "leases.granted.{me}",
    "hand out a task": "tasks.generate.{model}",
    "draw another verifier": "tasks.verify.{other}",
    "submit a job": "jobs.submitted",
    "challenge as a user": "challenges.requested.{user}.{job}",
    "withdraw a user's money": "withdrawals.requested.user.{user}",
    "withdraw another worker's stake": "withdrawals.requested.worker.{other}",
    "ask for another's lease": "leases.requested.{other}",
    "complete another's job": "results.completed.{other}.{job}",
    "open for another": "openings.submitted.{other}.{job}",
    "seal for another": "claims.sealed.{other}.{job}",
    "announce another": "members.announced.{other}",
    "stream another's tokens": "tokens.{user}.{job}.{other}",
    "score another's tokens": "scores.{user}.{job}.{other}",
    "ask for a user's balance": "queries.balance.{user}",
    "ask for the totals": "queries.totals",
    "read the record": "$JS.API.DIRECT.GET.RECORD.jobs.admitted.{job}",
    "read the record by its number": "$JS.API.STREAM.MSG.GET.RECORD",
    "list streams": "$JS.API.STREAM.NAMES",
    "look at a stream": "$JS.API.STREAM.INFO.RECORD",
    "delete a stream": "$JS.API.STREAM.DELETE.RECORD",
    "purge a stream": "$JS.API.STREAM.PURGE.TASKS",
    "change a stream": "$JS.API.STREAM.UPDATE.TASKS",
    "make a stream over another's subjects": "$JS.API.STREAM.CREATE.MINE",
    "delete a stored message": "$JS.API.STREAM.MSG.DELETE.RECORD",
    "make a consumer on the record": "$JS.API.CONSUMER.CREATE.RECORD.spy",
    "make a consumer of an old kind": "$JS.API.CONSUMER.DURABLE.CREATE.RECORD.spy",
    "delete the ledger's consumer": "$JS.API.CONSUMER.DELETE.RECORD.ledger",
    "pause a consumer": "$JS.API.CONSUMER.PAUSE.RECORD.ledger",
    "take the ledger's messages": PULL + "RECORD.ledger",
    "take the store's messages": PULL + "INTAKE.commitments",
    "take another's verification tasks": PULL + "TASKS.verify-{other}",
    "settle for the ledger": "$JS.ACK.RECORD.ledger.1.1.1.1.0",
    "settle another's task": "$JS.ACK.TASKS.verify-{other}.1.1.1.1.0",
    "bury the ledger's messages": "dead.RECORD.ledger",
    "see who is connected": "$SYS.REQ.SERVER.PING.CONNZ",
    "see the accounts": "$SYS.REQ.SERVER.PING.JSZ",
    "give itself another account": "$SYS.REQ.CLAIMS.UPDATE",
    "reload the server": "$SYS.REQ.SERVER.{me}.RELOAD",
}
"""What a worker asks, or says, beyond its own."""


@dataclass
class Border:
    """A provisioned server in operator mode, a watcher of the core, and guests who may do anything in their accounts."""

    directory: NetworkDirectory
    trust: Trust
    users: tuple[NatsUser, ...]
    server: EmbeddedServer
    stack: AsyncExitStack
    watcher: NatsBus
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    def fill(self, pattern: str, me: str = "worker-1", other: str = "worker-2") -> str:
        """Return a subject with its participants."""
        ids = {"me": me, "other": other, "user": "grace"}
        named = {name: self.directory.signing_key(who).participant_id for name, who in ids.items()}
        return pattern.format(job=JOB, model=MODEL.hex(), **named)

    async def open_rogue(self, name: str) -> NatsBus:
        """Connect into a guest's account with credentials that its owner might have made: no permission set at all."""
        account = read_secret(self.directory.path / "trust" / "accounts" / f"{name}.seed")
        key = make_key_pair(KeyKind.USER, secrets.token_bytes(32))
        free = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        claims = {"sub": key.public, "name": name, "nats": {"type": "user", "version": 2, **free}}
        token = sign_claims(account, claims, issued_s=int(time.time()))
        text = CREDENTIALS_TEXT.format(jwt=token, seed=key.seed)
        settings = NatsSettings(url=self.server.url, name=name, nkey_seed=text)
        return await self.stack.enter_async_context(connect_bus(settings))

    async def open(self, name: str) -> NatsBus:
        """Connect as the party of this name."""
        settings = NatsSettings.of(self.directory, self.server.url, name)
        return await self.stack.enter_async_context(connect_bus(settings))

    async def look(self) -> dict[str, Any]:
        """Return what everybody else depends on: what the streams hold, how they are set, and who has read how far."""
        js = self.watcher.client.jetstream()
        state: dict[str, Any] = {}
        for info in await js.streams_info():
            name = str(info.config.name)
            state[name] = (info.state.messages, info.state.last_seq, repr(info.config))
            for one in await js.consumers_info(name):
                if f"{one.stream_name}.{one.name}" != GENERATE:  # whose tasks a worker may take
                    state[f"{one.stream_name}.{one.name}"] = (
                        one.num_pending,
                        one.num_ack_pending,
                        one.ack_floor,
                        one.num_waiting,
                    )
        return state

    async def fence(self) -> None:
        """Wait until everything that was said before has been heard."""
        mark = secrets.token_hex(8)
        await self.watcher.publish_core(f"fence.{mark}", b"")
        async with asyncio.timeout(WAIT_S):
            while (f"fence.{mark}", b"") not in self.heard:
                await self.watcher.client.flush()
                await asyncio.sleep(0)

    @asynccontextmanager
    async def hear(self, subject: str) -> AsyncIterator[list[bytes]]:
        """Collect what arrives in the core on one subject: a delivery keeps the name under which it was stored."""
        arrived: list[bytes] = []

        async def note(message: Any) -> None:
            arrived.append(message.data)

        subscription = await self.watcher.client.subscribe(subject, cb=note)
        await self.watcher.client.flush()
        try:
            yield arrived
        finally:
            await subscription.unsubscribe()

    def take_heard(self) -> list[str]:
        """Return the subjects heard in the core since the last time, without the watcher's own questions."""
        subjects = [subject for subject, _ in self.heard]
        self.heard.clear()
        own = ("fence.", "_INBOX.watcher", "$JS.API.STREAM.LIST", "$JS.API.CONSUMER.LIST", "$JS.EVENT")
        return [one for one in subjects if not one.startswith(own)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def border(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Border]:
    folder = tmp_path_factory.mktemp("accounts")
    plan = NetworkPlan("test", ("ada", "grace"), ("worker-1", "worker-2"), period_s=1)
    directory = create_network(folder / "network", plan)
    watcher_key = make_key_pair(KeyKind.USER, secrets.token_bytes(32))
    seed_file = directory.path / "transport" / "watcher.seed"
    seed_file.touch(mode=0o600)
    seed_file.write_text(watcher_key.seed)
    trust = Trust(directory)
    trust.issue("watcher")
    parties = load_parties(directory)
    watcher_user = NatsUser("watcher", watcher_key.public, publish_allow=(">",), subscribe_allow=(">",))
    users = (*compute_users(directory, parties, [MODEL]), watcher_user)
    async with AsyncExitStack() as stack:
        settings = ServerSettings(
            folder / "nats", operator=compute_operator(directory, users), sync_always=False
        )
        server = await stack.enter_async_context(EmbeddedServer(settings))

        def connect(name: str) -> Any:
            return stack.enter_async_context(connect_bus(NatsSettings.of(directory, server.url, name)))

        await provision(
            (await connect(PROVISIONER)).client.jetstream(),
            get_stream_specs(directory.genesis.bounds),
            get_consumer_specs(get_workers(parties), [MODEL]),
        )
        border = Border(directory, trust, users, server, stack, await connect("watcher"))

        async def note(message: Any) -> None:
            border.heard.append((message.subject, message.data))

        await border.watcher.client.subscribe(">", cb=note)
        for subject in ("jobs.admitted." + JOB, "outcomes.decided." + JOB, "tasks.verify." + "U" * 56):
            await border.watcher.publish(subject, b"theirs")
        for number in range(40):
            await border.watcher.publish(f"tasks.generate.{MODEL.hex()}", b"task %d" % number)
        yield border


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rogue(border: Border) -> NatsBus:
    return await border.open_rogue("worker-1")


async def test_a_worker_takes_its_tasks_and_says_its_own(border: Border) -> None:
    """Across the border: a pull, an acknowledgement, a stored result, a round, tokens to a user of another account."""
    worker, ada = await border.open("worker-1"), await border.open("ada")
    user = border.directory.signing_key("ada").participant_id
    async with worker.pull("TASKS", GENERATE.removeprefix("TASKS."), credit=2) as batches:
        (task,) = await anext(batches)
        assert task.data.startswith(b"task")
        await task.ack()
    assert await worker.publish(border.fill("results.completed.{me}.{job}"), b"mine", message_id="1") >= 1
    assert await worker.publish(border.fill("leases.requested.{me}"), b"mine", message_id="2") >= 1
    async with worker.subscribe_core("beacon.rounds") as rounds:
        await border.watcher.publish("beacon.rounds", b"round")
        assert (await anext(rounds)).data == b"round"
    for kind in ("tokens", "scores"):
        subject = f"{kind}.{user}.{JOB}.{border.directory.signing_key('worker-1').participant_id}"
        async with ada.subscribe_core(f"{kind}.{user}.*.*") as heard, asyncio.timeout(WAIT_S):
            await worker.publish_core(subject, b"chunk")
            message = await anext(heard)
            assert (message.subject, message.data) == (subject, b"chunk")


async def test_a_user_submits_hears_and_asks_again(border: Border) -> None:
    ada = await border.open("ada")
    user = border.directory.signing_key("ada").participant_id
    assert await ada.publish("jobs.submitted", b"job", message_id="3") >= 1
    async with ada.subscribe_core(f"jobs.events.{user}.*") as events, asyncio.timeout(WAIT_S):
        await border.watcher.publish(f"jobs.events.{user}.{JOB}", b"event")
        assert (await anext(events)).data == b"event"
    record = await ada.get_last("RECORD", f"jobs.events.{user}.{JOB}")
    assert record is not None
    assert record.data == b"event"
    async with border.watcher.serve_requests("queries.balance.*", _answer):
        assert await ada.request(f"queries.balance.{user}", b"?", WAIT_S) == b"much"


async def _answer(_message: object) -> bytes:
    return b"much"


async def test_an_observer_hears_and_reads_what_is_public_and_says_nothing(border: Border) -> None:
    observer = await border.open("observer")
    async with observer.subscribe_core("payouts.settled.*") as payouts, asyncio.timeout(WAIT_S):
        await border.watcher.publish(f"payouts.settled.{JOB}", b"paid")
        assert (await anext(payouts)).data == b"paid"
    record = await observer.get_last("RECORD", f"payouts.settled.{JOB}")
    assert record is not None
    for subject in (f"payouts.settled.{JOB}", f"jobs.admitted.{JOB}"):
        with pytest.raises(BusError, match="denied"):
            await observer.publish(subject, b"forged", message_id="4")
    with pytest.raises(BusError, match="denied"):
        await observer.get_last("RECORD", f"jobs.admitted.{JOB}")


@pytest.mark.parametrize("name", REPLIES)
async def test_a_chosen_reply_stays_in_the_account_that_chose_it(
    border: Border, rogue: NatsBus, name: str
) -> None:
    """The pull is the worker's right; where its answer goes is nobody else's business."""
    target = border.fill(REPLIES[name])
    before = await border.look()
    victim: list[bytes] = []

    async def note(message: Any) -> None:
        victim.append(message.data)

    other = await border.open_rogue("worker-2")
    await other.client.subscribe(target, cb=note)
    await other.client.flush()
    async with border.hear(target) as arrived:
        request = json.dumps({"batch": 1, "no_wait": True}).encode()
        await rogue.client.publish(PULL + GENERATE, request, reply=target)
        await rogue.client.flush()
        await border.fence()
        await other.client.flush()
    assert (arrived, victim) == ([], [])
    assert await border.look() == before


def verify_own(border: Border, answer: str) -> None:
    """Assert that what the server says of connections is of the worker's own account."""
    others = (CORE, "ada", "grace", "worker-2", "observer")
    assert not [name for name in others if border.trust.get_account(name) in answer]
    assert not [user.name for user in border.users if user.name != "worker-1" and f'"{user.name}"' in answer]


async def test_in_one_account_the_same_pull_is_stored_as_a_verdict(tmp_path: Path) -> None:
    """The attack itself, where nothing stops it: the reason for accounts."""
    async with EmbeddedServer(ServerSettings(tmp_path / "nats", sync_always=False)) as server:
        async with connect_bus(NatsSettings(url=server.url, name="worker-1")) as bus:
            directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1",)))
            specs = get_stream_specs(directory.genesis.bounds), get_consumer_specs((), [MODEL])
            await provision(bus.client.jetstream(), *specs)
            await bus.publish(f"tasks.generate.{MODEL.hex()}", b"task")
            request = json.dumps({"batch": 1, "no_wait": True}).encode()
            await bus.client.publish(PULL + GENERATE, request, reply=f"outcomes.decided.{JOB}")
            js = bus.client.jetstream()
            async with asyncio.timeout(WAIT_S):
                while (await js.stream_info("RECORD")).state.messages == 0:
                    await bus.client.flush()


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_worker_cannot(border: Border, rogue: NatsBus, name: str) -> None:
    """Nothing is stored, read, changed, heard in the core, or answered but by an error."""
    subject = border.fill(REQUESTS[name])
    before = await border.look()
    await border.fence()
    border.take_heard()
    body = b'{"batch": 1, "no_wait": true}' if subject.startswith(PULL) else b'{"seq": 1, "name": "MINE"}'
    try:
        answer: Any = await rogue.client.request(subject, body, timeout=PATIENCE_S)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        answer = None
    if answer is not None and "error" not in (body := json.loads(answer.data)):
        assert "connections" in body["data"], body
        verify_own(border, answer.data.decode())
    await border.fence()
    assert border.take_heard() == []
    assert await border.look() == before


async def test_a_guest_hears_nobody_else(border: Border, rogue: NatsBus) -> None:
    """Subscribed to everything, it hears what is said to all and to itself: nothing of other guests, nothing of services."""
    heard: list[str] = []

    async def note(message: Any) -> None:
        heard.append(message.subject)

    subscription = await rogue.client.subscribe(">", cb=note)
    await rogue.client.flush()
    other, grace = (border.directory.signing_key(name).participant_id for name in ("worker-2", "grace"))
    for subject in (
        f"tasks.verify.{other}",
        f"leases.granted.{other}",
        f"challenges.issued.{other}",
        f"jobs.events.{grace}.{JOB}",
        f"jobs.admitted.{JOB}",
        f"openings.accepted.{JOB}",
    ):
        await border.watcher.publish(subject, b"not for it")
    await border.watcher.publish_core(f"tokens.{grace}.{JOB}.{other}", b"not for it")
    await border.watcher.publish("beacon.rounds", b"the last one")
    async with asyncio.timeout(WAIT_S):
        while "beacon.rounds" not in heard:
            await rogue.client.flush()
    await subscription.unsubscribe()
    assert set(heard) == {"beacon.rounds"}


@pytest.mark.parametrize(
    "pattern",
    [
        "results.completed.{me}.{job}",
        "openings.submitted.{me}.{job}",
        "tokens.{me}.{job}.{other}",
        "scores.{me}.{job}.{other}",
        "payouts.settled.{job}",
        "challenges.requested.{other}.{job}",
        "withdrawals.requested.user.{other}",
        "queries.receipt.{other}.{job}",
        "queries.balance.{other}",
        "$JS.API.DIRECT.GET.RECORD.jobs.events.{other}.{job}",
        PULL + GENERATE,
        PULL + "SUBMISSIONS.router",
    ],
)
async def test_a_user_cannot(border: Border, pattern: str) -> None:
    ada = await border.open_rogue("ada")
    before = await border.look()
    await border.fence()
    border.take_heard()
    with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
        await ada.client.request(border.fill(pattern, "ada", "grace"), b"{}", timeout=PATIENCE_S)
    await border.fence()
    assert border.take_heard() == []
    assert await border.look() == before


async def test_what_the_core_offers_is_no_more_than_what_guests_import(border: Border) -> None:
    """Nothing that manages streams, no other service's inbox, and each guest's import is inside an export."""
    guests = [user for user in border.users if user.is_guest]
    services, streams = compute_exports(guests)
    for subject in services:
        api = subject.removeprefix("$JS.API.")
        assert api == subject or api.startswith(("CONSUMER.MSG.NEXT.", "DIRECT.GET.")), subject
        assert not subject.startswith((">", "*", "_INBOX", "$SYS"))
    for guest in guests:
        assert all(any(is_covered(one, by) for by in services) for one in guest.publish_allow)
        own = border.directory.transport_seed(guest.name) and guest.relayed
        heard = [one for one in guest.subscribe_allow if not one.startswith("_INBOX.") and one not in own]
        assert all(any(is_covered(one, by) for by in streams) for one in heard)


# --- users: expiry, revocation, rotation -----------------------------------------------------------------------


async def test_an_expired_jwt_is_refused_here_and_by_the_server(
    border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here before any connection, with what to do; and by the server, for who does not ask."""
    directory = border.directory
    seed = read_secret(directory.path / "transport" / "grace.seed")
    signer = read_secret(directory.path / "trust" / "signers" / "grace.seed")
    now_s = int(time.time())
    claims = _claims(border, "grace", seed, expires_s=now_s - 60)
    token = sign_claims(signer, claims, issued_s=now_s - 120)
    text = CREDENTIALS_TEXT.format(jwt=token, seed=seed)
    settings = NatsSettings(url=border.server.url, name="grace", nkey_seed=text)
    with pytest.raises(ConfigError, match="the user JWT of grace expired 6. s ago.*pocache keys issue grace"):
        async with connect_bus(settings):
            pass
    monkeypatch.setattr("pocache.bus.nats_bus.verify_unexpired", lambda *_: None)
    with pytest.raises(BusError, match=r"(refuses the user of|user JWT of) grace"):
        async with connect_bus(settings):
            pass


async def test_a_connection_ends_when_its_jwt_does(border: Border) -> None:
    """The process learns why: its connection is closed for good, and the reason says what to ask for."""
    directory = border.directory
    seed = read_secret(directory.path / "transport" / "grace.seed")
    signer = read_secret(directory.path / "trust" / "signers" / "grace.seed")
    claims = _claims(border, "grace", seed, expires_s=int(time.time()) + 6)
    token = sign_claims(signer, claims, issued_s=int(time.time()))
    text = CREDENTIALS_TEXT.format(jwt=token, seed=seed)
    async with connect_bus(NatsSettings(url=border.server.url, name="grace", nkey_seed=text)) as bus:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(BusError, match="the user JWT of grace has expired.*pocache keys issue grace"):
                await bus.wait_closed()


async def test_a_revoked_user_is_cut_off_and_nobody_else(border: Border) -> None:
    """Its key rotated, the old connection ends once the server knows; the new credentials connect."""
    bystander, victim = await border.open("ada"), await border.open("worker-2")
    old = border.directory.transport_seed("worker-2")
    await asyncio.sleep(0)
    issued = border.trust.rotate("worker-2")
    assert issued.account == "worker-2"
    await border.server.reload(operator=compute_operator(border.directory, border.users))
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BusError, match="operator has revoked the user worker-2"):
            await victim.wait_closed()
    with pytest.raises(BusError, match="worker-2"):
        async with connect_bus(NatsSettings(url=border.server.url, name="worker-2", nkey_seed=old)):
            pass
    assert bystander.is_connected
    assert await bystander.publish("jobs.submitted", b"still here", message_id="5") >= 1
    renewed = await border.open("worker-2")
    assert await renewed.publish(border.fill("leases.requested.{other}"), b"back", message_id="6") >= 1


async def test_a_replaced_signing_key_ends_all_that_it_signed(border: Border) -> None:
    old = border.directory.transport_seed("observer")
    observer = await border.open("observer")
    border.trust.rotate_signers(["observer"])
    await border.server.reload(operator=compute_operator(border.directory, border.users))
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BusError, match="observer"):
            await observer.wait_closed()
    with pytest.raises(BusError, match="refuses the user of observer"):
        async with connect_bus(NatsSettings(url=border.server.url, name="observer", nkey_seed=old)):
            pass
    assert (await border.open("observer")).is_connected


async def test_a_jwt_of_another_key_or_signer_is_refused(border: Border) -> None:
    """Somebody's JWT beside one's own seed is refused here; a JWT that one has signed for oneself, by the server."""
    token = read_secret(border.directory.path / "transport" / "ledger.jwt")
    seed = read_secret(border.directory.path / "transport" / "worker-1.seed")
    stolen = NatsSettings(
        url=border.server.url, name="worker-1", nkey_seed=CREDENTIALS_TEXT.format(jwt=token, seed=seed)
    )
    with pytest.raises(ConfigError, match="another key than the seed"):
        async with connect_bus(stolen):
            pass
    forged_signer: KeyPair = make_key_pair(KeyKind.ACCOUNT, secrets.token_bytes(32))
    claims = _claims(border, CORE, seed, expires_s=None)
    text = CREDENTIALS_TEXT.format(
        jwt=sign_claims(forged_signer.seed, claims, issued_s=int(time.time())), seed=seed
    )
    with pytest.raises(BusError, match="refuses the user of"):
        async with connect_bus(NatsSettings(url=border.server.url, name="ledger", nkey_seed=text)):
            pass


async def test_in_a_shared_account_a_chosen_reply_reaches_another(border: Border, rogue: NatsBus) -> None:
    """Why each guest has an account of its own: of two in one, the one makes the server write to the other's inbox."""
    second = await border.open_rogue("worker-1")
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def note(message: Any) -> None:
        arrived.put_nowait(message.data)

    await second.client.subscribe("_INBOX.worker-2.forged", cb=note)
    await second.client.flush()
    request = json.dumps({"batch": 1, "no_wait": True}).encode()
    await rogue.client.publish(PULL + GENERATE, request, reply="_INBOX.worker-2.forged")
    async with asyncio.timeout(WAIT_S):
        assert (await arrived.get()).startswith(b"task")


def _claims(border: Border, name: str, seed: str, *, expires_s: int | None) -> dict[str, Any]:
    return compute_user_claims(name, read_public(seed), border.trust.get_account(name), expires_s=expires_s)
