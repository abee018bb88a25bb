"""Step R16: the dispute, run again by the pure function that the network's rules are (docs/protocol.md 14.3).

Either rule set's: ``case.genesis.procedure`` is the machine.

Owns how a record becomes the machine's events. The record of one job has no order that a stranger could check, but the
machine itself says what it waits for, and there is one message that answers. Only a challenge and an equivocation come
when they please: every moment is tried at which they can have come, and one of them must lead to the stated outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pocache.protocol import dispute_terms as d
from pocache.protocol.dispute_committee_terms import CommitteeState
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import NotAuthorizedError, PocacheError, ReceiptError
from pocache.protocol.ids import Digest, ParticipantId
from pocache.protocol.procedure import AnyEvent, State
from pocache.receipt.case import Case, read_corner
from pocache.receipt.dossier import open_party
from pocache.receipt.draws import NO_AUDIT, compute_orders, draw_recheck
from pocache.receipt.report import DivergenceError, Findings
from pocache.receipt.stages import compare_parties
from pocache.wire import messages as m
from pocache.wire import topics as t

_EVENTS_MAX = 4_096
_INTERRUPTIONS_MAX = 64
"""Moments that are tried where the record by itself leads nowhere."""


@dataclass
class Run:
    """One way in which it can have gone."""

    state: State
    compared: list[tuple[int, int, str, str]] = field(default_factory=list)
    used: set[tuple[str, int, int]] = field(default_factory=set)
    """What of the record was used: kind, stage, look or place."""
    event_count: int = 0


def check_outcome(case: Case, found: Findings) -> None:
    """R16: some run of the rules over this record ends in exactly this outcome, and uses all of the record."""
    outcome = case.outcome
    if outcome is None:
        if case.dossier.is_over and (case.audit is not None or case.dossier.all(t.EQUIVOCATION)):
            raise ReceiptError("the dispute's outcome is not shown")
        found.skip(NO_AUDIT if case.audit is None else "the dispute is not decided yet")
        return
    if case.audit is None and not case.dossier.all(t.EQUIVOCATION):
        raise ReceiptError("an outcome of a job that was neither audited nor contradicted by its generator")
    orders = compute_orders(case) if case.audit is not None else {}
    stated = _describe(outcome)
    failure: ReceiptError | None = None
    for deepened_at, equivocated_at in _list_moments(case, orders):
        try:
            run = _play(case, orders, deepened_at, equivocated_at)
            _compare_outcome(case, stated, run)
        except PocacheError as error:
            # What is reported is the run without anybody's coming in between: the first.
            failure = failure or (error if isinstance(error, ReceiptError) else ReceiptError(str(error)))
            continue
        found.note("the outcome", stated)
        found.note("events that led to it", run.event_count)
        return
    assert failure is not None, "there is always a first run"
    raise failure


def _list_moments(
    case: Case, orders: dict[int, tuple[ParticipantId, ...]]
) -> Iterator[tuple[int | None, int | None]]:
    """Yield the moments at which a challenge and an equivocation can have come; None is after the end, or never."""
    deepened = case.dossier.find(t.AUDIT_DEEPENED) is not None
    is_equivocated = case.dossier.find(t.EQUIVOCATION) is not None
    yield None, None
    for deepened_at in [None, *range(1, _count_events(case, orders, None) + 1)] if deepened else [None]:
        if deepened_at is not None:
            yield deepened_at, None
        if is_equivocated:
            for equivocated_at in range(_count_events(case, orders, deepened_at) + 1):
                yield deepened_at, equivocated_at


def _count_events(case: Case, orders: dict[int, tuple[ParticipantId, ...]], deepened_at: int | None) -> int:
    try:
        return _play(case, orders, deepened_at, None).event_count
    except PocacheError:
        return _INTERRUPTIONS_MAX


def _compare_outcome(case: Case, stated: str, run: Run) -> None:
    decided = run.state.outcome
    computed = (
        "none: the record ends before one" if decided is None else _describe_computed(case, decided, run)
    )
    if computed != stated:
        raise DivergenceError("the outcome", stated, computed)
    unused = _find_unused(case, run)
    if unused:
        raise DivergenceError("what the record has beyond that outcome", unused[0], "nothing")


def _play(
    case: Case,
    orders: dict[int, tuple[ParticipantId, ...]],
    deepened_at: int | None,
    equivocated_at: int | None,
) -> Run:
    """Run the machine over the record; interruptions come before the event of that number."""
    generator = d.Party(case.generator, d.GENERATOR_STAGE, case.root, case.full_corner)
    run = Run(case.genesis.procedure.start(generator=generator, sample_count=case.genesis.audit.sample_count))
    while run.event_count < _EVENTS_MAX:
        if run.event_count == deepened_at:
            _apply(case, run, d.Deepened())
        if run.event_count == equivocated_at:
            _apply(case, run, d.Equivocated("two results"))
        if run.state.phase is d.Phase.DECIDED:
            break
        event = _find_event(case, run, orders)
        if event is None:
            break
        if isinstance(event, d.AuditOpened):
            is_challenged = case.audit is not None and case.audit.reason == "challenge"
            for first in case.genesis.procedure.get_first_events(is_challenged=is_challenged):
                _apply(case, run, first)
        run.event_count += 1
        _apply(case, run, event)
    return run


def _apply(case: Case, run: Run, event: AnyEvent) -> None:
    pending: AnyEvent | None = event
    while pending is not None:
        step = case.genesis.procedure.advance(run.state, pending)
        run.state, pending = step.state, None
        for command in step.commands:
            pending = _execute(case, run, command)


def _execute(case: Case, run: Run, command: d.Command) -> AnyEvent | None:
    """Hold what the machine asks for against what was said, and compare where it asks to."""
    match command:
        case d.RequestHold():
            drawn = case.dossier.find(t.VERIFIER_DRAWN, stage=command.stage, place=command.place)
            if drawn is None or drawn.participant != command.participant:
                raise ReceiptError(
                    f"stage {command.stage} asks for {command.participant}, {'nobody' if drawn is None else drawn.participant} was drawn"
                )
            run.used.add(("drawn", command.stage, command.place))
        case d.SealStage():
            _verify_stage(case, command)
            run.used.add(("sealed", command.stage, command.retry))
        case d.Compare():
            sealed = case.dossier.get(t.STAGE_SEALED, stage=command.stage, retry=command.retry)
            parties = {party.participant: party for party in sealed.parties}
            ours, theirs = parties[command.ours.participant], parties[command.theirs.participant]
            verdict = compare_parties(case, sealed, ours, theirs).verdict
            run.compared.append((command.stage, command.retry, ours.participant, theirs.participant))
            return case.genesis.procedure.make_verdict(command, verdict)
        case _:
            pass
    return None


def _find_event(case: Case, run: Run, orders: dict[int, tuple[ParticipantId, ...]]) -> AnyEvent | None:
    """Return what the record has for the machine in its state, None where it has nothing."""
    state, dossier = run.state, case.dossier
    match state.phase:
        case d.Phase.WAITING if case.audit is not None:
            return d.AuditOpened(orders.get(1, ()), read_corner(case.audit.corner))
        case d.Phase.DRAWING if state.stage in orders:
            run.used.add(("bound", state.stage, 0))
            is_drawn, corner = draw_recheck(case, state.stage)
            return case.genesis.procedure.make_drawn(
                state.stage, orders[state.stage], is_drawn=is_drawn, corner=corner
            )
        case d.Phase.HOLDING:
            return _find_hold(case, state)
        case d.Phase.SEALING:
            return _find_claim(case, run) or d.SealExpired(state.stage, state.retry)
        case d.Phase.OPENING:
            closed = dossier.find(t.OPENINGS_CLOSED, stage=state.stage, retry=state.retry)
            if closed is not None:
                opened = frozenset(map(ParticipantId, closed.opened))
                return d.OpeningsClosed(state.stage, state.retry, unpack_tokens(closed.positions), opened)
        case _:
            pass
    return None


def _find_hold(case: Case, state: State) -> d.HoldPlaced | d.HoldRefused | None:
    """Return the ledger's word on a stake that is asked for: what was locked first, then what was not.

    A refusal hands the seat to the next candidate. Of several, the first is the one whose seat was drawn for next.
    """
    if isinstance(state, CommitteeState):
        pending = state.pending
    else:
        assert state.candidate is not None, "somebody's stake is asked for"
        pending = ((state.candidate, state.stage),)
    refused: list[tuple[ParticipantId, int]] = []
    for party, seat in pending:
        which = {"purpose": "verifier_stake", "stage": seat, "party": party}
        if case.dossier.find(t.HOLD_PLACED, **which) is not None:
            return d.HoldPlaced(party, seat)
        if case.dossier.find(t.HOLD_REFUSED, **which) is not None:
            refused.append((party, seat))
    if not refused:
        return None
    drawn = case.dossier.all(t.VERIFIER_DRAWN)
    at = state.candidates_used

    def find_next_place(one: tuple[ParticipantId, int]) -> int:
        later = [other.place for other in drawn if other.stage == one[1] and other.place >= at]
        return min(later, default=len(drawn) + at)

    party, seat = min(refused, key=find_next_place)
    return d.HoldRefused(party, seat)


def _find_claim(case: Case, run: Run) -> d.ClaimSealed | None:
    """Return the next claim of the stage: of those that sealed it, or of those that were too few to."""
    state, procedure = run.state, case.genesis.procedure
    taken = state.sealed if isinstance(state, CommitteeState) else ()
    sealed = case.dossier.find(t.STAGE_SEALED, stage=state.stage, retry=state.retry)
    if sealed is not None:
        for party in sealed.parties[1:]:
            if procedure.get_stage(party.stage) == state.stage and party.stage not in taken:
                return _make_claim(party.participant, party.stage, sealed.retry, party)
        return None
    for number, data in enumerate(() if case.outcome is None else case.outcome.claims):
        claim = open_party(data, case.network, m.ClaimSealedV1)
        body = claim.body
        if (body.job_id, body.attempt) != (case.recorded.job_id, case.recorded.attempt):
            raise ReceiptError("a claim about another job or attempt")
        try:
            seat = procedure.find_seat(state, claim.sender, body.stage)
        except NotAuthorizedError:
            continue  # of a later stage, or of nobody's: what is never used fails the run
        if (procedure.get_stage(seat), body.retry) == (state.stage, state.retry) and seat not in taken:
            run.used.add(("claim", number, 0))
            if body.stack != case.model.entry.stack:
                raise ReceiptError(f"a claim of another stack than the model's, {body.stack}")
            return _make_claim(claim.sender, seat, body.retry, body)
    return None


def _make_claim(
    participant: str, seat: int, retry: int, body: m.StagePartyV1 | m.ClaimSealedV1
) -> d.ClaimSealed:
    return d.ClaimSealed(
        participant=ParticipantId(participant),
        stage=seat,
        retry=retry,
        corner=read_corner(body.corner),
        leaf_count=body.leaf_count,
        root=Digest(body.root),
    )


def _verify_stage(case: Case, command: d.SealStage) -> None:
    sealed = case.dossier.get(t.STAGE_SEALED, stage=command.stage, retry=command.retry)
    stated = (
        read_corner(sealed.corner),
        sealed.sample_count,
        tuple((one.participant, one.stage, one.root, read_corner(one.corner)) for one in sealed.parties),
    )
    parties = tuple((one.participant, one.stage, one.root, one.corner) for one in command.parties)
    if stated != (command.corner, command.sample_count, parties):
        raise ReceiptError(
            f"stage {command.stage}, look {command.retry + 1}: not the parties, corner or samples of the rules"
        )


def _find_unused(case: Case, run: Run) -> list[str]:
    """Return what the pool said about the dispute that this run had no use for."""
    said = [("drawn", one.stage, one.place) for one in case.dossier.all(t.VERIFIER_DRAWN)]
    if case.outcome is not None:
        said += [("claim", number, 0) for number in range(len(case.outcome.claims))]
    said += [("sealed", one.stage, one.retry) for one in case.dossier.all(t.STAGE_SEALED)]
    # A dispute that an equivocation ended may have bound a stage that was never drawn.
    is_cut_short = case.dossier.is_cut_short
    said += [("bound", one.stage, 0) for one in case.dossier.all(t.STAGE_BOUND) if not is_cut_short]
    return [f"{kind} {stage}.{place}" for kind, stage, place in said if (kind, stage, place) not in run.used]


def _describe(outcome: m.OutcomeV1) -> str:
    verifiers = [(one.participant, one.stage, one.opened, one.upheld) for one in outcome.verifiers]
    compared = [(one.stage, one.retry, one.left, one.right) for one in outcome.comparisons]
    return (
        f"{outcome.case} at stage {outcome.stage} of attempt {outcome.attempt}, corner {read_corner(outcome.corner)},"
        f" verifiers {verifiers}, deciding {outcome.deciding}, prior {outcome.prior}, challenged {outcome.is_challenged},"
        f" compared {compared}"
    )


def _describe_computed(case: Case, outcome: d.Outcome, run: Run) -> str:
    verifiers = [(str(one.participant), one.stage, one.opened, one.upheld) for one in outcome.verifiers]
    return (
        f"{outcome.case.value} at stage {outcome.stage} of attempt {case.recorded.attempt}, corner {outcome.corner},"
        f" verifiers {verifiers}, deciding {outcome.deciding}, prior {outcome.prior}, challenged {outcome.is_challenged},"
        f" compared {run.compared}"
    )
