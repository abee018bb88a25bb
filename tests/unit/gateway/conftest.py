"""One gateway for a module's tests, its network played by each test; what one leaves behind the next does not see."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from kit.network import Network, make_network
from kit.stub_gateway import StubGateway, open_stub_gateway


@pytest.fixture(scope="module")
def network() -> Network:
    return make_network(context_tokens_max=50_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(network: Network, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StubGateway]:
    async with open_stub_gateway(network, tmp_path_factory.mktemp("gateway")) as opened:
        yield opened


@pytest.fixture
def gateway(shared: StubGateway) -> StubGateway:
    return shared.renew()
