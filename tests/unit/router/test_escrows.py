"""What waits for its deposit is bounded: by account, and for all that never paid; nobody who pays is in their way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from kit.network import Network, make_key, make_network
from kit.routing import USER, RouterHarness, make_router, make_submission
from pocache.protocol.ids import JobId
from pocache.protocol.keys import SigningKey
from pocache.protocol.limits import (
    ESCROW_BYTES_MAX,
    ESCROW_ENTRY_BYTES,
    NEW_ACCOUNT_ESCROW_BYTES_MAX,
    NEW_ACCOUNTS_BYTES_MAX,
    SHORT_ESCROWS_MAX,
)
from pocache.wire import messages as m
from pocache.wire import topics as t

SALTS = itertools.count()


@pytest.fixture(scope="module")
def network() -> Network:
    """Room for more jobs than any of these bounds lets in, and prompts that reach them soon."""
    return make_network(bounds={"open_jobs_max": 100_000}, context_tokens_max=65_536)


@pytest.fixture
def router(network: Network) -> Iterator[RouterHarness]:
    """A router with an empty outbox."""
    harness = make_router(network)
    yield harness
    harness.close()


def send(router: RouterHarness, user: SigningKey, tokens: int = 3) -> tuple[bytes, str | None]:
    """Submit a job of its own; return its envelope, and the code of its refusal."""
    prompt = b"\x01\0\0\0" * tokens
    body = make_submission(router.network, prompt=prompt, salt=next(SALTS).to_bytes(16, "big"))
    data = router.network.seal(user, body)
    router.drain()
    is_taken = router.deliver_data(t.JOB_SUBMITTED, data).action == "ack"
    if is_taken:
        return data, None
    said = router.outbox()
    assert [topic for topic, _ in said] == [t.REFUSALS[router.service.role]], (
        "a refusal leaves nothing in RECORD"
    )
    (refusal,) = [body for _, body in said if isinstance(body, m.RefusalV1)]
    assert "nothing was stored" in refusal.reason
    return data, refusal.code


def fill(router: RouterHarness, user: SigningKey, bytes_max: int, code: str = "E205") -> list[JobId]:
    """Submit large jobs, then small ones, until even these are refused; the sum is just below the bound."""
    jobs: list[JobId] = []
    taken = 0
    for tokens in (60_000, 10_000, 3):
        while True:
            data, refused = send(router, user, tokens)
            if refused is not None:
                assert refused == code
                break
            jobs.append(JobId(router.network.envelope_id(data)))
            taken += len(data) + ESCROW_ENTRY_BYTES
    assert bytes_max - len(data) - ESCROW_ENTRY_BYTES < taken <= bytes_max
    return jobs


def refuse(router: RouterHarness, job_id: JobId, user: SigningKey) -> None:
    """The ledger has not that much of this account."""
    request = m.HoldRequestV1(
        purpose="escrow", job_id=job_id, attempt=1, party=user.participant_id, amount_micro=1
    )
    router.refuse_hold(request)


def fund(router: RouterHarness, user: SigningKey) -> None:
    """Have a deposit of the account held."""
    data, code = send(router, user)
    assert code is None
    router.place_escrow(JobId(router.network.envelope_id(data)), user)


def test_a_new_account_has_so_much_unanswered_and_more_once_it_has_paid(router: RouterHarness) -> None:
    """Room is made by the ledger's answers alone, and a deposit that is held makes more of it."""
    jobs = fill(router, USER, NEW_ACCOUNT_ESCROW_BYTES_MAX)
    router.pass_rounds(3)
    assert send(router, USER)[1] == "E205"
    for job_id in jobs:
        router.place_escrow(job_id)
    fill(router, USER, ESCROW_BYTES_MAX)


def test_keys_without_money_share_one_bound_and_who_has_paid_is_not_in_it(router: RouterHarness) -> None:
    """However many keys: RECORD takes so much of them in a round; a known account and its jobs go through."""
    fund(router, USER)
    keys = [make_key(f"nobody {number}") for number in range(40)]
    taken: list[tuple[SigningKey, JobId]] = []
    record_bytes = 0
    for key in keys:
        for tokens in (60_000, 3):
            data, code = send(router, key, tokens)
            if code is None:
                taken.append((key, JobId(router.network.envelope_id(data))))
                record_bytes += len(data) + ESCROW_ENTRY_BYTES
    assert record_bytes <= NEW_ACCOUNTS_BYTES_MAX
    assert len({key.participant_id for key, _ in taken}) < len(keys)
    assert send(router, make_key("another"), 60_000)[1] == "E205"
    assert send(router, USER, 60_000)[1] is None
    for key, job_id in taken:
        refuse(router, job_id, key)
    assert send(router, make_key("another"), 60_000)[1] == "E205", "what was refused counts in its round"
    router.pass_rounds()
    assert send(router, make_key("another"), 60_000)[1] is None


def test_whoever_pays_takes_no_room_of_those_to_come(router: RouterHarness) -> None:
    """An account that waits for all that it may leaves the new ones' bound as it is."""
    fund(router, USER)
    fill(router, USER, ESCROW_BYTES_MAX)
    fill(router, make_key("newcomer"), NEW_ACCOUNT_ESCROW_BYTES_MAX)


@pytest.mark.parametrize("is_funded", [False, True])
def test_whoever_was_refused_has_a_few_tries_in_each_round(router: RouterHarness, is_funded: bool) -> None:
    """E204 until the next round, in which there are as many again; a deposit that is held ends it."""
    if is_funded:
        fund(router, USER)
    for _ in range(3):
        for _ in range(SHORT_ESCROWS_MAX):
            data, code = send(router, USER)
            assert code is None
            refuse(router, JobId(router.network.envelope_id(data)), USER)
        assert send(router, USER)[1] == "E204"
        router.pass_rounds()
    fund(router, USER)
    assert [send(router, USER)[1] for _ in range(2 * SHORT_ESCROWS_MAX)] == [None] * 2 * SHORT_ESCROWS_MAX


def test_an_account_without_money_asks_no_faster_for_having_paid_once(router: RouterHarness) -> None:
    """Its tries of a round may all wait at once; they are no more than when it waits for each answer."""
    fund(router, USER)
    for _ in range(SHORT_ESCROWS_MAX):
        refuse(router, JobId(router.network.envelope_id(send(router, USER)[0])), USER)
    router.pass_rounds()
    assert [send(router, USER)[1] for _ in range(SHORT_ESCROWS_MAX + 1)] == [None] * SHORT_ESCROWS_MAX + [
        "E204"
    ]


def test_one_job_too_dear_does_not_stop_the_others(router: RouterHarness) -> None:
    """With many jobs waiting, a refusal or two of one account's refuses none of the rest."""
    fund(router, USER)
    for _ in range(SHORT_ESCROWS_MAX - 1):
        refuse(router, JobId(router.network.envelope_id(send(router, USER)[0])), USER)
    assert [send(router, USER)[1] for _ in range(20)] == [None] * 20


def test_the_bounds_outlive_a_restart(network: Network, tmp_path_factory: pytest.TempPathFactory) -> None:
    """They are in the database: who was refused before is refused after, and who waits still counts."""
    router = make_router(network, f"sqlite:///{tmp_path_factory.mktemp('router') / 'router.sqlite'}")
    other = make_key("other")
    for _ in range(SHORT_ESCROWS_MAX):
        refuse(router, JobId(router.network.envelope_id(send(router, USER)[0])), USER)
    fill(router, other, NEW_ACCOUNT_ESCROW_BYTES_MAX)
    router.drain()
    router.close()
    router.open()
    assert send(router, USER)[1] == "E204"
    assert send(router, other)[1] == "E205"
    router.close()
