"""Reading what a process exports, as Prometheus would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


async def scrape(port: int) -> dict[str, Metric]:
    """Return the metric families of a process by name."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
        await writer.drain()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 200"), head
    return parse(body.decode())


def parse(text: str) -> dict[str, Metric]:
    """Return the metric families of a scrape."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def read(families: Mapping[str, Metric], sample: str, **labels: str) -> float:
    """Return the sum of the samples of this name that have these labels."""
    return sum(
        one.value
        for family in families.values()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    )
