"""The explorer with 10,000 jobs: what making each page costs the server, and how fast the read model takes a record in.

Command: ``make bench ARGS=explorer``. Recorded figures: bench/RESULTS.md. The budget is 50 ms a page at the median. The
jobs that pages are made of are real ones, played by the services in this process and projected from their record, each
challenged and opened at 16 positions; a job's page is made anew every time, never from the explorer's memory. The rest of
the 10,000 are copies of their rows with ids of their own, so that every table has its true size. The baseline is the page
that reads nothing. Counted is the computing time of the one thread that makes the page.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from starlette.requests import Request

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.measure import Row, compare
from kit.loopback import SECTIONS, Loopback
from pocache.bus.port import StreamRecord
from pocache.readmodel import queries
from pocache.readmodel import tables as tb
from pocache.readmodel.model import ReadModel
from pocache_gateway.explorer import Explorer, ExplorerSettings

JOB_COUNT, REAL_COUNT, SAMPLES = 10_000, 20, 16
PROMPT_COUNT, OUTPUT_COUNT = 20, 100
PAGES = ("overview", "jobs", "workers", "accounts", "rounds", "log")


def run() -> list[Row]:
    """Return a row per page, and one for taking a record in."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    loopback, records = _play()
    model = ReadModel(loopback.network.genesis, loopback.network.models)
    try:
        started_s = time.thread_time()
        model.apply(records)
        taken_s = time.thread_time() - started_s
        with model.reading() as connection:
            real = [row["job_id"].hex() for row in queries.list_jobs(connection, limit=REAL_COUNT).rows]
            people = [row["participant"] for row in queries.list_participants(connection, "worker")]
        _multiply(model)
        rows = _measure(model, real, people)
        note = f"The read model took in {len(records):,} messages of {REAL_COUNT} jobs: {len(records) / taken_s:,.0f} a second."
        rows[0] = Row(**{name: getattr(rows[0], name) for name in Row.__slots__ if name != "note"}, note=note)
        return rows
    finally:
        model.close()


def _play() -> tuple[Loopback, list[StreamRecord]]:
    """Play real jobs, and return the record that the bus would have."""
    loopback = Loopback(
        {**SECTIONS, "audit": {**SECTIONS["audit"], "sample_count": SAMPLES}},
        prompt=tuple(3 + index % 90 for index in range(PROMPT_COUNT)),
        output=tuple(3 + index % 90 for index in range(OUTPUT_COUNT)),
        model={"layer_count": 4, "width": 32, "context_tokens_max": 2_000},
    )
    for _ in range(REAL_COUNT):
        loopback.play(challenge=True)
    entries = [*loopback.rounds, *loopback.record]
    now_ms = time.time_ns() // 1_000_000
    return loopback, [
        StreamRecord(one.subject, one.data, {}, one.stream, one.sequence, now_ms - 3_000_000 + index)
        for index, one in enumerate(entries)
    ]


def _multiply(model: ReadModel) -> None:
    """Fill every table to 10,000 jobs with copies of the real ones, each with an id and a number of its own."""
    engine = model._engine  # noqa: SLF001 - the bench makes what no bus would give
    with engine.begin() as connection:
        jobs = [dict(row) for row in connection.execute(sa.select(tb.JOBS)).mappings()]
        top = max(job["changed"] for job in jobs) + 1
        entry_count = len(model.tree)
        tables = (tb.EVENTS, tb.MESSAGES, tb.PARTS, tb.PAYOUTS, tb.ROUND_USES)
        copied: dict[str, list[dict[str, Any]]] = {table.name: [] for table in (tb.JOBS, tb.ENTRIES, *tables)}
        kept = {
            (table.name, job["number"]): [
                dict(row)
                for row in connection.execute(
                    sa.select(table).where(
                        table.c.job_id == job["job_id"]
                        if "job_id" in table.c
                        else table.c.number == job["number"]
                    )
                ).mappings()
            ]
            for table in tables
            for job in jobs
        }
        sequences = itertools.count(top)
        for index in range(JOB_COUNT - len(jobs)):
            job = jobs[index % len(jobs)]
            number, job_id = next(sequences), hashlib.sha256(index.to_bytes(4, "big")).digest()
            for table in tables:
                for row in kept[table.name, job["number"]]:
                    own: dict[str, Any] = {"job_id": job_id} if "job_id" in row else {"number": number}
                    own |= {"sequence": next(sequences)} if "sequence" in row else {}
                    copied[table.name].append({**row, **own})
            place = {
                "number": number,
                "job_id": job_id,
                "changed": next(sequences),
                "log_index": entry_count + index,
            }
            copied[tb.JOBS.name].append({**job, **place})
            copied[tb.ENTRIES.name].append(
                {"log_index": entry_count + index, "number": number, "leaf_hash": job_id}
            )
        for name, rows in copied.items():
            connection.execute(sa.insert(tb.METADATA.tables[name]), rows)
        connection.execute(sa.update(tb.TALLIES).values(value=tb.TALLIES.c.value * JOB_COUNT // len(jobs)))


def _measure(model: ReadModel, real: list[str], people: list[str]) -> list[Row]:
    explorer = Explorer(model, settings=ExplorerSettings(shows_texts=True))

    def make(name: str, path: dict[str, str] | None = None, query: str = "") -> Callable[[], object]:
        scope = {"type": "http", "path_params": path or {}, "query_string": query.encode(), "headers": []}
        return lambda: explorer.render(name, Request(scope))

    turns = itertools.cycle(real)

    def make_job() -> object:
        explorer._views._kept.clear()  # noqa: SLF001 - nothing of the job is in memory
        scope = {"type": "http", "path_params": {"job": next(turns)}, "query_string": b"", "headers": []}
        return explorer.render("job", Request(scope))

    work = {f"page {name!r}": make(name) for name in PAGES}
    work["page 'jobs', filtered, 100 pages back"] = make("jobs", query="ending=agree&before=200000")
    work[f"page of a participant in {JOB_COUNT:,} jobs"] = make("participant", {"participant": people[0]})
    work["page of a round, its signature verified"] = make("round", {"number": "5"})
    work[f"page of a job, {SAMPLES} openings of each side, made anew"] = make_job
    return [
        compare(name, one, "page 'verify', which reads nothing", make("verify"), clock=time.thread_time)
        for name, one in work.items()
    ]
