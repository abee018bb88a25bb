"""The SDK: what it says, what it believes, what it does not, and what it asks for again."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kit.network import Network, make_key, make_network
from kit.userside import USER, WORKER, UserSide, make_event, open_user_side
from pocache.client import Job, Piece, RefusedError
from pocache.protocol.commitment import Sampling
from pocache.protocol.errors import BackpressureError, BusError, CommitmentError
from pocache.protocol.lifecycle import Phase
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role

MALLORY = make_key("mallory")


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network()


@pytest.fixture
async def side(network: Network) -> AsyncIterator[UserSide]:
    async with open_user_side(network) as opened:
        yield opened


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once for what was not heard."""
    monkeypatch.setattr("pocache.client.network.QUIET_S", 0.0)


async def submit(side: UserSide, **changes: Any) -> Job:
    return await side.client.submit(
        side.network.model.model_id, (3, 4, 5), **{"token_count_max": 4, **changes}
    )


async def read(side: UserSide, job: Job) -> list[Piece]:
    return [piece async for piece in side.client.stream(job)]


async def test_a_submission_says_what_was_asked(side: UserSide) -> None:
    job = await submit(side, sampling=Sampling(800_000, 5, 900_000), seed=bytes(32), eos_stop=False)
    ((subject, data),) = side.bus.published
    assert subject == "jobs.submitted"
    body = side.network.open(data, m.SubmissionV1)
    assert (body.model_id, body.token_count_max, body.eos_stop) == (side.network.model.model_id, 4, False)
    assert body.sampling == m.SamplingV1(temperature_micro=800_000, top_k=5, top_p_micro=900_000)
    assert body.seed == bytes(32)
    assert job.prompt == (3, 4, 5)
    assert job.job_id == bytes(side.network.envelope_id(data))
    assert job.message_hash == hashlib.sha256(data).digest()
    other = await submit(side)
    assert other.job_id != job.job_id, "a salt of its own makes each submission another"


async def test_a_full_queue_is_an_error_and_no_job(side: UserSide) -> None:
    side.bus.failure = BackpressureError("full")
    with pytest.raises(BackpressureError):
        await submit(side)


async def test_from_submission_to_payout(side: UserSide) -> None:
    job = await submit(side)
    assert (job.phase, job.is_over) == ("submitted", False)
    side.tell(job, "queued")
    assert (await side.client.wait(job, Phase.QUEUED)).phase == "queued"
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7, 8])
    side.stream(job, [9], before=[7, 8])
    side.commit(job, [7, 8, 9, 10])
    assert [token for piece in await read(side, job) for token in piece.tokens] == [7, 8, 9, 10]
    assert job.output == (7, 8, 9, 10)
    side.pay(job)
    side.tell(job, "settled", detail="agree")
    assert (await side.client.wait(job, Phase.SETTLED)).detail == "agree"
    assert (await side.client.wait_payout(job)).case == "agree"
    assert [event.phase async for event in side.client.events(job)] == [
        "queued",
        "generating",
        "committed",
        "settled",
    ]


async def test_tokens_come_before_the_commitment(side: UserSide) -> None:
    job = await submit(side)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7, 8])
    pieces = side.client.stream(job)
    assert await anext(pieces) == Piece(1, 0, (7, 8))
    side.stream(job, [9], before=[7, 8])
    assert await anext(pieces) == Piece(1, 2, (9,))
    side.commit(job, [7, 8, 9])
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_what_a_lost_chunk_leaves_out_comes_with_the_commitment(side: UserSide) -> None:
    job = await submit(side)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7])
    side.stream(job, [9], before=[7, 8])
    side.commit(job, [7, 8, 9])
    assert [token for piece in await read(side, job) for token in piece.tokens] == [7, 8, 9]


async def test_another_attempt_begins_anew(side: UserSide) -> None:
    """What the first worker streamed is not how the second one's answer begins."""
    job = await submit(side)
    other = make_key("other worker")
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7, 8, 9])
    pieces = side.client.stream(job)
    assert await anext(pieces) == Piece(1, 0, (7, 8, 9))
    side.tell(job, "generating", attempt=2, generator=other.participant_id)
    side.stream(job, [1], attempt=2, signer=other)
    assert await anext(pieces) == Piece(2, 0, (1,))
    side.commit(job, [1, 2], attempt=2, signer=other)
    assert await anext(pieces) == Piece(2, 1, (2,))


async def test_a_stranger_streams_in_vain(side: UserSide) -> None:
    """Anyone may publish chunks under its own name: only the leaseholder's count, before and after it is known."""
    job = await submit(side)
    side.stream(job, [66, 66], signer=MALLORY)
    side.stream(job, [66], attempt=9, signer=MALLORY)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7], signer=WORKER)
    side.stream(job, [66], before=[7], signer=MALLORY)
    side.commit(job, [7, 8])
    assert [token for piece in await read(side, job) for token in piece.tokens] == [7, 8]


async def test_tokens_that_are_not_committed_are_found_out(side: UserSide) -> None:
    """One thing streamed, another committed."""
    job = await submit(side)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7, 8])
    side.commit(job, [7, 9, 10])
    with pytest.raises(CommitmentError, match="not those that were committed"):
        await read(side, job)


async def test_a_chunk_with_another_running_hash_is_ignored(side: UserSide) -> None:
    job = await submit(side)
    side.tell(job, "generating", generator=WORKER.participant_id)
    body = m.TokenChunkV1(
        job_id=job.job_id,
        attempt=1,
        first_index=0,
        tokens=b"\x07\0\0\0",
        running_hash=bytes(32),
        is_last=True,
    )
    names = {"user": USER.participant_id, "job": job.job_id, "worker": WORKER.participant_id}
    side.say(t.TOKENS, body, WORKER, **names)
    side.commit(job, [1])
    assert await read(side, job) == [Piece(1, 0, (1,))]


async def test_a_stream_longer_than_asked_for_is_cut(side: UserSide) -> None:
    job = await submit(side)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7, 8, 9, 10, 11])
    side.commit(job, [1])
    assert await read(side, job) == [Piece(1, 0, (1,))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_hash": bytes(32)}, "another prompt_hash"),
        ({"model_id": bytes(32)}, "another model_id"),
        ({"job_id": bytes(32)}, "another job_id"),
        ({"token_count_max": 5}, "another token_count_max"),
        ({"sampling": m.SamplingV1(temperature_micro=1)}, "another sampling"),
        ({"eos_stop": False}, "another eos_stop"),
        ({"generator": MALLORY.participant_id}, "leaseholder"),
        ({"router": MALLORY}, "not signed by the router"),
    ],
)
async def test_a_result_for_something_else_is_no_result(
    side: UserSide, changes: dict[str, Any], words: str
) -> None:
    """Even when the router announces it: the lease must ask for exactly what was submitted."""
    job = await submit(side)
    side.commit(job, [7], **changes)
    with pytest.raises(CommitmentError, match=words):
        await side.client.wait(job, Phase.COMMITTED)
    assert job.result is None


async def test_a_lease_with_another_seed_than_the_users_own(side: UserSide) -> None:
    job = await submit(side, seed=bytes(32))
    side.commit(job, [7])
    with pytest.raises(CommitmentError, match="another seed"):
        await side.client.wait(job, Phase.COMMITTED)


async def test_a_result_with_more_tokens_than_asked_for(side: UserSide) -> None:
    job = await submit(side)
    side.commit(job, [7] * 5)
    with pytest.raises(CommitmentError, match="more tokens"):
        await side.client.wait(job, Phase.COMMITTED)


async def test_only_services_speak_for_services(side: UserSide) -> None:
    """Events by another key than the router's, payouts by another than the ledger's: as if not said."""
    job = await submit(side)
    names = {"user": USER.participant_id, "job": job.job_id}
    side.say(t.JOB_EVENT, make_event(job, "refused"), MALLORY, **names)
    side.say(
        t.PAYOUT_SETTLED,
        m.PayoutSettledV1(
            job_id=job.job_id,
            attempt=1,
            case="void",
            stage=0,
            pool_micro=0,
            generation_micro=0,
            verification_micro=0,
            reserve_micro=0,
            lines=(),
            slashed=(),
        ),
        MALLORY,
        job=job.job_id,
    )
    side.pay(job)
    side.tell(job, "settled")
    assert (await side.client.wait(job, Phase.SETTLED)).phase == "settled"
    assert (await side.client.wait_payout(job)).case == "agree"


async def test_a_refusal_says_why(side: UserSide) -> None:
    job = await submit(side)
    side.refuse(Role.ROUTER, job.message_hash, "E202", "the prompt is empty")
    with pytest.raises(RefusedError, match="the prompt is empty") as caught:
        await side.client.wait(job, Phase.COMMITTED)
    assert caught.value.refusal_code == "E202"
    assert (await side.client.wait(job, Phase.REFUSED)).code == "E202"
    assert await read(side, job) == []


async def test_somebody_elses_copy_being_refused_says_nothing(side: UserSide) -> None:
    """A replay of the submission is refused with E208, before or after the job itself was heard of."""
    job = await submit(side)
    side.refuse(Role.ROUTER, job.message_hash, "E208", "handled before")
    side.tell(job, "queued")
    assert (await side.client.wait(job, Phase.QUEUED)).phase == "queued"
    assert not job.is_over


async def test_a_job_that_ends_otherwise_than_awaited(side: UserSide) -> None:
    """Who waits for a commitment learns of the refund."""
    job = await submit(side)
    side.tell(job, "refunded", detail="no worker took the job in time")
    assert (await side.client.wait(job, Phase.COMMITTED)).phase == "refunded"


async def test_events_out_of_order_do_not_reopen_a_job(side: UserSide) -> None:
    job = await submit(side)
    side.tell(job, "settled")
    side.tell(job, "committed")
    await side.client.wait(job, Phase.COMMITTED)
    assert (job.phase, job.is_over) == ("settled", True)


@pytest.mark.usefixtures("no_patience")
async def test_what_was_missed_is_asked_for_again(side: UserSide) -> None:
    """Deaf from submission to settlement: the last event brings the result, the record the payout."""
    job = await submit(side)
    side.bus.listeners.clear()
    side.commit(job, [7, 8], phase="settled")
    side.pay(job)
    assert (await side.client.wait(job, Phase.SETTLED)).phase == "settled"
    assert job.output == (7, 8)
    assert await read(side, job) == [Piece(1, 0, (7, 8))]
    assert (await side.client.wait_payout(job)).case == "agree"


@pytest.mark.usefixtures("no_patience")
async def test_a_missed_refusal_is_asked_for_again(side: UserSide) -> None:
    job = await submit(side)
    side.bus.listeners.clear()
    side.refuse(Role.ROUTER, job.message_hash, "E205", "try again later")
    with pytest.raises(RefusedError, match="try again later"):
        await side.client.wait(job, Phase.COMMITTED)


async def test_a_challenge_names_the_attempt(side: UserSide) -> None:
    job = await submit(side)
    with pytest.raises(CommitmentError, match="nothing is committed"):
        await side.client.challenge(job)
    side.commit(job, [7], attempt=2)
    await side.client.wait(job, Phase.COMMITTED)
    await side.client.challenge(job)
    subject, data = side.bus.published[-1]
    assert subject == f"challenges.requested.{USER.participant_id}.{job.job_id.hex()}"
    assert side.network.open(data, m.ChallengeRequestV1) == m.ChallengeRequestV1(job_id=job.job_id, attempt=2)
    side.refuse(Role.COMMITMENTS, hashlib.sha256(data).digest(), "E206", "the window is closed")
    side.tell(job, "settled")
    await side.client.wait(job, Phase.SETTLED)
    side.pay(job)
    await side.client.wait_payout(job)
    assert job.challenge_refusal is not None
    assert job.challenge_refusal.refusal_code == "E206"


async def test_a_balance_is_the_ledgers_word(side: UserSide) -> None:
    subject = t.BALANCE_QUERY.subject(participant=USER.participant_id)
    reply = m.BalanceReplyV1(
        participant=USER.participant_id, available_micro=3, stake_micro=2, locked_micro=1
    )
    side.bus.answers[subject] = side.network.seal(side.network.keys[Role.LEDGER], reply)
    assert await side.client.balance() == reply
    side.bus.answers[subject] = side.network.seal(MALLORY, reply)
    with pytest.raises(CommitmentError, match="not signed by the ledger"):
        await side.client.balance()
    refusal = m.RefusalV1(message_hash=bytes(32), subject=subject, code="E209", reason="not yours")
    side.bus.answers[subject] = side.network.seal(side.network.keys[Role.LEDGER], refusal)
    with pytest.raises(RefusedError, match="not yours"):
        await side.client.balance()


async def test_a_callers_error_comes_out_as_it_is(network: Network) -> None:
    """Not in a group: who opened a client catches what it raised."""
    with pytest.raises(LookupError):
        async with open_user_side(network):
            raise LookupError


async def test_a_job_that_nobody_holds_is_forgotten(side: UserSide) -> None:
    import gc

    job = await submit(side)
    other = await submit(side)
    del job
    gc.collect()
    side.tell(other, "queued")
    await side.client.wait(other, Phase.QUEUED)
    assert list(side.client._jobs.values()) == [other]


# --- log-probabilities ---------------------------------------------------------------------------------------------


async def test_nobody_listens_for_scores_that_were_not_asked_for(side: UserSide) -> None:
    job = await submit(side)
    assert not any(subject.startswith("scores.") for subject in side.bus.listeners)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.score(job, [-1.0])
    side.stream(job, [7])
    side.commit(job, [7])
    assert await read(side, job) == [Piece(1, 0, (7,))]


async def test_scores_come_with_their_tokens_and_are_heard_no_longer_than_the_job(
    side: UserSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.0)
    job = await submit(side, logprobs=True)
    subject = t.SCORES.filter(user=USER.participant_id, job=job.job_id)
    assert subject in side.bus.listeners
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.score(job, [-1.0, -0.5])
    side.stream(job, [7, 8])
    side.score(job, [-0.25], first=2)
    side.stream(job, [9], before=[7, 8])
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 60.0)
    pieces = side.client.stream(job)
    heard = [await anext(pieces)]
    while len([token for piece in heard for token in piece.tokens]) < 3:
        heard.append(await anext(pieces))
    assert [one for piece in heard for one in piece.logprobs or ()] == [-1.0, -0.5, -0.25]
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.0)
    side.commit(job, [7, 8, 9])
    assert [piece async for piece in pieces] == []
    async with asyncio.timeout(60):
        while subject in side.bus.listeners:
            await asyncio.sleep(0)


async def test_a_job_that_nobody_holds_is_not_listened_for(side: UserSide) -> None:
    job = await submit(side, logprobs=True)
    assert any(subject.startswith("scores.") for subject in side.bus.listeners)
    del job
    async with asyncio.timeout(60):
        while any(subject.startswith("scores.") for subject in side.bus.listeners):
            gc.collect()
            await asyncio.sleep(0)


async def test_tokens_wait_for_their_scores_once_and_go_on_without(
    side: UserSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that says none costs the first token a moment, and no more."""
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.0)
    job = await submit(side, logprobs=True)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.stream(job, [7])
    pieces = side.client.stream(job)
    assert await anext(pieces) == Piece(1, 0, (7,))
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 3_600.0)
    side.stream(job, [8], before=[7])
    async with asyncio.timeout(60):
        assert await anext(pieces) == Piece(1, 1, (8,))


@pytest.mark.parametrize(
    "change",
    [
        {"first": 1},
        {"logprobs": [-1.0] * 5},
        {"signer": MALLORY},
        {"attempt": 2},
    ],
    ids=["a gap", "more than were asked for", "another's", "another attempt's"],
)
async def test_scores_that_are_not_those_of_the_tokens_are_not_taken(
    side: UserSide, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.01)
    job = await submit(side, logprobs=True)
    side.tell(job, "generating", generator=WORKER.participant_id)
    side.score(job, **{"logprobs": [-1.0], **change})
    side.stream(job, [7])
    side.commit(job, [7])
    assert await read(side, job) == [Piece(1, 0, (7,))]


@pytest.mark.parametrize("wrong", [0.5, float("nan"), float("-inf")])
async def test_a_score_that_is_no_log_probability_is_not_taken(
    side: UserSide, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.01)
    job = await submit(side, logprobs=True)
    side.tell(job, "generating", generator=WORKER.participant_id)
    body = m.TokenScoresV1(job_id=job.job_id, attempt=1, first_index=0, logprobs=struct.pack("<f", wrong))
    names = {"user": USER.participant_id, "job": job.job_id, "worker": WORKER.participant_id}
    side.say(t.SCORES, body, WORKER, **names)
    side.stream(job, [7])
    side.commit(job, [7])
    assert await read(side, job) == [Piece(1, 0, (7,))]


async def test_a_user_who_may_not_hear_scores_has_submitted_nothing(
    side: UserSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before the job is paid for."""

    def refuse(_subject: str) -> None:
        raise BusError("denied")

    monkeypatch.setattr(side.bus, "subscribe_core", refuse)
    with pytest.raises(BusError, match="denied"):
        await submit(side, logprobs=True)
    assert side.bus.published == []
