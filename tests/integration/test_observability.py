"""What a running network tells those who watch it: metrics of every process, and one trace for each job."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kit.health import find_health_port
from kit.local import SECTIONS, USER, get_model_id, start_network, verify_money, wait_settled
from kit.scraping import read, scrape
from pocache.client import open_client
from pocache.protocol.lifecycle import Phase
from pocache.runtime.tracing import open_tracer
from pocache_cli.local_network import LocalNetwork, _connect

WAIT_S = 90.0
ALL_AUDITED = {**SECTIONS, "audit": {**SECTIONS["audit"], "lottery_share": "1/1"}}

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCACHE_TRACES", f"file={tmp_path / 'traces'}")
    return tmp_path / "traces"


async def test_a_job_is_counted_and_traced_from_submission_to_payout(tmp_path: Path, traces: Path) -> None:
    """One audited job and its neighbours: every service's figures agree with what happened, and the trace is one tree."""
    async with start_network(tmp_path / "network", sections=ALL_AUDITED) as network:
        tracer = open_tracer("user", {"POCACHE_TRACES": f"file={traces}"})
        async with (
            _connect(network.directory, network.server.url, USER) as bus,
            open_client(
                bus, network.directory.genesis, network.directory.signing_key(USER), tracer
            ) as client,
        ):
            jobs = [
                await client.submit(get_model_id(network), (number, 2, 3), token_count_max=6)
                for number in range(3)
            ]
            await wait_settled(client, jobs, WAIT_S)
        tracer.close()
        await verify_money(network, jobs)
        assert [job.phase for job in jobs] == [Phase.SETTLED] * 3
        await verify_metrics(network, len(jobs))
        for job in jobs:
            await verify_trace(traces, job.job_id)


async def verify_metrics(network: LocalNetwork, job_count: int) -> None:
    """Assert that what the processes export is what has happened."""
    processes = (
        "router",
        "commitments",
        "verifier",
        "ledger",
        "beacon",
        "deadletters",
        "generators",
        "verifiers",
    )
    seen = {name: await scrape(find_health_port(network, name)) for name in processes}
    for name, families in seen.items():
        assert read(families, "pocache_ready") == 1, name
        assert read(families, "pocache_info") == 1, name
    assert read(seen["router"], "pocache_jobs_total", phase="settled") == job_count
    assert read(seen["commitments"], "pocache_said_total", kind="commitment-recorded.v1") == job_count
    assert read(seen["commitments"], "pocache_said_total", kind="audit-opened.v1") == job_count
    assert read(seen["verifier"], "pocache_outcomes_total", case="agree") == job_count
    assert read(seen["verifier"], "pocache_comparisons_total", verdict="match") == job_count
    assert read(seen["verifier"], "pocache_distance_mean_count", verdict="match") == job_count
    assert read(seen["ledger"], "pocache_payouts_total", case="agree") == job_count
    assert read(seen["ledger"], "pocache_money_moved_micro_total") > 0
    assert read(seen["ledger"], "pocache_slashed_total") == 0
    assert read(seen["ledger"], "pocache_conservation_residue_micro") == 0
    assert read(seen["ledger"], "pocache_messages_total", stream="RECORD", action="ack") > job_count
    assert read(seen["ledger"], "pocache_apply_seconds_count") > 0
    assert read(seen["ledger"], "pocache_beacon_round") > 0
    generated = read(seen["generators"], "pocache_tokens_total", work="generate")
    assert job_count <= generated <= 6 * job_count
    assert read(seen["generators"], "pocache_commit_seconds_count") == job_count
    assert read(seen["verifiers"], "pocache_tokens_total", work="verify") >= job_count
    ids = [
        party.participant_id for party in map(network.directory.signing_key, network.directory.participants())
    ]
    for families in seen.values():
        for family in families.values():
            for sample in family.samples:
                for value in sample.labels.values():
                    assert len(value) < 40, f"{sample.name} is labelled by {value}"
                    assert value not in ids


async def verify_trace(traces: Path, job_id: bytes) -> None:
    """Assert that the job's spans are one tree, from the user's submission over every service to the payout."""
    wanted = {
        "user submit",
        "router submission.v1",
        "ledger hold-request.v1",
        "worker generate-task.v1",
        "worker generate",
        "commitments result.v1",
        "ledger commitment-recorded.v1",
        "verifier audit-opened.v1",
        "worker verify-task.v1",
        "verifier claim-sealed.v1",
        "commitments opening.v1",
        "ledger outcome.v1",
        "router payout-settled.v1",
    }
    async with asyncio.timeout(WAIT_S):
        while True:
            spans = read_spans(traces, job_id)
            if wanted <= {span["name"] for span in spans}:
                break
            await asyncio.sleep(0.05)
    by_id = {span["span_id"]: span for span in spans}
    roots = [span for span in spans if span["parent_id"] not in by_id]
    assert [span["name"] for span in roots] == ["user submit"]
    (paid,) = [span for span in spans if span["name"] == "router payout-settled.v1"]
    path, span = [], paid
    while span is not roots[0]:
        path.append(span["name"])
        span = by_id[span["parent_id"]]
    assert "ledger outcome.v1" in path or "ledger window-closed.v1" in path, path
    assert "router submission.v1" in path, path


def read_spans(traces: Path, job_id: bytes) -> list[dict[str, Any]]:
    """Return every process's spans of a job."""
    lines = [line for file in traces.glob("*.jsonl") for line in file.read_text().splitlines(keepends=True)]
    spans = [json.loads(line) for line in lines if line.endswith("\n")]
    return [span for span in spans if span["trace_id"] == job_id[:16].hex()]
