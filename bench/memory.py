"""Memory over many jobs: does any process need more of it for more jobs, once it has warmed up?

A whole network, every service in a process of its own, on the engine without a model; jobs are settled, one in 64 is
audited, and as many as ``IN_FLIGHT`` are on their way at any time. Resident memory of each process is read at equal
counts of settled jobs; its slope is that of least squares over the second half of them. nats-server keeps the subject of every
stored message in memory, so its own grows with the record.

Command: ``PYTHONPATH=tests python -m bench.memory --jobs 50000``. Recorded figures: bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chaos.invariants import compute_slopes, read_rss_kb
from kit.local import SECTIONS, USER, get_model_id, start_network
from pocache.client import PocacheClient
from pocache.protocol.ids import ModelId
from pocache.protocol.lifecycle import Phase
from pocache_cli.local_network import LocalNetwork, WorkerProcess

IN_FLIGHT = 512
SAMPLES = 40
TOKENS = 8
IDENTITIES = 4
JOBS_MAX = 64
MONEY_MICRO = 10**13
NETWORK = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "lottery_share": "1/64"},
    "deadlines": {"queue_ticks": 900, "lease_ticks": 600, "seal_ticks": 60, "opening_ticks": 60},
    "rules": {"unbonding_ticks": 20_000},
}


def main() -> None:
    """Print how much memory each process had at each sample, and how it grew over the second half."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(json.dumps(asyncio.run(measure(given.jobs, given.samples))))


async def measure(jobs: int, samples: int) -> dict[str, object]:
    """Play ``jobs`` jobs and return the slopes, kilobytes for 1,000 jobs, with each sample's memory in kilobytes."""
    names = tuple(f"generator-{number}" for number in range(1, IDENTITIES + 1))
    verifiers = ("verifier-1", "verifier-2", "verifier-3")
    workers = (
        WorkerProcess("generators", names, roles="generate", jobs_max=JOBS_MAX),
        WorkerProcess("verifiers", verifiers, roles="verify"),
    )
    money = dict.fromkeys((USER, *names, *verifiers), MONEY_MICRO)
    with tempfile.TemporaryDirectory() as folder:
        async with start_network(
            Path(folder) / "network", workers=workers, sections=NETWORK, money=money
        ) as network:
            async with network.open_user(USER) as client:
                started = time.monotonic()
                taken = await _play(network, client, jobs, jobs // samples)
                seconds = time.monotonic() - started
            with sqlite3.connect(
                f"file:{network.directory.path / 'state' / 'ledger.sqlite'}?mode=ro", uri=True
            ) as ledger:
                ((residue,),) = ledger.execute("SELECT sum(balance_micro) FROM accounts")
    return {
        "jobs": jobs,
        "seconds": round(seconds),
        "residue_micro": residue,
        "slope_kb_per_1000_jobs": compute_slopes(taken, jobs // samples),
        "rss_kb": taken,
    }


async def _play(network: LocalNetwork, client: PocacheClient, jobs: int, every: int) -> list[dict[str, int]]:
    """Settle ``jobs`` jobs, so many at once, and return each process's memory after ``every`` of them."""
    model_id = get_model_id(network)
    free = asyncio.Semaphore(IN_FLIGHT)
    taken: list[dict[str, int]] = []
    settled = 0

    async def follow(number: int) -> None:
        nonlocal settled
        try:
            await _settle_one(client, model_id, number)
        finally:
            free.release()
        settled += 1
        if settled % every == 0:
            taken.append(read_rss_kb(_get_pids(network)))
            said = {name: f"{kb / 1_024:.1f}" for name, kb in sorted(taken[-1].items())}
            print(json.dumps({"settled": settled, "rss_mb": said}), file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as group:
        for number in range(jobs):
            await free.acquire()
            group.create_task(follow(number))
    return taken


async def _settle_one(client: PocacheClient, model_id: ModelId, number: int) -> None:
    prompt = (number % 200, number // 200 % 200, number // 40_000 % 200)
    job = await client.submit(model_id, prompt, token_count_max=TOKENS, eos_stop=False)
    await client.wait(job, Phase.SETTLED)


def _get_pids(network: LocalNetwork) -> dict[str, int]:
    found = {name: child.pid for name, child in network.children.items()}
    found["nats-server"] = network.server.pid
    found["client, this process"] = os.getpid()
    return {name: pid for name, pid in found.items() if pid is not None}


if __name__ == "__main__":
    main()
