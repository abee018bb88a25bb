"""What must hold whatever happened: no job lost, none paid twice, money conserved, nobody honest slashed, memory back.

All of it is read from the record and asked of the ledger; nothing is taken from what the harness believes.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pocache.client import Job
from pocache.protocol.ids import JobId
from pocache.protocol.lifecycle import Phase
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Stream
from pocache_cli.children import pick_python_environment
from pocache_cli.local_network import LocalNetwork

ANSWER_S: Final = 180.0
ASK_S: Final = 60.0
"""Of that, how long one question waits: it may have been lost with the ledger that took it."""
MEMORY_GROWTH_MAX: Final = 0.25
MEMORY_GROWTH_KB_MAX: Final = 40 * 1024
"""A process may end a run with so much more than it had after its first wave, whichever is more."""


SLOPE_KB_PER_1000_JOBS_MAX: Final = 2_048
"""What a process may keep of a thousand jobs: a service's answer to a leak of two kilobytes a job is to run out of memory."""
BUS_SLOPE_KB_PER_1000_JOBS_MAX: Final = 8_192
"""The same of nats-server, which keeps the subject of every stored message in memory: some 26 of a job, 160 bytes each."""


class BrokenInvariantError(AssertionError):
    """Something that must hold does not."""


@dataclass
class Ledgerbook:
    """What the record said so far about who was paid, read on from where it was left."""

    network: LocalNetwork
    payouts: Counter[JobId] = field(default_factory=Counter)
    cases: dict[JobId, str] = field(default_factory=dict)
    slashed: list[tuple[str, str]] = field(default_factory=list)
    charged_count: int = 0
    _next: dict[str, int] = field(default_factory=dict)

    async def read_on(self) -> None:
        """Take in what is new."""
        async for body in self._read(t.PAYOUT_SETTLED):
            job_id = JobId(body.job_id)
            self.payouts[job_id] += 1
            self.cases[job_id] = body.case
            self.slashed += [(body.job_id.hex(), name) for name in body.slashed]
        async for _ in self._read(t.ATTEMPT_CHARGED):
            self.charged_count += 1

    async def _read(self, topic: t.Topic[Any]) -> Any:
        network_id = self.network.directory.genesis.network_id
        start = self._next.get(topic.pattern, 1)
        async for record in self.network.operator.read(
            Stream.RECORD.value, subject=topic.filter(), start_sequence=start
        ):
            self._next[topic.pattern] = record.sequence + 1
            yield open_envelope(record.data, network_id, topic.model).body


async def verify_invariants(book: Ledgerbook, jobs: Sequence[Job]) -> None:
    """Check all that can be checked at any time. Raises BrokenInvariantError naming what is broken."""
    await book.read_on()
    problems = [f"job {job.job_id.hex()[:12]} was refused: {job.end}" for job in jobs if is_refused(job)]
    for job in jobs:
        count = book.payouts[job.job_id]
        if count != 1 and not is_refused(job):
            problems.append(f"job {job.job_id.hex()[:12]} was paid out {count} times")
    problems += [f"{name} was slashed in job {job_id[:12]}" for job_id, name in book.slashed]
    totals = await _ask_totals(book.network)
    if totals.held_micro != totals.deposited_micro:
        problems.append(f"{totals.deposited_micro} micro-units were deposited, {totals.held_micro} are there")
    if not totals.journal_intact:
        problems.append("the journal is broken")
    if (totals.closed_pools_micro, totals.open_pools_micro, totals.open_pool_count) != (0, 0, 0):
        problems.append(f"pools are not empty: {totals}")
    if problems:
        raise BrokenInvariantError("; ".join(problems[:10]))


def is_refused(job: Job) -> bool:
    """Whether the network did not take the job."""
    return job.end is not None and job.end.phase == Phase.REFUSED.value


async def _ask_totals(network: LocalNetwork) -> Any:
    """Ask the ledger, which may be starting."""
    from pocache.job import RefusedError
    from pocache.protocol.errors import BusError

    loop = asyncio.get_running_loop()
    deadline = loop.time() + ANSWER_S
    while True:
        try:
            return await network.query_totals(timeout_s=ASK_S)
        except (BusError, RefusedError):
            if loop.time() > deadline:
                raise
            await asyncio.sleep(0.5)


async def run_audit(network_dir: Path) -> dict[str, Any]:
    """Run ``pocache audit`` on the network and return its report. Raises BrokenInvariantError when it diverges."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pocache_cli",
        "audit",
        "--network-dir",
        str(network_dir),
        "--json",
        env={**os.environ, **pick_python_environment()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode not in (0, 1):
        raise BrokenInvariantError(f"pocache audit failed: {errors.decode(errors='replace')[-500:]}")
    report: dict[str, Any] = json.loads(output)
    if process.returncode != 0:
        raise BrokenInvariantError(f"pocache audit: {json.dumps(report)[:1500]}")
    return report


def read_rss_kb(pids: Mapping[str, int]) -> dict[str, int]:
    """Return the resident memory of each process that still runs, kilobytes."""
    found: dict[str, int] = {}
    for name, pid in pids.items():
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("VmRSS:"):
                found[name] = int(line.split()[1])
    return found


def find_grown(samples: Sequence[Mapping[str, int]]) -> dict[str, tuple[int, int]]:
    """Return the processes whose memory did not come back: median of the first and of the last samples, kilobytes."""
    third = max(1, len(samples) // 3)
    grown: dict[str, tuple[int, int]] = {}
    for name in samples[-1]:
        early = [one[name] for one in samples[:third] if name in one]
        late = [one[name] for one in samples[-third:] if name in one]
        if not early or not late:
            continue
        before, after = round(statistics.median(early)), round(statistics.median(late))
        if after - before > max(MEMORY_GROWTH_KB_MAX, before * MEMORY_GROWTH_MAX):
            grown[name] = (before, after)
    return grown


def compute_slopes(samples: Sequence[Mapping[str, int]], jobs_per_sample: int) -> dict[str, int]:
    """Return each process's growth in kilobytes for 1,000 jobs: least squares over the second half of the samples."""
    half = samples[len(samples) // 2 :]
    slopes: dict[str, int] = {}
    for name in samples[-1]:
        values = [one[name] for one in half if name in one]
        if len(values) < 3:
            continue
        fitted = statistics.linear_regression(range(len(values)), values)
        slopes[name] = round(fitted.slope * 1_000 / jobs_per_sample)
    return slopes
