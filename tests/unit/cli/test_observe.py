"""``pocache jobs``, ``workers``, ``top`` and ``completion`` over the record of a real network."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kit.network import make_key
from kit.recorded import RecordedBus, get_jobs, load_recorded
from pocache.protocol.errors import ConfigError
from pocache.readmodel import queries
from pocache.readmodel.model import ReadModel
from pocache.runtime.network import NetworkDirectory
from pocache.service.provisioning import compute_reader
from pocache_cli import observing
from pocache_cli.bootstrap import NetworkPlan, create_network
from pocache_cli.main import main
from pocache_cli.observing import Observed, pick_reader, read_names
from pocache_cli.top import RATE_WINDOW_S, Rates


@pytest.fixture(scope="module")
def model() -> Iterator[ReadModel]:
    with load_recorded().open_model() as filled:
        yield filled


@pytest.fixture
def names(model: ReadModel) -> dict[str, str]:
    with model.reading() as connection:
        people = [row["participant"] for row in queries.list_participants(connection, "everybody")]
    return {one: f"name-{index}" for index, one in enumerate(people)}


@pytest.fixture
def run(model: ReadModel, names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command over the record, without a bus."""

    @asynccontextmanager
    async def observe(network_dir: str, *, report: Any) -> AsyncIterator[Observed]:
        assert network_dir == "/net"
        report(0)
        yield Observed(NetworkDirectory(Path("/net")), RecordedBus(load_recorded().records), model, names)  # type: ignore[arg-type]

    monkeypatch.setattr(observing, "observe", observe)

    def run_command(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(main, [command, *arguments, "--network-dir", "/net"])

    return run_command


def read_lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_jobs_are_json_lines_the_latest_first(run: Any, model: ReadModel) -> None:
    found = read_lines(run("jobs", "--json"))
    with model.reading() as connection:
        rows = queries.list_jobs(connection, limit=100).rows
    assert [one["job_id"] for one in found] == [row["job_id"].hex() for row in rows]
    convicted = next(one for one in found if one["ending"] == "confirm_prior")
    assert convicted["slashed_count"] == 1
    assert convicted["peak_q16"] > convicted["limit_q16"]
    assert {one["ending"] for one in read_lines(run("jobs", "--json", "--slashed"))} == {
        "confirm_prior",
        "no_opening",
        "equivocation",
    }
    assert len(read_lines(run("jobs", "--json", "--limit", "2"))) == 2
    assert [one["phase"] for one in read_lines(run("jobs", "--json", "--state", "open"))] == ["queued"]


def test_jobs_of_one_party_by_name(run: Any, model: ReadModel, names: dict[str, str]) -> None:
    with model.reading() as connection:
        [slash] = [one for one in queries.list_slashes(connection) if one["ending"] == "confirm_prior"]
    found = read_lines(run("jobs", "--json", "--by", names[slash["account"]]))
    assert slash["job_id"].hex() in {one["job_id"] for one in found}
    assert all(one["generator"] == slash["account"] for one in found)
    refused = run("jobs", "--by", "nobody-like-that")
    assert refused.exit_code == 2
    assert "name-0" in refused.stderr


def test_one_job_has_its_way_and_its_payments(run: Any, model: ReadModel) -> None:
    job_id = get_jobs(model)["confirm_prior"].hex()
    [found] = read_lines(run("jobs", job_id[:10], "--json"))
    assert found["job_id"] == job_id
    assert [one["phase"] for one in found["events"]][-1] == "settled"
    assert sum(one["amount_micro"] for one in found["payouts"]) == found["pool_micro"]
    assert {one["role"] for one in found["parts"]} == {"user", "generator", "verifier"}
    text = run("jobs", job_id)
    assert text.exit_code == 0
    assert "slashed" in text.stdout
    missing = run("jobs", "0" * 64)
    assert missing.exit_code == 1
    assert "no job like that" in missing.stderr
    for wrong in ("xyz", "abc", "A" * 10):
        assert run("jobs", wrong).exit_code == 2


def test_a_table_for_people(run: Any) -> None:
    result = run("jobs")
    assert result.exit_code == 0
    for word in ("confirm_prior", "no_challenge", "challenge", "name-"):
        assert word in result.stdout


def test_workers_and_one_with_its_slashes(run: Any, model: ReadModel, names: dict[str, str]) -> None:
    found = read_lines(run("workers", "--json"))
    slashed = [one for one in found if one["slashed"]]
    assert len(slashed) == 3
    assert {one["name"] for one in found} <= set(names.values())
    [one] = read_lines(run("workers", slashed[0]["name"], "--json"))
    assert len(one["slashes"]) == one["slashed"]
    assert one["latest"]
    assert "slashed" in run("workers", slashed[0]["name"]).stdout
    assert run("workers").exit_code == 0
    assert run("workers", "U" + "A" * 55).exit_code == 1


def test_top_is_one_object_or_one_picture(run: Any, model: ReadModel) -> None:
    [picture] = read_lines(run("top", "--once", "--json"))
    assert picture["jobs"] == 10
    assert picture["phases"]["settled"] == 8
    assert picture["endings"]["confirm_prior"] == 1
    assert len(picture["workers"]) >= 5
    with model.reading() as connection:
        assert picture["round"] == queries.list_rounds(connection).rows[0]["number"]
    text = run("top", "--once")
    assert text.exit_code == 0
    for word in ("settled", "how jobs ended", "workers and verifiers", "jobs/s"):
        assert word in text.stdout


def test_rates_are_of_the_window_and_no_more() -> None:
    rates = Rates()
    assert rates.add(0.0, 5, 0, 0)["jobs_per_s"] == 0
    assert rates.add(10.0, 25, 10, 100) == {"jobs_per_s": 2.0, "settled_per_s": 1.0, "tokens_per_s": 10.0}
    assert rates.add(10.0 + RATE_WINDOW_S, 25, 10, 100)["jobs_per_s"] == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_the_command(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_POCACHE_COMPLETE" in result.stdout
    assert (
        json.loads(CliRunner().invoke(main, ["completion", shell, "--json"]).stdout)["script"]
        in result.stdout
    )
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


def test_bash_completes_commands_and_values(tmp_path: Path) -> None:
    """The script in a real bash, with a command that answers as ours does."""
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    answer = (
        CliRunner()
        .invoke(
            main,
            [],
            env={"_POCACHE_COMPLETE": "bash_complete", "COMP_WORDS": "pocache jo", "COMP_CWORD": "1"},
            prog_name="pocache",
        )
        .stdout
    )
    assert answer.splitlines() == ["plain,jobs"]
    (tmp_path / "pocache").write_text(f"#!/bin/sh\nprintf '%s\\n' '{answer.strip()}'\n", encoding="ascii")
    (tmp_path / "pocache").chmod(0o700)
    code = f'{script}\nCOMP_WORDS=(pocache jo) COMP_CWORD=1; _pocache_completion pocache; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert done.stdout.split() == ["jobs"]


def test_the_reader_reads_and_says_nothing() -> None:
    user = compute_reader("reader", "U" + "A" * 55)
    assert all(
        one.startswith(("$JS.API.DIRECT.GET.RECORD", "$JS.API.DIRECT.GET.BEACON"))
        for one in user.publish_allow
    )
    assert not user.is_guest


def test_who_reads_and_what_it_knows(tmp_path: Path) -> None:
    directory = create_network(tmp_path, NetworkPlan("local", ("ada",), ("worker-1",)))
    assert pick_reader(directory) == "reader"
    (directory.path / "transport" / "reader.seed").unlink()
    assert pick_reader(directory) == "operator"
    (directory.path / "transport" / "operator.seed").unlink()
    with pytest.raises(ConfigError, match="may read the record"):
        pick_reader(directory)
    assert read_names(NetworkDirectory(tmp_path / "nowhere")) == {"treasury": "treasury"}
    network = Observed(directory, None, None, {make_key("a").participant_id: "a"})  # type: ignore[arg-type]
    assert network.name(make_key("a").participant_id) == "a"
    assert network.name(None) == ""
    assert "…" in network.name(make_key("b").participant_id)
