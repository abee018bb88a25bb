"""The gateway over HTTP: who is let in, what each failure of the network becomes, and what a stream looks like."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from kit.network import Network
from kit.sse import iterate_events, read_events, wait_until
from kit.stub_gateway import StubGateway, open_stub_gateway, read_error, read_texts
from pocache.client import Job
from pocache.protocol.errors import BackpressureError, BusError
from pocache.text import Codec, load_codec
from pocache.wire.topics import Role
from pocache_gateway.app import build_app
from pocache_gateway.runs import Delivered

NO_JOB = "0" * 64

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(
    gateway: StubGateway, act: Callable[[Job], Awaitable[None] | None], **changes: Any
) -> httpx.Response:
    """Ask for a completion while the test plays the network."""
    known = gateway.state.runs.job_ids
    async with gateway.open_client() as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post("/v1/completions", json=gateway.ask(**changes)))
        done = act(await gateway.wait_job(known))
        if done is not None:
            await done
    return asking.result()


# --- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Basic abc", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer nonsense", "invalid_api_key"),
        ("Bearer sk-pocache-0123456789ab-" + "A" * 43, "invalid_api_key"),
        ("Bearer sk-pocache-../../etc/passwd", "invalid_api_key"),
    ],
)
async def test_without_a_good_key_there_is_no_answer(
    gateway: StubGateway, header: str | None, code: str
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        headers = {} if header is None else {"authorization": header}
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/models/kit-model"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("GET", f"/v1/receipts/{NO_JOB}"),
            ("GET", f"/v1/jobs/{NO_JOB}"),
            ("GET", f"/v1/jobs/{NO_JOB}/stream"),
            ("POST", f"/v1/jobs/{NO_JOB}/challenge"),
            ("POST", f"/v1/jobs/{NO_JOB}/cancel"),
            ("GET", "/v1/balance"),
        ):
            response = await client.request(method, path, headers=headers)
            assert read_error(response) == (401, code, None), path
            assert response.headers["www-authenticate"] == "Bearer"


async def test_a_revoked_key_is_refused(gateway: StubGateway) -> None:
    """Within a second: an entry is remembered no longer."""
    secret = gateway.issue()
    async with gateway.open_client(secret) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert gateway.keys.revoke(secret.split("-")[2])

        async def is_refused() -> bool:
            return (await client.get("/v1/models")).status_code == 401

        await wait_until(is_refused)


async def test_a_keys_rate_is_bounded(gateway: StubGateway) -> None:
    """The request beyond it is told when to come again."""
    async with gateway.open_client(gateway.issue(requests_per_minute_max=2)) as client:
        statuses = [(await client.get(f"/v1/jobs/{NO_JOB}")).status_code for _ in range(2)]
        response = await client.get(f"/v1/jobs/{NO_JOB}")
    assert statuses == [404, 404]
    assert read_error(response) == (429, "rate_limit_exceeded", None)
    assert 1 <= int(response.headers["retry-after"]) <= 30


async def test_a_keys_jobs_at_once_are_bounded(gateway: StubGateway) -> None:
    """And counted again when one ends."""
    secret = gateway.issue(concurrent_max=1)
    async with gateway.open_client(secret) as client, asyncio.TaskGroup() as group:
        first = group.create_task(client.post("/v1/completions", json=gateway.ask()))
        job = await gateway.wait_job()
        refused = await client.post("/v1/completions", json=gateway.ask())
        assert read_error(refused) == (429, "concurrent_limit_exceeded", None)
        gateway.begin(job)
        gateway.commit(job, "whole")
        assert (await first).status_code == 200
        second = group.create_task(client.post("/v1/completions", json=gateway.ask()))
        other = await gateway.wait_job([job.job_id])
        gateway.begin(other)
        gateway.commit(other, "again")
        assert (await second).status_code == 200


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(gateway: StubGateway) -> None:
    """By what it announces, and as it comes where it announces nothing."""
    async with gateway.open_client(gateway.issue(body_bytes_max=1_000)) as client:
        response = await client.post("/v1/completions", json=gateway.ask(prompt="x" * 2_000))
        assert read_error(response) == (413, "body_too_large", None)

        async def parts() -> Any:
            for _ in range(3):
                yield b"x" * 500

        response = await client.post("/v1/completions", content=parts())
        assert read_error(response) == (413, "body_too_large", None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "invalid_json"),
        (b'["a"]', "invalid_json"),
        (b'{"model": "kit-model"}', "invalid_value"),
    ],
)
async def test_a_malformed_body_is_refused(gateway: StubGateway, body: bytes, code: str) -> None:
    async with gateway.open_client() as client:
        response = await client.post("/v1/completions", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)
    assert not gateway.side.bus.published


async def test_an_unknown_model_is_named_as_it_was_sent_and_never_as_markup(gateway: StubGateway) -> None:
    name = "<script>alert(1)</script>"
    async with gateway.open_client() as client:
        response = await client.post("/v1/completions", json=gateway.ask(model=name))
        assert read_error(response) == (404, "model_not_found", "model")
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        response = await client.get(f"/v1/models/{name}")
        assert read_error(response) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    "job",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f",
        "0" * 63,
        "0" * 65,
        "G" * 64,
        ("a" * 64).upper(),
        "*",
        "%00",
        "<script>",
        ".",
        "a" * 5_000,
    ],
    ids=lambda job: job[:16],
)
async def test_what_is_no_job_id_is_not_found(gateway: StubGateway, job: str) -> None:
    """Whatever it looks like, nothing is asked of anybody."""
    async with gateway.open_client() as client:
        for path in (f"/v1/receipts/{job}", f"/v1/jobs/{job}", f"/v1/jobs/{job}/stream"):
            response = await client.get(path)
            assert response.status_code == 404
            assert response.json()["error"]["message"]
    assert not gateway.side.bus.published


async def test_what_is_not_there_is_answered_like_everything_else(gateway: StubGateway) -> None:
    async with gateway.open_client() as client:
        assert read_error(await client.get("/v1/nothing")) == (404, "not_found", None)
        assert read_error(await client.get("/v1/completions")) == (405, "method_not_allowed", None)
        document = (await client.get("/openapi.json")).json()
    paths = {
        route.path
        for route in build_app(gateway.state).routes
        if isinstance(route, Route) and "/v1/" in route.path
    }
    assert {path.replace("{model}", "{model:path}") for path in document["paths"]} == paths


# --- what the network says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "named"),
    [
        ("E201", 404, "model_not_found"),
        ("E202", 400, "context_length_exceeded"),
        ("E203", 400, "invalid_value"),
        ("E204", 402, "insufficient_balance"),
        ("E205", 429, "backpressure"),
        ("E206", 409, "too_late"),
        ("E401", 502, "network_error"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_refusal_becomes_a_status(
    gateway: StubGateway, code: str, status: int, named: str, is_streamed: bool
) -> None:
    """Before anything is answered, so that a stream never begins that cannot go on."""

    def refuse(job: Job) -> None:
        gateway.side.refuse(Role.ROUTER, job.message_hash, code, "the context is too short")

    response = await ask(gateway, refuse, stream=is_streamed)
    assert (response.status_code, response.json()["error"]["code"]) == (status, named)
    assert len(response.headers["x-pocache-job"]) == 64
    assert ("retry-after" in response.headers) == (status == 429)


async def test_a_deposit_that_is_refused_is_402(gateway: StubGateway) -> None:
    """The ledger's word comes as an event of the job."""

    def refuse(job: Job) -> None:
        gateway.side.tell(job, "escrowing")
        gateway.side.tell(job, "refused", code="E204", detail="12 micro-units are short")

    response = await ask(gateway, refuse, stream=True)
    assert read_error(response) == (402, "insufficient_balance", None)
    assert "12 micro-units" in response.text


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (BackpressureError("the stream is full"), 429, "backpressure"),
        (BusError("no server"), 503, "network_unreachable"),
    ],
)
async def test_a_bus_that_takes_nothing(
    gateway: StubGateway, failure: Exception, status: int, code: str
) -> None:
    gateway.side.bus.failure = failure
    async with gateway.open_client() as client:
        response = await client.post("/v1/completions", json=gateway.ask())
    assert read_error(response) == (status, code, None)
    assert int(response.headers["retry-after"]) >= 1
    assert gateway.state.drain.in_hand == 0


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("no worker took the job in time", 503, "no_worker"),
        ("no worker committed a result in any attempt", 502, "generation_failed"),
    ],
)
async def test_a_job_that_nobody_did(gateway: StubGateway, reason: str, status: int, code: str) -> None:
    """A whole answer has a status of its own; in a stream it is the last event but one."""

    def give_up(job: Job) -> None:
        gateway.begin(job)
        gateway.side.tell(job, "refunded", detail=reason)

    response = await ask(gateway, give_up)
    assert read_error(response) == (status, code, None)
    response = await ask(gateway, give_up, stream=True)
    assert response.status_code in (200, status)
    if response.status_code == 200:
        *_, (_, error), (_, done) = await read_events(response)
        assert (json.loads(error)["error"]["code"], done) == (code, "[DONE]")


async def test_a_second_attempt_with_another_text_is_said(gateway: StubGateway) -> None:
    """What was delivered cannot be taken back: the stream ends with an error, never with a mixture."""
    async with gateway.open_client() as client, asyncio.TaskGroup() as group:

        async def read() -> tuple[str, str]:
            body = gateway.ask(stream=True)
            async with client.stream("POST", "/v1/completions", json=body) as response:
                events = await read_events(response)
            return read_texts(events[:1]), events[-2][1]

        reading = group.create_task(read())
        job = await gateway.wait_job()
        gateway.begin(job)
        gateway.stream(job, "one")
        run = gateway.state.runs.find(job.job_id, "ada")
        assert run is not None
        await wait_until(lambda: bool(run.pieces))
        gateway.commit(job, "another", attempt=2)
        text, error = await reading
    assert text == "one"
    assert json.loads(error)["error"]["code"] == "network_error"


# --- streams -------------------------------------------------------------------------------------------------------


async def test_a_stream_in_the_form_that_clients_read(gateway: StubGateway) -> None:
    """Ids count pieces, usage is null until it is known, the last two chunks carry the job."""

    def play(job: Job) -> None:
        gateway.begin(job)
        gateway.commit(job, "<b>ok</b>")

    changes = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9}
    response = await ask(gateway, play, **changes)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = await read_events(response)
    job = response.headers["x-pocache-job"]
    assert [event_id for event_id, _ in events] == [f"{job}:1", f"{job}:1", f"{job}:1", ""]
    text, last, usage = (json.loads(data) for _, data in events[:-1])
    assert events[-1][1] == "[DONE]"
    assert (text["choices"][0]["text"], text["usage"], text["object"]) == (
        "<b>ok</b>",
        None,
        "text_completion",
    )
    assert (last["choices"][0]["finish_reason"], last["choices"][0]["text"]) == ("length", "")
    assert usage["usage"] == {"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}
    assert (
        last["pocache"]
        == usage["pocache"]
        == {
            "job_id": job,
            "receipt_url": f"/v1/receipts/{job}",
            "status": "committed",
            "cancelled": False,
        }
    )


async def test_text_is_delivered_by_characters(gateway: StubGateway) -> None:
    """A character whose bytes come apart comes once, whole."""
    text = "né €uro 🎲 end"
    pieces = list(text.encode())

    async def play(job: Job) -> None:
        gateway.begin(job)
        for index in range(len(pieces)):
            gateway.side.stream(job, pieces[index : index + 1], before=pieces[:index])
            await asyncio.sleep(0)
        gateway.side.commit(job, pieces)

    response = await ask(gateway, play, stream=True, max_tokens=40)
    events = await read_events(response)
    assert read_texts(events) == text
    assert all("\ufffd" not in data for _, data in events)


async def test_a_stop_string_is_found_across_pieces_and_the_job_cancelled(gateway: StubGateway) -> None:
    async def play(job: Job) -> None:
        gateway.begin(job)
        gateway.stream(job, "before EN")
        gateway.stream(job, "D after", before="before EN")
        await gateway.wait_cancelled(job)
        gateway.commit(job, "before END after")

    response = await ask(gateway, play, stop=["END"], max_tokens=40)
    body = response.json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("before ", "stop")
    assert body["usage"]["completion_tokens"] == len("before END after")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_goes_away_cancels(gateway: StubGateway, is_streamed: bool) -> None:
    """Once, in the user's own name."""
    async with gateway.open_client() as client:

        async def read() -> None:
            body = gateway.ask(stream=is_streamed)
            async with client.stream("POST", "/v1/completions", json=body) as response:
                await anext(iterate_events(response))

        reading = asyncio.create_task(read())
        job = await gateway.wait_job()
        gateway.begin(job)
        gateway.stream(job, "one")
        run = gateway.state.runs.find(job.job_id, "ada")
        assert run is not None
        await wait_until(lambda: bool(run.pieces))
        if is_streamed:
            await reading
        else:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    await gateway.wait_cancelled(job)
    gateway.commit(job, "one")


async def test_a_client_that_does_not_read_is_left(network: Network, tmp_path: Any) -> None:
    """What is kept for it is bounded; after a while it counts as gone, and its job is cancelled."""
    async with open_stub_gateway(network, tmp_path, send_timeout_s=0.3) as gateway:
        body = json.dumps(gateway.ask(stream=True, max_tokens=30_000))
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as narrow:
            narrow.sendall(
                (
                    f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {gateway.secret}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
                ).encode()
            )
            job = await gateway.wait_job()
            gateway.begin(job)
            run = gateway.state.runs.find(job.job_id, "ada")
            assert run is not None
            filler = "x" * 200
            sent = ""
            for _ in range(100):
                gateway.stream(job, filler, before=sent)
                sent += filler
            await wait_until(lambda: sum(len(one.text) for one in run.pieces) == len(sent))
            # More than every buffer between here and there: the pieces again, as one long text each.
            run.pieces += [Delivered("y" * 100_000)] * 40
            run.notify()
            await gateway.wait_cancelled(job)
            assert run.readers == 0
            gateway.commit(job, sent)


async def test_while_draining_nothing_new_is_taken(gateway: StubGateway) -> None:
    gateway.state.drain.is_draining = True
    async with gateway.open_client() as client:
        response = await client.post("/v1/completions", json=gateway.ask())
        assert read_error(response) == (503, "draining", None)
        assert "retry-after" in response.headers
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_full_gateway_says_when_to_come_again(network: Network, tmp_path: Any) -> None:
    async with open_stub_gateway(network, tmp_path, open_jobs_max=1) as gateway:

        async def play(job: Job) -> None:
            async with gateway.open_client() as client:
                refused = await client.post("/v1/completions", json=gateway.ask())
            assert read_error(refused) == (429, "rate_limit_exceeded", None)
            gateway.begin(job)
            gateway.commit(job, "ok")

        assert (await ask(gateway, play)).status_code == 200


# --- prompts -------------------------------------------------------------------------------------------------------


async def test_a_conversation_is_written_as_the_model_wants_it(network: Network, tmp_path: Any) -> None:
    """By the model's own template, in a sandbox; what it refuses is a 400."""
    plain = load_codec("fake:bytes")
    assert plain is not None
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no assistants') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    codec = Codec(plain.encode, plain.encode_plain, plain.decode, template, {"bos_token": "^"})
    async with open_stub_gateway(network, tmp_path, codec=codec) as gateway, gateway.open_client() as client:
        messages = [{"role": "system", "content": "{{ 7 * 7 }}"}, {"role": "user", "content": "<script>"}]
        asking = asyncio.create_task(
            client.post("/v1/chat/completions", json={"model": "kit-model", "messages": messages})
        )
        job = await gateway.wait_job()
        assert bytes(job.prompt).decode() == "^[system]{{ 7 * 7 }}[user]<script>>"
        gateway.begin(job)
        gateway.commit(job, "fine")
        assert (await asking).json()["choices"][0]["message"]["content"] == "fine"
        messages.append({"role": "assistant", "content": "x"})
        refused = await client.post("/v1/chat/completions", json={"model": "kit-model", "messages": messages})
        assert read_error(refused) == (400, "invalid_prompt", "prompt")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": ""}, "invalid_prompt"),
        ({"prompt": "x" * 49_995}, "context_length_exceeded"),
        ({"prompt": "x" * 60_000, "max_tokens": None}, "context_length_exceeded"),
    ],
)
async def test_a_prompt_that_does_not_fit_costs_nothing(
    gateway: StubGateway, changes: dict[str, Any], code: str
) -> None:
    async with gateway.open_client() as client:
        response = await client.post("/v1/completions", json=gateway.ask(**changes))
    assert read_error(response) == (400, code, "prompt")
    assert not gateway.side.bus.published
