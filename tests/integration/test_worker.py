"""The worker on a real nats-server with the engine that has no model; every service is played by the test."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.network import make_key
from kit.script import WAIT_S, Said, Script, get_environment, open_script
from kit.worker import (
    CONTEXT_TOKENS_MAX,
    MODEL_NAME,
    PROMPT,
    build_fake_engine,
    make_grant,
    make_submission,
    make_worker_network,
)
from pocache.engine.fake import FakeEngine
from pocache.engine.port import VerifyRequest
from pocache.protocol.challenge import Corner, compute_full_corner
from pocache.protocol.commitment import CHUNK_HASH_START, compute_chunk_hash
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.ids import Digest, JobId
from pocache.protocol.merkle import MerkleTree, hash_leaf, verify_multiproof
from pocache.runtime.config import load_settings
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Stream
from pocache_commitments.results import open_lease, verify_result
from pocache_worker import generation
from pocache_worker.grants import read_sampling
from pocache_worker.leaves import compute_claim_name, compute_commitment_name
from pocache_worker.process import serve_with
from pocache_worker.settings import read_worker_settings

WORKER = make_key("worker-1")
OTHER = make_key("worker-2")


@pytest.fixture
async def script(tmp_path: Path) -> AsyncIterator[Script]:
    """A provisioned bus for worker-1 and worker-2."""
    async with open_script(tmp_path, make_worker_network(), ("worker-1", "worker-2")) as opened:
        yield opened


class Running:
    """A worker process's life inside this test's event loop."""

    def __init__(self, task: asyncio.Task[None], stop: asyncio.Event) -> None:
        self.task = task
        self._stop = stop

    async def drain(self) -> None:
        """Stop in order, as SIGTERM does."""
        self._stop.set()
        async with asyncio.timeout(WAIT_S):
            await self.task

    async def crash(self) -> None:
        """End at once: nothing is finished, settled or drained."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@asynccontextmanager
async def run_worker(
    script: Script, build: Callable[[], FakeEngine] = build_fake_engine, **variables: str
) -> AsyncIterator[Running]:
    """Run a worker and wait until each of its identities has announced itself."""
    settings = load_settings(get_environment(script, **variables), name_default="worker-1")
    worker = read_worker_settings(settings)
    stop = asyncio.Event()
    task = asyncio.create_task(serve_with(settings, worker, settings.directory.load_models(), build, stop))
    running = Running(task, stop)
    try:
        for _ in worker.identities:
            await script.hear(t.MEMBER_ANNOUNCED)
        yield running
    finally:
        await running.crash()


async def offer(script: Script, grant: m.LeaseGrantedV1) -> None:
    task = m.GenerateTaskV1(
        job_id=grant.job_id, attempt=grant.attempt, model_id=script.network.model.model_id
    )
    await script.say(t.GENERATE_TASK, task, model=script.network.model.model_id)


async def lease(script: Script, token_count_max: int = 6, **changes: Any) -> m.LeaseGrantedV1:
    """Offer a job and grant it to worker-1, which asks for it."""
    submission = make_submission(script.network, token_count_max=token_count_max)
    grant = make_grant(script.network, WORKER, submission=submission, **changes)
    await offer(script, grant)
    request = await script.hear(t.LEASE_REQUESTED)
    assert (request.body.job_id, request.body.attempt) == (grant.job_id, grant.attempt)
    await script.say(t.LEASE_GRANTED, grant, worker=WORKER.participant_id)
    return grant


def get_lease(script: Script, grant: m.LeaseGrantedV1) -> m.LeaseV1:
    return open_envelope(grant.lease, script.network.network_id, m.LeaseV1).body


def check_result(script: Script, said: Said[m.ResultV1]) -> None:
    """Check a result as the commitment store does."""
    opened = open_lease(script.network.genesis, said.body, said.sender)
    verify_result(script.network.genesis, script.network.model, opened, said.body)


def compute_leaves(script: Script, tokens: tuple[int, ...], body: m.LeaseV1, corner: Corner) -> list[bytes]:
    """Return the leaves that an honest verifier computes."""
    request = VerifyRequest(
        job_id=JobId(body.job_id),
        tokens=tokens,
        prompt_count=len(PROMPT),
        corner=corner,
        sampling=read_sampling(body.sampling),
        seed=body.seed,
        network=script.network.network_id,
    )
    return build_fake_engine().verify([request])[0].leaves


def compute_root(leaves: list[bytes]) -> Digest:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def make_challenge(
    job_id: bytes, root: bytes, leaf_count: int, positions: tuple[int, ...]
) -> m.ChallengeIssuedV1:
    return m.ChallengeIssuedV1(
        job_id=job_id,
        attempt=1,
        stage=1,
        retry=0,
        round_number=4,
        positions=pack_tokens(positions),
        root=root,
        leaf_count=leaf_count,
    )


def make_verify_task(
    script: Script, body: m.LeaseV1, tokens: tuple[int, ...], corner: Corner, stage: int = 1
) -> m.VerifyTaskV1:
    return m.VerifyTaskV1(
        job_id=body.job_id,
        attempt=1,
        stage=stage,
        retry=0,
        model_id=script.network.model.model_id,
        tokens=pack_tokens(tokens),
        prompt_count=len(PROMPT),
        corner=m.CornerV1(
            layer_max=corner.layer_max, position_max=corner.position_max, full_depth=corner.full_depth
        ),
        sampling=body.sampling,
        seed=body.seed,
    )


def make_payout(job_id: bytes) -> m.PayoutSettledV1:
    return m.PayoutSettledV1(
        job_id=job_id,
        attempt=1,
        case="no_challenge",
        stage=0,
        pool_micro=0,
        generation_micro=0,
        verification_micro=0,
        reserve_micro=0,
        lines=(),
        slashed=(),
    )


async def test_from_task_to_opening_and_until_it_is_forgotten(script: Script, tmp_path: Path) -> None:
    """The whole life of two leases: tokens, results, an opening against the root, a settlement, a drain."""
    folder = tmp_path / "network" / "state" / "leaves" / "worker-1"
    async with run_worker(script) as worker:
        await script.say_round(3)
        first = await lease(script, deadline_ms=10**15)
        assert await script.hear_settled(*get_task_consumer(script)) == "+ACK"
        output = await check_stream(script)
        said = await script.hear(t.RESULT_COMPLETED)
        check_result(script, said)
        assert said.body.output == pack_tokens(output)
        assert said.body.latest_round == 3
        assert (folder / compute_commitment_name(first.job_id, 1)).exists()

        second = await lease(script, token_count_max=9)
        other = await script.hear(t.RESULT_COMPLETED)
        check_result(script, other)
        await script.say(t.PAYOUT_SETTLED, make_payout(first.job_id), job=first.job_id)
        positions = (0, 3, 12)
        await script.say(
            t.CHALLENGE_ISSUED,
            make_challenge(second.job_id, other.body.root, other.body.leaf_count, positions),
            worker=WORKER.participant_id,
        )
        opening = (await script.hear(t.OPENING_SUBMITTED)).body
        assert unpack_tokens(opening.positions) == positions
        proof = [Digest(opening.proof[start : start + 32]) for start in range(0, len(opening.proof), 32)]
        hashes = {position: hash_leaf(leaf) for position, leaf in zip(positions, opening.leaves, strict=True)}
        verify_multiproof(hashes, other.body.leaf_count, proof, Digest(other.body.root))
        tokens = PROMPT + unpack_tokens(other.body.output)
        honest = compute_leaves(script, tokens, get_lease(script, second), compute_full_corner(2, 13))
        assert opening.leaves == tuple(honest[position] for position in positions)
        await worker.drain()
    assert [file.name for file in folder.iterdir()] == [compute_commitment_name(second.job_id, 1)]


async def check_stream(script: Script) -> tuple[int, ...]:
    """Hear one job's chunks to the last and check that they continue each other; returns the tokens."""
    tokens: list[int] = []
    running, is_last = CHUNK_HASH_START, False
    while not is_last:
        chunk = (await script.hear(t.TOKENS)).body
        assert chunk.first_index == len(tokens)
        running = compute_chunk_hash(running, chunk.tokens)
        assert chunk.running_hash == running
        tokens += unpack_tokens(chunk.tokens)
        is_last = chunk.is_last
    return tuple(tokens)


def get_task_consumer(script: Script) -> tuple[str, str]:
    return Stream.TASKS.value, f"generate-{script.network.model.model_id.hex()}"


async def test_a_verification_seals_its_own_rows_and_opens_them(script: Script, tmp_path: Path) -> None:
    """Two tasks in one batch beside one that the router, not the pool, signed: that one is terminated."""
    body = get_lease(script, make_grant(script.network, WORKER))
    tokens = (*PROMPT, 20, 21, 22, 23)
    corners = {1: Corner(0, 5, False), 2: compute_full_corner(2, 8)}
    tasks = {stage: make_verify_task(script, body, tokens, corners[stage], stage) for stage in corners}
    forged = make_verify_task(script, body, tokens, corners[1], stage=3)
    worker_id = WORKER.participant_id
    async with run_worker(script, POCACHE_WORKER_ROLES="verify") as worker:
        await script.say(t.VERIFY_TASK, forged, Role.ROUTER, worker=worker_id)
        for stage, task in tasks.items():
            await script.say(t.VERIFY_TASK, task, worker=worker_id)
            claim = (await script.hear(t.CLAIM_SEALED)).body
            leaves = compute_leaves(script, tokens, body, corners[stage])
            assert (claim.stage, claim.root, claim.leaf_count) == (stage, compute_root(leaves), len(leaves))
            assert claim.corner == task.corner
            assert (
                tmp_path
                / "network"
                / "state"
                / "leaves"
                / "worker-1"
                / compute_claim_name(body.job_id, 1, stage, 0)
            ).exists()
        await script.say(
            t.CHALLENGE_ISSUED, make_challenge(body.job_id, claim.root, 8, (2, 7)), worker=worker_id
        )
        opening = (await script.hear(t.OPENING_SUBMITTED)).body
        assert opening.leaves == (leaves[2], leaves[7])
        consumer = (Stream.TASKS.value, f"verify-{WORKER.participant_id}")
        assert [await script.hear_settled(*consumer) for _ in range(3)] == ["+TERM", "+ACK", "+ACK"]
        await worker.drain()
    letter = await script.bus.get_last(Stream.DEADLETTER.value, "dead.>")
    assert letter is not None
    assert letter.data == script.network.seal(script.network.keys[Role.ROUTER], forged)


async def test_a_stale_result_is_said_again_with_the_next_round(script: Script) -> None:
    async with run_worker(script):
        await script.say_round(3)
        await lease(script)
        first = await script.hear(t.RESULT_COMPLETED)
        refusal = m.RefusalV1(
            message_hash=hashlib.sha256(first.data).digest(),
            subject="results",
            code="E206",
            reason="stale round",
        )
        topic = t.REFUSALS[Role.COMMITMENTS]
        await script.say(topic, refusal, ref=refusal.message_hash)
        await script.say_round(8)
        again = await script.hear(t.RESULT_COMPLETED)
        assert again.body == first.body.model_copy(update={"latest_round": 8})
        check_result(script, again)


async def test_without_a_round_nothing_is_committed_until_one_comes(script: Script) -> None:
    async with run_worker(script):
        grant = await lease(script)
        await check_stream(script)
        # The claim comes after the result would have, had it not waited.
        task = make_verify_task(script, get_lease(script, grant), (*PROMPT, 1, 2), compute_full_corner(2, 6))
        await script.say(t.VERIFY_TASK, task, worker=WORKER.participant_id)
        await script.hear(t.CLAIM_SEALED)
        await script.say_round(5)
        said = await script.hear(t.RESULT_COMPLETED)
        assert said.body.latest_round == 5


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a generation at its second token until it is set."""
    event = threading.Event()
    yield event
    event.set()  # an engine thread must not outlive its test


def build_held_engine(gate: threading.Event) -> FakeEngine:
    calls = iter(range(10**6))

    def wait_step() -> None:
        if next(calls) > 0:
            gate.wait()

    return FakeEngine(MODEL_NAME, context_tokens_max=CONTEXT_TOKENS_MAX, wait_step=wait_step)


async def test_a_crash_between_lease_and_result_is_repaired_by_a_restart(
    script: Script, gate: threading.Event
) -> None:
    """The lease is taken up again and gives what the first life would have given, the same tokens to the bit."""
    async with run_worker(script, lambda: build_held_engine(gate)) as worker:
        await script.say_round(3)
        grant = await lease(script)
        begun = (await script.hear(t.TOKENS)).body
        await worker.crash()
    assert not begun.is_last
    async with run_worker(script):
        await script.say_round(4)
        said = await script.hear(t.RESULT_COMPLETED)
        check_result(script, said)
        assert said.body.job_id == grant.job_id
        assert said.body.output.startswith(begun.tokens)
        tokens = PROMPT + unpack_tokens(said.body.output)
        honest = compute_leaves(script, tokens, get_lease(script, grant), compute_full_corner(2, 10))
        assert said.body.root == compute_root(honest)


async def test_an_identity_has_as_many_leases_in_hand_as_it_may_and_no_more(
    script: Script, gate: threading.Event
) -> None:
    """The third task stays on the bus until one of the two is generated."""
    async with run_worker(script, lambda: build_held_engine(gate), POCACHE_WORKER_JOBS_MAX="2") as worker:
        await script.say_round(3)
        grants = {(grant := await lease(script, token_count_max=4 + one)).job_id: grant for one in range(2)}
        third = make_grant(
            script.network, WORKER, submission=make_submission(script.network, token_count_max=9)
        )
        await offer(script, third)
        assert (await script.hear(t.TOKENS)).body.job_id in grants
        settled = [await script.hear_settled(*get_task_consumer(script)) for _ in grants]
        assert settled == ["+ACK", "+ACK"]
        assert await script.count_pending(*get_task_consumer(script)) == (1, 0)
        gate.set()
        request = await script.hear(t.LEASE_REQUESTED)
        assert request.body.job_id == third.job_id
        await script.say(t.LEASE_GRANTED, third, worker=WORKER.participant_id)
        results = [await script.hear(t.RESULT_COMPLETED) for _ in range(3)]
        assert {said.body.job_id for said in results} == {*grants, third.job_id}
        for said in results:
            check_result(script, said)
        await worker.drain()


async def test_draining_finishes_what_is_being_generated(script: Script, gate: threading.Event) -> None:
    async with run_worker(script, lambda: build_held_engine(gate)) as worker:
        await script.say_round(3)
        grant = await lease(script)
        await script.hear(t.TOKENS)
        draining = asyncio.create_task(worker.drain())
        await offer(script, make_grant(script.network, WORKER, attempt=2))
        gate.set()
        said = await script.hear(t.RESULT_COMPLETED)
        await draining
    assert said.body.job_id == grant.job_id
    await script.hear_only(t.LEASE_REQUESTED, m.LeaseRequestV1(job_id=grant.job_id, attempt=1))
    assert sum(await script.count_pending(*get_task_consumer(script))) == 1


@pytest.mark.parametrize(("code", "pause"), [("E204", "STAKE_BACKOFF_S"), ("E210", "EJECTED_BACKOFF_S")])
async def test_without_stake_or_ejected_nothing_is_asked_for_but_verifying_goes_on(
    script: Script, monkeypatch: pytest.MonkeyPatch, code: str, pause: str
) -> None:
    """The next task stays on the bus for others while the identity pauses, and a drain ends the pause."""
    monkeypatch.setattr(generation, pause, 3_600.0)
    grant = make_grant(script.network, WORKER)
    async with run_worker(script) as worker:
        await offer(script, grant)
        request = await script.hear(t.LEASE_REQUESTED)
        denial = m.LeaseDeniedV1(job_id=grant.job_id, attempt=1, code=code, reason="no more for now")
        await script.say(t.LEASE_DENIED, denial, worker=WORKER.participant_id)
        assert await script.hear_settled(*get_task_consumer(script)) == "+ACK"
        await offer(script, make_grant(script.network, WORKER, attempt=2))
        body = get_lease(script, grant)
        task = make_verify_task(script, body, (*PROMPT, 1, 2), compute_full_corner(2, 6))
        await script.say(t.VERIFY_TASK, task, worker=WORKER.participant_id)
        await script.hear(t.CLAIM_SEALED)
        await worker.drain()
    await script.hear_only(t.LEASE_REQUESTED, request.body)
    assert sum(await script.count_pending(*get_task_consumer(script))) == 1


async def test_identities_of_one_process_are_apart_and_cheat_apart(script: Script) -> None:
    """worker-1 commits twice and verifies honestly; worker-2, on the same engine, seals garbage."""
    body = get_lease(script, make_grant(script.network, WORKER))
    tokens, corner = (*PROMPT, 1, 2), compute_full_corner(2, 6)
    task = make_verify_task(script, body, tokens, corner)
    async with run_worker(
        script,
        POCACHE_WORKER_IDENTITIES="worker-1,worker-2",
        POCACHE_WORKER_CHEAT="worker-1:two-commitments,worker-2:garbage-claims",
    ) as worker:
        await script.say_round(3)
        roots = {}
        for key in (WORKER, OTHER):
            await script.say(t.VERIFY_TASK, task, worker=key.participant_id)
            claim = await script.hear(t.CLAIM_SEALED)
            roots[claim.sender] = claim.body.root
        honest = compute_root(compute_leaves(script, tokens, body, corner))
        assert roots[WORKER.participant_id] == honest
        assert roots[OTHER.participant_id] != honest
        submission = make_submission(script.network)
        grant = make_grant(script.network, WORKER, submission=submission)
        # Granted without having been asked for: which of the two would ask is theirs to decide.
        await script.say(t.LEASE_GRANTED, grant, worker=WORKER.participant_id)
        first, second = [await script.hear(t.RESULT_COMPLETED) for _ in range(2)]
        assert first.sender == second.sender == WORKER.participant_id
        assert first.body.root != second.body.root
        await worker.drain()


async def test_a_broken_engine_ends_the_process(script: Script) -> None:
    def fail() -> None:
        raise RuntimeError("odd")

    def build() -> FakeEngine:
        return FakeEngine(MODEL_NAME, context_tokens_max=CONTEXT_TOKENS_MAX, wait_step=fail)

    async with run_worker(script, build) as worker:
        await lease(script)
        await lease(script, token_count_max=7)
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait({worker.task})
        assert "unexpected failures in a row" in repr(worker.task.exception())


async def start_process(script: Script, **variables: str) -> asyncio.subprocess.Process:
    environ = {**get_environment(script, **variables), "PYTHONPATH": ":".join(sys.path)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pocache_worker",
        env=environ,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def end_process(process: asyncio.subprocess.Process, number: signal.Signals) -> tuple[int, bytes]:
    """Send a signal, if it still runs; return the exit code and what it logged."""
    if process.returncode is None:
        process.send_signal(number)
    async with asyncio.timeout(WAIT_S):
        _, logged = await process.communicate()
    assert process.returncode is not None
    return process.returncode, logged


async def test_a_killed_process_takes_up_the_lease_that_was_granted_meanwhile(script: Script) -> None:
    """SIGKILL after the request; the grant waits in the record; SIGTERM then drains with code 0."""
    grant = make_grant(script.network, WORKER)
    process = await start_process(script)
    try:
        await script.hear(t.MEMBER_ANNOUNCED)
        await offer(script, grant)
        await script.hear(t.LEASE_REQUESTED)
    finally:
        code, _ = await end_process(process, signal.SIGKILL)
    assert code == -signal.SIGKILL
    await script.say(t.LEASE_GRANTED, grant, worker=WORKER.participant_id)
    process = await start_process(script)
    try:
        await script.hear(t.MEMBER_ANNOUNCED)
        await script.say_round(6)
        said = await script.hear(t.RESULT_COMPLETED)
    finally:
        code, logged = await end_process(process, signal.SIGTERM)
    check_result(script, said)
    assert said.body.job_id == grant.job_id
    assert code == 0, logged.decode()


async def test_a_model_that_the_network_does_not_serve_is_a_configuration_error(script: Script) -> None:
    process = await start_process(script, POCACHE_WORKER_MODEL="fake:another")
    async with asyncio.timeout(WAIT_S):
        _, logged = await process.communicate()
    assert process.returncode == 2
    assert b"POCACHE_WORKER_MODEL is model" in logged
