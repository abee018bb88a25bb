"""An ejected worker gets no further lease of the model, after a restart too; others get the job."""

from __future__ import annotations

from pathlib import Path

from kit.network import Network, make_key
from kit.routing import RouterHarness, make_router
from pocache.protocol.errors import EjectedError
from pocache.wire import messages as m
from pocache.wire import topics as t

OUT, OTHER = make_key("worker-1"), make_key("worker-2")


def eject(router: RouterHarness, model_id: bytes | None = None) -> None:
    """The pool ejects the first worker."""
    body = m.EjectionV1(
        participant=OUT.participant_id,
        model_id=router.network.model.model_id if model_id is None else model_id,
        test="grades",
        job_id=b"\x01" * 32,
        outcome=b"\x02" * 32,
        job_count=4,
        grade_sum_q16=1_326_156,
        token_sum_q16=0,
    )
    router.tell(t.WORKER_EJECTED, body)


def test_it_is_denied_and_the_job_is_offered_again(router: RouterHarness) -> None:
    """It had taken the task from the queue: without another offer nobody would hear of the job."""
    eject(router)
    job_id = router.submit()
    router.place_escrow(job_id)
    (first,) = router.outbox_of(t.GENERATE_TASK)
    assert router.request_lease(job_id, OUT).action == "ack"
    emissions = router.drain()
    (denial,) = [one.body for one in emissions if isinstance(one.body, m.LeaseDeniedV1)]
    (again,) = [one.body for one in emissions if isinstance(one.body, m.GenerateTaskV1)]
    assert (denial.code, denial.attempt) == (EjectedError.code, 1)
    assert "ask the operator" in denial.reason
    assert (again.attempt, again.publication) == (1, first.publication + 1)
    router.request_lease(job_id, OTHER)
    router.place_stake(job_id, OTHER)
    (granted,) = router.outbox_of(t.LEASE_GRANTED)
    assert granted.job_id == job_id


def test_a_restarted_router_remembers(network: Network, tmp_path: Path) -> None:
    router = make_router(network, f"sqlite:///{tmp_path / 'router.sqlite'}")
    eject(router)
    router.close()
    router.open()
    job_id = router.submit()
    router.place_escrow(job_id)
    router.request_lease(job_id, OUT)
    (denial,) = router.outbox_of(t.LEASE_DENIED)
    assert denial.code == EjectedError.code
    router.close()


def test_what_it_holds_goes_on(router: RouterHarness) -> None:
    """A lease is granted again when it asks again, and its result is taken."""
    job_id, lease = router.start(OUT)
    eject(router)
    router.request_lease(job_id, OUT, requested_ms=1)
    (granted,) = router.outbox_of(t.LEASE_GRANTED)
    assert router.network.open(granted.lease, m.LeaseV1) == lease
    router.record(job_id, OUT)
    assert router.phases(router.drain()) == ["committed"]


def test_another_model_is_not_concerned(router: RouterHarness) -> None:
    eject(router, model_id=b"\x09" * 32)
    _, lease = router.start(OUT)
    assert lease.generator == OUT.participant_id


def test_a_repetition_changes_nothing(router: RouterHarness) -> None:
    eject(router)
    before = router.dump()
    assert router.last is not None
    assert router.apply(router.last).action == "ack"
    assert router.dump() == before
