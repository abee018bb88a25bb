"""A participant that the test plays by hand: its own keys, its own NATS user, and the honest moves of its role.

It speaks to a running network as the real worker does, so that a test may do one thing wrong among many right ones.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kit.wealth import WAIT_S, wait_record
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.client import Job
from pocache.engine.fake import FakeEngine
from pocache.engine.port import GenerateRequest, VerifyRequest
from pocache.protocol.beacon import compute_round_at
from pocache.protocol.challenge import Corner
from pocache.protocol.commitment import compute_binding_digest
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.ids import JobId
from pocache.protocol.keys import SigningKey
from pocache.protocol.merkle import MerkleTree
from pocache.runtime.network import Genesis
from pocache.service.dispatch import read_clock_ms
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope, seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Stream, Topic
from pocache_cli.local_network import LocalNetwork
from pocache_worker.grants import compute_binding, read_sampling, verify_grant

M = TypeVar("M", bound=WireModel)


class Hand:
    """One participant's hand; made by :func:`open_hand`."""

    def __init__(self, network: LocalNetwork, bus: NatsBus, name: str) -> None:
        self.network = network
        self.bus = bus
        self.name = name
        self.key: SigningKey = network.directory.signing_key(name)
        self.participant = self.key.participant_id

    @property
    def genesis(self) -> Genesis:
        """The network's genesis."""
        return self.network.directory.genesis

    def seal(self, body: WireModel, key: SigningKey | None = None) -> bytes:
        """Return a signed envelope, by another's key if one is given."""
        return seal(key or self.key, self.genesis.network_id, body)

    async def say(self, topic: Topic[M], body: M, **tokens: str | bytes) -> bytes:
        """Say ``body``, signed, on a subject of its own."""
        data = self.seal(body)
        await self.publish(topic, data, **tokens)
        return data

    async def publish(self, topic: Topic[Any], data: bytes, **tokens: str | bytes) -> None:
        """Publish bytes as they are; two publishes are never taken for a repetition of one."""
        names = ("user", "worker", "verifier", "participant")
        own = {name: self.participant for name in names if f"{{{name}}}" in topic.pattern}
        await self.bus.publish(topic.subject(**{**own, **tokens}), data)

    async def expect_refusal(
        self, topic: Topic[Any], data: bytes, role: Role, **tokens: str | bytes
    ) -> m.RefusalV1:
        """Publish bytes and return the one refusal of them that this participant hears, signed by the service."""
        ref = hashlib.sha256(data).digest()
        async with self.bus.subscribe_core(t.REFUSALS[role].filter()) as heard:
            await self.publish(topic, data, **tokens)
            async with asyncio.timeout(WAIT_S):
                async for message in heard:
                    opened = open_envelope(message.data, self.genesis.network_id, m.RefusalV1)
                    if opened.body.message_hash == ref:
                        break
        assert opened.sender == self.genesis.signer(role)
        assert message.subject == t.REFUSALS[role].subject(ref=ref)
        async with asyncio.timeout(WAIT_S):  # what is heard may not be stored yet
            while not (stored := await read_refusals(self.network, role, ref)):
                pass
        assert len(stored) == 1
        return opened.body


@dataclass(frozen=True)
class Committed:
    """Leaves that somebody promised: what it opens them from."""

    leaves: Sequence[bytes]

    @property
    def tree(self) -> MerkleTree:
        """The tree over the leaves."""
        tree = MerkleTree()
        for leaf in self.leaves:
            tree.append(leaf)
        return tree

    def open(self, challenge: m.ChallengeIssuedV1, **changes: Any) -> m.OpeningV1:
        """Return the honest opening in one part; ``changes`` falsify its fields."""
        positions = unpack_tokens(challenge.positions)
        fields = {
            "job_id": challenge.job_id,
            "attempt": challenge.attempt,
            "stage": challenge.stage,
            "retry": challenge.retry,
            "part": 0,
            "part_count": 1,
            "positions": challenge.positions,
            "leaves": tuple(self.leaves[position] for position in positions),
            "proof": b"".join(self.tree.multiproof(list(positions))),
        }
        return m.OpeningV1(**{**fields, **changes})


@asynccontextmanager
async def open_hand(network: LocalNetwork, name: str) -> AsyncIterator[Hand]:
    """Connect as a participant, with exactly its permissions."""
    settings = NatsSettings(
        url=network.server.url, name=name, nkey_seed=network.directory.transport_seed(name)
    )
    async with connect_bus(settings) as bus:
        yield Hand(network, bus, name)


async def read_refusals(network: LocalNetwork, role: Role, ref: bytes) -> list[bytes]:
    """Return the refusals of one message that a service has stored."""
    subject = t.REFUSALS[role].subject(ref=ref)
    return [record.data async for record in network.operator.read(Stream.REFUSALS.value, subject=subject)]


async def lease(worker: Hand, job: Job, attempt: int = 1) -> m.LeaseGrantedV1:
    """Ask for an attempt, and return what the router grants."""
    request = m.LeaseRequestV1(job_id=job.job_id, attempt=attempt, requested_ms=read_clock_ms())
    topic = t.LEASE_GRANTED.filter(worker=worker.participant)
    async with worker.network.operator.subscribe_core(topic) as heard:
        await worker.say(t.LEASE_REQUESTED, request)
        async with asyncio.timeout(WAIT_S):
            async for message in heard:
                granted = open_envelope(message.data, worker.genesis.network_id, m.LeaseGrantedV1).body
                if (granted.job_id, granted.attempt) == (job.job_id, attempt):
                    break
    return granted


def generate(worker: Hand, engine: FakeEngine, granted: m.LeaseGrantedV1) -> tuple[m.ResultV1, Committed]:
    """Generate honestly under a lease, and return the result with the leaves behind it."""
    found = engine.capabilities()
    model = worker.network.directory.load_models()[found.model_id]
    grant = verify_grant(granted, genesis=worker.genesis, model=model, participant=worker.participant)
    request = GenerateRequest(
        job_id=grant.job_id,
        attempt=grant.lease.attempt,
        prompt=grant.prompt,
        max_tokens=grant.lease.token_count_max,
        sampling=grant.sampling,
        seed=grant.lease.seed,
        eos_stop=grant.lease.eos_stop,
        network=worker.genesis.network_id,
    )
    capture = engine.generate(request, lambda _tokens: None, lambda: False)
    leaves = Committed(capture.leaves)
    output = pack_tokens(capture.output)
    binding = compute_binding(grant, network=worker.genesis.network_id, stack=found.stack, output=output)
    result = m.ResultV1(
        job_id=granted.job_id,
        attempt=granted.attempt,
        lease=granted.lease,
        output=output,
        finish_reason=capture.finish_reason,
        leaf_count=len(capture.leaves),
        root=leaves.tree.root(),
        binding=compute_binding_digest(binding),
        stack=found.stack,
        latest_round=compute_round_at(worker.genesis.beacon_chain, read_clock_ms()) - 1,
    )
    return result, leaves


async def announce_verifier(worker: Hand, engine: FakeEngine) -> None:
    """Announce that this participant verifies a model, and return when it may be drawn."""
    body = m.MemberV1(
        generates=False,
        verifies=True,
        model_ids=(engine.capabilities().model_id,),
        stack=engine.capabilities().stack,
        announced_ms=read_clock_ms(),
    )
    await worker.say(t.MEMBER_ANNOUNCED, body)
    await worker.network.wait_members([worker.name])


async def take_verify_task(worker: Hand) -> m.VerifyTaskV1:
    """Pull the next verification task that this participant was drawn for."""
    async with worker.bus.pull(Stream.TASKS.value, f"verify-{worker.participant}", credit=1) as batches:
        async with asyncio.timeout(WAIT_S):
            [message] = await anext(batches)
        await message.ack()
    return open_envelope(message.data, worker.genesis.network_id, m.VerifyTaskV1).body


def verify(worker: Hand, engine: FakeEngine, task: m.VerifyTaskV1) -> tuple[m.ClaimSealedV1, Committed]:
    """Re-run a task honestly, and return the claim with the leaves behind it."""
    corner = Corner(task.corner.layer_max, task.corner.position_max, task.corner.full_depth)
    request = VerifyRequest(
        job_id=JobId(task.job_id),
        tokens=unpack_tokens(task.tokens),
        prompt_count=task.prompt_count,
        corner=corner,
        sampling=read_sampling(task.sampling),
        seed=task.seed,
        network=worker.genesis.network_id,
    )
    [capture] = engine.verify([request])
    leaves = Committed(capture.leaves)
    claim = m.ClaimSealedV1(
        job_id=task.job_id,
        attempt=task.attempt,
        stage=task.stage,
        retry=task.retry,
        corner=task.corner,
        leaf_count=len(capture.leaves),
        root=leaves.tree.root(),
        stack=engine.capabilities().stack,
    )
    return claim, leaves


async def wait_challenge(worker: Hand) -> m.ChallengeIssuedV1:
    """Wait until this participant is asked to open something; the last time it was, where it was before."""
    return await wait_record(worker.network, t.CHALLENGE_ISSUED, worker=worker.participant)
