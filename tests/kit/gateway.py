"""A gateway in this process, in front of a network that runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from kit.local import USER
from pocache.runtime.config import Settings, load_settings
from pocache.storage.api_keys import ApiKey, ApiKeyStore, KeyLimits
from pocache_cli.local_network import LocalNetwork
from pocache_gateway.app import build_app
from pocache_gateway.process import open_state
from pocache_gateway.server import serve_http
from pocache_gateway.state import GatewayState


@dataclass
class Gateway:
    """A gateway that listens."""

    state: GatewayState
    url: str
    secret: str
    key: ApiKey

    @property
    def keys(self) -> ApiKeyStore:
        """The table of keys."""
        return self.state.access.store

    @property
    def model(self) -> str:
        """The name of the model that it serves."""
        return self.state.catalogue.served[0].name

    def issue(self, account: str = USER, **limits: int) -> str:
        """Make a key."""
        return self.keys.issue(account, limits=KeyLimits(**limits))[0]

    def open_client(self, secret: str | None = None, **options: Any) -> httpx.AsyncClient:
        """Return an HTTP client with a key."""
        headers = {"authorization": f"Bearer {secret or self.secret}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, **options)

    def ask(self, **changes: Any) -> dict[str, Any]:
        """Return the body of a chat request."""
        messages = [{"role": "user", "content": "Hello"}]
        return {"model": self.model, "messages": messages, "max_tokens": 8, **changes}


@asynccontextmanager
async def open_gateway(network: LocalNetwork, **variables: str) -> AsyncIterator[Gateway]:
    """Serve a gateway on a free port while the context lasts; ``variables`` without their prefix."""
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(open_state(make_settings(network, **variables)))
        port = await stack.enter_async_context(serve_http(build_app(state), state.settings))
        secret, key = state.access.store.issue(USER)
        yield Gateway(state, f"http://127.0.0.1:{port}", secret, key)


def make_settings(network: LocalNetwork, **variables: str) -> Settings:
    """Return the settings of a gateway of this network, on a free port."""
    environ = {
        "POCACHE_NETWORK_DIR": str(network.directory.path),
        "POCACHE_NATS_URL": network.server.url,
        "POCACHE_GATEWAY_PORT": "0",
        "POCACHE_GATEWAY_TOKENIZERS": "test=fake:kit",
        **{f"POCACHE_GATEWAY_{name}": value for name, value in variables.items()},
    }
    return load_settings(environ, name_default="gateway")
