"""Step R16: the dispute, run again by the pure function that the network's rules are (docs/protocol.md 14.3).

Owns how a record becomes the machine's events. The record of one job has no order that a stranger could check, but the
machine itself says what it waits for, and there is one message that answers. Only a challenge and an equivocation come
when they please: every moment is tried at which they can have come, and one of them must lead to the stated outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pocache.protocol import dispute_terms as d
from pocache.protocol.dispute import advance, start_dispute
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import PocacheError, ReceiptError
from pocache.protocol.ids import Digest, ParticipantId
from pocache.receipt.case import Case, read_corner
from pocache.receipt.draws import NO_AUDIT, compute_orders
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

    state: d.DisputeState
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
    run = Run(
        start_dispute(
            generator=generator,
            stage_max=case.genesis.rules.stage_max,
            sample_count=case.genesis.audit.sample_count,
        )
    )
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
        run.event_count += 1
        _apply(case, run, event)
    return run


def _apply(case: Case, run: Run, event: d.Event) -> None:
    pending: d.Event | None = event
    while pending is not None:
        step = advance(run.state, pending)
        run.state, pending = step.state, None
        for command in step.commands:
            pending = _execute(case, run, command)


def _execute(case: Case, run: Run, command: d.Command) -> d.Event | None:
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
            return d.Compared(command.stage, command.retry, command.theirs.stage, verdict)
        case _:
            pass
    return None


def _find_event(case: Case, run: Run, orders: dict[int, tuple[ParticipantId, ...]]) -> d.Event | None:
    """Return what the record has for the machine in its state, None where it has nothing."""
    state, dossier = run.state, case.dossier
    match state.phase:
        case d.Phase.WAITING if case.audit is not None:
            return d.AuditOpened(orders.get(1, ()), read_corner(case.audit.corner))
        case d.Phase.DRAWING if state.stage in orders:
            run.used.add(("bound", state.stage, 0))
            return d.OrderDrawn(state.stage, orders[state.stage])
        case d.Phase.HOLDING:
            assert state.candidate is not None, "somebody's stake is asked for"
            which = {"purpose": "verifier_stake", "stage": state.stage, "party": state.candidate}
            if dossier.find(t.HOLD_PLACED, **which) is not None:
                return d.HoldPlaced(state.candidate, state.stage)
            if dossier.find(t.HOLD_REFUSED, **which) is not None:
                return d.HoldRefused(state.candidate, state.stage)
        case d.Phase.SEALING:
            sealed = dossier.find(t.STAGE_SEALED, stage=state.stage, retry=state.retry)
            return _read_claim(sealed) if sealed is not None else d.SealExpired(state.stage, state.retry)
        case d.Phase.OPENING:
            closed = dossier.find(t.OPENINGS_CLOSED, stage=state.stage, retry=state.retry)
            if closed is not None:
                opened = frozenset(map(ParticipantId, closed.opened))
                return d.OpeningsClosed(state.stage, state.retry, unpack_tokens(closed.positions), opened)
        case _:
            pass
    return None


def _read_claim(sealed: m.StageSealedV1) -> d.ClaimSealed:
    own = sealed.parties[-1]
    return d.ClaimSealed(
        participant=ParticipantId(own.participant),
        stage=sealed.stage,
        retry=sealed.retry,
        corner=read_corner(own.corner),
        leaf_count=own.leaf_count,
        root=Digest(own.root),
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
    said += [("sealed", one.stage, one.retry) for one in case.dossier.all(t.STAGE_SEALED)]
    # A dispute that an equivocation ended may have bound a stage that was never drawn.
    is_cut_short = bool(case.dossier.all(t.EQUIVOCATION))
    said += [("bound", one.stage, 0) for one in case.dossier.all(t.STAGE_BOUND) if not is_cut_short]
    return [f"{kind} {stage}.{place}" for kind, stage, place in said if (kind, stage, place) not in run.used]


def _describe(outcome: m.OutcomeV1) -> str:
    verifiers = [(one.participant, one.stage, one.opened) for one in outcome.verifiers]
    compared = [(one.stage, one.retry, one.left, one.right) for one in outcome.comparisons]
    return (
        f"{outcome.case} at stage {outcome.stage} of attempt {outcome.attempt}, corner {read_corner(outcome.corner)},"
        f" verifiers {verifiers}, deciding {outcome.deciding}, prior {outcome.prior}, compared {compared}"
    )


def _describe_computed(case: Case, outcome: d.Outcome, run: Run) -> str:
    verifiers = [(str(one.participant), one.stage, one.opened) for one in outcome.verifiers]
    return (
        f"{outcome.case.value} at stage {outcome.stage} of attempt {case.recorded.attempt}, corner {outcome.corner},"
        f" verifiers {verifiers}, deciding {outcome.deciding}, prior {outcome.prior}, compared {run.compared}"
    )
