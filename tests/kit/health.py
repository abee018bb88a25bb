"""Asking a process of a local network for its liveness and readiness, as an orchestrator would."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from pocache_cli.local_network import LocalNetwork


def find_health_port(network: LocalNetwork, name: str) -> int:
    """Return the port that a process logged last."""
    return read_health_port(network.directory.path / "logs" / f"{name}.log")


def read_health_port(log: Path) -> int:
    """Return the port that a process wrote to its log last."""
    lines = log.read_text(encoding="utf-8").splitlines()
    ports = [json.loads(line).get("health_port") for line in lines if line.startswith("{")]
    return int([port for port in ports if port is not None][-1])


async def get_status(port: int, path: str) -> int:
    """Return the status of a GET. Raises OSError when nobody listens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await writer.drain()
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        await writer.wait_closed()
