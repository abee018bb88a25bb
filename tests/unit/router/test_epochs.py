"""Sampling seeds: nobody can shop for one, and anyone can check them once the epoch is over."""

from __future__ import annotations

import hashlib

import pytest

from kit.network import Network, make_key
from kit.routing import RouterHarness, make_entropy
from pocache.protocol.commitment import compute_sampling_seed
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_router import service
from pocache_router.service import RouterService

WORKER = make_key("worker")


@pytest.fixture
def fresh(network: Network) -> RouterHarness:
    """A router that has seen no round yet."""
    return RouterHarness(RouterService(network.genesis, network.models, entropy=make_entropy()), network)


def test_the_key_is_promised_before_the_first_seed(fresh: RouterHarness) -> None:
    """No lease before the epoch: the answer of the ledger waits until a round has come."""
    job_id = fresh.submit()
    fresh.place_escrow(job_id)
    fresh.request_lease(job_id, WORKER)
    fresh.drain()
    placed = fresh.placed("generator_stake", job_id, 1, WORKER, 1)
    assert fresh.deliver(t.HOLD_PLACED, placed).action == "nak"
    assert fresh.outbox() == []
    assert fresh.last is not None
    waiting = fresh.last
    fresh.pass_rounds()
    assert [emission.topic for emission in fresh.drain()] == [t.EPOCH]
    assert fresh.apply(waiting).action == "ack"
    assert len(fresh.outbox_of(t.LEASE_GRANTED)) == 1


def test_the_key_is_published_when_its_epoch_ends(
    fresh: RouterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hash before, key after; the seed of every lease in between follows from it."""
    monkeypatch.setattr(service, "EPOCH_TICKS", 2)
    fresh.pass_rounds()
    (first,) = fresh.outbox_of(t.EPOCH)
    assert (first.number, first.previous_key) == (1, None)
    job_id, lease = fresh.start(WORKER)
    fresh.pass_rounds()
    assert fresh.outbox_of(t.EPOCH) == []
    fresh.pass_rounds()
    (second,) = fresh.outbox_of(t.EPOCH)
    assert second.number == 2
    assert second.previous_key is not None
    assert hashlib.sha256(second.previous_key).digest() == first.key_hash
    assert second.key_hash != first.key_hash
    assert lease.seed == compute_sampling_seed(None, second.previous_key, job_id)


def test_another_job_and_another_epoch_mean_another_seed(
    fresh: RouterHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "EPOCH_TICKS", 1)
    fresh.pass_rounds()
    seeds = [fresh.start(WORKER, salt=bytes([number]) * 16)[1].seed for number in range(2)]
    job_id, lease = fresh.start(WORKER, salt=b"the third job...")
    fresh.pass_rounds()
    fresh.pass_rounds()
    fresh.drain()
    fresh.tell(t.ATTEMPT_CLOSED, m.AttemptClosedV1(job_id=job_id, attempt=1))
    fresh.request_lease(job_id, WORKER, 2)
    fresh.place_stake(job_id, WORKER, 2)
    (granted,) = fresh.outbox_of(t.LEASE_GRANTED)
    later = fresh.network.open(granted.lease, m.LeaseV1)
    assert len({*seeds, lease.seed, later.seed}) == 4


def test_a_users_own_seed_is_used(fresh: RouterHarness) -> None:
    """The user is the one whom a bad seed cheats."""
    fresh.pass_rounds()
    seed = hashlib.sha256(b"my own").digest()
    job_id, lease = fresh.start(WORKER, seed=seed)
    assert lease.seed == compute_sampling_seed(seed, b"", job_id)


def test_a_second_attempt_in_the_same_epoch_has_the_same_seed(fresh: RouterHarness, network: Network) -> None:
    """Letting a lease lapse is no way to another seed."""
    fresh.pass_rounds()
    job_id, lease = fresh.start(WORKER)
    fresh.pass_rounds(network.genesis.deadlines.lease_ticks + 1)
    fresh.tell(t.ATTEMPT_CLOSED, m.AttemptClosedV1(job_id=job_id, attempt=1))
    fresh.request_lease(job_id, WORKER, 2)
    fresh.place_stake(job_id, WORKER, 2)
    (granted,) = fresh.outbox_of(t.LEASE_GRANTED)
    assert network.open(granted.lease, m.LeaseV1).seed == lease.seed
