"""The gateway's HTTP as a function of bytes: a request's head and body, given to the real application in this process.

What is played is what lies behind it: a network that answers nothing, one key, one job that has ended. So a request that
is understood is a 2xx, or the 503 of a network that cannot be reached; every other answer is a refusal, and must be one that
a client can read. A 5xx besides, or an answer that grows with what was sent, is a crash.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.types import Message

from kit.network import make_network
from pocache.job import Job
from pocache.protocol.errors import BusError, CodecError
from pocache.protocol.ids import JobId
from pocache.runtime.network import NetworkDirectory
from pocache.storage.api_keys import ApiKey, ApiKeyStore, KeyLimits
from pocache.text import load_codec
from pocache.wire import messages as m
from pocache_gateway.access import Access
from pocache_gateway.accounts import Accounts
from pocache_gateway.app import build_app
from pocache_gateway.catalogue import Catalogue
from pocache_gateway.requests import parse_chat
from pocache_gateway.runs import Delivered, Run
from pocache_gateway.settings import GatewaySettings
from pocache_gateway.state import GatewayState

BODY_BYTES_MAX: Final = 32_768
ANSWER_BYTES_MAX: Final = 8_192
"""Of a refusal: what a client sent is quoted as far as it is a name."""
REFUSALS: Final = frozenset({400, 401, 402, 404, 405, 408, 409, 413, 429, 503})
SECRET: Final = "sk-pocache-000000000000-fuzz"
JOB: Final = JobId(b"\x5a" * 32)
_KEY: Final = ApiKey("000000000000", "ada", "", 0, None, KeyLimits(10**9, 10**6, BODY_BYTES_MAX))


class HttpCrashError(AssertionError):
    """An answer that no client could act on, or that says of our own failure."""


class _Keys:
    """One key that is known."""

    def find(self, secret: str) -> ApiKey | None:
        return _KEY if secret == SECRET else None


class _Unreachable:
    """A client of a network that answers nothing, and that knows no job."""

    async def get_event(self, _job_id: JobId) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        async def fail(*_arguments: Any, **_options: Any) -> None:
            raise BusError(f"{name}: nobody answers")

        return fail

    async def get(self, _account: str) -> _Unreachable:
        return self


@dataclass
class Answer:
    """What the application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                key.decode().lower(): value.decode("latin-1") for key, value in message["headers"]
            }
        else:
            self.body += message.get("body", b"")


@cache
def _make_state() -> GatewayState:
    network = make_network()
    client = _Unreachable()
    catalogue = Catalogue(network.models, {network.model.model_id: load_codec("fake:bytes")})
    state = GatewayState(
        settings=GatewaySettings(body_bytes_max=BODY_BYTES_MAX),
        directory=NetworkDirectory(Path("nowhere")),
        genesis=network.genesis,
        models=network.models,
        accounts=cast(Accounts, client),
        access=Access(cast(ApiKeyStore, _Keys())),
        catalogue=catalogue,
    )
    state.runs._finished[JOB] = _make_run(state)
    return state


def _make_run(state: GatewayState) -> Run:
    """A job whose text is complete: what ``Last-Event-ID`` goes on in."""
    served = state.catalogue.served[0]
    submission = m.SubmissionV1(
        model_id=served.model.model_id,
        prompt=b"\x07\x00\x00\x00",
        token_count_max=4,
        sampling=m.SamplingV1(temperature_micro=0, top_k=0, top_p_micro=1_000_000),
        seed=None,
        eos_stop=True,
        salt=bytes(16),
        created_ms=1,
        expires_ms=2,
    )
    asked = parse_chat(
        {"model": served.name, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    )
    run = Run(
        Job(JOB, submission, bytes(32)), cast(Any, _Unreachable()), _KEY, asked, served, int(time.time())
    )
    run.pieces, run.finish_reason = [Delivered(one) for one in ("one ", "two ", "three")], "stop"
    return run


@cache
def _make_app() -> Starlette:
    return build_app(_make_state())


def run_http(data: bytes) -> None:
    """A head of lines (method and path, then headers), an empty line, and the body."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    headers = [
        (name.lower(), value.strip()) for name, _, value in (one.partition(b":") for one in lines) if name
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method.decode("latin-1"),
        "scheme": "http",
        "path": path.decode(
            "latin-1"
        ),  # servers decode what they are sent; here any text may come out of that
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    answer = asyncio.run(_ask(scope, body))
    verify_answer(answer)
    if answer.status >= 300 and answer.status != 503:
        raise CodecError(f"refused: {answer.status}")


async def _ask(scope: dict[str, Any], body: bytes) -> Answer:
    """The body comes in two parts, as a network may cut it; then the client stays, and says nothing more."""
    half = len(body) // 2
    parts = [body[:half], body[half:]]
    messages = [
        {"type": "http.request", "body": part, "more_body": number == 0} for number, part in enumerate(parts)
    ]
    forever = asyncio.Event()

    async def receive() -> Message:
        if not messages:
            await forever.wait()
        return messages.pop(0)

    answer = Answer()
    await _make_app()(scope, receive, answer.send)
    return answer


def verify_answer(answer: Answer) -> None:
    """Raise HttpCrashError for an answer that is neither what was asked for nor a refusal in OpenAI's form."""
    status, body = answer.status, bytes(answer.body)
    if answer.headers.get("x-content-type-options") != "nosniff":
        raise HttpCrashError(f"{status}: an answer without the headers that all have")
    if 200 <= status < 300:
        return
    if status not in REFUSALS:
        raise HttpCrashError(f"{status}: {body[:500]!r}")
    if len(body) > ANSWER_BYTES_MAX:
        raise HttpCrashError(f"{status}: a refusal of {len(body)} bytes")
    if answer.headers.get("content-type") != "application/json":
        raise HttpCrashError(f"{status}: {answer.headers.get('content-type')!r}")
    error = json.loads(body)["error"]
    if set(error) != {"message", "type", "param", "code"} or not error["message"] or not error["code"]:
        raise HttpCrashError(f"{status}: {body[:500]!r}")
    if status in (429, 503) and "retry-after" not in answer.headers:
        raise HttpCrashError(f"{status} without Retry-After")


def make_requests() -> Sequence[bytes]:
    """Return requests to every route, good ones and such as are known to be trouble elsewhere."""
    job = JOB.hex()
    chat = {"model": "kit-model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    everything = {
        **chat,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "H\u00e9llo \U0001f600"}]},
        ],
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 3,
        "seed": 7,
        "stop": ["\n", "END"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "tools": [],
        "logit_bias": {},
        "user": "x",
    }
    requests = [
        _make("POST", "/v1/chat/completions", json.dumps(chat)),
        _make("POST", "/v1/chat/completions", json.dumps(everything)),
        _make("POST", "/v1/completions", '{"model": "kit-model", "prompt": "Hi", "max_tokens": 4}'),
        _make("POST", "/v1/completions", '{"model": "kit-model", "prompt": [1, 2, 3], "max_tokens": 4}'),
        _make("POST", "/v1/chat/completions", "", f"last-event-id: {job}:1"),
        _make("GET", f"/v1/jobs/{job}/stream", "", f"last-event-id: {job}:2"),
        _make("GET", f"/v1/jobs/{job}/stream"),
        _make("GET", f"/v1/jobs/{job}"),
        _make("GET", f"/v1/receipts/{job}?wait_s=0", "", "accept: application/vnd.pocache.receipt"),
        _make("POST", f"/v1/jobs/{job}/challenge", "{}"),
        _make("POST", f"/v1/jobs/{job}/cancel"),
        _make("GET", "/v1/models"),
        _make("GET", "/v1/models/kit-model"),
        _make("GET", "/v1/balance"),
        _make("GET", "/openapi.json"),
        _make("GET", "/readyz"),
    ]
    return [*requests, *(_make("POST", "/v1/chat/completions", body) for body in _make_trouble(chat))]


def _make_trouble(chat: dict[str, Any]) -> list[bytes | str]:
    """Bodies that are hard to read: numbers, repeats, depths, sizes, and text that is none."""
    whole = json.dumps(chat)[:-1]
    numbers = (
        "9007199254740993",
        "1e400",
        "-1e400",
        "1e-400",
        "1e999999999999",
        "0." + "1" * 400,
        "9" * 5_000,
    )
    named = [
        f'{whole}, "{name}": {number}}}'
        for number in numbers
        for name in ("max_tokens", "temperature", "seed")
    ]
    return [
        *named,
        f'{whole}, "temperature": NaN}}',
        f'{whole}, "max_tokens": 4, "max_tokens": 5}}',
        f'{whole}, "user": "\\ud800"}}',
        f'{whole}, "user": {"[" * 5_000}{"]" * 5_000}}}',
        "{" + '"a":{' * 5_000,
        "[" * 30_000,
        f'{whole}, "{"n" * 20_000}": 1}}',
        json.dumps({**chat, "model": "m" * 20_000}),
        json.dumps({**chat, "stop": ["x" * 256] * 4}),
        json.dumps({**chat, "messages": [{"role": "user", "content": "a"}] * 500}),
        whole.encode() + b', "user": "\xff\xfe\xed\xa0\x80"}',
        b"\xef\xbb\xbf" + json.dumps(chat).encode(),
        json.dumps(chat).encode("utf-16"),
        b"a" * (BODY_BYTES_MAX + 1),
    ]


def _make(method: str, target: str, body: bytes | str = b"", *headers: str) -> bytes:
    sent = body.encode() if isinstance(body, str) else body
    lines = [
        f"{method} {target}",
        f"authorization: Bearer {SECRET}",
        f"content-length: {len(sent)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + sent
