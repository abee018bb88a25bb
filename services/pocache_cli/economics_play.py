"""One job, played by the real dispute machine and settled by the real rules (docs/economics.md 7.1).

Owns what a coalition does (`Strategy`), how everybody else behaves (honestly), and what the coalition is left with. The
machines of both rule sets are told what happens by the same answers; no payout and no decision is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pocache.protocol import dispute, dispute_committee
from pocache.protocol.challenge import Corner
from pocache.protocol.committee import FixedFeeCommittee
from pocache.protocol.committee_terms import COMMITTEE_SEAT, Part
from pocache.protocol.dispute_committee_terms import PairCompared, RecheckDrawn
from pocache.protocol.dispute_terms import (
    AssignTask,
    AuditOpened,
    AwaitDraw,
    ClaimSealed,
    Compare,
    Compared,
    Decide,
    Deepened,
    HoldPlaced,
    OpeningsClosed,
    OrderDrawn,
    Outcome,
    Party,
    RequestHold,
    SealStage,
)
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.limits import MICRO_MAX
from pocache.protocol.matching import Verdict
from pocache.protocol.payoff import Case, JobEnding, UnifiedPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from pocache.protocol.incentives import Attack
    from pocache_cli.economics_chance import Chance

USER, GENERATOR = ParticipantId("user"), ParticipantId("generator")
_FULL = Corner(layer_max=0, position_max=0, full_depth=True)
_ROOT = Digest(bytes(32))


class Rows(StrEnum):
    """What somebody's committed rows are."""

    HONEST = "honest"
    """What the model computes."""
    CHEAT = "cheat"
    """The cheating generator's own: they match honest ones where no audit looks."""
    FORGED = "forged"
    """What a ring agreed on: its members' match each other and nothing else."""
    NOISE = "noise"
    """What a lazy verifier seals that computed nothing: they match nothing."""
    COPIED = "copied"
    """The generator's, whatever they are: it handed them over, or the rules show them to verifiers."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a job is worth and costs, and how closely it is looked at; amounts in micro-units."""

    cg: int
    cv: int
    generation_cost: Fraction
    """What generating really costs, over Cg."""
    verification_cost: Fraction
    """What verifying really costs, over Cv."""
    challenge_share: Fraction
    """How often a user challenges under `unified-pool`, which has nothing else."""
    full_depth_share: Fraction
    output_count: int


@dataclass(frozen=True, slots=True)
class Strategy:
    """What a coalition does; the defaults are honesty."""

    is_generator: bool = False
    """The generator's profit counts."""
    is_user: bool = False
    """The user's does."""
    is_verifiers: bool = False
    """That of the verifiers in league does."""
    cheat: Attack | None = None
    """What the generator does instead of the work."""
    opens: bool = True
    """Whether the generator opens when it is audited."""
    challenge_share: Fraction = Fraction(0)
    """How often the user challenges."""
    share: Fraction = Fraction(0)
    """The share of the stake that is in league."""
    look: Rows = Rows.HONEST
    """What verifiers in league seal in an audit, a recheck, or a stage of `unified-pool`."""
    vote: Rows = Rows.HONEST
    """What they seal in a committee of which they have the majority; without it they are honest."""
    votes_blindly: bool = False
    """They vote so in any committee."""
    is_assigned: bool = False
    """The audit is certain and its verifier in league: profit is counted per assignment."""


def play(
    rules: UnifiedPool | FixedFeeCommittee, setting: Setting, strategy: Strategy, chance: Chance
) -> Fraction:
    """Play one job and return what the coalition is left with, in micro-units."""
    return _Game(rules, setting, strategy, chance).play()


class _Game:
    def __init__(
        self, rules: UnifiedPool | FixedFeeCommittee, setting: Setting, strategy: Strategy, chance: Chance
    ) -> None:
        self._rules = rules
        self._setting = setting
        self._strategy = strategy
        self._chance = chance
        self._rows: dict[ParticipantId, Rows] = {
            GENERATOR: Rows.CHEAT if strategy.cheat else Rows.HONEST,
        }
        self._league: set[ParticipantId] = set()
        self._votes = 0
        """How many members of the current committee are in league."""
        self._is_revealed = False
        """Some audit looked where the cheat shows: whoever looks after it does so too."""

    def play(self) -> Fraction:
        is_challenged = self._chance.happens(self._strategy.challenge_share)
        if not is_challenged and not self._is_drawn():
            outcome = None
        else:
            outcome = self._run(is_challenged=is_challenged)
        return self._compute_profit(outcome)

    def _is_drawn(self) -> bool:
        if isinstance(self._rules, UnifiedPool):
            return self._strategy.is_assigned
        return self._strategy.is_assigned or self._chance.happens(self._rules.lottery.value)

    def _run(self, *, is_challenged: bool) -> Outcome:
        """Run the dispute until it is decided, answering every command."""
        generator = Party(GENERATOR, 0, _ROOT, _FULL)
        advance: Callable[[Any, Any], Any]
        state: Any
        if isinstance(self._rules, UnifiedPool):
            advance = dispute.advance
            state = dispute.start_dispute(
                generator=generator, stage_max=self._rules.stage_max, sample_count=1
            )
        else:
            advance = dispute_committee.advance
            state = dispute_committee.start_dispute(
                generator=generator, plan=self._rules.plan, sample_count=1
            )
        self._look(is_full=is_challenged)
        opened = AuditOpened((self._draw_one(1),), _FULL)
        events: list[Any] = [Deepened(), opened] if is_challenged else [opened]
        while True:
            step = advance(state, events.pop(0))
            state = step.state
            for command in step.commands:
                if isinstance(command, Decide):
                    return command.outcome
                events.append(self._answer(command))

    def _answer(self, command: object) -> object:
        """Return what happens upon a command: everybody does what it is asked for, each with its own rows."""
        match command:
            case AwaitDraw(stage):
                return self._draw(stage)
            case RequestHold(participant, stage):
                return HoldPlaced(participant, stage)
            case AssignTask(participant, stage, retry, corner):
                self._rows[participant] = self._get_claim(participant, stage)
                return ClaimSealed(participant, stage, retry, corner, corner.position_max + 1, _ROOT)
            case SealStage(stage, retry, _, parties):
                silent = set() if self._strategy.opens else {GENERATOR}
                opened = frozenset(party.participant for party in parties) - silent
                return OpeningsClosed(stage, retry, (0,), opened)
            case Compare(stage, retry, ours, theirs):
                verdict = self._compare(ours, theirs)
                if isinstance(self._rules, UnifiedPool):
                    return Compared(stage, retry, theirs.stage, verdict)
                return PairCompared(stage, retry, ours.stage, theirs.stage, verdict)
            case _:
                raise AssertionError(command)

    def _draw(self, stage: int) -> object:
        """Draw from a fresh round: a recheck's lottery, a committee, or the next stage's verifier."""
        if isinstance(self._rules, UnifiedPool):
            return OrderDrawn(stage, (self._draw_one(stage),))
        if self._rules.plan.get_part(stage) is Part.RECHECK:
            is_drawn = self._chance.happens(self._rules.recheck.value)
            if is_drawn:
                # Whoever audited did not say mismatch: what it saw or kept quiet about does not help the next one.
                self._look(is_full=False)
            return RecheckDrawn(is_drawn, (self._draw_one(stage),) if is_drawn else (), _FULL)
        seats = self._rules.plan.get_seats(stage)
        names = tuple(ParticipantId(f"verifier {seat}") for seat in seats)
        self._votes = self._chance.count_of(len(seats), self._strategy.share)
        self._league.update(names[: self._votes])
        return OrderDrawn(stage, names)

    def _draw_one(self, stage: int) -> ParticipantId:
        name = ParticipantId(f"verifier {stage}")
        is_assigned = self._strategy.is_assigned and stage == 1
        if is_assigned or self._chance.happens(self._strategy.share):
            self._league.add(name)
        return name

    def _look(self, *, is_full: bool) -> None:
        """Decide whether an audit looks where the cheat shows, and sees it: Pr[the corner reveals x] · D_x."""
        cheat = self._strategy.cheat
        if cheat is None:
            return
        full = Fraction(1) if is_full else self._setting.full_depth_share
        reveal = full + (1 - full) * cheat.partial_reveal
        self._is_revealed = self._chance.happens(reveal * cheat.get_detection(self._setting.output_count))

    def _get_claim(self, participant: ParticipantId, stage: int) -> Rows:
        """Return what a verifier seals: those in league act on what they see drawn among them."""
        if participant not in self._league:
            return Rows.HONEST
        claim = self._strategy.look
        if isinstance(self._rules, FixedFeeCommittee) and stage >= COMMITTEE_SEAT:
            has_say = self._votes >= self._rules.plan.majority or self._strategy.votes_blindly
            claim = self._strategy.vote if has_say else Rows.HONEST
        return claim

    def _compare(self, ours: Party, theirs: Party) -> Verdict:
        return Verdict.MATCH if self._is_match(ours, theirs) else Verdict.MISMATCH

    def _is_match(self, ours: Party, theirs: Party) -> bool:
        pair = {self._get_rows(ours), self._get_rows(theirs)}
        if Rows.NOISE in pair:
            return False
        return len(pair) == 1 or (pair == {Rows.HONEST, Rows.CHEAT} and not self._is_revealed)

    def _get_rows(self, party: Party) -> Rows:
        rows = self._rows[party.participant]
        return self._rows[GENERATOR] if rows is Rows.COPIED else rows

    def _compute_profit(self, outcome: Outcome | None) -> Fraction:
        """Return payouts less stakes, deposit and real costs of those whose profit counts."""
        setting, strategy = self._setting, self._strategy
        settlement = self._rules.settle(
            JobEnding(
                case=Case.NO_CHALLENGE if outcome is None else outcome.case,
                cg=setting.cg,
                cv=setting.cv,
                user=USER,
                generator=GENERATOR,
                verifiers=() if outcome is None else outcome.verifiers,
                deciding=None if outcome is None else outcome.deciding,
                prior=None if outcome is None else outcome.prior,
                is_challenged=outcome is not None and outcome.is_challenged,
                reserve_micro=MICRO_MAX,
            )
        )
        products = self._rules.compute_products(setting.cg, setting.cv)
        profit = Fraction(0)
        if strategy.is_user:
            profit += settlement.get_payout(USER) - products.deposit
        if strategy.is_generator:
            saving = strategy.cheat.saving if strategy.cheat else Fraction(0)
            profit += settlement.get_payout(GENERATOR) - products.generator_stake
            profit -= (setting.generation_cost - saving) * setting.cg
        if strategy.is_verifiers:
            for seat in () if outcome is None else outcome.verifiers:
                if seat.participant in self._league:
                    profit += settlement.get_payout(seat.participant) - products.verifier_stake
                    if self._rows[seat.participant] is Rows.HONEST:
                        profit -= setting.verification_cost * setting.cv
        return profit
