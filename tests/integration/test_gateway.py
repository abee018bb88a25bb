"""A gateway in front of a running network, used as other people's clients use it: openai for Python and npm, curl.

The model is the engine without a model, at a pace, so what it says is known before it is asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
import pytest_asyncio

from kit.gateway import Gateway, open_gateway
from kit.health import read_health_port
from kit.local import GENERATORS, SECTIONS, USER, VERIFIERS, start_network
from kit.node import JS, ROOT, find_node
from kit.says import Said, say
from kit.scraping import read, scrape
from kit.sse import iterate_events, read_events, wait_until
from kit.wealth import RULES
from pocache.client.http import AsyncGatewayClient
from pocache.protocol.encoding import pack_logprobs, unpack_logprobs
from pocache.protocol.unified_pool import Products
from pocache.receipt.trust import make_trust
from pocache.receipt.verify import examine_receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_cli.bootstrap import TRUST_FILE
from pocache_cli.children import Child, pick_python_environment
from pocache_cli.local_network import LocalNetwork, WorkerProcess

T = TypeVar("T")
MODEL = "fake:kit@5"
NO_LOTTERY = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": "0/1"}, "rules": RULES}
PROMPT = "user: Hello\nassistant:"
"""What the plain chat template makes of one message."""
LONG = 1_000
EXAMPLES = ROOT / "examples"
TOKENS = [str(one) for one in b"Hello"]
POOR_MICRO = 1_000

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


@dataclass
class Ground:
    """The network and the gateways in front of it."""

    network: LocalNetwork
    gateway: Gateway
    patient: Gateway
    """Waits for a client that went away."""

    @property
    def trust(self) -> str:
        """The file of trust roots that whoever made the network has."""
        return str(self.network.directory.path / TRUST_FILE)

    @property
    def http(self) -> list[str]:
        """The arguments of an example over HTTP."""
        return [self.gateway.url, self.gateway.secret, "test", "Hello"]

    @property
    def bus(self) -> list[str]:
        """The arguments of an example over the bus."""
        return [str(self.network.directory.path), USER, self.network.server.url]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            start_network(
                tmp_path_factory.mktemp("gateway"),
                model=MODEL,
                users=(USER, "grace", "poor"),
                money={"poor": POOR_MICRO},
                sections=NO_LOTTERY,
                workers=(
                    WorkerProcess("generators", GENERATORS, roles="generate"),
                    WorkerProcess("verifiers", VERIFIERS, roles="verify"),
                ),
            )
        )
        gateway = await stack.enter_async_context(open_gateway(network))
        patient = await stack.enter_async_context(open_gateway(network, RECONNECT_S="60"))
        yield Ground(network, gateway, patient)


async def in_thread(work: Callable[[], T]) -> T:
    """Run a blocking client beside the gateway."""
    return await asyncio.to_thread(work)


def ask_long(count: int, **changes: Any) -> dict[str, Any]:
    """Return the body of a request for exactly so many tokens."""
    body = {"model": "test", "prompt": "Hello", "max_tokens": count, "temperature": 0, "ignore_eos": True}
    return {**body, **changes}


async def run_program(*command: str) -> str:
    """Run a program to its end and return what it printed."""
    environ = {**os.environ, **pick_python_environment()}
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def verify_ending(ground: Ground, job: str) -> tuple[m.ResultV1, m.PayoutSettledV1]:
    """Fetch a job's receipt over HTTP, judge it here, and return its result and payout."""
    async with ground.gateway.open_client() as client:
        response = await client.get(f"/v1/receipts/{job}", params={"wait_s": 60})
    assert response.status_code == 200, response.text
    report, case = examine_receipt(response.content, make_trust(ground.network.directory.genesis))
    assert report.is_valid, report
    assert case is not None
    return case.result.body, case.dossier.get(t.PAYOUT_SETTLED)


# --- the official clients ------------------------------------------------------------------------------------------


async def test_the_python_client_without_asyncio(ground: Ground) -> None:
    """Models, a whole answer, a stream with usage, a plain completion; each says its job."""
    gateway = ground.gateway
    expected = say(PROMPT, 8)

    def use() -> dict[str, Any]:
        client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.secret, max_retries=0)
        with client:
            ask: dict[str, Any] = {
                "model": "test",
                "messages": [{"role": "user", "content": "Hello"}],
                "temperature": 0,
            }
            whole = client.chat.completions.with_raw_response.create(**ask, max_tokens=8)
            chunks = list(
                client.chat.completions.create(
                    **ask, max_completion_tokens=8, stream=True, stream_options={"include_usage": True}
                )
            )
            plain = client.completions.create(model="test", prompt="Hello", max_tokens=4, temperature=0)
            models = [one.id for one in client.models.list()]
            return {"whole": whole, "chunks": chunks, "plain": plain, "models": models}

    found = await in_thread(use)
    body = found["whole"].parse()
    assert body.choices[0].message.content == expected.text
    assert body.choices[0].finish_reason == expected.finish_reason
    assert (body.usage.prompt_tokens, body.usage.completion_tokens) == (len(PROMPT), expected.count)
    note = body.model_extra["pocache"]
    assert note["job_id"] == found["whole"].headers["x-pocache-job"]
    assert (note["receipt_url"], note["status"]) == (f"/v1/receipts/{note['job_id']}", "committed")
    *texts, last, usage = found["chunks"]
    assert "".join(one.choices[0].delta.content or "" for one in texts) == expected.text
    assert (last.choices[0].finish_reason, last.usage) == (expected.finish_reason, None)
    assert last.model_extra["pocache"]["status"] == "committed"
    assert (usage.choices, usage.usage.completion_tokens) == ([], expected.count)
    assert found["plain"].choices[0].text == say("Hello", 4).text
    assert found["models"] == ["test"]


def list_scores(said: Said) -> list[tuple[bytes, float]]:
    """Return the bytes and the log-probability of each token that is text, as float32 has them."""
    logprobs = unpack_logprobs(pack_logprobs(said.logprobs))
    return [
        (bytes((token,)), logprob)
        for token, logprob in zip(said.tokens, logprobs, strict=True)
        if token < 256
    ]


async def test_the_python_client_has_log_probabilities(ground: Ground) -> None:
    """Whole and streamed, of a conversation and of a plain completion: the engine's own numbers, every token's."""
    gateway = ground.gateway
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=gateway.secret, max_retries=0
    ) as client:
        ask = gateway.ask(temperature=0, logprobs=True, max_tokens=40)
        whole = await client.chat.completions.create(**ask)
        streamed = [chunk async for chunk in await client.chat.completions.create(**ask, stream=True)]
        plain: dict[str, Any] = {"model": "test", "prompt": "Hello", "max_tokens": 40, "temperature": 0}
        listed = (await client.completions.create(**plain, logprobs=1)).choices[0]
        chunks = [one async for one in await client.completions.create(**plain, logprobs=1, stream=True)]
    scores = list_scores(say(PROMPT, 40))
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content or []
    assert [(bytes(one.bytes or ()), one.logprob) for one in content] == scores
    assert b"".join(data for data, _ in scores).decode(errors="replace") == whole.choices[0].message.content
    parts = [one.choices[0].logprobs for one in streamed]
    assert [one for part in parts if part is not None for one in part.content or ()] == content
    scores = list_scores(say("Hello", 40))
    assert listed.logprobs is not None
    assert listed.logprobs.token_logprobs == [one for _, one in scores]
    assert len(listed.logprobs.tokens or ()) == len(scores)
    offsets = listed.logprobs.text_offset or []
    assert (offsets[0], sorted(offsets)) == (0, offsets)
    assert max(offsets) < len(listed.text)
    pieces = [one.choices[0].logprobs for one in chunks]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        together = [one for piece in pieces if piece is not None for one in getattr(piece, name)]
        assert together == getattr(listed.logprobs, name)


async def test_the_sdk_has_log_probabilities(ground: Ground) -> None:
    """Over the bus, by the user's own rights on it; a job that asked for none has none."""
    prompt, count = tuple(b"Hello"), 40
    (model_id,) = ground.network.directory.load_models()
    expected = say("Hello", count)
    async with ground.network.open_user(USER) as client:
        job = await client.submit(model_id, prompt, token_count_max=count, logprobs=True)
        pieces = [piece async for piece in client.stream(job)]
        other = await client.submit(model_id, prompt, token_count_max=2)
        unscored = [piece async for piece in client.stream(other)]
    logprobs = [one for piece in pieces for one in piece.logprobs or ()]
    assert tuple(logprobs) == unpack_logprobs(pack_logprobs(expected.logprobs))
    assert [piece.logprobs for piece in unscored] == [None] * len(unscored)


async def test_the_python_client_with_asyncio(ground: Ground) -> None:
    """Eight streams at once, each with its own text."""
    gateway = ground.gateway
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=gateway.secret, max_retries=0
    ) as client:

        async def ask(name: str) -> str:
            stream = await client.completions.create(
                model="test", prompt=name, max_tokens=12, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        names = [f"stream {number}" for number in range(8)]
        assert await asyncio.gather(*map(ask, names)) == [say(name, 12).text for name in names]


async def test_the_python_client_understands_errors(ground: Ground) -> None:
    gateway = ground.gateway
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=gateway.secret, max_retries=0
    ) as client:

        async def ask(**options: Any) -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as raised:
                await client.chat.completions.create(**gateway.ask(**options))
            return raised.value

        wrong = await ask(model="no-such-model")
        assert (type(wrong), wrong.code, wrong.param) == (openai.NotFoundError, "model_not_found", "model")
        wrong = await ask(n=2)
        assert (type(wrong), wrong.code, wrong.param) == (
            openai.BadRequestError,
            "unsupported_parameter",
            "n",
        )
        assert "n is not supported" in wrong.message
        wrong = await ask(max_tokens=10_000)
        assert (type(wrong), wrong.code) == (openai.BadRequestError, "context_length_exceeded")
        client.api_key = "sk-pocache-000000000000-" + "A" * 43
        wrong = await ask()
        assert (type(wrong), wrong.code) == (openai.AuthenticationError, "invalid_api_key")


async def test_the_npm_client(ground: Ground) -> None:
    gateway = ground.gateway
    node = find_node()
    found = json.loads(
        await run_program(node, str(JS / "openai.mjs"), f"{gateway.url}/v1", gateway.secret, "test")
    )
    expected = say(PROMPT, 8)
    assert found["models"] == ["test"]
    assert (found["whole"]["text"], found["streamed"]) == (expected.text, expected.text)
    assert found["whole"]["pocache"]["job_id"] == found["header"]
    assert (
        found["usage"]["completion_tokens"] == found["whole"]["usage"]["completion_tokens"] == expected.count
    )
    assert (found["finish"], found["pocache"]["status"]) == (expected.finish_reason, "committed")
    assert found["plain"] == say("Hello", 4).text
    assert [(bytes(one["bytes"]), one["logprob"]) for one in found["logprobs"]] == list_scores(expected)
    assert found["streamedLogprobs"] == found["logprobs"]
    assert found["plainLogprobs"]["token_logprobs"] == [one for _, one in list_scores(say("Hello", 4))]
    assert found["errors"] == {
        "n": ["BadRequestError", 400, "unsupported_parameter", "n"],
        "model": ["NotFoundError", 404, "model_not_found", "model"],
        "top_logprobs": ["BadRequestError", 400, "unsupported_parameter", "top_logprobs"],
        "key": ["AuthenticationError", 401, "invalid_api_key", None],
    }


async def test_curl(ground: Ground) -> None:
    """As the documentation shows it: an answer, a stream, the receipt behind both."""
    gateway = ground.gateway
    curl = shutil.which("curl")
    assert curl is not None
    common = [curl, "-sS", "-N", "-H", f"Authorization: Bearer {gateway.secret}"]
    ask = ["-H", "Content-Type: application/json", f"{gateway.url}/v1/chat/completions", "-d"]
    body = json.loads(await run_program(*common, *ask, json.dumps(gateway.ask(temperature=0))))
    assert body["choices"][0]["message"]["content"] == say(PROMPT, 8).text
    lines = await run_program(*common, *ask, json.dumps(gateway.ask(temperature=0, stream=True)))
    chunks = [line.removeprefix("data: ") for line in lines.splitlines() if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    texts = [json.loads(one)["choices"][0]["delta"].get("content", "") for one in chunks[:-1]]
    assert "".join(texts) == say(PROMPT, 8).text
    receipt = await run_program(*common, f"{gateway.url}{body['pocache']['receipt_url']}?wait_s=60")
    trust = make_trust(ground.network.directory.genesis)
    report, _ = examine_receipt(receipt.encode(), trust)
    assert report.is_valid


# --- what is paid for ----------------------------------------------------------------------------------------------


async def test_a_client_that_vanishes_pays_for_what_was_generated(ground: Ground) -> None:
    """The job is cancelled, committed to as far as it went, and the rest of the deposit comes back."""
    body = ask_long(LONG, stream=True)
    async with ground.gateway.open_client() as client:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            job = response.headers["x-pocache-job"]
            events = iterate_events(response)
            for _ in range(3):
                await anext(events)
    result, payout = await verify_ending(ground, job)
    count = len(result.output) // 4
    assert (result.finish_reason, 3 <= count < LONG) == ("cancelled", True)
    model = ground.gateway.state.catalogue.served[0].model
    assert payout.generation_micro == model.prices.compute_generation_cost(len(body["prompt"]), count)
    user = ground.network.directory.signing_key(USER).participant_id
    (line,) = [one for one in payout.lines if one.account == user]
    rules = ground.network.directory.genesis.rule_set
    products = rules.compute_products(payout.generation_micro, payout.verification_micro)
    assert isinstance(products, Products)
    assert line.held_micro == products.deposit  # of what was generated, not of what was asked for
    assert line.held_micro - line.amount_micro == products.a_cg


async def test_a_client_that_vanishes_from_a_whole_answer_cancels_it(ground: Ground) -> None:
    body = ask_long(LONG)
    before = set(ground.gateway.state.runs.job_ids)
    async with ground.gateway.open_client() as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        await wait_until(lambda: set(ground.gateway.state.runs.job_ids) - before)
        (job,) = set(ground.gateway.state.runs.job_ids) - before
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    async with ground.gateway.open_client() as client:
        assert (await client.get(f"/v1/receipts/{job.hex()}", params={"wait_s": 60})).status_code == 200
        told = (await client.get(f"/v1/jobs/{job.hex()}")).json()
    # Before its lease it is abandoned, after it committed to as far as it went: refunded or settled, never whole.
    assert told["status"] in ("refunded", "settled")
    if told["status"] == "settled":
        result, _ = await verify_ending(ground, job.hex())
        assert result.finish_reason == "cancelled"


async def test_a_stop_string_cuts_the_text_and_ends_the_job(ground: Ground) -> None:
    """Nothing from the stop string on is delivered, and nothing much behind it is generated."""
    whole = say("Hello", LONG, eos_stop=False)
    stop = whole.text[20:23]
    body = ask_long(LONG, stop=[stop, "never \u2603"])
    async with ground.gateway.open_client() as client:
        response = await client.post("/v1/completions", json=body)
    answer = response.json()
    assert answer["choices"][0] | {"logprobs": 0} == {
        "index": 0,
        "text": whole.text[: whole.text.index(stop)],
        "finish_reason": "stop",
        "logprobs": 0,
    }
    result, _ = await verify_ending(ground, response.headers["x-pocache-job"])
    assert result.finish_reason == "cancelled"
    assert answer["usage"]["completion_tokens"] == len(result.output) // 4 < LONG


# --- coming back ---------------------------------------------------------------------------------------------------


async def test_an_interrupted_stream_goes_on_behind_its_last_event(ground: Ground) -> None:
    """By Last-Event-ID, to the same path or the job's own: each piece once, nothing submitted twice."""
    expected = say("Hello", 120, eos_stop=False).text
    body = ask_long(120, stream=True)
    async with ground.patient.open_client() as client:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            job = response.headers["x-pocache-job"]
            events = iterate_events(response)
            heard = [await anext(events) for _ in range(3)]
        count = len(ground.patient.state.runs.job_ids)
        async with client.stream(
            "POST", "/v1/completions", json=body, headers={"last-event-id": heard[-1][0]}
        ) as response:
            assert response.headers["x-pocache-job"] == job
            rest = await read_events(response)
        assert len(ground.patient.state.runs.job_ids) == count
        texts = [json.loads(data)["choices"][0]["text"] for _, data in [*heard, *rest] if data != "[DONE]"]
        assert "".join(texts) == expected
        async with client.stream("GET", f"/v1/jobs/{job}/stream") as response:
            again = await read_events(response)
        texts = [json.loads(data)["choices"][0]["text"] for _, data in again if data != "[DONE]"]
        assert "".join(texts) == expected
        for wrong, status in ((f"{job}:x", 400), ("x:1", 404), (f"{'0' * 64}:1", 404)):
            refused = await client.post("/v1/completions", json=body, headers={"last-event-id": wrong})
            assert refused.status_code == status
    other = ground.patient.issue("grace")
    async with ground.patient.open_client(other) as client:
        assert (await client.get(f"/v1/jobs/{job}/stream")).status_code == 404


# --- receipts and challenges ---------------------------------------------------------------------------------------


async def test_a_challenge_is_audited_and_its_receipt_says_so(ground: Ground) -> None:
    async with ground.gateway.open_client() as client:
        response = await client.post("/v1/chat/completions", json=ground.gateway.ask())
        job = response.headers["x-pocache-job"]
        challenged = await client.post(f"/v1/jobs/{job}/challenge")
        assert (challenged.status_code, challenged.json()) == (202, {"job_id": job, "status": "challenged"})
        early = await client.get(f"/v1/receipts/{job}", params={"wait_s": 0})
        assert (early.status_code, early.json()["status"]) == (202, "committed")
        _, payout = await verify_ending(ground, job)
        assert payout.case == "agree"
        late = await client.post(f"/v1/jobs/{job}/challenge")
        assert (late.status_code, late.json()["error"]["code"]) == (409, "too_late")
        binary = await client.get(
            f"/v1/receipts/{job}", headers={"accept": "application/vnd.pocache.receipt"}
        )
        report, _ = examine_receipt(binary.content, make_trust(ground.network.directory.genesis))
        assert report.is_valid
    async with ground.gateway.open_client(ground.gateway.issue("grace")) as client:
        for path in (f"/v1/receipts/{job}", f"/v1/jobs/{job}"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post(f"/v1/jobs/{job}/challenge")).status_code == 404


async def test_a_balance_that_is_short_is_402(ground: Ground) -> None:
    """Before anything is streamed, by the ledger's own word."""
    async with ground.gateway.open_client(ground.gateway.issue("poor")) as client:
        balance = (await client.get("/v1/balance")).json()
        assert (balance["account"], balance["available_micro"]) == ("poor", POOR_MICRO)
        for is_streamed in (False, True):
            response = await client.post(
                "/v1/chat/completions", json=ground.gateway.ask(stream=is_streamed, max_tokens=500)
            )
            assert (response.status_code, response.json()["error"]["code"]) == (402, "insufficient_balance")
            assert len(response.headers["x-pocache-job"]) == 64


async def test_a_process_that_is_told_to_stop_finishes_what_it_has(ground: Ground, tmp_path: Path) -> None:
    """New requests are refused with 503 and Retry-After, the stream in hand comes to its end, and it exits 0."""
    port = find_free_port()
    environ = {
        **pick_python_environment(),
        "POCACHE_NETWORK_DIR": str(ground.network.directory.path),
        "POCACHE_NATS_URL": ground.network.server.url,
        "POCACHE_GATEWAY_PORT": str(port),
        "POCACHE_GATEWAY_TOKENIZERS": "test=fake:kit",
    }
    child = Child("gateway", "pocache_gateway", environ, tmp_path / "gateway.log")
    await child.start()
    await child.wait_ready(60)
    assert child.pid is not None
    headers = {"authorization": f"Bearer {ground.gateway.secret}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
        assert (await client.get("/readyz")).text == "ready\n"
        async with client.stream("POST", "/v1/completions", json=ask_long(200, stream=True)) as response:
            events = iterate_events(response)
            heard = [await anext(events)]
            exported = await scrape(read_health_port(tmp_path / "gateway.log"))
            assert read(exported, "pocache_ready") == 1
            assert read(exported, "pocache_gateway_streams") == 1
            assert read(exported, "pocache_gateway_tokens_total") >= 1
            os.kill(child.pid, signal.SIGTERM)

            async def is_draining() -> bool:
                return (await client.get("/readyz")).status_code == 503

            await wait_until(is_draining)
            refused = await client.post("/v1/chat/completions", json=ground.gateway.ask())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
            heard += [event async for event in events]
    texts = [json.loads(data)["choices"][0]["text"] for _, data in heard if data != "[DONE]"]
    assert "".join(texts) == say("Hello", 200, eos_stop=False).text
    assert await child.wait() == 0


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# --- the examples --------------------------------------------------------------------------------------------------


async def run_example(*command: str) -> list[str]:
    """Run an example and return the lines that it printed."""
    return (await run_program(*command)).splitlines()


async def test_openais_client(ground: Ground) -> None:
    *_, last = await run_example(sys.executable, str(EXAMPLES / "openai_stream.py"), *ground.http)
    assert "is committed; its receipt: /v1/receipts/" in last


async def test_our_client_over_http(ground: Ground) -> None:
    """Streams, challenges, and judges the receipt on its own side."""
    *_, last = await run_example(
        sys.executable, str(EXAMPLES / "gateway_receipt.py"), *ground.http, ground.trust
    )
    assert "agree, receipt valid in" in last


async def test_our_client_over_http_has_log_probabilities(ground: Ground) -> None:
    """Whole and joined from a stream alike; nothing where nothing was asked."""
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0}
    async with AsyncGatewayClient(ground.gateway.url, ground.gateway.secret) as client:
        for prompt, asked in (("Hello", 1), ([{"role": "user", "content": "Hello"}], True)):
            whole = await client.complete("test", prompt, logprobs=asked, **options)
            assert whole.logprobs
            async with client.stream("test", prompt, logprobs=asked, **options) as stream:
                assert "".join([text async for text in stream]) == whole.text
            assert stream.completion.logprobs == whole.logprobs
        assert (await client.complete("test", "Hello", **options)).logprobs is None


async def test_our_client_over_the_bus(ground: Ground) -> None:
    """Cancels after some tokens: they are paid for, and the receipt says so."""
    *_, last = await run_example(
        sys.executable, str(EXAMPLES / "network_stream.py"), *ground.bus, ground.trust, *TOKENS
    )
    assert last.endswith("receipt valid")
    count = int(last.split(": ")[1].split(" ")[0])
    assert 8 <= count < 200


async def test_our_client_over_the_bus_without_asyncio(ground: Ground) -> None:
    first, *_, last = await run_example(
        sys.executable, str(EXAMPLES / "network_blocking.py"), *ground.bus, ground.trust, *TOKENS
    )
    assert [int(one) for one in first.split()] == list(say("Hello", 8).tokens)
    assert last.endswith("receipt valid")


async def test_any_nats_client_in_javascript(ground: Ground, tmp_path: Path) -> None:
    """Stored, generated, committed, settled: by what the documents say and Node's own cryptography."""
    node = find_node()
    example = tmp_path / "publish_job.mjs"  # beside the packages that it imports
    example.write_bytes((EXAMPLES / "publish_job.mjs").read_bytes())
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    lines = [json.loads(line) for line in await run_example(node, str(example), *ground.bus, *TOKENS)]
    expected = say("Hello", 8)
    assert lines[0]["stream"] == "SUBMISSIONS"
    assert [one["phase"] for one in lines if "phase" in one][-1] == "settled"
    assert [one["output"] for one in lines if "output" in one] == [list(expected.tokens)]
    streamed = [token for one in lines for token in one.get("tokens", ())]
    assert streamed == list(expected.tokens)
