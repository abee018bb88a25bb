"""What a gateway counts: requests, refusals, jobs, streams and tokens, and nothing that names a job or a key."""

from __future__ import annotations

import asyncio

import pytest

from kit.scraping import parse, read
from kit.sse import wait_until
from kit.stub_gateway import StubGateway
from pocache.protocol.errors import BackpressureError

NO_JOB = "0" * 64
COMPLETIONS = "/v1/completions"

pytestmark = pytest.mark.asyncio(loop_scope="module")


def count(gateway: StubGateway, sample: str, **labels: str) -> float:
    """Return what is exported now."""
    return read(parse(gateway.state.metrics.render()), f"pocache_gateway_{sample}", **labels)


async def test_a_streamed_answer_is_counted_while_it_lasts_and_when_it_ended(gateway: StubGateway) -> None:
    answered = count(gateway, "requests_total", route=COMPLETIONS, status="200")
    tokens, firsts = count(gateway, "tokens_total"), count(gateway, "first_token_seconds_count")
    async with gateway.open_client() as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(COMPLETIONS, json=gateway.ask(stream=True)))
        job = await gateway.wait_job()
        gateway.begin(job)
        gateway.stream(job, "Hel")
        await wait_until(lambda: count(gateway, "streams") == 1 and count(gateway, "tokens_total") > tokens)
        assert count(gateway, "jobs") == 1
        gateway.stream(job, "lo", before="Hel")
        gateway.commit(job, "Hello")
    assert "[DONE]" in asking.result().text
    await wait_until(lambda: count(gateway, "streams") == 0)
    assert count(gateway, "jobs") == 0
    assert count(gateway, "tokens_total") - tokens == len("Hello")
    assert count(gateway, "first_token_seconds_count") - firsts == 1
    await wait_until(
        lambda: count(gateway, "requests_total", route=COMPLETIONS, status="200") - answered == 1
    )


async def test_refusals_are_counted_by_their_reason(gateway: StubGateway) -> None:
    """A key, an option, a path, a full queue: each by its code, and by the route's own path where there is one."""
    reasons = ("invalid_api_key", "unsupported_parameter", "job_not_found", "not_found", "backpressure")
    before = {reason: count(gateway, "refusals_total", reason=reason) for reason in reasons}
    async with gateway.open_client() as client:
        await client.get("/v1/models", headers={"authorization": "Bearer wrong"})
        await client.post(COMPLETIONS, json=gateway.ask(n=2))
        await client.get(f"/v1/jobs/{NO_JOB[:-1]}x")
        await client.get(f"/{gateway.secret}")
        gateway.side.bus.failure = BackpressureError("the queue is full")
        await client.post(COMPLETIONS, json=gateway.ask())
    for reason in reasons:
        assert count(gateway, "refusals_total", reason=reason) - before[reason] == 1, reason
    assert count(gateway, "requests_total", route="/v1/jobs/{job}", status="404") >= 1
    assert count(gateway, "requests_total", route="other", status="404") >= 1
    assert count(gateway, "requests_total", route=COMPLETIONS, status="429") >= 1


async def test_no_label_names_a_job_or_a_key(gateway: StubGateway) -> None:
    """Labels are the routes' own paths and the codes of errors, whatever is asked for."""
    async with gateway.open_client() as client:
        await client.get(f"/v1/jobs/{NO_JOB}")
        await client.get(f"/v1/{gateway.secret}?job={NO_JOB}")
        await client.get(f"/explorer/jobs/{NO_JOB}")
    text = gateway.state.metrics.render()
    assert NO_JOB not in text
    assert gateway.secret not in text
