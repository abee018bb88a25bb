"""A gateway over real HTTP whose network is played by the test: router, workers and ledger say what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kit.network import Network
from kit.userside import USER, WORKER, UserSide, open_user_side
from pocache.client import Job, PocacheClient
from pocache.protocol.ids import JobId
from pocache.runtime.network import NetworkDirectory
from pocache.storage.api_keys import ApiKeyStore, KeyLimits, open_api_keys
from pocache.text import Codec, load_codec
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_gateway.access import Access
from pocache_gateway.app import build_app
from pocache_gateway.catalogue import Catalogue
from pocache_gateway.server import serve_http
from pocache_gateway.settings import GatewaySettings
from pocache_gateway.state import GatewayState

ACCOUNT = "ada"


@dataclass
class OneAccount:
    """Every account is the same user."""

    client: PocacheClient

    async def get(self, account: str) -> PocacheClient:
        """Return it."""
        return self.client


@dataclass
class StubGateway:
    """A gateway that listens, and everybody it hears."""

    side: UserSide
    state: GatewayState
    url: str
    secret: str
    known: tuple[JobId, ...] = ()
    """Jobs of tests before."""

    def renew(self) -> StubGateway:
        """Return it with a key of its own, and without what was there before."""
        self.secret = self.issue()
        self.known = self.state.runs.job_ids
        self.side.bus.published.clear()
        self.side.bus.failure = None
        self.state.drain.is_draining = False
        return self

    @property
    def keys(self) -> ApiKeyStore:
        """The table of keys."""
        return self.state.access.store

    def open_client(self, secret: str | None = None) -> httpx.AsyncClient:
        """Return an HTTP client with a key."""
        headers = {"authorization": f"Bearer {secret or self.secret}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60)

    def issue(self, account: str = ACCOUNT, **limits: int) -> str:
        """Make a key."""
        return self.keys.issue(account, limits=KeyLimits(**limits))[0]

    def ask(self, **changes: Any) -> dict[str, Any]:
        """Return the body of a completion request."""
        return {"model": "kit-model", "prompt": "Hi", "max_tokens": 8, **changes}

    async def wait_job(self, known: Sequence[JobId] = ()) -> Job:
        """Wait until a job was submitted that is none of those known, and return it."""
        async with asyncio.timeout(60):
            while not (found := [one for one in self.state.runs.job_ids if one not in (*self.known, *known)]):
                await asyncio.sleep(0.01)
        run = self.state.runs.find(found[-1], ACCOUNT)
        assert run is not None
        return run.job

    def begin(self, job: Job) -> None:
        """The job is admitted, and a worker has it."""
        self.side.tell(job, "queued")
        self.side.tell(job, "generating", generator=WORKER.participant_id)

    def stream(self, job: Job, text: str, *, before: str = "", **options: Any) -> None:
        """The worker streams these bytes."""
        self.side.stream(job, list(text.encode()), before=list(before.encode()), **options)

    def commit(self, job: Job, text: str, **options: Any) -> None:
        """The commitment to these bytes is recorded."""
        self.side.commit(job, list(text.encode()), **options)

    async def wait_cancelled(self, job: Job) -> None:
        """Wait until the user's signed request for no more is on the bus."""
        subject = t.CANCEL_REQUESTED.subject(user=USER.participant_id, job=job.job_id)
        async with asyncio.timeout(60):
            while not (found := [data for one, data in self.side.bus.published if one == subject]):
                await asyncio.sleep(0.01)
        body = self.side.network.open(found[0], m.CancelRequestV1)
        assert body.job_id == job.job_id
        assert len(found) == 1


@asynccontextmanager
async def open_stub_gateway(
    network: Network, folder: Path, *, codec: Codec | None = None, **settings: Any
) -> AsyncIterator[StubGateway]:
    """Serve on a free port while the context lasts; tokens are bytes unless a codec is given."""
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(open_user_side(network))
        keys = stack.enter_context(open_api_keys(f"sqlite:///{folder / 'keys.sqlite'}"))
        state = GatewayState(
            settings=GatewaySettings(**settings),
            directory=NetworkDirectory(folder),
            genesis=network.genesis,
            models=network.models,
            accounts=OneAccount(side.client),
            access=Access(keys),
            catalogue=Catalogue(network.models, {network.model.model_id: codec or load_codec("fake:bytes")}),
        )
        stack.push_async_callback(state.background.close)
        port = await stack.enter_async_context(serve_http(build_app(state), state.settings))
        yield StubGateway(side, state, f"http://127.0.0.1:{port}", keys.issue(ACCOUNT)[0])


def read_error(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """Return the status, code and field of a refusal, its body being what OpenAI's clients read."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return response.status_code, error["code"], error["param"]


def read_texts(events: Sequence[tuple[str, str]]) -> str:
    """Return the text of a stream's events."""
    chunks = [json.loads(data) for _, data in events if data != "[DONE]"]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
