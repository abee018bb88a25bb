"""The demo's verdict on itself: what its report counts, what it calls a problem, and which exit code follows."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from pocache.bus.port import StreamRecord
from pocache.client import Job, PocacheClient, RefusedError
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import JobId, ModelId
from pocache.protocol.lifecycle import Phase
from pocache.runtime.network import NetworkDirectory
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import seal
from pocache.wire.model import WireModel
from pocache.wire.topics import Topic
from pocache_cli import demo as demo_module
from pocache_cli.bootstrap import create_network
from pocache_cli.local_network import LocalNetwork
from pocache_cli.scenario import CHEATING_GENERATORS, CHEATING_VERIFIERS, Report, Scenario, choose_cast

HONEST, CHEAT = "worker-1", "worker-other"
[LAZY] = CHEATING_VERIFIERS
SOUND = m.TotalsReplyV1(
    deposited_micro=1_000,
    held_micro=1_000,
    open_pools_micro=0,
    closed_pools_micro=0,
    open_pool_count=0,
    treasury_micro=0,
    reserve_micro=0,
    journal_entries=3,
    journal_intact=True,
)


@dataclass
class Record:
    """A network of which only the record and the ledger's totals exist: what the report is drawn from."""

    directory: NetworkDirectory
    totals: m.TotalsReplyV1 = SOUND
    said: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def operator(self) -> Record:
        """The operator's connection."""
        return self

    async def read(self, stream: str, *, subject: str) -> AsyncIterator[StreamRecord]:
        """Yield what was said on a subject."""
        prefix = subject.removesuffix("*")
        for number, (said, data) in enumerate(self.said, start=1):
            if said.startswith(prefix):
                yield StreamRecord(said, data, {}, stream, number, 0)

    async def query_totals(self) -> m.TotalsReplyV1:
        """Answer as the ledger would."""
        return self.totals

    def say(self, topic: Topic[Any], body: WireModel, job_id: bytes, signer: str | None = None) -> None:
        """Write a message of a service, or of somebody else."""
        key = self.directory.signing_key(signer or topic.signer.value)
        self.said.append((topic.subject(job=job_id), seal(key, self.directory.genesis.network_id, body)))

    def participant(self, name: str) -> str:
        """Return somebody's id."""
        return self.directory.signing_key(name).participant_id


@dataclass
class Stage:
    """A scenario and its record."""

    record: Record
    scenario: Scenario

    def play(self, generator: str, case: str, slashed: Sequence[str], signer: str | None = None) -> JobId:
        """Write the record of one job."""
        job_id = JobId(hashlib.sha256(bytes([len(self.scenario._users)])).digest())
        self.scenario._users[job_id] = "ada"
        if generator in CHEATING_GENERATORS:
            self.scenario._seen_cheats.add(generator)
        write_job(self.record, job_id, generator, case, slashed, signer)
        return job_id

    async def report(self, hung: Sequence[JobId] = ()) -> Report:
        """Return the scenario's own report."""
        return await self.scenario._report(hung)


def write_job(
    record: Record,
    job_id: JobId,
    generator: str,
    case: str,
    slashed: Sequence[str],
    signer: str | None = None,
) -> None:
    """Write a commitment, an audit and a payout."""
    who = record.participant(generator)
    committed = m.CommitmentRecordedV1(
        job_id=job_id,
        attempt=1,
        generator=who,
        result=b"",
        log_index=0,
        received_ms=0,
        recorded_ms=0,
        audit_round=3,
        window_close_round=9,
    )
    audit = m.AuditOpenedV1(
        job_id=job_id,
        attempt=1,
        reason="challenge",
        round_number=3,
        randomness=bytes(32),
        corner=m.CornerV1(layer_max=0, position_max=0, full_depth=True),
    )
    payout = m.PayoutSettledV1.model_validate(
        {
            "job_id": job_id,
            "attempt": 1,
            "case": case,
            "stage": 1,
            "pool_micro": 7,
            "generation_micro": 1,
            "verification_micro": 1,
            "reserve_micro": 0,
            "lines": (m.PayoutLineV1(account=who, amount_micro=7, held_micro=5),),
            "slashed": tuple(record.participant(name) for name in slashed),
        }
    )
    record.say(t.COMMITMENT_RECORDED, committed, job_id)
    record.say(t.AUDIT_OPENED, audit, job_id)
    record.say(t.PAYOUT_SETTLED, payout, job_id, signer)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> NetworkDirectory:
    """The keys of the demo's whole cast."""
    return create_network(tmp_path_factory.mktemp("demo") / "network", choose_cast("fake:demo").plan())


@pytest.fixture
def stage(directory: NetworkDirectory) -> Stage:
    """A demo in which every cheat had its turn and was slashed, and one honest job was paid."""
    record, cast_ = Record(directory), choose_cast("fake:demo")
    scenario = Scenario(
        cast(LocalNetwork, record),
        cast_,
        model_id=ModelId(bytes(32)),
        encode=lambda text: list(text.encode()),
        job_count=20,
        token_count_max=4,
        say=lambda _text: None,
    )
    stage = Stage(record, scenario)
    stage.play(HONEST, "confirm_generator", [LAZY])
    for name in cast_.generators:
        stage.play(name, "confirm_prior", [name])
    return stage


async def test_a_demo_in_which_every_cheat_is_slashed_has_no_problem(stage: Stage) -> None:
    report = await stage.report()
    assert report.problems == ()
    count = len(choose_cast("fake:demo").generators)
    assert report.to_dict() == {
        "jobs": count + 1,
        "settled": count + 1,
        "challenged": count + 1,
        "cheats_injected": count + 1,
        "cheats_slashed": count + 1,
        "honest_slashed": 0,
        "pool_residue_micro": 0,
        "conserved": True,
    }


@pytest.mark.parametrize("case", ["agree", "no_challenge", "void", "confirm_generator"])
async def test_a_cheat_that_is_paid_is_a_problem(stage: Stage, case: str) -> None:
    """Also when it was slashed in another job before."""
    job_id = stage.play(CHEAT, case, [])
    report = await stage.report()
    assert report.cheats_slashed == report.cheats_injected - 1
    [problem] = report.problems
    assert CHEAT in problem
    assert job_id.hex()[:12] in problem


async def test_an_honest_party_that_is_slashed_is_a_problem(stage: Stage) -> None:
    stage.play(CHEAT, "confirm_prior", [CHEAT, "verifier-2"])
    report = await stage.report()
    assert report.honest_slashed == 1
    [problem] = report.problems
    assert "verifier-2" in problem


async def test_a_job_that_hangs_is_a_problem(stage: Stage) -> None:
    hung = JobId(bytes(32))
    stage.scenario._users[hung] = "ada"
    report = await stage.report([hung])
    assert report.settled == report.jobs - 1
    assert report.problems == (f"job {hung.hex()[:12]} hangs",)


async def test_a_job_that_is_refused_is_a_problem_and_does_not_end_the_others(stage: Stage) -> None:
    job_id = JobId(b"\x03" * 32)
    stage.scenario._users[job_id] = "ada"
    await stage.scenario._follow(cast(PocacheClient, Refusing()), cast(Job, SimpleNamespace(job_id=job_id)))
    report = await stage.report()
    assert report.problems == (f"job {job_id.hex()[:12]} failed: E204: no money",)


class Refusing:
    """A client whose jobs are refused."""

    async def wait(self, job: Job, *phases: Phase) -> None:
        raise RefusedError("E204", "no money")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"held_micro": 999}, "conserved"),
        ({"journal_intact": False}, "conserved"),
        ({"open_pools_micro": 4}, "pools"),
        ({"closed_pools_micro": 4}, "pools"),
    ],
)
async def test_money_that_does_not_add_up_is_a_problem(
    stage: Stage, changes: dict[str, Any], name: str
) -> None:
    stage.record.totals = SOUND.model_copy(update=changes)
    report = await stage.report()
    [problem] = report.problems
    assert name in problem
    assert (report.conserved, report.pool_residue_micro) == ((False, 0) if name == "conserved" else (True, 4))


async def test_a_cheat_without_a_turn_is_a_problem(stage: Stage) -> None:
    stage.scenario._seen_cheats.discard(CHEAT)
    assert (await stage.report()).problems == (f"{CHEAT} never had its turn",)


async def test_a_payout_that_the_ledger_did_not_sign_ends_the_report(stage: Stage) -> None:
    """A slash that somebody else claims must not count as one."""
    stage.play(CHEAT, "confirm_prior", [CHEAT], signer="router")
    with pytest.raises(PocacheError, match="not signed by the ledger"):
        await stage.report()


async def test_jobs_of_an_earlier_demo_in_the_same_directory_do_not_count(stage: Stage) -> None:
    """The record is kept with ``--dir``; what others did before is not this demo's."""
    before = await stage.report()
    write_job(stage.record, JobId(b"\x09" * 32), CHEAT, "agree", [])
    assert await stage.report() == before


@pytest.mark.parametrize(("problems", "code"), [((), 0), ((f"{CHEAT} (another-model) was not slashed",), 1)])
async def test_the_exit_code_says_whether_there_was_a_problem(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, problems: tuple[str, ...], code: int
) -> None:
    """And with ``--json`` there is one object on standard output, and nothing else."""
    report = replace(await stage.report(), problems=problems)

    async def run(*_arguments: object) -> Report:
        return report

    monkeypatch.setattr(demo_module, "_run", run)
    for arguments in (["--json"], []):
        result = await _invoke(arguments)
        assert result.exit_code == code
        if arguments:
            assert json.loads(result.stdout) == report.to_dict()
            assert result.stdout.count("\n") == 1
        shown = result.stderr if arguments else result.stdout
        assert all(problem in " ".join(shown.split()) for problem in problems)


async def _invoke(arguments: list[str]) -> Any:
    """Run the command in a thread: it starts an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, demo_module.demo, arguments)


def test_the_engine_without_weights_is_asked_for_no_quantisation() -> None:
    """With a real model every cheat plays; without one, those that need weights do not."""
    assert set(choose_cast("fake:demo").generators.values()) == set(CHEATING_GENERATORS.values()) - {"int4"}
    assert set(choose_cast("some/model").generators.values()) == set(CHEATING_GENERATORS.values())
