"""Bad input on a running network: one clear refusal to its sender, the services go on, no money moves.

Everything is published by a real connection with its sender's own permissions. Two workers and a model are played by
hand: nobody else serves that model, so that what is wrong is wrong at a known moment of a job's life.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from kit.hand import (
    Hand,
    announce_verifier,
    generate,
    lease,
    open_hand,
    read_refusals,
    take_verify_task,
    verify,
    wait_challenge,
)
from kit.health import find_health_port, get_status
from kit.local import GENERATORS, SECTIONS, VERIFIERS, start_network, verify_money, wait_settled
from kit.wealth import (
    RULES,
    Wealth,
    compute_changes,
    read_jobs,
    read_topic,
    read_wealth,
    verify_changes,
    wait_record,
)
from pocache.client import Job, PocacheClient, RefusedError, open_client
from pocache.engine.fake import FakeEngine
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.errors import BusError, LimitError
from pocache.protocol.ids import ModelId
from pocache.protocol.keys import SigningKey
from pocache.protocol.lifecycle import Phase
from pocache.protocol.limits import ESCROW_ENTRY_BYTES, NEW_ACCOUNTS_BYTES_MAX, PAYLOAD_BYTES_MAX
from pocache.service.dispatch import read_clock_ms
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import compute_preimage, open_envelope, parse_envelope, seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Role, Stream, Topic
from pocache_cli.local_network import LocalNetwork

SERVED, BY_HAND = "kit", "by-hand"
USERS = ("ada", "mallory", "trent", "pauper", "poor")
OUTSIDER, WATCHER, BYSTANDER = "outsider", "watcher", "bystander"
IDLE = (OUTSIDER, WATCHER, BYSTANDER)
EVERYBODY = (*USERS, *GENERATORS, *VERIFIERS, *IDLE)
SERVICES = ("router", "commitments", "beacon", "verifier", "ledger", "generators", "verifiers")
SETTLE_S = 60.0
POOR_MICRO = 1_000
CONTEXT = 4_096
VOCABULARY = 259

BRISK: Mapping[str, Mapping[str, Any]] = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "lottery_share": "0/1", "window_rounds": 4},
    "deadlines": {**SECTIONS["deadlines"], "lease_ticks": 5},
    "rules": RULES,
}
"""No lottery: who is audited is the test's choice. Leases are short: one of them is let to lapse."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@dataclass
class Ground:
    """The network, everybody's connections, and the good jobs that follow each bad message."""

    network: LocalNetwork
    hands: dict[str, Hand]
    clients: dict[str, PocacheClient]
    ports: dict[Role, int]
    good: list[Job] = field(default_factory=list)
    refused: list[tuple[Role, bytes]] = field(default_factory=list)

    @property
    def served(self) -> ModelId:
        """The model that real workers serve."""
        return FakeEngine(SERVED).capabilities().model_id

    async def submit_good(self) -> Job:
        """Submit an honest job, and see it taken; that it settles is checked at the end."""
        prompt = tuple(secrets.token_bytes(5))
        job = await self.clients["ada"].submit(self.served, prompt, token_count_max=4)
        self.good.append(job)
        await self.clients["ada"].wait(job, Phase.QUEUED)
        return job


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """Everything at work; at the end every good job was settled and every refusal was the only one."""
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            start_network(
                tmp_path_factory.mktemp("bad"),
                model=f"fake:{SERVED}",
                users=tuple(name for name in USERS if name != "pauper"),
                sections=BRISK,
                idle_workers=IDLE,
                idle_models=(f"fake:{BY_HAND}",),
                idle_users=("pauper",),
                money={"poor": POOR_MICRO},
            )
        )
        hands, clients = {}, {}
        for name in (*USERS, *IDLE):
            hands[name] = await stack.enter_async_context(open_hand(network, name))
        for name in USERS:
            opened = open_client(hands[name].bus, network.directory.genesis, hands[name].key)
            clients[name] = await stack.enter_async_context(opened)
        started = {name: network.children[name].pid for name in SERVICES}
        roles = (Role.ROUTER, Role.COMMITMENTS, Role.VERIFIER, Role.LEDGER)
        ports = {role: find_health_port(network, role.value) for role in roles}
        ground = Ground(network, hands, clients, ports)
        yield ground
        await wait_settled(clients["ada"], ground.good, SETTLE_S)
        await verify_money(network, ground.good)
        for role, ref in ground.refused:
            assert len(await read_refusals(network, role, ref)) == 1
        assert {name: network.children[name].pid for name in SERVICES} == started, "a service was restarted"


def submission(ground: Ground, **changes: Any) -> m.SubmissionV1:
    """Return a submission in which nothing is wrong but ``changes``."""
    now_ms = read_clock_ms()
    fields = {
        "model_id": ground.served,
        "prompt": pack_tokens((1, 2, 3)),
        "token_count_max": 4,
        "sampling": m.SamplingV1(),
        "salt": secrets.token_bytes(16),
        "created_ms": now_ms,
        "expires_ms": now_ms + 60_000,
        **changes,
    }
    return m.SubmissionV1(**fields)


def seal_fields(hand: Hand, body: WireModel, changes: Mapping[str, Any]) -> bytes:
    """Return a properly signed envelope of fields that the model itself would refuse."""
    return seal_payload(hand, body.kind, msgpack.packb({**body.model_dump(mode="python"), **changes}))


def seal_payload(hand: Hand, kind: str, payload: bytes) -> bytes:
    """Return a properly signed envelope of any payload."""
    sig = hand.key.sign(compute_preimage(hand.genesis.network_id, kind, payload))
    return pack_envelope(kind, payload, hand.participant, sig)


def pack_envelope(kind: str, payload: bytes, kid: str, sig: bytes) -> bytes:
    """Return an envelope's bytes."""
    packed: bytes = msgpack.packb({"kind": kind, "payload": payload, "kid": kid, "sig": sig})
    return packed


def sampling_fields(**changes: Any) -> Callable[[Ground], bytes]:
    """Return what makes a submission with these sampling parameters, signed."""

    def make(ground: Ground) -> bytes:
        body = submission(ground)
        sampling = {**body.sampling.model_dump(), **changes}
        return seal_fields(ground.hands["mallory"], body, {"sampling": sampling})

    return make


def changed(**changes: Any) -> Callable[[Ground], bytes]:
    """Return what makes a submission with these fields, signed."""
    return lambda ground: seal_fields(ground.hands["mallory"], submission(ground), changes)


def by_another(ground: Ground) -> bytes:
    """Claim to be ada, signing with mallory's key."""
    mallory = ground.hands["mallory"]
    envelope = parse_envelope(mallory.seal(submission(ground)))
    return pack_envelope(envelope.kind, envelope.payload, ground.hands["ada"].participant, envelope.sig)


def flipped(ground: Ground) -> bytes:
    """Change one bit of the signature."""
    data = bytearray(ground.hands["mallory"].seal(submission(ground)))
    data[data.rindex(parse_envelope(bytes(data)).sig) + 7] ^= 1
    return bytes(data)


def tampered(ground: Ground) -> bytes:
    """Change the payload after it was signed."""
    envelope = parse_envelope(ground.hands["mallory"].seal(submission(ground)))
    body = msgpack.unpackb(envelope.payload)
    payload = msgpack.packb({**body, "token_count_max": 5})
    return pack_envelope(envelope.kind, payload, envelope.kid, envelope.sig)


def of_another_network(ground: Ground) -> bytes:
    """Sign for another network."""
    other = type(ground.network.directory.genesis.network_id)(b"\x05" * 32)
    return seal(ground.hands["mallory"].key, other, submission(ground))


def nested(depth: int) -> bytes:
    """Return arrays in arrays."""
    return b"\x91" * depth + b"\xc0"


PROMPT_TOO_LONG = pack_tokens(tuple(index % 250 for index in range(CONTEXT)))
EMPTY_PAYLOAD = b"\x80"

SUBMISSIONS: Sequence[tuple[str, str, Callable[[Ground], bytes]]] = (
    ("unknown model", "E201", changed(model_id=b"\x07" * 32)),
    ("prompt over the limit", "E202", changed(prompt=PROMPT_TOO_LONG)),
    ("prompt over every limit", "E101", changed(prompt=bytes(4 * 65_537))),
    ("empty prompt", "E202", changed(prompt=b"")),
    ("token outside the vocabulary", "E202", changed(prompt=pack_tokens((1, VOCABULARY)))),
    ("prompt that is no tokens", "E105", changed(prompt=b"abcde")),
    ("negative temperature", "E101", sampling_fields(temperature_micro=-1)),
    ("absurd temperature", "E101", sampling_fields(temperature_micro=10**12)),
    ("temperature that is no integer", "E101", sampling_fields(temperature_micro=0.5)),
    ("negative top_k", "E101", sampling_fields(top_k=-1)),
    ("top_k beyond the vocabulary", "E203", sampling_fields(top_k=VOCABULARY + 1)),
    ("top_p of zero", "E101", sampling_fields(top_p_micro=0)),
    ("top_p above one", "E101", sampling_fields(top_p_micro=1_000_001)),
    ("no output asked for", "E101", changed(token_count_max=0)),
    ("negative output", "E101", changed(token_count_max=-4)),
    ("unknown field", "E101", changed(surprise=1)),
    ("expired", "E206", changed(expires_ms=1)),
    ("from the future", "E206", changed(created_ms=2**52, expires_ms=2**53)),
    ("no msgpack at all", "E101", lambda _ground: b"\xc1" + secrets.token_bytes(16)),
    ("nothing at all", "E101", lambda _ground: b""),
    ("cut short", "E101", lambda ground: ground.hands["mallory"].seal(submission(ground))[:-9]),
    (
        "bytes after the end",
        "E101",
        lambda ground: ground.hands["mallory"].seal(submission(ground)) + b"\x00",
    ),
    (
        "signed payload that is no msgpack",
        "E101",
        lambda ground: seal_payload(
            ground.hands["mallory"], "submission.v1", secrets.token_bytes(8) + b"\xc1"
        ),
    ),
    ("no envelope", "E102", lambda _ground: msgpack.packb({"nonce": secrets.token_bytes(8)})),
    (
        "wrong kind",
        "E102",
        lambda ground: ground.hands["mallory"].seal(
            m.ChallengeRequestV1(job_id=secrets.token_bytes(32), attempt=1)
        ),
    ),
    (
        "another message under the right kind",
        "E101",
        lambda ground: seal_payload(ground.hands["mallory"], "submission.v1", EMPTY_PAYLOAD),
    ),
    ("oversized", "E104", lambda _ground: secrets.token_bytes(PAYLOAD_BYTES_MAX + 700)),
    ("deeply nested", "E104", lambda _ground: nested(2_000)),
    ("bomb of nesting", "E104", lambda _ground: nested(900_000)),
    (
        "deeply nested under a signature",
        "E104",
        lambda ground: seal_payload(ground.hands["mallory"], "submission.v1", nested(50)),
    ),
    ("bad signature", "E103", flipped),
    ("payload changed after signing", "E103", tampered),
    ("signature of another participant", "E103", by_another),
    ("signed for another network", "E103", of_another_network),
)


@pytest.mark.parametrize(
    ("code", "make"), [case[1:] for case in SUBMISSIONS], ids=[one[0] for one in SUBMISSIONS]
)
async def test_a_bad_submission_is_refused_once_and_the_next_one_is_taken(
    ground: Ground, code: str, make: Callable[[Ground], bytes]
) -> None:
    """The router says why, to the sender, by a stable code; its next message is a good job."""
    before = await read_wealth(ground.network, ("mallory",))
    data = make(ground)
    refusal = await refuse(ground, "mallory", t.JOB_SUBMITTED, data, Role.ROUTER)
    assert refusal.code == code
    assert refusal.reason
    assert len(refusal.reason) < 600
    await ground.submit_good()
    assert await read_wealth(ground.network, ("mallory",)) == before


async def refuse(
    ground: Ground, name: str, topic: Topic[Any], data: bytes, role: Role, **tokens: str | bytes
) -> m.RefusalV1:
    """Publish as somebody, and return the only refusal; the service that refused is as ready as before."""
    refusal = await ground.hands[name].expect_refusal(topic, data, role, **tokens)
    ground.refused.append((role, refusal.message_hash))
    assert await get_status(ground.ports[role], "/readyz") == 200
    return refusal


@pytest.mark.parametrize("name", ["pauper", "poor"])
async def test_a_deposit_that_cannot_be_held_refuses_the_job(ground: Ground, name: str) -> None:
    """An account that the ledger never saw, and one with too little: E204, and nothing is locked."""
    client = ground.clients[name]
    job = await client.submit(ground.served, (1, 2, 3), token_count_max=8)
    with pytest.raises(RefusedError) as refused:
        await client.wait(job, Phase.QUEUED)
    assert refused.value.refusal_code == "E204"
    assert refused.value.reason
    balance = await client.balance()
    assert (balance.available_micro, balance.locked_micro) == (POOR_MICRO if name == "poor" else 0, 0)
    assert [event.phase for event in job.events] == [Phase.ESCROWING.value, Phase.REFUSED.value]
    await ground.submit_good()


async def test_whoever_has_no_money_takes_little_of_the_record(ground: Ground) -> None:
    """Many keys and large prompts while the ledger stands still: so much of them is recorded, and who pays goes on."""
    await ground.submit_good()  # known to pay, from here on
    hand = ground.hands["pauper"]
    keys = [SigningKey.generate(secrets.token_bytes(32)) for _ in range(16)]
    pid = ground.network.children["ledger"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(300):
            prompt = pack_tokens([1] * (CONTEXT - 8))
            await hand.publish(
                t.JOB_SUBMITTED, hand.seal(submission(ground, prompt=prompt), keys[number % len(keys)])
            )
        job = await ground.clients["ada"].submit(ground.served, (1, 2, 3), token_count_max=4)
        await ground.clients["ada"].wait(job, Phase.ESCROWING)  # what came before it in the queue is handled
    finally:
        os.kill(pid, signal.SIGCONT)
    ground.good.append(job)
    await ground.clients["ada"].wait(job, Phase.QUEUED)
    users = {key.participant_id for key in keys}
    taken = [body for body in await read_topic(ground.network, t.JOB_ADMITTED) if body.user in users]
    allowed = [len(body.submission) + ESCROW_ENTRY_BYTES for body in taken]
    assert NEW_ACCOUNTS_BYTES_MAX - max(allowed) < sum(allowed) <= NEW_ACCOUNTS_BYTES_MAX
    jobs = {body.job_id.hex() for body in taken}
    record_bytes, refused = 0, set[str]()
    async with asyncio.timeout(SETTLE_S):
        while refused != jobs:
            record_bytes, refused = 0, set()
            async for one in ground.network.operator.read(Stream.RECORD.value):
                name = one.subject.rsplit(".", 1)[1]
                record_bytes += len(one.data) + len(one.subject) if name in jobs else 0
                if one.subject.startswith("holds.refused."):
                    refused |= {name} & jobs
    assert record_bytes < sum(allowed), "what the bound counts is what the record takes"
    async with asyncio.timeout(SETTLE_S):
        code = ""
        while code != "E204":  # the ledger's word: the next round has made room again
            job = await ground.clients["pauper"].submit(ground.served, (1, 2, 3), token_count_max=4)
            with pytest.raises(RefusedError) as refusal:
                await ground.clients["pauper"].wait(job, Phase.QUEUED)
            code = refusal.value.refusal_code
            assert code in ("E204", "E205")


@pytest.mark.parametrize(
    ("size", "error"),
    [(PAYLOAD_BYTES_MAX + 2_000, BusError), (2 * 1_048_576, LimitError)],
    ids=["stream", "server"],
)
async def test_what_no_stream_would_store_is_refused_before_it_is_sent_on(
    ground: Ground, size: int, error: type[Exception]
) -> None:
    """The bus itself says so to the sender; the connection lives on."""
    with pytest.raises(error, match="exceed"):
        await ground.hands["mallory"].publish(t.JOB_SUBMITTED, bytes(size))
    assert ground.hands["mallory"].bus.is_connected
    await ground.submit_good()


async def test_a_replayed_envelope_is_refused_and_done_once(ground: Ground) -> None:
    """The job of the first is untouched; its user has one job and one deposit; a copy by another says as much."""
    job = await ground.submit_good()
    admitted = await wait_record(ground.network, t.JOB_ADMITTED, job=job.job_id)
    for sender in ("ada", "mallory"):
        before = await read_wealth(ground.network, ("mallory",))
        refusal = await refuse(ground, sender, t.JOB_SUBMITTED, admitted.submission, Role.ROUTER)
        assert refusal.code == "E208"
        assert await read_wealth(ground.network, ("mallory",)) == before
    assert Phase.REFUSED.value not in {event.phase for event in job.events}
    await wait_settled(ground.clients["ada"], [job], SETTLE_S)
    [payout] = await read_jobs(ground.network, [job])
    assert payout.case == "no_challenge"


def challenge(job_id: bytes) -> m.ChallengeRequestV1:
    """Return a challenge of a job's first attempt."""
    return m.ChallengeRequestV1(job_id=job_id, attempt=1)


async def test_challenges_that_nobody_may_make_are_refused(ground: Ground) -> None:
    """Of a job that does not exist; of another user's; on another's subject; in another's name; twice."""
    job = await ground.submit_good()
    await ground.clients["ada"].wait(job, Phase.COMMITTED)
    ada, mallory, topic = ground.hands["ada"], ground.hands["mallory"], t.CHALLENGE_REQUESTED
    nothing, both = secrets.token_bytes(32), (ground, "mallory", topic)
    unknown = await refuse(*both, mallory.seal(challenge(nothing)), Role.COMMITMENTS, job=nothing)
    assert unknown.code == "E207"
    foreign = await refuse(*both, mallory.seal(challenge(job.job_id)), Role.COMMITMENTS, job=job.job_id)
    assert foreign.code == "E209"
    signed = ada.seal(challenge(job.job_id))
    stolen = await refuse(*both, signed, Role.COMMITMENTS, job=job.job_id)
    assert stolen.code == "E102"
    other = secrets.token_bytes(32)
    crossed = await refuse(*both, mallory.seal(challenge(other)), Role.COMMITMENTS, job=nothing)
    assert crossed.code == "E102"


async def test_money_from_nowhere_is_refused(ground: Ground) -> None:
    """A deposit that the operator's connection carries, but that the operator did not sign."""
    before = await read_wealth(ground.network, EVERYBODY[1:2])
    mallory = ground.hands["mallory"]
    body = m.DepositV1(
        participant=mallory.participant,
        bucket="available",
        amount_micro=10**12,
        reference=secrets.token_hex(8),
    )
    topic, data = t.DEPOSITED, mallory.seal(body)
    async with mallory.bus.subscribe_core(t.REFUSALS[Role.LEDGER].filter()) as heard:
        await ground.network.operator.publish(topic.subject(participant=mallory.participant), data)
        async with asyncio.timeout(SETTLE_S):
            message = await anext(heard)
    refusal = open_envelope(message.data, ground.network.directory.genesis.network_id, m.RefusalV1).body
    assert (refusal.code, refusal.subject) == ("E102", topic.subject(participant=mallory.participant))
    ground.refused.append((Role.LEDGER, refusal.message_hash))
    assert await read_wealth(ground.network, EVERYBODY[1:2]) == before
    await ground.submit_good()


def lease_request(job_id: bytes) -> m.LeaseRequestV1:
    """Return a request for a job's first attempt."""
    return m.LeaseRequestV1(job_id=job_id, attempt=1, requested_ms=read_clock_ms())


async def test_a_worker_s_words_about_jobs_that_were_never_dispatched_are_refused(ground: Ground) -> None:
    """Lease, result, opening, claim: E207 each, or the code of what is wrong before; no stake moves."""
    before = await read_wealth(ground.network, IDLE)
    outsider, job_id = ground.hands[OUTSIDER], secrets.token_bytes(32)
    other = ground.network.directory.signing_key(GENERATORS[0])
    lease_body = forge_lease(ground, job_id)
    results = {
        "a lease that it signed itself": outsider.seal(lease_body),
        "a lease for another job": other_lease(ground, outsider.key),
        "no lease": b"\x00",
    }
    for name, lease_data in results.items():
        result = forge_result(job_id, lease_data)
        refusal = await refuse(
            ground, OUTSIDER, t.RESULT_COMPLETED, outsider.seal(result), Role.COMMITMENTS, job=job_id
        )
        assert refusal.code == "E207", name
    said: list[tuple[Topic[Any], bytes, Role, str, dict[str, bytes]]] = [
        (t.LEASE_REQUESTED, outsider.seal(lease_request(job_id)), Role.ROUTER, "E207", {}),
        (t.LEASE_REQUESTED, outsider.seal(lease_request(job_id), other), Role.ROUTER, "E102", {}),
        (t.LEASE_REQUESTED, outsider.seal(challenge(job_id)), Role.ROUTER, "E102", {}),
        (
            t.OPENING_SUBMITTED,
            outsider.seal(forge_opening(job_id)),
            Role.COMMITMENTS,
            "E207",
            {"job": job_id},
        ),
        (t.CLAIM_SEALED, outsider.seal(forge_claim(job_id)), Role.VERIFIER, "E207", {"job": job_id}),
        (t.CLAIM_SEALED, outsider.seal(forge_claim(job_id), other), Role.VERIFIER, "E102", {"job": job_id}),
        (t.MEMBER_ANNOUNCED, b"\xc1" + job_id, Role.VERIFIER, "E101", {}),
    ]
    for topic, data, role, code, tokens in said:
        refusal = await refuse(ground, OUTSIDER, topic, data, role, **tokens)
        assert refusal.code == code, topic.pattern
    await ground.submit_good()
    assert await read_wealth(ground.network, IDLE) == before


def forge_lease(ground: Ground, job_id: bytes) -> m.LeaseV1:
    """Return a lease as the router would grant it to the outsider."""
    return m.LeaseV1(
        job_id=job_id,
        attempt=1,
        generator=ground.hands[OUTSIDER].participant,
        user=ground.hands["ada"].participant,
        model_id=ground.served,
        prompt_hash=bytes(32),
        prompt_count=3,
        token_count_max=2,
        sampling=m.SamplingV1(),
        eos_stop=False,
        seed=bytes(32),
        salt=bytes(16),
        schema_digest=bytes(32),
        profile_set=bytes(32),
        granted_ms=0,
        deadline_ms=2**52,
    )


def other_lease(ground: Ground, key: SigningKey) -> bytes:
    """Return a lease of another job."""
    return seal(
        key, ground.network.directory.genesis.network_id, forge_lease(ground, secrets.token_bytes(32))
    )


def forge_result(job_id: bytes, lease_data: bytes) -> m.ResultV1:
    """Return a result under any lease."""
    return m.ResultV1(
        job_id=job_id,
        attempt=1,
        lease=lease_data,
        output=pack_tokens((4, 5)),
        finish_reason="length",
        leaf_count=4,
        root=secrets.token_bytes(32),
        binding=bytes(32),
        stack="fake/1",
        latest_round=1,
    )


def forge_opening(job_id: bytes) -> m.OpeningV1:
    """Return an opening of nothing."""
    return m.OpeningV1(
        job_id=job_id,
        attempt=1,
        stage=1,
        retry=0,
        part=0,
        part_count=1,
        positions=pack_tokens((1,)),
        leaves=(b"leaf",),
        proof=b"",
    )


def forge_claim(job_id: bytes) -> m.ClaimSealedV1:
    """Return a claim about nothing."""
    return m.ClaimSealedV1(
        job_id=job_id,
        attempt=1,
        stage=1,
        retry=0,
        corner=m.CornerV1(layer_max=0, position_max=1, full_depth=False),
        leaf_count=2,
        root=bytes(32),
        stack="fake/1",
    )


async def test_a_commitment_after_its_deadline_is_refused(ground: Ground) -> None:
    """The lease lapsed, the attempt is closed: E206; the job is offered again, and the next attempt is paid."""
    trent, outsider, engine = ground.clients["trent"], ground.hands[OUTSIDER], FakeEngine(BY_HAND)
    start = await read_wealth(ground.network, ("trent", OUTSIDER))
    job = await trent.submit(engine.capabilities().model_id, (9, 8, 7), token_count_max=3)
    await trent.wait(job, Phase.QUEUED)
    late, _ = generate(outsider, engine, await lease(outsider, job))
    await wait_record(ground.network, t.ATTEMPT_CLOSED, job=job.job_id)
    await wait_record(ground.network, t.ATTEMPT_CHARGED, job=job.job_id)
    granted = await lease(outsider, job, attempt=2)
    before = await read_wealth(ground.network, ("trent", OUTSIDER))
    refusal = await refuse(
        ground, OUTSIDER, t.RESULT_COMPLETED, outsider.seal(late), Role.COMMITMENTS, job=job.job_id
    )
    assert refusal.code == "E206"
    assert "closed" in refusal.reason
    assert await read_wealth(ground.network, ("trent", OUTSIDER)) == before
    result, _ = generate(outsider, engine, granted)
    await outsider.say(t.RESULT_COMPLETED, result, job=job.job_id)
    await wait_settled(trent, [job], SETTLE_S)
    [record] = await read_jobs(ground.network, [job])
    assert record.case == "no_challenge"
    expected = compute_changes([record])
    after = await read_wealth(ground.network, ("trent", OUTSIDER))
    fee = Wealth(stake=-RULES["lease_fee_micro"])  # type: ignore[operator]
    assert after[trent.user] - start[trent.user] == expected[trent.user]
    assert after[outsider.participant] - start[outsider.participant] == expected[outsider.participant] + fee


async def test_false_results_claims_and_openings_are_refused_until_the_true_ones_come(ground: Ground) -> None:
    """One dispute by hand, in which every message is first sent wrong in every way, and is then paid as honest."""
    engine, names = FakeEngine(BY_HAND), ("trent", OUTSIDER, WATCHER, BYSTANDER)
    trent, outsider, watcher = ground.clients["trent"], ground.hands[OUTSIDER], ground.hands[WATCHER]
    await announce_verifier(watcher, engine)
    start = await read_wealth(ground.network, names)
    job = await trent.submit(
        engine.capabilities().model_id, (3, 1, 4, 1, 5), token_count_max=6, eos_stop=False
    )
    await trent.wait(job, Phase.QUEUED)
    result, rows = generate(outsider, engine, await lease(outsider, job))

    async def refuse_all(
        hand: Hand, topic: Topic[Any], role: Role, wrong: Sequence[tuple[str, str, WireModel]]
    ) -> None:
        before = await read_wealth(ground.network, names)
        for what, code, body in wrong:
            refusal = await refuse(ground, hand.name, topic, hand.seal(body), role, job=job.job_id)
            assert refusal.code == code, (what, refusal.reason)
        assert await read_wealth(ground.network, names) == before

    other_output = pack_tokens(tuple((token + 1) % 250 for token in unpack_tokens(result.output)))
    await refuse_all(
        outsider,
        t.RESULT_COMPLETED,
        Role.COMMITMENTS,
        [
            ("another N", "E304", result.model_copy(update={"leaf_count": result.leaf_count + 1})),
            ("other tokens", "E304", result.model_copy(update={"output": other_output})),
            ("another binding", "E304", result.model_copy(update={"binding": bytes(32)})),
            ("another stack", "E304", result.model_copy(update={"stack": "magic/2"})),
            ("another end", "E304", result.model_copy(update={"finish_reason": "stop"})),
            (
                "a round to come",
                "E206",
                result.model_copy(update={"latest_round": result.latest_round + 900}),
            ),
        ],
    )
    bystander = ground.hands[BYSTANDER]
    await refuse_all(bystander, t.RESULT_COMPLETED, Role.COMMITMENTS, [("another's lease", "E209", result)])
    await outsider.say(t.RESULT_COMPLETED, result, job=job.job_id)
    await trent.wait(job, Phase.COMMITTED)
    await trent.challenge(job)

    task = await take_verify_task(watcher)
    claim, claimed = verify(watcher, engine, task)
    shallow = claim.corner.model_copy(update={"layer_max": 0, "full_depth": False})
    await refuse_all(
        watcher,
        t.CLAIM_SEALED,
        Role.VERIFIER,
        [
            ("fewer leaves", "E304", claim.model_copy(update={"leaf_count": claim.leaf_count - 1})),
            ("a smaller corner", "E304", claim.model_copy(update={"corner": shallow})),
            ("another stack", "E304", claim.model_copy(update={"stack": "magic/2"})),
            ("another stage", "E209", claim.model_copy(update={"stage": 2})),
        ],
    )
    await refuse_all(bystander, t.CLAIM_SEALED, Role.VERIFIER, [("never drawn", "E209", claim)])
    await watcher.say(t.CLAIM_SEALED, claim, job=job.job_id)

    asked = await wait_challenge(outsider)
    await refuse_all(
        outsider, t.OPENING_SUBMITTED, Role.COMMITMENTS, make_false_openings(asked, rows.open, rows.leaves)
    )
    await refuse_all(
        bystander, t.OPENING_SUBMITTED, Role.COMMITMENTS, [("no party", "E209", rows.open(asked))]
    )
    _, noise = verify(watcher, FakeEngine("another"), task)
    asked_too = await wait_challenge(watcher)
    await refuse_all(
        watcher,
        t.OPENING_SUBMITTED,
        Role.COMMITMENTS,
        [
            ("rows that were never sealed", "E301", noise.open(asked_too)),
            ("rows of another schema", "E301", claimed.open(asked_too, proof=noise.open(asked_too).proof)),
        ],
    )
    await watcher.say(t.OPENING_SUBMITTED, claimed.open(asked_too), job=job.job_id)
    await outsider.say(t.OPENING_SUBMITTED, rows.open(asked), job=job.job_id)
    await wait_settled(trent, [job], SETTLE_S)
    records = await read_jobs(ground.network, [job])
    assert records[0].case == "agree"
    treasury = (await read_wealth(ground.network, ())).popitem()[1]
    after = {**await read_wealth(ground.network, names), "treasury": treasury}
    verify_changes({**start, "treasury": treasury}, after, compute_changes(records))


def make_false_openings(
    asked: m.ChallengeIssuedV1, make: Callable[..., m.OpeningV1], leaves: Sequence[bytes]
) -> list[tuple[str, str, WireModel]]:
    """Return an opening with a wrong, missing, extra, duplicated or NaN leaf, and what else is none."""
    positions = unpack_tokens(asked.positions)
    opened = [leaves[position] for position in positions]
    others = [position for position in range(len(leaves)) if position not in positions]
    last, extra = positions[-1], sorted((*positions, others[0]))
    not_a_number = opened[-1][:-4] + struct.pack("<f", float("nan"))
    swapped = leaves[others[-1]]
    return [
        ("a wrong leaf", "E301", make(asked, leaves=(*opened[:-1], flip_last_float(opened[-1])))),
        ("the leaf of another position", "E303", make(asked, leaves=(*opened[:-1], swapped))),
        ("a missing leaf", "E303", make(asked, leaves=tuple(opened[:-1]))),
        ("a leaf too many", "E303", make(asked, leaves=(*opened, opened[-1]))),
        (
            "a missing position",
            "E303",
            make(asked, positions=pack_tokens(positions[:-1]), leaves=tuple(opened[:-1])),
        ),
        (
            "an extra position",
            "E303",
            make(asked, positions=pack_tokens(extra), leaves=tuple(leaves[position] for position in extra)),
        ),
        (
            "a duplicated position",
            "E303",
            make(asked, positions=pack_tokens((*positions, last)), leaves=(*opened, opened[-1])),
        ),
        ("other positions", "E303", make(asked, positions=pack_tokens(others[: len(positions)]))),
        ("NaN", "E303", make(asked, leaves=(*opened[:-1], not_a_number))),
        ("a leaf cut short", "E303", make(asked, leaves=(*opened[:-1], opened[-1][:-1]))),
        ("an empty leaf", "E303", make(asked, leaves=(*opened[:-1], b""))),
        ("no proof", "E301", make(asked, proof=b"")),
        ("a proof too long", "E301", make(asked, proof=make(asked).proof + bytes(32))),
        ("a part beyond the last", "E303", make(asked, part=1)),
        ("a stage that is not", "E207", make(asked, stage=2)),
    ]


def flip_last_float(leaf: bytes) -> bytes:
    """Return a leaf whose last float is another finite one."""
    [value] = struct.unpack("<f", leaf[-4:])
    return leaf[:-4] + struct.pack("<f", value + 1.0)
