"""A ledger under load: a list of messages that only a seed decides, and what every account has after each of them.

The model keeps balances in a dictionary and pays by Table 1 as the paper prints it (docs/economics.md 2); it has none of
the ledger's or the rules' code. ``python -m kit.ledger_load`` is the process that a test kills: it applies the messages
in batches and says after each commit how many there were.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import structlog

from kit.jobs import Job
from kit.ledger import make_ledger
from kit.network import GENESIS_S, Network, make_key, make_network
from pocache.protocol.beacon import compute_round_time_ms
from pocache.protocol.keys import SigningKey
from pocache.service.dispatch import Delivery
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.model import WireModel

BATCH: Final = 8
FEE: Final = 700
UNBONDING_TICKS: Final = 30
USERS: Final = ("user-1", "user-2")
WORKERS: Final = ("worker-1", "worker-2", "worker-3", "worker-4")
FUNDS: Final = 10**12


@dataclass(frozen=True)
class State:
    """What the ledger has after some of the messages."""

    balances: dict[str, int]
    """Every account that is not zero."""
    applied: int
    """Messages that had their effect; those that were refused are not among them."""
    entries: int


@dataclass(frozen=True)
class Message:
    """A delivery, and what the clocks show then."""

    delivery: Delivery
    clock_ms: int


def alpha(amount: int) -> int:
    """Return ⌊6/5 · amount⌋."""
    return amount * 6 // 5


def beta(amount: int) -> int:
    """Return 5 · amount."""
    return amount * 5


@cache
def get_network() -> Network:
    """Return the network: stakes unbond as fast as its short disputes allow."""
    return make_network(
        rules={"unbonding_ticks": UNBONDING_TICKS, "stage_max": 2, "lease_fee_micro": FEE},
        audit={"window_rounds": 1, "bind_delay_ms": 0},
        deadlines={"queue_ticks": 3, "lease_ticks": 1, "seal_ticks": 1, "opening_ticks": 1},
    )


class Load:
    """The messages about so many jobs, and the model's state before the first and after each of them."""

    def __init__(self, seed: int, job_count: int) -> None:
        self.messages: list[Message] = []
        self.states = [State({}, 0, 0)]
        self._network = get_network()
        self._draw = random.Random(seed)
        self._balances: dict[str, int] = {}
        self._applied = self._entries = self._tick = 0
        self._unbonding: list[tuple[int, str, int]] = []
        self._sequences: dict[str, int] = {}
        self._clock_ms = GENESIS_S * 1_000 + 100
        self._fund()
        for index in range(job_count):
            job = Job(
                self._network,
                name=f"job {index}",
                user_name=self._draw.choice(USERS),
                prompt_count=self._draw.randint(1, 20),
                token_count_max=10,
                output_count=self._draw.randint(1, 10),
            )
            self._play(job, self._draw.sample(WORKERS, 3))
            self._withdraw(index)
            self._pass_round()

    def _fund(self) -> None:
        for name in (*USERS, *WORKERS):
            for bucket, prefix in (("available", ""), ("stake", "stake:")):
                participant = make_key(name).participant_id
                body = m.DepositV1(
                    participant=participant,
                    bucket=bucket,  # type: ignore[arg-type]
                    amount_micro=FUNDS,
                    reference=f"{bucket} of {name}",
                )
                self._move({"world": -FUNDS, prefix + participant: FUNDS})
                self._say(t.DEPOSITED, body, participant=participant)

    def _play(self, job: Job, names: Sequence[str]) -> None:
        """Take a job from its admission to its end, of which there are five."""
        ending = self._draw.choice(("quiet", "agree", "confirm_prior", "void", "lapse"))
        user = job.user.participant_id
        worker, first, second = (make_key(name) for name in names)
        job = Job(**{**job.__dict__, "generator_name": names[0]})
        pool = f"pool:{job.job_id.hex()}"
        escrow = alpha(job.generation_max) + alpha(job.verification_max)
        stake = beta(job.generation_max)
        self._say(t.JOB_ADMITTED, job.admitted(), job=job.job_id)
        self._move({user: -escrow, pool: escrow})
        self._say(t.ROUTER_HOLD_REQUESTED, job.escrow(), job=job.job_id)
        self._move({f"stake:{worker.participant_id}": -stake, pool: stake})
        self._say(t.ROUTER_HOLD_REQUESTED, job.generator_stake(), job=job.job_id)
        if ending == "lapse":
            self._move({pool: -stake, "treasury": FEE, f"stake:{worker.participant_id}": stake - FEE})
            self._say(t.ATTEMPT_CHARGED, job.charged(), job=job.job_id)
            self._move({pool: -escrow, user: escrow})
            self._say(t.JOB_ABANDONED, job.abandoned(), job=job.job_id)
            return
        cg, cv = job.generation_cost(), job.verification_cost()
        back, free = escrow - alpha(cg) - alpha(cv), stake - beta(cg)
        self._move({pool: -back - free, user: back, f"stake:{worker.participant_id}": free})
        self._say(t.COMMITMENT_RECORDED, job.committed(), job=job.job_id)
        if ending == "quiet":
            self._pay(pool, job, {user: alpha(cv)}, worker, {})
            self._say(t.WINDOW_CLOSED, job.window_closed(), job=job.job_id)
            return
        verifiers = (first,) if ending == "agree" else (first, second)
        for stage, verifier in enumerate(verifiers, 1):
            self._move({f"stake:{verifier.participant_id}": -beta(cv), pool: beta(cv)})
            self._say(t.VERIFIER_HOLD_REQUESTED, job.verifier_stake(stage, verifier), job=job.job_id)
        if ending == "agree":
            self._pay(pool, job, {}, worker, {first: alpha(cv)})
        elif ending == "void":
            refund = {user: alpha(cg) + alpha(cv), f"stake:{worker.participant_id}": beta(cg)}
            self._pay(pool, job, refund, None, {first: 0, second: 0})
        else:
            spoils = (
                beta(cg) + beta(cv) - alpha(cv)
            )  # of which up to βCv is the second verifier's stake again
            gained: dict[str, int] = {
                user: alpha(cg) + alpha(cv),
                second.participant_id: max(0, spoils - beta(cv)),
            }
            gained[f"stake:{second.participant_id}"] = min(spoils, beta(cv))
            self._pay(pool, job, gained, None, {first: alpha(cv)})
        prior = first if ending == "confirm_prior" else None
        outcome = job.outcome(ending, verifiers, prior=prior)  # type: ignore[arg-type]
        self._say(t.OUTCOME_DECIDED, outcome, job=job.job_id)

    def _pay(
        self,
        pool: str,
        job: Job,
        others: dict[str, int],
        paid: SigningKey | None,
        verifiers: dict[SigningKey, int],
    ) -> None:
        """Empty a pool: the generator's α and its stake where it is paid, the verifiers' stakes and their α."""
        changes = dict(others)
        if paid is not None:
            changes[paid.participant_id] = alpha(job.generation_cost())
            changes[f"stake:{paid.participant_id}"] = beta(job.generation_cost())
        for verifier, earned in verifiers.items():
            changes[verifier.participant_id] = earned
            changes[f"stake:{verifier.participant_id}"] = beta(job.verification_cost())
        self._move({pool: -sum(changes.values()), **changes})
        assert self._balances[pool] == 0

    def _withdraw(self, index: int) -> None:
        """Somebody asks for stake, or for available money; one of three asks for more than there is."""
        key = make_key(self._draw.choice(WORKERS))
        bucket = self._draw.choice(("available", "stake"))
        is_refused = self._draw.random() < 1 / 3
        amount = self._draw.randint(1, 10_000)
        participant = key.participant_id
        if not is_refused and bucket == "available":
            self._move({participant: -amount, "world": amount})
        elif not is_refused:
            self._move({f"stake:{participant}": -amount, f"unbonding:{participant}": amount})
            self._unbonding.append((self._tick + UNBONDING_TICKS, participant, amount))
        body = m.WithdrawalRequestV1(
            bucket=bucket,  # type: ignore[arg-type]
            amount_micro=2**62 if is_refused else amount,
            nonce=hashlib.sha256(index.to_bytes(4, "big")).digest()[:16],
        )
        topic = t.WORKER_WITHDRAWAL_REQUESTED
        self._say(topic, body, key, is_applied=not is_refused, worker=participant)

    def _pass_round(self) -> None:
        """The next round comes when it is due; what has unbonded by it is paid."""
        self._tick += 1
        body = self._network.make_round(self._tick + 1)
        self._clock_ms = compute_round_time_ms(self._network.chain, body.round_number)
        for matures, participant, amount in self._unbonding:
            if matures == self._tick:
                self._move({f"unbonding:{participant}": -amount, "world": amount})
        self._say(t.BEACON_ROUND, body)

    def _move(self, changes: dict[str, int]) -> None:
        assert sum(changes.values()) == 0, changes
        self._entries += 1
        for account, change in changes.items():
            self._balances[account] = self._balances.get(account, 0) + change

    def _say(
        self,
        topic: t.Topic[Any],
        body: WireModel,
        key: SigningKey | None = None,
        *,
        is_applied: bool = True,
        **tokens: str | bytes,
    ) -> None:
        """Add a message whose effects on the model were made before."""
        assert topic.stream is not None
        data = self._network.seal(key or self._network.keys[topic.signer], body)
        stream = topic.stream.value
        self._sequences[stream] = self._sequences.get(stream, 0) + 1
        delivery = Delivery(topic.subject(**tokens), data, stream, self._sequences[stream], self._clock_ms)
        self.messages.append(Message(delivery, self._clock_ms))
        self._applied += is_applied
        balances = {account: balance for account, balance in self._balances.items() if balance}
        self.states.append(State(balances, self._applied, self._entries))


def main() -> None:
    """Apply the messages from one on, and say after each commit how many are through."""
    url, seed, job_count, start = sys.argv[1], *(int(argument) for argument in sys.argv[2:5])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    messages = Load(seed, job_count).messages
    ledger = make_ledger(get_network(), url)
    for first in range(start, len(messages), BATCH):
        batch = messages[first : first + BATCH]
        ledger.clock_ms = batch[-1].clock_ms
        decisions = ledger.dispatcher.apply([message.delivery for message in batch])
        assert {decision.action for decision in decisions} <= {"ack", "term"}, decisions
        sys.stdout.write(f"{first + len(batch)}\n")
        sys.stdout.flush()
    ledger.close()


if __name__ == "__main__":
    main()
