"""A job's life as the router runs it: `state × event → state, commands` in one pure function.

Owns the phases and their transitions. Nothing here raises: a duplicate, late or foreign event changes
nothing, because the bus delivers at least once and in any order across streams. Only a lease request is
always answered, by a grant or a denial, so that no worker waits in vain. Refuses, in effect: a second holder,
a grant to anyone but the one holder whose stake is locked, and any way out of a terminal phase.

Ticks are rounds in which the services that a deadline depends on were alive. Two things are left to others:
the ledger answers every stake request, a repeated (job, attempt, worker) with the same decision; the
commitment store decides between a record and a lapse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

from pocache.protocol.errors import ConflictError, EjectedError, ExpiredError, UnknownJobError

if TYPE_CHECKING:
    from pocache.protocol.ids import ParticipantId


class Phase(StrEnum):
    """Where a job is."""

    ESCROWING = "escrowing"
    """The ledger is asked to hold the user's deposit."""

    QUEUED = "queued"
    """The task is published; no worker holds it."""

    LOCKING = "locking"
    """A worker asked for the lease; the ledger is asked to lock its stake."""

    GENERATING = "generating"
    """The worker holds the lease until the deadline."""

    LAPSING = "lapsing"
    """The deadline passed; the commitment store is asked whether it came too late."""

    COMMITTED = "committed"
    """The result is recorded; audits, challenges and the ledger decide the rest."""

    ABANDONING = "abandoning"
    """The ledger is asked to give back what it holds."""

    SETTLED = "settled"
    REFUNDED = "refunded"
    REFUSED = "refused"


TERMINAL_PHASES: Final = frozenset({Phase.SETTLED, Phase.REFUNDED, Phase.REFUSED})

REASON_EXPIRED: Final = "no worker took the job in time"
REASON_ATTEMPTS: Final = "no worker committed a result in any attempt"
REASON_CANCELLED: Final = "cancelled by the user"
REASON_EJECTED: Final = (
    "this worker was ejected from the model, for good (workers.ejected on the record): stop serving the model with this key, "
    "and ask the operator"
)


@dataclass(frozen=True, slots=True)
class JobState:
    """All that the router must remember of a job; what its records do not say is not here."""

    phase: Phase
    attempt: int
    attempt_max: int
    holder: ParticipantId | None
    deadline_tick: int | None
    expires_tick: int
    cancel_requested: bool = False
    publication: int = 0
    """How often this attempt's task was published: it makes each publication's message id its own."""
    reason: str = ""
    """Why the job ended, or is ending, the way it does."""


def create_job(*, attempt_max: int, expires_tick: int) -> JobState:
    """Return the state of a job just admitted, whose escrow the router has asked for."""
    assert attempt_max >= 1, "a job has at least one attempt"
    return JobState(
        phase=Phase.ESCROWING,
        attempt=1,
        attempt_max=attempt_max,
        holder=None,
        deadline_tick=None,
        expires_tick=expires_tick,
    )


@dataclass(frozen=True, slots=True)
class EscrowPlaced:
    """The ledger holds the user's deposit."""


@dataclass(frozen=True, slots=True)
class EscrowRefused:
    """The ledger does not hold the deposit, and says why."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseRequested:
    """A worker pulled the task and asks for the lease."""

    worker: ParticipantId
    attempt: int
    is_ejected: bool = False
    """Whether the worker was ejected from the job's model."""
    publication: int = 0
    """Of the task that it has taken."""


@dataclass(frozen=True, slots=True)
class StakePlaced:
    """The ledger locked the worker's stake; its lease runs until the deadline."""

    worker: ParticipantId
    attempt: int
    deadline_tick: int


@dataclass(frozen=True, slots=True)
class StakeRefused:
    """The ledger did not lock the worker's stake, and says why."""

    worker: ParticipantId
    attempt: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The user wants no more of the job: it ends without a result, or its holder commits to what there is."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Another round was counted."""

    tick: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """The commitment store recorded the attempt's result."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptClosed:
    """The commitment store takes no result for the attempt any more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The ledger emptied the job's pool."""

    case: str


@dataclass(frozen=True, slots=True)
class Refunded:
    """The ledger gave back what it held."""


Event = (
    EscrowPlaced
    | EscrowRefused
    | LeaseRequested
    | StakePlaced
    | StakeRefused
    | CancelRequested
    | Ticked
    | Recorded
    | AttemptClosed
    | Settled
    | Refunded
)


@dataclass(frozen=True, slots=True)
class PublishTask:
    """Publish the task of this attempt; `publication` tells one publication of it from the next."""

    attempt: int
    publication: int = 1


@dataclass(frozen=True, slots=True)
class RequestStake:
    """Have the ledger lock the worker's stake; `publication` tells one request from the next."""

    worker: ParticipantId
    attempt: int
    publication: int = 1


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Answer the worker with its lease; granting again sends the same lease."""

    worker: ParticipantId
    attempt: int


@dataclass(frozen=True, slots=True)
class DenyLease:
    """Answer the worker with why it gets no lease."""

    worker: ParticipantId
    attempt: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelLease:
    """Have the holder end its generation here and commit to what it has delivered."""

    worker: ParticipantId
    attempt: int


@dataclass(frozen=True, slots=True)
class LapseLease:
    """Ask the commitment store to close the attempt, unless it has recorded a result."""

    attempt: int


@dataclass(frozen=True, slots=True)
class ChargeAttempt:
    """Have the ledger take the fee for a lapsed lease and release the rest of the stake."""

    attempt: int
    worker: ParticipantId


@dataclass(frozen=True, slots=True)
class Abandon:
    """Have the ledger give back whatever it holds for the job."""

    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the user the phase; code and reason of a refusal or an end, the case of a settlement."""

    phase: Phase
    code: str = ""
    reason: str = ""


Command = (
    PublishTask
    | RequestStake
    | GrantLease
    | DenyLease
    | CancelLease
    | LapseLease
    | ChargeAttempt
    | Abandon
    | Announce
)

Step = tuple[JobState, tuple[Command, ...]]


def advance(state: JobState, event: Event) -> Step:
    """Return the next state and what is to be done, in that order; never raises."""
    match event:
        case EscrowPlaced():
            return _on_escrow_placed(state)
        case EscrowRefused():
            return _on_escrow_refused(state, event)
        case LeaseRequested():
            return _on_lease_requested(state, event)
        case StakePlaced():
            return _on_stake_placed(state, event)
        case StakeRefused():
            return _on_stake_refused(state, event)
        case CancelRequested():
            return _on_cancel_requested(state)
        case Ticked():
            return _on_ticked(state, event)
        case Recorded():
            return _on_recorded(state, event)
        case AttemptClosed():
            return _on_attempt_closed(state, event)
        case Settled():
            return _on_settled(state, event)
        case Refunded():
            return _on_refunded(state)
        case _:
            assert_never(event)


def _on_escrow_placed(state: JobState) -> Step:
    if state.phase is not Phase.ESCROWING:
        return state, ()
    if state.cancel_requested:
        return _abandon(state, REASON_CANCELLED)
    return _queue(state)


def _on_escrow_refused(state: JobState, event: EscrowRefused) -> Step:
    if state.phase is not Phase.ESCROWING:
        return state, ()
    refused = replace(state, phase=Phase.REFUSED, reason=event.reason)
    return refused, (Announce(Phase.REFUSED, event.code, event.reason),)


def _on_lease_requested(state: JobState, event: LeaseRequested) -> Step:
    """Start locking the stake of the first who asks; answer everyone else."""
    if event.attempt != state.attempt:
        return state, (_deny(event, UnknownJobError.code, f"attempt {state.attempt} is the current one"),)
    is_holder = event.worker == state.holder
    match state.phase:
        case Phase.QUEUED if event.is_ejected:
            denial = _deny(event, EjectedError.code, REASON_EJECTED)
            if event.publication != state.publication:
                return state, (denial,)
            # It has taken the task that is on offer: the attempt is offered anew, to the others, and once.
            queued, commands = _queue(state)
            return queued, (denial, *commands)
        case Phase.QUEUED:
            locking = replace(state, phase=Phase.LOCKING, holder=event.worker)
            request = RequestStake(event.worker, event.attempt, state.publication)
            return locking, (request, Announce(Phase.LOCKING))
        case Phase.LOCKING if is_holder:
            return state, ()  # the answer follows the ledger's
        case Phase.GENERATING if is_holder:
            return state, (GrantLease(event.worker, event.attempt),)  # its first answer may have been lost
        case Phase.LAPSING if is_holder:
            return state, (_deny(event, ExpiredError.code, "the lease's deadline has passed"),)
        case Phase.LOCKING | Phase.GENERATING | Phase.LAPSING:
            return state, (_deny(event, ConflictError.code, "another worker holds this attempt"),)
        case Phase.COMMITTED | Phase.SETTLED:
            return state, (_deny(event, ConflictError.code, "this attempt has its result"),)
        case Phase.ESCROWING | Phase.ABANDONING | Phase.REFUNDED | Phase.REFUSED:
            return state, (_deny(event, UnknownJobError.code, "this attempt is not on offer"),)
        case _:
            assert_never(state.phase)


def _on_stake_placed(state: JobState, event: StakePlaced) -> Step:
    if not _is_holder_at(state, Phase.LOCKING, event.worker, event.attempt):
        return state, ()
    if state.cancel_requested:
        # Nothing was generated yet: the abandoned job's refund includes this stake.
        abandoned, commands = _abandon(state, REASON_CANCELLED)
        denial = DenyLease(event.worker, event.attempt, ConflictError.code, REASON_CANCELLED)
        return abandoned, (denial, *commands)
    generating = replace(state, phase=Phase.GENERATING, deadline_tick=event.deadline_tick)
    return generating, (GrantLease(event.worker, event.attempt), Announce(Phase.GENERATING))


def _on_stake_refused(state: JobState, event: StakeRefused) -> Step:
    if not _is_holder_at(state, Phase.LOCKING, event.worker, event.attempt):
        return state, ()
    denial = DenyLease(event.worker, event.attempt, event.code, event.reason)
    following, commands = _abandon(state, REASON_CANCELLED) if state.cancel_requested else _queue(state)
    return following, (denial, *commands)


def _on_cancel_requested(state: JobState) -> Step:
    """Cancel at once where nothing is under way, as soon as possible before a result, and never after one."""
    match state.phase:
        case Phase.QUEUED:
            return _abandon(state, REASON_CANCELLED)
        case Phase.GENERATING if not state.cancel_requested:
            assert state.holder is not None, "a lease has a holder"
            cancelled = replace(state, cancel_requested=True)
            return cancelled, (CancelLease(state.holder, state.attempt),)
        case Phase.ESCROWING | Phase.LOCKING | Phase.GENERATING | Phase.LAPSING:
            return replace(state, cancel_requested=True), ()
        case Phase.COMMITTED | Phase.ABANDONING | Phase.SETTLED | Phase.REFUNDED | Phase.REFUSED:
            return state, ()
        case _:
            assert_never(state.phase)


def _on_ticked(state: JobState, event: Ticked) -> Step:
    if state.phase is Phase.QUEUED and event.tick > state.expires_tick:
        return _abandon(state, REASON_EXPIRED)
    if state.phase is Phase.GENERATING:
        assert state.deadline_tick is not None, "who generates has a deadline"
        if event.tick >= state.deadline_tick:
            lapsing = replace(state, phase=Phase.LAPSING)
            return lapsing, (LapseLease(state.attempt), Announce(Phase.LAPSING))
    return state, ()


def _on_recorded(state: JobState, event: Recorded) -> Step:
    """Let a record win over a lapse: the store, which closes attempts, took it in time."""
    if state.phase not in _LEASED or event.attempt != state.attempt:
        return state, ()
    return replace(state, phase=Phase.COMMITTED), (Announce(Phase.COMMITTED),)


def _on_attempt_closed(state: JobState, event: AttemptClosed) -> Step:
    if state.phase not in _LEASED or event.attempt != state.attempt:
        return state, ()
    assert state.holder is not None, "a lease has a holder"
    charge = ChargeAttempt(state.attempt, state.holder)
    if state.cancel_requested:
        following, commands = _abandon(state, REASON_CANCELLED)
    elif state.attempt >= state.attempt_max:
        following, commands = _abandon(state, REASON_ATTEMPTS)
    else:
        following, commands = _queue(replace(state, attempt=state.attempt + 1, publication=0))
    return following, (charge, *commands)


def _on_settled(state: JobState, event: Settled) -> Step:
    """End the job; a settlement may overtake the record that it settles, as they come from two services."""
    if state.phase not in _LEASED and state.phase is not Phase.COMMITTED:
        return state, ()
    settled = replace(state, phase=Phase.SETTLED, reason=event.case)
    return settled, (Announce(Phase.SETTLED, reason=event.case),)


def _on_refunded(state: JobState) -> Step:
    if state.phase is not Phase.ABANDONING:
        return state, ()
    return replace(state, phase=Phase.REFUNDED), (Announce(Phase.REFUNDED, reason=state.reason),)


_LEASED: Final = frozenset({Phase.GENERATING, Phase.LAPSING})


def _queue(state: JobState) -> Step:
    """Offer the current attempt to any worker, as a publication of its own."""
    queued = replace(
        state, phase=Phase.QUEUED, holder=None, deadline_tick=None, publication=state.publication + 1
    )
    return queued, (PublishTask(queued.attempt, queued.publication), Announce(Phase.QUEUED))


def _abandon(state: JobState, reason: str) -> Step:
    abandoning = replace(state, phase=Phase.ABANDONING, holder=None, deadline_tick=None, reason=reason)
    return abandoning, (Abandon(reason), Announce(Phase.ABANDONING, reason=reason))


def _is_holder_at(state: JobState, phase: Phase, worker: ParticipantId, attempt: int) -> bool:
    return (state.phase, state.holder, state.attempt) == (phase, worker, attempt)


def _deny(event: LeaseRequested, code: str, reason: str) -> DenyLease:
    return DenyLease(event.worker, event.attempt, code, reason)
