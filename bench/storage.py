"""What a job leaves behind: bytes in each stream, and in each service's database, for jobs with and without an audit.

Two networks of every service in processes of their own, on the engine without a model: one whose lottery draws no job, one
that draws all. Figures are the growth between two moments at which all jobs were over, divided by the jobs between: messages and bytes as
nats-server counts them for one replica, and pages of the databases that are in use. Leaves and openings are those of
the stub's rows; a model's are larger by the size of its leaf, which is told beside.

Command: ``PYTHONPATH=tests python -m bench.storage``. Recorded figures: bench/RESULTS.md.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.local import SECTIONS, USER, get_model_id, start_network, submit_jobs, wait_settled
from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.client import open_client
from pocache.wire.topics import Stream
from pocache_cli.bootstrap import PROVISIONER
from pocache_cli.local_network import LocalNetwork

WARM_JOBS = 10
JOBS = 60
TOKENS = 16
WAIT_S = 300.0


def main() -> None:
    """Print one table of bytes a job for each of the two networks."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    for share in ("0/1", "1/1"):
        grown, leaf_bytes = asyncio.run(measure(share))
        print(f"\nlottery share {share}, {JOBS} jobs of {TOKENS} tokens, a leaf of {leaf_bytes} bytes\n")
        print("| where | messages a job | bytes a job |\n|---|---|---|")
        for name, (count, size) in sorted(grown.items()):
            print(f"| {name} | {count / JOBS:.1f} | {size / JOBS:,.0f} |")


async def measure(share: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Return how much each place grew by :data:`JOBS` jobs: messages (0 for a database) and bytes."""
    sections = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": share, "full_depth_share": "1/1"}}
    with tempfile.TemporaryDirectory() as folder:
        async with start_network(Path(folder) / "network", sections=sections) as network:
            directory, url = network.directory, network.server.url
            async with (
                connect_bus(NatsSettings.of(directory, url, USER)) as bus,
                open_client(bus, directory.genesis, directory.signing_key(USER)) as client,
            ):
                for count in (WARM_JOBS, JOBS):
                    before = await look(network)
                    jobs = await submit_jobs(client, network, count, token_count_max=TOKENS)
                    await wait_settled(client, jobs, WAIT_S)
                after = await look(network)
            schema = directory.load_models()[get_model_id(network)].schema
    grown = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in after}
    return grown, schema.leaf_bytes(scored=True)


async def look(network: LocalNetwork) -> Mapping[str, tuple[int, int]]:
    """Return messages ever stored and bytes held of each stream, and the used bytes of each database."""
    found: dict[str, tuple[int, int]] = {}
    settings = NatsSettings.of(network.directory, network.server.url, PROVISIONER)
    async with connect_bus(settings) as bus:
        for stream in Stream:
            info = await bus.client.jetstream().stream_info(stream.value)
            found[f"stream {info.config.name}"] = (info.state.last_seq, info.state.bytes)
    for file in sorted(network.directory.path.rglob("*.sqlite")):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        connection.close()
        found[f"database {file.stem}"] = (0, (pages - unused) * size)
    leaves = sum(one.stat().st_size for one in network.directory.path.rglob("leaves/**/*") if one.is_file())
    found["leaves of all workers"] = (0, leaves)
    return found


if __name__ == "__main__":
    main()
