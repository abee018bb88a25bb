"""What the demo plays: who takes part and how they cheat, the jobs, and the report drawn from the record.

The users here know who cheats, because they hired them: they challenge every cheat, besides what the lottery draws. The
network does not know. The report counts only what the record says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from pocache.client import Job, PocacheClient
from pocache.protocol.commitment import Sampling
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import JobId, ModelId
from pocache.protocol.lifecycle import Phase
from pocache.protocol.payoff import RULES_DEFAULT
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Stream
from pocache_cli.bootstrap import NetworkPlan, plan_rules
from pocache_cli.local_network import LocalNetwork, WorkerProcess

USERS: Final = ("ada", "grace", "edsger")
HONEST_GENERATORS: Final = ("worker-1", "worker-2", "worker-3", "worker-4")
HONEST_VERIFIERS: Final = ("verifier-1", "verifier-2", "verifier-3", "verifier-4", "verifier-5")
CHEATING_GENERATORS: Final[Mapping[str, str]] = {
    "worker-int4": "int4",
    "worker-other": "another-model",
    "worker-prompt": "swapped-prompt",
    "worker-silent": "never-opens",
    "worker-twice": "two-commitments",
}
CHEATING_VERIFIERS: Final[Mapping[str, str]] = {"verifier-lazy": "garbage-claims"}
NEEDS_WEIGHTS: Final = frozenset({"int4"})
"""Cheats that the engine without a model has nothing to cheat with."""

HOUSE: Final = ("treasury", "reserve")
"""Accounts of nobody's, as the ledger's payouts name them."""

USER_DEPOSIT_MICRO: Final = 1_000_000_000
STAKE_MICRO: Final = 2_000_000_000
LAZY_STAKE_FACTOR: Final = 4
"""The lazy verifier has staked the most, so that it is drawn, as often as the cap on one owner's stake allows."""

ROUNDS_OF_JOBS_MAX: Final = 3
JOB_TIMEOUT_S: Final = 150.0

DEMO_SECTIONS: Final[Mapping[str, Mapping[str, object]]] = {
    "audit": {
        "lottery_share": "1/4",
        "full_depth_share": "1/2",
        "sample_count": 8,
        "bind_delay_ms": 300,
        "window_rounds": 6,
        "commitment_lag_rounds_max": 20,
    },
    "deadlines": {"queue_ticks": 120, "lease_ticks": 60, "seal_ticks": 40, "opening_ticks": 8},
}

DEMO_LEVY: Final = "5/12"
"""λ: what audits of a quarter of all jobs cost under `fixed-fee-committee`."""

PROMPTS: Final = (
    "import asyncio\n\nasync def main",
    "Return a list of",
    "    def __init__(self",
    "The following exceptions",
    'class Queue:\n    """',
    "This module provides",
    "        if not isinstance(",
    "The value of the expression",
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Everybody in the demo."""

    generators: Mapping[str, str]
    """Cheating generators and how; the honest ones are :data:`HONEST_GENERATORS`."""
    rules: str = RULES_DEFAULT

    def plan(self) -> NetworkPlan:
        """Return the network to create."""
        return NetworkPlan(
            name="demo",
            users=USERS,
            workers=(*HONEST_GENERATORS, *self.generators, *HONEST_VERIFIERS, *CHEATING_VERIFIERS),
            is_demo=True,
            sections={
                **DEMO_SECTIONS,
                "rules": plan_rules(
                    self.rules, len(HONEST_VERIFIERS) + len(CHEATING_VERIFIERS), levy=DEMO_LEVY
                ),
            },
            period_s=1,
        )

    def processes(self) -> tuple[WorkerProcess, ...]:
        """Return the worker processes: identities that are honest together share one engine, cheats another."""
        return (
            WorkerProcess("generators", HONEST_GENERATORS, roles="generate"),
            WorkerProcess("cheats", tuple(self.generators), roles="generate", cheats=self.generators),
            WorkerProcess(
                "verifiers",
                (*HONEST_VERIFIERS, *CHEATING_VERIFIERS),
                roles="verify",
                cheats=CHEATING_VERIFIERS,
            ),
        )


def choose_cast(model: str, rules: str = RULES_DEFAULT) -> Cast:
    """Return the cast for a model under some rules: the engine without weights cannot quantise them."""
    is_fake = model.startswith("fake:")
    generators = {
        name: cheat for name, cheat in CHEATING_GENERATORS.items() if not (is_fake and cheat in NEEDS_WEIGHTS)
    }
    return Cast(generators, rules)


@dataclass
class JobLine:
    """One job as the demo's report shows it."""

    job_id: JobId
    user: str
    generator: str = ""
    cheat: str = ""
    audit: str = ""
    verdict: str = ""
    distance_log2: float | None = None
    threshold_log2: float | None = None
    case: str = ""
    phase: str = ""
    prompt: str = ""
    text: str = ""
    """What was asked and what was delivered."""
    paid: list[tuple[str, int]] = field(default_factory=list)
    slashed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """The demo's result: the counts of ``--json``, and a line a job."""

    jobs: int
    settled: int
    challenged: int
    cheats_injected: int
    cheats_slashed: int
    honest_slashed: int
    pool_residue_micro: int
    conserved: bool
    lines: tuple[JobLine, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, int | bool]:
        """Return the object that ``pocache demo --json`` ends with."""
        return {
            "jobs": self.jobs,
            "settled": self.settled,
            "challenged": self.challenged,
            "cheats_injected": self.cheats_injected,
            "cheats_slashed": self.cheats_slashed,
            "honest_slashed": self.honest_slashed,
            "pool_residue_micro": self.pool_residue_micro,
            "conserved": self.conserved,
        }


class Scenario:
    """Plays the demo on a running network."""

    def __init__(
        self,
        network: LocalNetwork,
        cast: Cast,
        *,
        model_id: ModelId,
        encode: Callable[[str], Sequence[int]],
        job_count: int,
        token_count_max: int,
        say: Callable[[str], None],
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._network = network
        self._model_id = model_id
        self._encode = encode
        self._decode = decode
        self._job_count = job_count
        self._token_count_max = token_count_max
        self._say = say
        self.names: dict[str, str] = {
            network.directory.signing_key(name).participant_id: name
            for name in (*USERS, *HONEST_GENERATORS, *cast.generators, *HONEST_VERIFIERS, *CHEATING_VERIFIERS)
        }
        self.names.update({one: one for one in HOUSE})
        self._cheats: dict[str, str] = {**cast.generators, **CHEATING_VERIFIERS}
        self._generator_cheats = dict(cast.generators)
        self._seen_cheats: set[str] = set()
        self._users: dict[JobId, str] = {}
        self._prompts: dict[JobId, str] = {}
        self._texts: dict[JobId, str] = {}
        self._failed: dict[JobId, str] = {}

    async def play(self) -> Report:
        """Fund everybody, submit the jobs, challenge the cheats, and report."""
        await self._fund()
        await self._network.wait_members((*HONEST_VERIFIERS, *CHEATING_VERIFIERS))
        async with AsyncExitStack() as stack:
            clients = {name: await stack.enter_async_context(self._network.open_user(name)) for name in USERS}
            hung: list[JobId] = []
            for number in range(ROUNDS_OF_JOBS_MAX):
                count = (
                    self._job_count if number == 0 else len(HONEST_GENERATORS) + len(self._generator_cheats)
                )
                self._say(f"submitting {count} jobs from {len(clients)} users")
                hung += await self._run_jobs(clients, count)
                if hung or not await self._find_unseen():
                    break
                self._say("not every cheat has had its turn: more jobs")
        return await self._report(hung)

    async def _fund(self) -> None:
        for name in USERS:
            await self._network.deposit(name, "available", USER_DEPOSIT_MICRO, f"demo/{name}")
        for name in self.names.values():
            if name not in USERS and name not in HOUSE:
                factor = LAZY_STAKE_FACTOR if name in CHEATING_VERIFIERS else 1
                await self._network.deposit(name, "stake", factor * STAKE_MICRO, f"demo/{name}")

    async def _run_jobs(self, clients: Mapping[str, PocacheClient], count: int) -> list[JobId]:
        """Run ``count`` jobs to their end; returns those that did not end in time."""
        draw = random.Random(len(self._users))  # noqa: S311 - which prompt, not a secret
        tasks: dict[asyncio.Task[None], JobId] = {}
        async with asyncio.TaskGroup() as group:
            for index in range(count):
                user = USERS[index % len(USERS)]
                prompt = PROMPTS[draw.randrange(len(PROMPTS))]
                sampling = Sampling(temperature_micro=(0, 800_000)[index % 2], top_k=0, top_p_micro=1_000_000)
                job = await clients[user].submit(
                    self._model_id,
                    self._encode(prompt),
                    token_count_max=self._token_count_max,
                    sampling=sampling,
                )
                self._users[job.job_id], self._prompts[job.job_id] = user, prompt
                tasks[group.create_task(self._follow(clients[user], job))] = job.job_id
            _, pending = await asyncio.wait(tasks, timeout=JOB_TIMEOUT_S)
            for task in pending:
                task.cancel()
        return [tasks[task] for task in pending]

    async def _follow(self, client: PocacheClient, job: Job) -> None:
        """Follow one job; that it was refused, or its result is none, is a problem of its own and no other job's."""
        try:
            await self._follow_to_end(client, job)
        except PocacheError as error:
            self._failed[job.job_id] = str(error)

    async def _follow_to_end(self, client: PocacheClient, job: Job) -> None:
        """Wait for the commitment, challenge it when a hired cheat made it, wait for the end."""
        await client.wait(job, Phase.COMMITTED)
        if job.result is not None:
            if self._decode is not None:
                self._texts[job.job_id] = self._decode(unpack_tokens(job.result.output))
            lease = open_envelope(
                job.result.lease, self._network.directory.genesis.network_id, m.LeaseV1
            ).body
            name = self.names.get(lease.generator, "")
            if name in self._generator_cheats:
                self._seen_cheats.add(name)
                try:
                    await client.challenge(job)
                except PocacheError as error:
                    self._say(f"challenge not published: {error}")
        await client.wait(job, Phase.SETTLED, Phase.REFUNDED, Phase.REFUSED)

    async def _find_unseen(self) -> set[str]:
        """Return the cheats that have had no chance to cheat yet."""
        slashed = {
            self.names.get(one, one)
            for payout in await self._read(t.PAYOUT_SETTLED)
            for one in payout.slashed
        }
        unseen = set(self._generator_cheats) - self._seen_cheats
        return unseen | {name for name in CHEATING_VERIFIERS if name not in slashed}

    async def _report(self, hung: Sequence[JobId]) -> Report:
        lines = await self._read_lines()
        totals = await self._network.query_totals()
        problems = [f"job {job_id.hex()[:12]} hangs" for job_id in hung]
        problems += [f"job {job_id.hex()[:12]} failed: {reason}" for job_id, reason in self._failed.items()]
        injected = slashed_count = honest_slashed = 0
        for line in lines:
            names = set(line.slashed)
            honest = sorted(name for name in names if name not in self._cheats)
            honest_slashed += len(honest)
            problems += [f"{name}, honest, was slashed in job {line.job_id.hex()[:12]}" for name in honest]
            if line.cheat:
                injected += 1
                slashed_count += line.generator in names
                if line.generator not in names:
                    problems.append(
                        f"{line.generator} ({line.cheat}) was not slashed in job {line.job_id.hex()[:12]}"
                    )
            lazy = [name for name in names if name in CHEATING_VERIFIERS]
            injected += len(lazy)
            slashed_count += len(lazy)
        problems += [f"{name} never had its turn" for name in sorted(await self._find_unseen())]
        conserved = totals.deposited_micro == totals.held_micro and totals.journal_intact
        if not conserved:
            problems.append("money is not conserved, or the journal is broken")
        residue = totals.closed_pools_micro + totals.open_pools_micro
        if residue:
            problems.append(f"{residue} micro-units were left in pools")
        return Report(
            jobs=len(self._users),
            settled=sum(1 for line in lines if line.case),
            challenged=sum(1 for line in lines if line.audit),
            cheats_injected=injected,
            cheats_slashed=slashed_count,
            honest_slashed=honest_slashed,
            pool_residue_micro=residue,
            conserved=conserved,
            lines=tuple(lines),
            problems=tuple(problems),
        )

    async def _read_lines(self) -> list[JobLine]:
        lines = {
            job_id: JobLine(
                job_id, user, prompt=self._prompts.get(job_id, ""), text=self._texts.get(job_id, "")
            )
            for job_id, user in self._users.items()
        }
        for recorded in await self._read(t.COMMITMENT_RECORDED):
            line = lines[JobId(recorded.job_id)]
            line.generator = self._name(recorded.generator)
            line.cheat = self._generator_cheats.get(line.generator, "")
        for audit in await self._read(t.AUDIT_OPENED):
            lines[JobId(audit.job_id)].audit = audit.reason
        for outcome in await self._read(t.OUTCOME_DECIDED):
            line = lines[JobId(outcome.job_id)]
            line.verdict = outcome.case
            measured = [
                one
                for one in outcome.comparisons
                if line.generator in (self._name(one.left), self._name(one.right))
            ]
            if measured:
                shown = measured[-1]
                line.distance_log2 = shown.peak_q16 / 65_536
                line.threshold_log2 = shown.peak_match_max_q16 / 65_536
        for payout in await self._read(t.PAYOUT_SETTLED):
            line = lines[JobId(payout.job_id)]
            line.case = payout.case
            line.paid = [(self._name(one.account), one.amount_micro - one.held_micro) for one in payout.lines]
            line.slashed = [self._name(one) for one in payout.slashed]
        return list(lines.values())

    async def _read(self, topic: t.Topic[t.M]) -> list[t.M]:
        """Return what was said of this demo's jobs. Raises PocacheError when another than the service said it."""
        network_id = self._network.directory.genesis.network_id
        found: list[t.M] = []
        async for record in self._network.operator.read(Stream.RECORD.value, subject=topic.filter()):
            opened = open_envelope(record.data, network_id, topic.model)
            if opened.sender != self._network.directory.genesis.signer(topic.signer):
                raise PocacheError(f"{record.subject} is not signed by the {topic.signer.value}")
            # A directory that is kept holds the jobs of earlier demos too.
            if getattr(opened.body, "job_id", None) in self._users:
                found.append(opened.body)
        return found

    def _name(self, account: str) -> str:
        return self.names.get(account, self.names.get(account.removeprefix("stake:"), account[:12]))


assert len(HONEST_GENERATORS) >= 4
assert len(HONEST_VERIFIERS) >= 3
