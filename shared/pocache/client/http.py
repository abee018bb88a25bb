"""A user of a gateway: ask, stream the text, fetch the receipt, judge it here, challenge, cancel.

The gateway signs for its accounts, so what it says in passing is its word; the receipt is not, and is judged on this
side against trust roots that the caller has from elsewhere. :class:`AsyncGatewayClient` is for asyncio,
:class:`GatewayClient` for everything else; both do the same. Not covered: OpenAI's own client works as well.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from pocache.client.judging import judge_receipt
from pocache.protocol.errors import NotYetError, PocacheError
from pocache.protocol.ids import JobId
from pocache.receipt.report import Report
from pocache.receipt.trust import TrustRoots

Message = Mapping[str, str]
TIMEOUT_S: Final = 60.0
WAIT_S_DEFAULT: Final = 120.0
_DONE: Final = "[DONE]"
_BINARY: Final = "application/vnd.pocache.receipt"


class GatewayError(PocacheError):
    """The gateway refused or failed: ``status``, ``error_code`` and ``param`` say what and about which field."""

    code = "E805"

    def __init__(
        self, status: int, error_code: str, message: str, param: str | None, retry_after_s: float
    ) -> None:
        super().__init__(f"{status} {error_code}: {message}")
        self.status = status
        self.error_code = error_code
        self.param = param
        self.retry_after_s = retry_after_s
        """When to come again; 0 where the gateway did not say."""


@dataclass
class Completion:
    """One answer: its text as far as it came, and its job."""

    job_id: str = ""
    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    status: str = ""
    """Where the job was when the text was complete; its receipt says how it ended."""
    logprobs: Mapping[str, Any] | None = None
    """The tokens and how likely each was, in OpenAI's form, where ``logprobs`` was asked and all were heard."""


class GatewayStream:
    """Pieces of text as they come; afterwards ``completion`` has all of it."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.completion = Completion(job_id=response.headers.get("x-pocache-job", ""))
        self._is_scored = True

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield each piece of text once. Raises GatewayError when the job failed on the way."""
        async for line in self._response.aiter_lines():
            text = self._read(line)
            if text:
                yield text

    def __iter__(self) -> Iterator[str]:
        """Yield each piece of text once. Raises GatewayError when the job failed on the way."""
        for line in self._response.iter_lines():
            text = self._read(line)
            if text:
                yield text

    def _read(self, line: str) -> str:
        if not line.startswith("data: ") or line == f"data: {_DONE}":
            return ""
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise _make_error(self._response.status_code, chunk, 0.0)
        done = self.completion
        if chunk.get("usage"):
            done.usage = chunk["usage"]
        if "pocache" in chunk:
            done.status = chunk["pocache"]["status"]
        text = ""
        for choice in chunk["choices"]:
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            done.finish_reason = choice["finish_reason"] or done.finish_reason
            self._join(choice.get("logprobs"), is_text=bool(text))
        done.text += text
        return text

    def _join(self, logprobs: Mapping[str, Any] | None, *, is_text: bool) -> None:
        """Add what a chunk says of its tokens; a text that has nothing said of it leaves the whole unsaid."""
        done = self.completion
        if logprobs is None:
            self._is_scored = self._is_scored and not is_text
            if not self._is_scored:
                done.logprobs = None
        elif self._is_scored:
            known = done.logprobs or {}
            done.logprobs = {
                name: known[name] + values if isinstance(known.get(name), list) else values
                for name, values in logprobs.items()
            }


class AsyncGatewayClient:
    """A gateway's client for asyncio; use it as an asynchronous context manager."""

    def __init__(self, url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._http = httpx.AsyncClient(**_options(url, key, timeout_s))

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def list_models(self) -> list[str]:
        """Return the names of the models that are served."""
        return [one["id"] for one in _read(await self._http.get("/v1/models"))["data"]]

    async def complete(
        self, model: str, prompt: str | Sequence[int] | Sequence[Message], **options: Any
    ) -> Completion:
        """Ask and return the whole answer; a prompt of messages is a conversation."""
        path, body = _make_request(model, prompt, options)
        return _read_completion(_read(await self._http.post(path, json=body)))

    @asynccontextmanager
    async def stream(
        self, model: str, prompt: str | Sequence[int] | Sequence[Message], **options: Any
    ) -> AsyncIterator[GatewayStream]:
        """Ask and read the text as it comes; leaving the context early cancels the job."""
        path, body = _make_request(model, prompt, {**options, **_STREAMED})
        async with self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                await response.aread()
            _raise_for(response)
            yield GatewayStream(response)

    async def get_receipt(self, job_id: str, *, wait_s: float = WAIT_S_DEFAULT) -> bytes:
        """Return a job's receipt in its binary form, once it is over.

        Raises NotYetError when it is not over after ``wait_s`` seconds, GatewayError.
        """
        until = time.monotonic() + wait_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            response = await self._http.get(**_ask_receipt(job_id, left_s))
            _raise_for(response)
            if response.status_code == httpx.codes.OK:
                return response.content
            if left_s <= 0:
                raise NotYetError(f"the job is {response.json()['status']} after {wait_s:g} s")
            await asyncio.sleep(min(1.0, left_s))

    async def verify_receipt(
        self, job_id: str, trust: TrustRoots, *, wait_s: float = WAIT_S_DEFAULT
    ) -> Report:
        """Fetch a receipt and judge it here. Raises ReceiptError naming the first step that fails."""
        data = await self.get_receipt(job_id, wait_s=wait_s)
        return await asyncio.to_thread(judge_receipt, data, trust, JobId(bytes.fromhex(job_id)))

    async def challenge(self, job_id: str) -> None:
        """Have the job's commitment audited in full. Raises GatewayError 409 when it is too early or too late."""
        _read(await self._http.post(f"/v1/jobs/{job_id}/challenge"))

    async def cancel(self, job_id: str) -> None:
        """Ask for no more of a job; what was not generated is refunded."""
        _read(await self._http.post(f"/v1/jobs/{job_id}/cancel"))

    async def get_status(self, job_id: str) -> str:
        """Return where a job is."""
        return str(_read(await self._http.get(f"/v1/jobs/{job_id}"))["status"])


class GatewayClient:
    """A gateway's client without asyncio; use it as a context manager."""

    def __init__(self, url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._http = httpx.Client(**_options(url, key, timeout_s))

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.__exit__(kind, error, trace)

    def list_models(self) -> list[str]:
        """Return the names of the models that are served."""
        return [one["id"] for one in _read(self._http.get("/v1/models"))["data"]]

    def complete(
        self, model: str, prompt: str | Sequence[int] | Sequence[Message], **options: Any
    ) -> Completion:
        """Ask and return the whole answer; a prompt of messages is a conversation."""
        path, body = _make_request(model, prompt, options)
        return _read_completion(_read(self._http.post(path, json=body)))

    @contextmanager
    def stream(
        self, model: str, prompt: str | Sequence[int] | Sequence[Message], **options: Any
    ) -> Iterator[GatewayStream]:
        """Ask and read the text as it comes; leaving the context early cancels the job."""
        path, body = _make_request(model, prompt, {**options, **_STREAMED})
        with self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
            _raise_for(response)
            yield GatewayStream(response)

    def get_receipt(self, job_id: str, *, wait_s: float = WAIT_S_DEFAULT) -> bytes:
        """Return a job's receipt in its binary form, once it is over.

        Raises NotYetError when it is not over after ``wait_s`` seconds, GatewayError.
        """
        until = time.monotonic() + wait_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            response = self._http.get(**_ask_receipt(job_id, left_s))
            _raise_for(response)
            if response.status_code == httpx.codes.OK:
                return response.content
            if left_s <= 0:
                raise NotYetError(f"the job is {response.json()['status']} after {wait_s:g} s")
            time.sleep(min(1.0, left_s))

    def verify_receipt(self, job_id: str, trust: TrustRoots, *, wait_s: float = WAIT_S_DEFAULT) -> Report:
        """Fetch a receipt and judge it here. Raises ReceiptError naming the first step that fails."""
        data = self.get_receipt(job_id, wait_s=wait_s)
        return judge_receipt(data, trust, JobId(bytes.fromhex(job_id)))

    def challenge(self, job_id: str) -> None:
        """Have the job's commitment audited in full. Raises GatewayError 409 when it is too early or too late."""
        _read(self._http.post(f"/v1/jobs/{job_id}/challenge"))

    def cancel(self, job_id: str) -> None:
        """Ask for no more of a job; what was not generated is refunded."""
        _read(self._http.post(f"/v1/jobs/{job_id}/cancel"))

    def get_status(self, job_id: str) -> str:
        """Return where a job is."""
        return str(_read(self._http.get(f"/v1/jobs/{job_id}"))["status"])


_STREAMED: Final[Mapping[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}


def _options(url: str, key: str, timeout_s: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"}
    return {"base_url": url.removesuffix("/").removesuffix("/v1"), "headers": headers, "timeout": timeout_s}


def _make_request(
    model: str, prompt: str | Sequence[int] | Sequence[Message], options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    if isinstance(prompt, str) or all(isinstance(one, int) for one in prompt):
        given = prompt if isinstance(prompt, str) else list(prompt)
        return "/v1/completions", {"model": model, "prompt": given, **options}
    return "/v1/chat/completions", {"model": model, "messages": list(prompt), **options}


def _ask_receipt(job_id: str, wait_s: float) -> dict[str, Any]:
    # Less than the connection's own patience, and asked again.
    params = {"wait_s": int(min(wait_s, TIMEOUT_S / 2))}
    return {"url": f"/v1/receipts/{job_id}", "params": params, "headers": {"accept": _BINARY}}


def _read(response: httpx.Response) -> Any:
    _raise_for(response)
    return response.json()


def _read_completion(body: Mapping[str, Any]) -> Completion:
    (choice,) = body["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    note = body["pocache"]
    return Completion(
        note["job_id"], text, choice["finish_reason"], body["usage"], note["status"], choice.get("logprobs")
    )


def _raise_for(response: httpx.Response) -> None:
    if not response.is_error:
        return
    retry = response.headers.get("retry-after", "")
    try:
        body = response.json()
    except ValueError:
        body = {}
    raise _make_error(response.status_code, body, float(retry) if retry.isdecimal() else 0.0)


def _make_error(status: int, body: object, retry_after_s: float) -> GatewayError:
    error = body.get("error") if isinstance(body, dict) else None
    told: Mapping[str, Any] = error if isinstance(error, dict) else {}
    return GatewayError(
        status,
        str(told.get("code") or "unknown"),
        str(told.get("message") or ""),
        told.get("param"),
        retry_after_s,
    )
