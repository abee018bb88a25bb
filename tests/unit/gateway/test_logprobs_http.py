"""Log-probabilities over HTTP: with the text that they belong to, whole and streamed alike, all or none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.network import Network
from kit.sse import read_events, wait_until
from kit.stub_gateway import StubGateway, open_stub_gateway, read_error
from pocache.bus.replies import DeniedError
from pocache.client import Job
from pocache.text import Codec

EOS = 257

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ask(
    gateway: StubGateway, act: Callable[[Job], Awaitable[None]], path: str = "completions", **changes: Any
) -> httpx.Response:
    known = gateway.state.runs.job_ids
    body = gateway.ask(**changes)
    if path.startswith("chat"):
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    async with gateway.open_client() as client, asyncio.TaskGroup() as group:
        asking = group.create_task(client.post(f"/v1/{path}", json=body))
        await act(await gateway.wait_job(known))
    return asking.result()


def play(
    gateway: StubGateway, tokens: list[int], *, scored: int | None = None
) -> Callable[[Job], Awaitable[None]]:
    """Return a worker that streams these tokens three to a chunk, and scores the first ``scored``."""

    async def act(job: Job) -> None:
        gateway.begin(job)
        for first in range(0, len(tokens), 3):
            part = tokens[first : first + 3]
            if scored is None or first < scored:
                gateway.side.score(job, [-float(first + index) for index in range(len(part))], first=first)
            gateway.side.stream(job, part, before=tokens[:first])
            await asyncio.sleep(0)
        gateway.side.commit(job, tokens)

    return act


def read_choices(events: list[tuple[str, str]]) -> list[dict[str, Any]]:
    chunks = [json.loads(data) for _, data in events if data != "[DONE]"]
    return [choice for chunk in chunks for choice in chunk["choices"]]


TEXT = "né €uro"
TOKENS = [*TEXT.encode(), EOS]
COUNT = len(TEXT.encode())


async def test_a_conversation_has_them_whole_and_streamed_alike(gateway: StubGateway) -> None:
    whole = (
        await ask(gateway, play(gateway, TOKENS), "chat/completions", logprobs=True, max_tokens=20)
    ).json()
    (choice,) = whole["choices"]
    assert choice["message"]["content"] == TEXT
    content = choice["logprobs"]["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == TEXT
    assert [one["logprob"] for one in content] == [-float(index) for index in range(COUNT)]
    assert all(one["top_logprobs"] == [] for one in content)
    assert choice["logprobs"]["refusal"] is None
    response = await ask(
        gateway, play(gateway, TOKENS), "chat/completions", logprobs=True, max_tokens=20, stream=True
    )
    begin, *pieces, end = read_choices(await read_events(response))
    assert (begin["logprobs"], end["logprobs"]) == (None, None)
    assert [one for piece in pieces for one in piece["logprobs"]["content"]] == content
    for piece in pieces:
        data = bytes(byte for one in piece["logprobs"]["content"] for byte in one["bytes"])
        assert data.decode() == piece["delta"]["content"], "tokens come with the text that they complete"


@pytest.mark.parametrize("top", [0, 1])
async def test_a_plain_completion_has_them_whole_and_streamed_alike(gateway: StubGateway, top: int) -> None:
    whole = (await ask(gateway, play(gateway, TOKENS), logprobs=top, max_tokens=20)).json()["choices"][0]
    listed = whole["logprobs"]
    assert listed["tokens"][:3] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    assert listed["text_offset"] == [
        len(TEXT.encode()[:index].decode(errors="ignore")) for index in range(COUNT)
    ]
    assert listed["token_logprobs"] == [-float(index) for index in range(COUNT)]
    assert (listed["top_logprobs"] is None) == (top == 0)
    response = await ask(gateway, play(gateway, TOKENS), logprobs=top, max_tokens=20, stream=True)
    *pieces, end = read_choices(await read_events(response))
    assert end["logprobs"] is None
    for name, values in listed.items():
        parts = [piece["logprobs"][name] for piece in pieces]
        assert (
            (parts == [None] * len(parts))
            if values is None
            else [one for part in parts for one in part] == values
        )


async def test_a_stop_string_ends_both(gateway: StubGateway) -> None:
    tokens = list(b"before END after")

    async def act(job: Job) -> None:
        gateway.begin(job)
        gateway.side.score(job, [-1.0] * len(tokens))
        gateway.side.stream(job, tokens)
        await gateway.wait_cancelled(job)
        gateway.side.commit(job, tokens)

    choice = (await ask(gateway, act, stop=["END"], logprobs=0, max_tokens=40)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("before ", "stop")
    assert "".join(choice["logprobs"]["tokens"]) == "before "


async def test_a_token_that_a_stop_string_cuts_is_listed_though_its_text_was_delivered(
    network: Network, tmp_path: Path
) -> None:
    """Its last characters were held back, and nothing of them comes: its number comes with the end."""
    words = ("x<", "END>")
    codec = Codec(lambda _text: [0], lambda _text: [0], lambda tokens: "".join(words[one] for one in tokens))

    async def act(job: Job) -> None:
        gateway.begin(job)
        gateway.side.score(job, [-1.0])
        gateway.side.stream(job, [0])
        run = gateway.state.runs.find(job.job_id, "ada")
        assert run is not None
        await wait_until(lambda: bool(run.pieces))
        gateway.side.score(job, [-2.0], first=1)
        gateway.side.stream(job, [1], before=[0])
        await gateway.wait_cancelled(job)
        gateway.side.commit(job, [0, 1])

    async with open_stub_gateway(network, tmp_path, codec=codec) as gateway:
        choice = (await ask(gateway, act, stop=["<END>"], logprobs=0)).json()["choices"][0]
    assert choice["text"] == "x"
    assert (choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"]) == (["x<"], [-1.0])


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_whose_scores_were_not_all_heard_has_none_in_part(
    gateway: StubGateway, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    """A whole answer says null; a stream says null from the first chunk on that has none."""
    monkeypatch.setattr("pocache.client.scoring.SCORES_S", 0.01)
    tokens = list(b"abcdef")
    response = await ask(gateway, play(gateway, tokens, scored=3), logprobs=0, stream=is_streamed)
    choices = read_choices(await read_events(response)) if is_streamed else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "abcdef"
    if not is_streamed:
        assert choices[0]["logprobs"] is None
        return
    listed = [choice["logprobs"] for choice in choices]
    said = [one for one in listed if one is not None]
    assert listed == [*said, *[None] * (len(listed) - len(said))], "none comes behind a chunk without"
    assert "abc".startswith("".join(token for one in said for token in one["tokens"]))


async def test_a_stream_that_is_read_again_says_the_same(gateway: StubGateway) -> None:
    response = await ask(gateway, play(gateway, TOKENS), logprobs=0, max_tokens=20, stream=True)
    first = read_choices(await read_events(response))
    async with gateway.open_client() as client:
        again = await client.get(f"/v1/jobs/{response.headers['x-pocache-job']}/stream")
    assert read_choices(await read_events(again)) == first


async def test_what_finished_answers_list_is_bounded(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten first, as with too many answers."""
    monkeypatch.setattr("pocache_gateway.runs.LISTED_TOKENS_KEPT_MAX", 5)
    async with open_stub_gateway(network, tmp_path) as gateway:
        jobs = []
        for logprobs in (0, None, 0, 0):
            act = play(gateway, list(b"abc"), scored=3 if logprobs == 0 else 0)
            jobs.append((await ask(gateway, act, logprobs=logprobs)).headers["x-pocache-job"])
            await wait_until(lambda: not gateway.state.runs.active_count)
        kept = [job.hex() for job in gateway.state.runs.job_ids]
    assert kept == jobs[3:]


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        ("chat/completions", {"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ("completions", {"logprobs": 2}, "logprobs"),
        ("completions", {"logprobs": 0, "top_logprobs": 1}, "top_logprobs"),
    ],
)
async def test_the_best_tokens_are_refused_by_name(
    gateway: StubGateway, path: str, changes: dict[str, Any], param: str
) -> None:
    body = gateway.ask(**changes)
    if path.startswith("chat"):
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    async with gateway.open_client() as client:
        response = await client.post(f"/v1/{path}", json=body)
    assert read_error(response) == (400, "unsupported_parameter", param)
    assert "the token that it delivers" in response.json()["error"]["message"]


async def test_an_account_that_may_not_hear_them_is_told_so(
    gateway: StubGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operator has printed the NATS users before there were scores."""

    def refuse(_subject: str) -> None:
        raise DeniedError("scores.…: permissions violation")

    monkeypatch.setattr(gateway.side.bus, "subscribe_core", refuse)
    async with gateway.open_client() as client:
        response = await client.post("/v1/completions", json=gateway.ask(logprobs=0))
    assert read_error(response) == (400, "unsupported_parameter", "logprobs")
    assert gateway.side.bus.published == []
