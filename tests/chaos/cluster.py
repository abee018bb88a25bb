"""A cluster of real nats-servers on this machine, in the shape of the one embedded server.

Each node has a store of its own and a fixed port; clients meet it at one address, a relay to whichever node is up.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import nats.errors

from chaos.proxy import Address, Proxy
from pocache.bus.server import EmbeddedServer, ServerSettings, render_server_config

NODES: Final = 3
HEALTHY_S: Final = 60.0


class Node(EmbeddedServer):
    """One server of the cluster."""

    def __init__(self, settings: ServerSettings, name: str, route_port: int, routes: Sequence[int]) -> None:
        super().__init__(settings)
        self.name = name
        urls = [f"nats://127.0.0.1:{port}" for port in routes]
        self._addition = (
            "cluster {\n  name: pocache\n"
            f'  listen: "127.0.0.1:{route_port}"\n'
            f"  routes: {json.dumps(urls)}\n"
            # Clients know one address: what the nodes would tell them leads past the relay.
            "  no_advertise: true\n}\n"
        )

    def _write_config(self) -> None:
        settings = replace(self._settings, port=self._port)
        settings.store_dir.mkdir(parents=True, exist_ok=True)
        text = render_server_config(settings).replace(
            'server_name: "pocache"', f'server_name: "{self.name}"', 1
        )
        self._config_path.write_text(text + self._addition)


class Cluster(EmbeddedServer):
    """Three nodes behind one address."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(settings)
        ports = pick_ports(2 * NODES)
        clients, routes = ports[:NODES], ports[NODES:]
        self.nodes = [
            Node(
                replace(
                    settings, store_dir=Path(settings.store_dir) / f"node-{number}", port=clients[number]
                ),
                f"node-{number}",
                routes[number],
                routes,
            )
            for number in range(NODES)
        ]
        self._relay = Proxy(self.get_addresses, random.Random(0))
        self._stack = AsyncExitStack()

    def get_addresses(self) -> list[Address]:
        """Return where a node is running."""
        addresses: list[Address] = []
        for node in self.nodes:
            if node.pid is not None:
                host, _, port = node.url.removeprefix("nats://").rpartition(":")
                addresses.append((host, int(port)))
        return addresses

    @property
    def url(self) -> str:
        """Return the address of the relay."""
        return self._relay.url

    @property
    def pid(self) -> int | None:
        """Return the first node's process id."""
        return self.nodes[0].pid

    async def __aenter__(self) -> Self:
        await self._relay.serve()
        try:
            await asyncio.gather(*(node.start() for node in self.nodes))
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End every node and the relay."""
        await asyncio.gather(*(node.stop() for node in self.nodes))
        await self._relay.close()


async def get_stream_leader(js: Any, stream: str) -> str | None:
    """Return which node leads a stream, None while nobody does."""
    try:
        info = await js.stream_info(stream)
    except (nats.errors.Error, TimeoutError):
        return None
    return None if info.cluster is None else info.cluster.leader


def pick_ports(count: int) -> list[int]:
    """Return ports that are free at this moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
