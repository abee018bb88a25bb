"""A gateway process whose engine is a stub: it admits every job and streams a token to each at a steady pace.

Prints where it listens and a key as one line of JSON, and ends with its standard input. What the gateway does for a real
network it does here: signatures are made and checked, tokens become text, events are sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

from kit.network import make_network
from kit.stub_gateway import ACCOUNT, StubGateway, open_stub_gateway
from kit.userside import WORKER
from pocache.client import Job
from pocache.protocol.ids import JobId

TOKENS, INTERVAL_S = 20, 0.75


async def main() -> None:
    """Serve until standard input ends."""
    network = make_network(context_tokens_max=50_000)
    with tempfile.TemporaryDirectory() as folder:
        async with open_stub_gateway(network, Path(folder)) as gateway:
            key = gateway.issue(requests_per_minute_max=1_000_000, concurrent_max=10_000)
            told = {"url": gateway.url, "key": key, "tokens": TOKENS, "interval_s": INTERVAL_S}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
            playing = asyncio.create_task(_play(gateway))
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)


async def _play(gateway: StubGateway) -> None:
    """Take each job as it comes, and give it to a task that paces it."""
    begun: set[JobId] = set()
    async with asyncio.TaskGroup() as group:
        while True:
            for job_id in gateway.state.runs.job_ids:
                run = gateway.state.runs.find(job_id, ACCOUNT)
                if run is not None and job_id not in begun:
                    begun.add(job_id)
                    group.create_task(_stream(gateway, run.job))
            await asyncio.sleep(0.02)


async def _stream(gateway: StubGateway, job: Job) -> None:
    gateway.side.tell(job, "queued")
    gateway.side.tell(job, "generating", generator=WORKER.participant_id)
    said = ""
    for _ in range(TOKENS):
        await asyncio.sleep(INTERVAL_S)
        gateway.stream(job, "x", before=said)
        said += "x"
    gateway.commit(job, said)


if __name__ == "__main__":
    asyncio.run(main())
