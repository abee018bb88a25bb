"""A job under any order of events, with duplicates: no two holders, no two grants, no way out of the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pocache.protocol.ids import ParticipantId
from pocache.protocol.lifecycle import (
    TERMINAL_PHASES,
    Abandon,
    AttemptClosed,
    CancelRequested,
    ChargeAttempt,
    Command,
    DenyLease,
    EscrowPlaced,
    EscrowRefused,
    Event,
    GrantLease,
    JobState,
    LapseLease,
    LeaseRequested,
    Phase,
    PublishTask,
    Recorded,
    Refunded,
    RequestStake,
    Settled,
    StakePlaced,
    StakeRefused,
    Ticked,
    advance,
    create_job,
)

workers = st.sampled_from([ParticipantId("worker 1"), ParticipantId("worker 2"), ParticipantId("worker 3")])
attempts = st.integers(1, 3)
ticks = st.integers(0, 12)


class JobMachine(RuleBasedStateMachine):
    """Feeds one job every kind of event, plausible and not, new and repeated, and keeps its commands."""

    @initialize(attempt_max=attempts, expires_tick=st.integers(2, 12), is_escrowed=st.booleans())
    def admit(self, attempt_max: int, expires_tick: int, *, is_escrowed: bool) -> None:
        self.state: JobState = create_job(attempt_max=attempt_max, expires_tick=expires_tick)
        self.delivered: list[Event] = []
        self.commands: list[Command] = []
        self.stakes_asked: set[tuple[ParticipantId, int]] = set()
        self.granted: dict[int, ParticipantId] = {}
        if is_escrowed:  # most of the life lies behind this event
            self.deliver(EscrowPlaced())

    def deliver(self, event: Event) -> None:
        before = self.state
        self.state, commands = advance(before, event)
        self.delivered.append(event)
        for command in commands:
            self.check_command(before, command)
        self.commands.extend(commands)
        self.check_step(before, event, commands)

    def check_command(self, before: JobState, command: Command) -> None:
        match command:
            case RequestStake():
                assert before.phase is Phase.QUEUED, "a second holder was let in"
                assert command not in self.commands, "a stake is asked for once per publication"
                self.stakes_asked.add((command.worker, command.attempt))
            case GrantLease():
                assert (command.worker, command.attempt) in self.stakes_asked
                assert self.granted.setdefault(command.attempt, command.worker) == command.worker
            case LapseLease():
                assert command not in self.commands, "a lease lapses once"
            case ChargeAttempt():
                assert command not in self.commands, "an attempt is charged once"
                assert self.granted[command.attempt] == command.worker
            case PublishTask():
                assert command not in self.commands, "each publication has its own number"
            case Abandon():
                assert not any(isinstance(earlier, Abandon) for earlier in self.commands)

    def check_step(self, before: JobState, event: Event, commands: tuple[Command, ...]) -> None:
        if before.phase in TERMINAL_PHASES:
            assert self.state == before
            assert all(isinstance(command, DenyLease) for command in commands)
        if before.phase is Phase.ABANDONING:
            assert self.state.phase in {Phase.ABANDONING, Phase.REFUNDED}
        if before.phase is Phase.COMMITTED:
            assert self.state.phase in {Phase.COMMITTED, Phase.SETTLED}
        if None not in {before.holder, self.state.holder}:
            assert before.holder == self.state.holder, "a holder is never swapped for another"
        assert before.attempt <= self.state.attempt <= before.attempt + 1
        if isinstance(event, Recorded | AttemptClosed) and event.attempt != before.attempt:
            assert self.state == before, "news of another attempt moved this one"
        if isinstance(event, LeaseRequested) and event.is_ejected:
            assert not any(isinstance(command, RequestStake) for command in commands)
        if isinstance(event, LeaseRequested) and self.state == before and before.phase is not Phase.LOCKING:
            assert len(commands) == 1, "whoever asks is answered"

    @rule(event=st.one_of(st.just(EscrowPlaced()), st.just(EscrowRefused("E204", "short"))))
    def escrow(self, event: Event) -> None:
        self.deliver(event)

    @rule(worker=workers, attempt=attempts)
    def request_lease(self, worker: ParticipantId, attempt: int) -> None:
        self.deliver(LeaseRequested(worker, attempt))

    @rule(worker=workers, is_ejected=st.booleans())
    def request_current_lease(self, worker: ParticipantId, *, is_ejected: bool) -> None:
        now = self.state
        self.deliver(
            LeaseRequested(worker, now.attempt, is_ejected=is_ejected, publication=now.publication)
        )

    @rule(worker=workers, attempt=attempts, deadline_tick=ticks, is_placed=st.booleans())
    def answer_any_stake(
        self, worker: ParticipantId, attempt: int, deadline_tick: int, *, is_placed: bool
    ) -> None:
        self.answer(worker, attempt, deadline_tick, is_placed=is_placed)

    @rule(deadline_tick=ticks, is_placed=st.booleans())
    def answer_stake_asked_for(self, deadline_tick: int, *, is_placed: bool) -> None:
        if self.state.holder is not None:
            self.answer(self.state.holder, self.state.attempt, deadline_tick, is_placed=is_placed)

    def answer(self, worker: ParticipantId, attempt: int, deadline_tick: int, *, is_placed: bool) -> None:
        placed, refused = (
            StakePlaced(worker, attempt, deadline_tick),
            StakeRefused(worker, attempt, "E204", "x"),
        )
        self.deliver(placed if is_placed else refused)

    @rule(tick=ticks)
    def tick(self, tick: int) -> None:
        self.deliver(Ticked(tick))

    @rule(attempt=attempts, is_recorded=st.booleans())
    def decide_attempt(self, attempt: int, *, is_recorded: bool) -> None:
        self.deliver(Recorded(attempt) if is_recorded else AttemptClosed(attempt))

    @rule(worker=workers, is_good=st.sampled_from([True, True, True, False]))
    def go_on(self, worker: ParticipantId, *, is_good: bool) -> None:
        """Deliver what the phase waits for, so that a walk gets to the later phases."""
        attempt = self.state.attempt
        match self.state.phase:
            case Phase.ESCROWING:
                self.deliver(EscrowPlaced())
            case Phase.QUEUED:
                self.deliver(LeaseRequested(worker, attempt))
            case Phase.LOCKING if self.state.holder is not None:
                self.answer(self.state.holder, attempt, 10, is_placed=is_good)
            case Phase.GENERATING | Phase.LAPSING:
                self.deliver(AttemptClosed(attempt) if is_good else Recorded(attempt))
            case Phase.COMMITTED:
                self.deliver(Settled("agree"))
            case Phase.ABANDONING:
                self.deliver(Refunded())

    @rule(event=st.sampled_from([Settled("agree"), Refunded(), CancelRequested()]))
    def end(self, event: Event) -> None:
        self.deliver(event)

    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        if self.delivered:
            self.deliver(data.draw(st.sampled_from(self.delivered)))

    @rule()
    def deliver_the_last_again(self) -> None:
        if self.delivered:
            before = self.state
            self.deliver(self.delivered[-1])
            assert self.state == before, "an immediate duplicate changed the state"

    @invariant()
    def holder_and_deadline_fit_the_phase(self) -> None:
        phase, holder = self.state.phase, self.state.holder
        if phase in {Phase.ESCROWING, Phase.QUEUED, Phase.ABANDONING, Phase.REFUNDED, Phase.REFUSED}:
            assert (holder, self.state.deadline_tick) == (None, None)
        elif phase is Phase.LOCKING:
            assert holder is not None
            assert self.state.deadline_tick is None
        else:
            assert holder == self.granted[self.state.attempt]
            assert self.state.deadline_tick is not None
        assert 1 <= self.state.attempt <= self.state.attempt_max


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
