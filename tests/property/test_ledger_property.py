"""The ledger against an independent model: any order of messages, redelivery and crashes conserve the money.

The model keeps balances in dictionaries and pays by Table 1 as the paper prints it (docs/economics.md 2),
written out again here with none of the ledger's or the rules' code. After every step: the balances agree, the
sum is what was deposited, nobody is below zero, every settled job's pool is empty.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kit.jobs import Job
from kit.ledger import LedgerHarness, Money, make_ledger
from kit.network import make_key, make_network
from pocache.protocol.keys import SigningKey
from pocache.service.dispatch import Delivery
from pocache.storage.store import get_meta
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel
from pocache_ledger.tables import ACCOUNTS, HOLDS, WORLD

FEE = 700
UNBONDING_TICKS = 40
NETWORK = make_network(
    rules={"lease_fee_micro": FEE, "stage_max": 3, "unbonding_ticks": UNBONDING_TICKS},
    audit={"window_rounds": 1, "bind_delay_ms": 0},
    deadlines={"queue_ticks": 3, "lease_ticks": 1, "seal_ticks": 1, "opening_ticks": 1},
    ejection={"bond_share": "2/3"},
)
USERS = ("user-1", "user-2")
WORKERS = ("worker-1", "worker-2", "worker-3", "worker-4")
NAMES = USERS + WORKERS
MEMORY = Path("/dev/shm")
"""Where no power is cut, a commit need not wait for the disk; tests/integration/test_ledger_kills.py is on one."""
STAGE_MAX = 3
MODELS = (b"\x01" * 32, b"\x02" * 32)
"""From each of which a worker may be ejected."""
MESSAGE_STEPS, BATCH_STEPS = 16, 26
"""About as many statements as one message takes, and a deposit with a withdrawal behind it."""
CASES = {
    "agree": range(1, 2),
    "confirm_generator": range(2, STAGE_MAX + 1),
    "confirm_prior": range(2, STAGE_MAX + 1),
    "void": range(STAGE_MAX + 1),
    "no_opening": range(STAGE_MAX + 1),
    "equivocation": range(STAGE_MAX + 1),
}
"""How a dispute may end, and after how many stages."""


def alpha(amount: int) -> int:
    """Return ⌊6/5 · amount⌋."""
    return amount * 6 // 5


def beta(amount: int) -> int:
    """Return 5 · amount."""
    return amount * 5


def has_job(*phases: str) -> Callable[[LedgerMachine], bool]:
    """Return the precondition that some job is in one of these phases."""
    return lambda machine: any(one.phase in phases for one in machine.jobs)


@dataclass
class ModelBond:
    """What an ejection has cost so far, of what it may."""

    name: str
    model_id: bytes
    open: int


@dataclass
class ModelJob:
    """A job as the model sees it."""

    job: Job
    phase: str = "new"
    attempt: int = 1
    escrow: int = 0
    stake: int = 0
    worker: str | None = None
    verifiers: dict[int, str] = field(default_factory=dict)

    @property
    def told(self) -> Job:
        """The job with its present attempt and worker, as services speak of it."""
        return replace(self.job, attempt=self.attempt, generator_name=self.worker or WORKERS[0])

    @property
    def verifier_stake(self) -> int:
        """What each verifier has in the pool."""
        return beta(self.job.verification_cost())

    def locked(self, name: str) -> int:
        """What somebody has in this job's pool."""
        mine = self.escrow if name == self.job.user_name else 0
        mine += self.stake if name == self.worker else 0
        return mine + self.verifier_stake * list(self.verifiers.values()).count(name)


class LedgerMachine(RuleBasedStateMachine):
    """Drives a ledger and the model with the same messages."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.ledger: LedgerHarness = make_ledger(
            NETWORK, f"sqlite:///{Path(self.directory.name) / 'ledger.sqlite'}"
        )
        self.available = dict.fromkeys(NAMES, 0)
        self.stake = dict.fromkeys(NAMES, 0)
        self.unbonding: list[tuple[int, str, int]] = []
        self.bonds: list[ModelBond] = []
        self.tick = 0
        self.treasury = 0
        self.deposited = 0
        self.dies_at = 0
        self.jobs: list[ModelJob] = []
        self.deliveries: list[Delivery] = []

    @initialize(poor=st.sets(st.sampled_from(NAMES), max_size=2))
    def fund(self, poor: set[str]) -> None:
        """Most have enough for several jobs from the start, some for hardly one."""
        for name in NAMES:
            self.credit(name, 100_000 if name in poor else 3_000_000, is_stake=name in WORKERS)

    def teardown(self) -> None:
        """Check what a participant and the operator are told; close the database and remove it."""
        totals = self.ledger.totals()
        assert (totals.deposited_micro, totals.treasury_micro) == (self.deposited, self.treasury)
        for name in NAMES:
            money = Money(self.available[name], self.stake[name], self.locked(name), self.unbonding_of(name))
            assert self.ledger.money(make_key(name)) == money
        self.ledger.close()
        self.directory.cleanup()

    def tell(self, topic: t.Topic[Any], body: WireModel) -> str:
        """Deliver, remember for redelivery, and return what became of it.

        Where its time has come the process dies on the way: nothing was done then, and the bus delivers it again.
        """
        delivery = self.ledger.next_delivery(topic, body)
        step, self.dies_at = self.dies_at, 0
        if step and self.ledger.crash([delivery], step):
            self.agrees_with_the_model()
        action = self.ledger.apply(delivery).action
        if action == "ack":
            self.deliveries.append(delivery)
        return action

    def come_early(self, *messages: tuple[t.Topic[Any], WireModel]) -> None:
        """What a message is about is not there yet: it waits or is refused in the end, and moves nothing."""
        for topic, body in messages:
            assert self.ledger.deliver(topic, body).action in ("nak", "term")
        if messages:
            self.agrees_with_the_model()

    def ask_hold(self, topic: t.Topic[Any], request: m.HoldRequestV1) -> bool:
        """Ask for a hold and return whether it was placed."""
        self.ledger.drain()
        assert self.tell(topic, request) == "ack"
        topics = [topic for topic, _ in self.ledger.outbox()]
        assert (t.HOLD_PLACED in topics) != (t.HOLD_REFUSED in topics)
        return t.HOLD_PLACED in topics

    def pick(self, data: st.DataObject, *phases: str) -> ModelJob:
        """Draw a job in one of these phases, of which there is one."""
        return data.draw(st.sampled_from([one for one in self.jobs if one.phase in phases]))

    @rule(
        name=st.sampled_from(NAMES),
        is_stake=st.booleans(),
        amount=st.integers(1, 60_000) | st.integers(150_000, 2_000_000),
    )
    def deposit(self, name: str, is_stake: bool, amount: int) -> None:
        """Money arrives."""
        self.credit(name, amount, is_stake=is_stake)

    def credit(self, name: str, amount: int, *, is_stake: bool) -> None:
        """Have the operator deposit."""
        body = m.DepositV1(
            participant=make_key(name).participant_id,
            bucket="stake" if is_stake else "available",
            amount_micro=amount,
            reference=f"deposit {len(self.deliveries)} {self.deposited}",
        )
        assert self.tell(t.DEPOSITED, body) == "ack"
        (self.stake if is_stake else self.available)[name] += amount
        self.deposited += amount

    @rule(
        name=st.sampled_from(NAMES),
        is_stake=st.booleans(),
        amount=st.integers(1, 3_000_000),
        nonce=st.integers(0, 2**32),
    )
    def withdraw(self, name: str, is_stake: bool, amount: int, nonce: int) -> None:
        """Somebody asks for money back: available at once, staked later, more than is free not at all."""
        self.take_back(name, is_stake, amount, f"{nonce} {len(self.deliveries)}")

    @precondition(lambda self: any(self.stake.values()))
    @rule(data=st.data())
    def withdraw_all(self, data: st.DataObject) -> None:
        """Somebody leaves with all of its free stake."""
        name = data.draw(st.sampled_from([name for name, stake in self.stake.items() if stake]))
        self.take_back(name, True, self.stake[name], f"all {len(self.deliveries)}")

    def take_back(self, name: str, is_stake: bool, amount: int, nonce: str) -> None:
        """Ask for money back."""
        money = self.stake if is_stake else self.available
        is_worker = name in WORKERS
        decision = self.ledger.withdraw(
            make_key(name), "stake" if is_stake else "available", amount, nonce, is_worker=is_worker
        )
        assert decision.action == ("ack" if amount <= money[name] else "term")
        if amount > money[name]:
            return
        assert self.ledger.last is not None
        self.deliveries.append(self.ledger.last)
        money[name] -= amount
        if is_stake:
            self.unbonding.append((self.tick + UNBONDING_TICKS, name, amount))
        else:
            self.deposited -= amount

    @rule(count=st.sampled_from((1, 1, 1, 2, 2, 3, 3, UNBONDING_TICKS)))  # a round takes longer than all else
    def pass_rounds(self, count: int) -> None:
        """Rounds come; what has unbonded leaves."""
        self.ledger.pass_rounds(count)
        self.collect()
        self.tick += count
        self.deposited -= sum(amount for matures, _, amount in self.unbonding if matures <= self.tick)
        self.unbonding = [one for one in self.unbonding if one[0] > self.tick]

    @precondition(lambda self: len(self.bonds) < len(WORKERS) * len(MODELS))
    @rule(data=st.data())
    def eject(self, data: st.DataObject) -> None:
        """A worker is ejected from a model: two thirds of all that it has staked are due to the treasury."""
        known = {(one.name, one.model_id) for one in self.bonds}
        fresh = [(name, model) for name in WORKERS for model in MODELS if (name, model) not in known]
        name, model_id = data.draw(st.sampled_from(fresh))
        ejection = m.EjectionV1(
            participant=make_key(name).participant_id,
            model_id=model_id,
            test="grades",
            job_id=bytes(32),
            outcome=bytes(32),
            job_count=4,
            grade_sum_q16=2**21,
            token_sum_q16=0,
        )
        assert self.tell(t.WORKER_EJECTED, ejection) == "ack"
        stake = self.stake[name] + self.locked_stake(name) + self.unbonding_of(name)
        bond = ModelBond(name, model_id, stake * 2 // 3)
        self.bonds.append(bond)
        self.take_bond(bond)

    def collect(self) -> None:
        """With a round comes what was locked and is free."""
        for bond in sorted(self.bonds, key=lambda one: (make_key(one.name).participant_id, one.model_id)):
            self.take_bond(bond)

    def take_bond(self, bond: ModelBond) -> None:
        """The free stake first, then what leaves first; with nothing locked what is lacking is forgotten."""
        name = bond.name
        from_free = min(bond.open, self.stake[name])
        self.stake[name] -= from_free
        self.treasury += from_free
        bond.open -= from_free
        for place in sorted(range(len(self.unbonding)), key=lambda one: self.unbonding[one][0]):
            matures, owner, amount = self.unbonding[place]
            if owner == name:
                part = min(bond.open, amount)
                self.unbonding[place] = (matures, owner, amount - part)
                self.treasury += part
                bond.open -= part
        if not self.locked_stake(name):
            bond.open = 0

    def locked_stake(self, name: str) -> int:
        """What of somebody's stake is in the pools of all jobs; workers have no escrow."""
        assert name in WORKERS
        return self.locked(name)

    @rule(
        user=st.sampled_from(USERS),
        prompt=st.integers(1, 20),
        limit=st.integers(1, 10),
        is_reordered=st.booleans(),
        data=st.data(),
    )
    def admit(self, user: str, prompt: int, limit: int, is_reordered: bool, data: st.DataObject) -> None:
        """A job is admitted and its escrow asked for; a user without the money is refused."""
        self.take(user, prompt, limit, data.draw(st.integers(1, limit)), is_reordered=is_reordered)

    @rule(
        user=st.sampled_from(USERS),
        workers=st.permutations(WORKERS),
        prompt=st.integers(1, 20),
        count=st.integers(1, 10),
        stages=st.integers(0, STAGE_MAX),
        is_decided=st.booleans(),
        data=st.data(),
    )
    def dispute(
        self,
        user: str,
        workers: list[str],
        prompt: int,
        count: int,
        stages: int,
        is_decided: bool,
        data: st.DataObject,
    ) -> None:
        """A job goes up to its dispute, or through it, as far as everybody's money reaches."""
        one = self.take(user, prompt, 10, count)
        self.lock_generator(one, workers[0])
        self.record(one)
        for verifier in workers[1 : 1 + stages]:
            self.lock_verifier(one, verifier)
        if is_decided and one.phase == "committed":
            self.end(one, data)

    def take(self, user: str, prompt: int, limit: int, count: int, *, is_reordered: bool = False) -> ModelJob:
        """Admit a job and ask for its escrow; in another order what is about the job comes before the job."""
        job = Job(
            NETWORK,
            name=f"job {len(self.jobs)}",
            user_name=user,
            prompt_count=prompt,
            token_count_max=limit,
            output_count=count,
        )
        if is_reordered:
            self.come_early(
                (t.ROUTER_HOLD_REQUESTED, job.escrow()),
                (t.COMMITMENT_RECORDED, job.committed()),
                (t.WINDOW_CLOSED, job.window_closed()),
                (t.JOB_ABANDONED, job.abandoned()),
            )
        assert self.tell(t.JOB_ADMITTED, job.admitted()) == "ack"
        deposit = alpha(job.generation_max) + alpha(job.verification_max)
        one = ModelJob(job)
        placed = self.ask_hold(t.ROUTER_HOLD_REQUESTED, job.escrow())
        assert placed == (self.available[user] >= deposit)
        if placed:
            self.available[user] -= deposit
            one.escrow, one.phase = deposit, "escrowed"
        self.jobs.append(one)
        return one

    @precondition(has_job("escrowed"))
    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def lease(self, worker: str, data: st.DataObject) -> None:
        """A worker's stake is locked for the present attempt, where it is large enough and nobody has it."""
        self.lock_generator(self.pick(data, "escrowed"), worker)

    def lock_generator(self, one: ModelJob, worker: str) -> None:
        """Ask for a worker's stake."""
        if one.phase != "escrowed" or one.worker == worker:
            return
        amount = beta(one.job.generation_max)
        request = replace(one.told, generator_name=worker).generator_stake()
        if self.was_said(request):
            return
        placed = self.ask_hold(t.ROUTER_HOLD_REQUESTED, request)
        assert placed == (one.worker is None and self.stake[worker] >= amount)
        if placed:
            self.stake[worker] -= amount
            one.worker, one.stake = worker, amount

    @precondition(has_job("escrowed"))
    @rule(data=st.data())
    def lapse(self, data: st.DataObject) -> None:
        """The attempt ends without a commitment: the fee is the treasury's."""
        one = self.pick(data, "escrowed")
        if one.worker is None:
            return
        assert self.tell(t.ATTEMPT_CHARGED, one.told.charged()) == "ack"
        fee = min(FEE, one.stake)
        self.treasury += fee
        self.stake[one.worker] += one.stake - fee
        one.worker, one.stake = None, 0
        if one.attempt == 16:
            one.phase = "stuck"
        one.attempt += 1

    @precondition(has_job("escrowed"))
    @rule(is_reordered=st.booleans(), data=st.data())
    def commit(self, is_reordered: bool, data: st.DataObject) -> None:
        """The commitment is recorded: the surplus goes back."""
        one = self.pick(data, "escrowed")
        if is_reordered:
            self.come_early(
                (t.VERIFIER_HOLD_REQUESTED, one.told.verifier_stake(1, make_key(WORKERS[1]))),
                (t.OUTCOME_DECIDED, one.told.outcome("void")),
                (t.WINDOW_CLOSED, one.told.window_closed()),
            )
        self.record(one)

    def record(self, one: ModelJob) -> None:
        """Record the commitment of whoever generates."""
        if one.phase != "escrowed" or one.worker is None:
            return
        assert self.tell(t.COMMITMENT_RECORDED, one.told.committed()) == "ack"
        cg, cv = one.job.generation_cost(), one.job.verification_cost()
        self.available[one.job.user_name] += one.escrow - alpha(cg) - alpha(cv)
        self.stake[one.worker] += one.stake - beta(cg)
        one.escrow, one.stake, one.phase = alpha(cg) + alpha(cv), beta(cg), "committed"

    @precondition(has_job("committed"))
    @rule(verifier=st.sampled_from(WORKERS), data=st.data())
    def draw(self, verifier: str, data: st.DataObject) -> None:
        """The next stage's verifier is asked for its stake."""
        self.lock_verifier(self.pick(data, "committed"), verifier)

    def lock_verifier(self, one: ModelJob, verifier: str) -> None:
        """Ask for a verifier's stake."""
        if one.phase != "committed" or len(one.verifiers) == STAGE_MAX:
            return
        stage = len(one.verifiers) + 1
        request = one.told.verifier_stake(stage, make_key(verifier))
        if self.was_said(request):
            return
        placed = self.ask_hold(t.VERIFIER_HOLD_REQUESTED, request)
        is_free = verifier != one.worker and verifier not in one.verifiers.values()
        assert placed == (is_free and self.stake[verifier] >= one.verifier_stake)
        if placed:
            self.stake[verifier] -= one.verifier_stake
            one.verifiers[stage] = verifier

    @precondition(has_job("committed"))
    @rule(data=st.data())
    def close_window(self, data: st.DataObject) -> None:
        """Nobody challenged: the generator is paid."""
        one = self.pick(data, "committed")
        if one.verifiers:
            return
        assert self.tell(t.WINDOW_CLOSED, one.told.window_closed()) == "ack"
        assert one.worker is not None
        earned = alpha(one.job.generation_cost())
        self.available[one.worker] += earned
        self.stake[one.worker] += one.stake
        self.available[one.job.user_name] += one.escrow - earned
        one.phase = "settled"

    @precondition(has_job("new", "escrowed", "stuck"))
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        """The job is given up: everything back."""
        one = self.pick(data, "new", "escrowed", "stuck")
        assert self.tell(t.JOB_ABANDONED, one.told.abandoned()) == "ack"
        self.available[one.job.user_name] += one.escrow
        if one.worker is not None:
            self.stake[one.worker] += one.stake
        one.phase = "settled"

    @precondition(has_job("committed"))
    @rule(data=st.data())
    def decide(self, data: st.DataObject) -> None:
        """A dispute ends, in any case that as many verifiers can end in."""
        self.end(self.pick(data, "committed"), data)

    def end(self, one: ModelJob, data: st.DataObject) -> None:
        """Decide the dispute."""
        count = len(one.verifiers)
        case = data.draw(st.sampled_from([case for case, counts in CASES.items() if count in counts]))
        names = [one.verifiers[stage] for stage in range(1, count + 1)]
        is_decided = case in ("agree", "confirm_generator", "confirm_prior")
        silent = data.draw(st.sets(st.sampled_from(names), max_size=count)) if names else set()
        silent -= {names[-1]} if is_decided else set()
        prior = data.draw(st.sampled_from(names[:-1])) if case == "confirm_prior" else None
        silent -= {prior}
        layer = data.draw(st.integers(0, 1))
        position = data.draw(st.integers(0, one.job.leaf_count - 1))
        outcome = one.told.outcome(
            case,  # type: ignore[arg-type]
            tuple(make_key(name) for name in names),
            silent=tuple(make_key(name) for name in silent),
            prior=None if prior is None else make_key(prior),
            corner=one.job.corner(layer_max=layer, position_max=position),
        )
        assert self.tell(t.OUTCOME_DECIDED, outcome) == "ack"
        self.pay(one, case, names, silent, prior, one.job.verification_cost(layer, position))
        one.phase = "settled"

    def pay(
        self, one: ModelJob, case: str, names: list[str], silent: set[str], prior: str | None, cv: int
    ) -> None:
        """Table 1: winners' stakes come back to the stake, all that they gain to the available money."""
        user, worker, k = one.job.user_name, one.worker, len(names)
        assert worker is not None
        cg = one.job.generation_cost()
        a_cg, a_cv, b_cg, b_cv = alpha(cg), alpha(cv), beta(cg), beta(cv)
        self.available[user] += one.escrow - a_cg - a_cv
        for name in names:
            self.stake[name] += one.verifier_stake - b_cv
        if case in ("agree", "confirm_generator"):
            self.available[worker] += a_cg
            self.stake[worker] += b_cg
            self.stake[names[-1]] += b_cv
            self.available[names[-1]] += a_cv + (k - 1) * b_cv
            return
        self.available[user] += a_cg + a_cv
        if case == "confirm_prior":
            assert prior is not None
            self.stake[prior] += b_cv
            self.available[prior] += a_cv
            got = b_cg + (k - 1) * b_cv - a_cv
            self.stake[names[-1]] += min(got, b_cv)
            self.available[names[-1]] += max(0, got - b_cv)
        elif case == "void":
            self.stake[worker] += b_cg
            for name in names:
                if name in silent:
                    self.available[user] += b_cv
                else:
                    self.stake[name] += b_cv
        elif case == "equivocation":
            self.treasury += b_cg
            for name in names:
                self.stake[name] += b_cv
        else:
            opened = [name for name in names if name not in silent]
            spoils = b_cg + len(silent) * b_cv
            if not opened:
                self.available[user] += spoils
            for index, name in enumerate(opened):
                self.stake[name] += b_cv
                self.available[name] += spoils // len(opened) + (spoils % len(opened) if index == 0 else 0)

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        """Any message that was handled comes again, however old."""
        delivery = data.draw(st.sampled_from(self.deliveries))
        is_moved = data.draw(st.booleans())
        is_refused = is_moved and delivery.subject.startswith("withdrawals.")  # a participant is told so
        action = self.ledger.apply(replace(delivery, sequence=10**9) if is_moved else delivery).action
        assert action == ("term" if is_refused else "ack")

    @precondition(has_job("settled"))
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        """A second end of a settled job moves nothing."""
        one = self.pick(data, "settled")
        ends: tuple[tuple[t.Topic[Any], WireModel], ...] = (
            (t.OUTCOME_DECIDED, one.told.outcome("void")),
            (t.WINDOW_CLOSED, one.told.window_closed()),
            (t.JOB_ABANDONED, one.told.abandoned().model_copy(update={"reason": "again"})),
        )
        topic, body = data.draw(st.sampled_from(ends))
        assert self.tell(topic, body) == "ack"

    @rule(step=st.integers(1, BATCH_STEPS), name=st.sampled_from(WORKERS), amount=st.integers(1, 1_000))
    def crash(self, step: int, name: str, amount: int) -> None:
        """The process dies at some statement of a batch; the bus delivers all of it again to the next one."""
        key, reference = make_key(name), f"crash {len(self.deliveries)}"
        bodies: tuple[tuple[t.Topic[Any], WireModel, SigningKey, str], ...] = (
            (
                t.DEPOSITED,
                m.DepositV1(
                    participant=key.participant_id, bucket="stake", amount_micro=amount, reference=reference
                ),
                NETWORK.keys[t.Role.OPERATOR],
                "participant",
            ),
            (
                t.WORKER_WITHDRAWAL_REQUESTED,
                m.WithdrawalRequestV1(
                    bucket="stake",
                    amount_micro=amount,
                    nonce=hashlib.sha256(reference.encode()).digest()[:16],
                ),
                key,
                "worker",
            ),
        )
        batch = [
            Delivery(
                topic.subject(**{token: key.participant_id}),
                NETWORK.seal(signer, body),
                "CRASH",
                len(self.deliveries) + index,
                self.ledger.clock_ms,
            )
            for index, (topic, body, signer, token) in enumerate(bodies)
        ]
        if self.ledger.crash(batch, step):
            self.agrees_with_the_model()
            assert [decision.action for decision in self.ledger.dispatcher.apply(batch)] == ["ack", "ack"]
        self.deliveries += batch
        self.deposited += amount
        self.unbonding.append((self.tick + UNBONDING_TICKS, name, amount))

    @rule(step=st.integers(1, MESSAGE_STEPS))
    def die_soon(self, step: int) -> None:
        """The process dies at some statement of whatever message comes next."""
        self.dies_at = step

    @rule()
    def restart(self) -> None:
        """The process ends and another one opens the file."""
        self.ledger.close()
        self.ledger.open()

    @invariant()
    def agrees_with_the_model(self) -> None:
        """The ledger's balances are the model's, and they add up."""
        with self.ledger.store.begin() as connection:
            rows = {row.name: row for row in connection.execute(sa.select(ACCOUNTS))}
            held = connection.execute(
                sa.select(HOLDS.c.party, sa.func.sum(HOLDS.c.amount_micro)).group_by(HOLDS.c.party)
            )
            locked = {party: int(amount) for party, amount in held}
            tick = int(get_meta(connection, "tick") or "0")
        assert tick == self.tick
        assert all(row.balance_micro >= 0 for name, row in rows.items() if name != WORLD)
        assert sum(row.balance_micro for row in rows.values()) == 0
        for one in self.jobs:
            pool = rows.get(f"pool:{one.job.job_id.hex()}")
            expected = 0 if one.phase == "settled" else sum(one.locked(name) for name in NAMES)
            assert (pool.balance_micro if pool is not None else 0) == expected
            assert (pool is not None and pool.is_closed) == (one.phase == "settled")
        for name in NAMES:
            participant = make_key(name).participant_id
            expected_of = {
                participant: self.available[name],
                f"stake:{participant}": self.stake[name],
                f"unbonding:{participant}": self.unbonding_of(name),
            }
            for account, expected in expected_of.items():
                assert (rows[account].balance_micro if account in rows else 0) == expected
            assert locked.get(participant, 0) == self.locked(name)
        assert -rows[WORLD].balance_micro == self.deposited
        assert (rows["treasury"].balance_micro if "treasury" in rows else 0) == self.treasury

    def locked(self, name: str) -> int:
        """What somebody has in the pools of all jobs."""
        return sum(one.locked(name) for one in self.jobs if one.phase != "settled")

    def unbonding_of(self, name: str) -> int:
        """What somebody waits for."""
        return sum(amount for _, owner, amount in self.unbonding if owner == name)

    def was_said(self, request: m.HoldRequestV1) -> bool:
        """Whether this very request was made before: it would be taken for a redelivery."""
        key = NETWORK.keys[t.Role.VERIFIER if request.purpose == "verifier_stake" else t.Role.ROUTER]
        return any(delivery.data == NETWORK.seal(key, request) for delivery in self.deliveries)


COMMON = {
    "deadline": None,
    "suppress_health_check": [
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.data_too_large,
    ],
}
LedgerMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, **COMMON)  # type: ignore[arg-type]
TestLedgerConservesMoney = LedgerMachine.TestCase


OPERATIONS_MIN = 50_000


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ledger_conserves_money_for_long() -> None:
    """The same for 50,000 operations, and more: each run starts with one that funds everybody."""
    count = 0

    class Soak(LedgerMachine):
        @invariant()
        def count_up(self) -> None:
            nonlocal count
            count += 1

    run_state_machine_as_test(
        Soak,
        settings=settings(max_examples=700, stateful_step_count=150, **COMMON),  # type: ignore[arg-type]
    )
    assert count >= OPERATIONS_MIN
