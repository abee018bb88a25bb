"""Steps R8 to R11 and R13: everything that public randomness decided, drawn again (docs/protocol.md 14.3).

Owns which rounds a job needs and what each of them must have given: whether the job was audited, how deep, by whom, and
at which positions. Not covered: whether a challenge came inside its window, which only the bus's clock knows.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocache.protocol.beacon import bind_round, compute_round_time_ms
from pocache.protocol.challenge import (
    Corner,
    Tag,
    draw_corner,
    draw_order,
    draw_positions,
    is_drawn,
)
from pocache.protocol.commitment import Promise, is_equivocation
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import ReceiptError
from pocache.protocol.ids import Digest, JobId, ParticipantId
from pocache.protocol.sortition import compute_weights
from pocache.receipt.case import Case, read_corner
from pocache.receipt.dossier import open_party
from pocache.receipt.promise import NO_COMMITMENT, check_bound
from pocache.receipt.report import DivergenceError, Findings
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role

NO_AUDIT = "the job was not audited"
RETRY_SHIFT = 16
"""A second look's positions come from another seed: the seed's stage is (retry << 16) | stage."""


def check_rounds(case: Case, found: Findings) -> None:
    """R8: the rounds that something was drawn from are there, no others, each signed by the pinned chain."""
    needed = case.dossier.get_needed_rounds()
    if case.rounds_shown is not None:
        found.equal("rounds shown, and rounds needed", case.rounds_shown, needed)
    for number in needed:
        found.note(f"randomness of round {number}, its signature verified", case.rounds.get(number))
    if not needed:
        found.skip("nothing was drawn")


def check_audit(case: Case, found: Findings) -> None:
    """R9: the lottery took the job or passed it by, or its own user asked, or its generator contradicted itself."""
    if not case.is_committed:
        found.skip(NO_COMMITMENT)
        return
    audit, equivocation = case.audit, case.dossier.find(t.EQUIVOCATION)
    is_window_closed = case.dossier.find(t.WINDOW_CLOSED) is not None
    if is_window_closed and audit is not None:
        raise ReceiptError("the window was closed over an audit")
    if equivocation is not None:
        _check_equivocation(case, found, equivocation)
    if is_window_closed:
        number = case.dossier.get_audit_round()
        assert number is not None, "a commitment has an audit round"
        found.equal("whether the lottery took it", False, _is_taken(case, number))
    if audit is not None:
        _check_opening(case, found, audit)
    elif not is_window_closed and equivocation is None:
        if case.dossier.is_over:
            raise ReceiptError("the job is over, and neither its window closed nor was it audited")
        found.leave_open("neither audited nor passed by yet")


def _is_taken(case: Case, round_number: int) -> bool:
    share = case.genesis.share(case.genesis.audit.lottery_share)
    return is_drawn(case.open_stream(Tag.AUDIT, round_number, 0), *share)


def _check_opening(case: Case, found: Findings, audit: m.AuditOpenedV1) -> None:
    found.equal("attempt that is audited", audit.attempt, case.recorded.attempt)
    found.equal("randomness of the audit's round", audit.randomness, case.rounds.get(audit.round_number))
    deepened = case.dossier.find(t.AUDIT_DEEPENED)
    if audit.reason == "lottery":
        found.equal("round of the lottery", audit.round_number, case.dossier.get_audit_round())
        found.equal("whether the lottery took it", True, _is_taken(case, audit.round_number))
        found.equal("challenge that a lottery's audit has", audit.challenge, None)
        if deepened is not None:
            _check_challenge(case, found, deepened.challenge)
        return
    if deepened is not None:
        raise ReceiptError("a challenged audit was challenged again")
    _check_challenge(case, found, audit.challenge)
    first = bind_round(case.chain, case.recorded.recorded_ms, case.genesis.audit.bind_delay_ms)
    found.holds(
        "round of the challenge", audit.round_number >= first, audit.round_number, f"{first} or later"
    )


def _check_challenge(case: Case, found: Findings, data: bytes | None) -> None:
    if data is None:
        raise ReceiptError("the user's challenge is not shown")
    challenge = open_party(data, case.network, m.ChallengeRequestV1)
    found.equal("who challenged", challenge.sender, case.user)
    body, recorded = challenge.body, case.recorded
    found.equal("what was challenged", (body.job_id, body.attempt), (recorded.job_id, recorded.attempt))


def _check_equivocation(case: Case, found: Findings, equivocation: m.EquivocationV1) -> None:
    """Check that the same leaseholder signed two contradicting promises about one attempt (4.9)."""
    evidence = case.dossier.get(t.EVIDENCE)
    second = open_party(evidence.result, case.network, m.ResultV1)
    lease = open_party(second.body.lease, case.network, m.LeaseV1)
    found.equal("who signed the lease of the second result", lease.sender, case.genesis.signer(Role.ROUTER))
    found.equal("who held it", lease.body.generator, case.generator)
    found.equal("who signed the second result", second.sender, case.generator)
    found.equal("the first result", equivocation.first_envelope_id, case.result.envelope_id)
    found.equal("the second result", equivocation.second_envelope_id, second.envelope_id)
    promises = [_to_promise(case.result.body), _to_promise(second.body)]
    found.equal("whether the two contradict each other", True, is_equivocation(*promises))


def _to_promise(result: m.ResultV1) -> Promise:
    return Promise(
        JobId(result.job_id), result.attempt, result.leaf_count, Digest(result.root), Digest(result.binding)
    )


def check_corner(case: Case, found: Findings) -> None:
    """R10: the corner is the round's, or the whole job where the user asked."""
    audit = case.audit
    if audit is None:
        found.skip(NO_AUDIT)
        return
    expected = case.full_corner
    if audit.reason == "lottery":
        expected = _draw_corner(case, audit.round_number, 0)
    found.equal("the corner", str(read_corner(audit.corner)), str(expected))


def _draw_corner(case: Case, round_number: int, stage: int) -> Corner:
    return draw_corner(
        case.open_stream(Tag.CORNER, round_number, stage),
        layer_count=case.model.schema.layer_count,
        leaf_count=case.leaf_count,
        prompt_count=len(case.prompt),
        full_share=case.genesis.share(case.genesis.audit.full_depth_share),
    )


def check_sortition(case: Case, found: Findings) -> None:
    """R11: each stage's candidates are those that its round drew by stake, in the order in which they were asked."""
    if case.audit is None:
        if not case.is_record_whole:
            found.equal("snapshots, which a job that was not audited does not need", len(case.snapshots), 0)
        found.skip(NO_AUDIT)
        return
    if not case.is_record_whole:
        shown, needed = tuple(sorted(case.snapshots)), case.dossier.get_needed_snapshots()
        extra = set(shown) - set(needed) if _has_empty_stage(case) else set()
        stated = tuple(one for one in shown if one not in extra)
        found.equal("snapshots shown, and snapshots needed", stated, needed)
    procedure = case.genesis.procedure
    for draw, order in compute_orders(case).items():
        drawn = list_drawn(case, draw)
        _check_draw(case, found, draw, drawn)
        places = [one.place for one in drawn]
        if procedure.is_excluding_drawn():
            found.equal(f"places that were drawn for stage {draw}", places, list(range(len(drawn))))
        else:
            # Whoever sits already is passed over: which places those are is the rules' to say, in R16.
            is_once = len(set(places)) == len(places) and max(places, default=-1) < len(order)
            found.holds(
                f"places that were drawn for stage {draw}", is_once, places, "each once, all of the order"
            )
        found.equal(
            f"who was drawn for stage {draw}",
            [one.participant for one in drawn],
            [order[place] if place < len(order) else None for place in places],
        )
    _check_recheck(case, found)


def list_drawn(case: Case, draw: int) -> list[m.VerifierDrawnV1]:
    """Return who was drawn by one draw, for whichever of its seats, in the order of places."""
    get_draw = case.genesis.procedure.get_draw
    drawn = (one for one in case.dossier.all(t.VERIFIER_DRAWN) if get_draw(one.stage) == draw)
    return sorted(drawn, key=lambda one: one.place)


def _check_draw(case: Case, found: Findings, stage: int, drawn: list[m.VerifierDrawnV1]) -> None:
    round_number = case.dossier.get_stage_rounds()[stage]
    bound = case.dossier.find(t.STAGE_BOUND, stage=stage)
    if bound is not None:
        check_bound(case, found, f"the round that draws stage {stage}", bound.round_number, bound.ended_ms)
    for one in drawn:
        found.equal(f"the round that drew for stage {stage}", one.round_number, round_number)
    if drawn:
        snapshot = find_snapshot(case, stage)
        assert snapshot is not None, "an order was computed from it"
        due_ms = compute_round_time_ms(case.chain, round_number)
        age_ms = due_ms - snapshot.taken_ms
        found.holds("ms from the snapshot to its round", age_ms > 0, age_ms, "more than 0")


def _check_recheck(case: Case, found: Findings) -> None:
    """Note what the round after an agreement said about looking again; whether that was done is R16's to judge."""
    needed = case.dossier.get_needed_rounds()
    for draw, number in case.dossier.get_stage_rounds().items():
        if number in needed and case.genesis.procedure.is_recheck(draw):
            is_drawn, corner = draw_recheck(case, draw)
            found.note("whether the agreement was to be rechecked", is_drawn)
            found.note("the recheck's corner", str(corner))


def draw_recheck(case: Case, draw: int) -> tuple[bool, Corner]:
    """Return whether the round of a draw has an agreement looked at again, and in which corner.

    A draw without a lottery of its own is always held, over the whole job.
    """
    share = case.genesis.recheck_share if case.genesis.procedure.is_recheck(draw) else None
    if share is None:
        return True, case.full_corner
    number = case.dossier.get_stage_rounds()[draw]
    return is_drawn(case.open_stream(Tag.RECHECK, number, draw), *share), _draw_corner(case, number, draw)


def compute_orders(case: Case) -> dict[int, tuple[ParticipantId, ...]]:
    """Return sortition's order of every draw whose round has come, without those related to the job's parties.

    Where the rules say so, also without whoever was drawn before.
    """
    procedure, orders = case.genesis.procedure, dict[int, tuple[ParticipantId, ...]]()
    drawn: list[ParticipantId] = []
    needed = case.dossier.get_needed_rounds()
    for draw, round_number in sorted(case.dossier.get_stage_rounds().items()):
        if round_number not in needed:
            continue
        weights = compute_draw_weights(case, draw, drawn)
        orders[draw] = draw_order(case.open_stream(procedure.get_tag(draw), round_number, draw), weights)
        if procedure.is_excluding_drawn():
            drawn += [ParticipantId(one.participant) for one in list_drawn(case, draw)]
    return orders


def compute_draw_weights(
    case: Case, draw: int, excluded: Sequence[ParticipantId]
) -> tuple[tuple[ParticipantId, int], ...]:
    """Return who can be drawn by a draw and with which weight, ascending by id (docs/protocol.md 6.6)."""
    snapshot = find_snapshot(case, draw)
    return compute_weights(
        (
            (ParticipantId(member.participant), member.stake_micro)
            for member in (() if snapshot is None else snapshot.members)
            if case.model.model_id in member.model_ids
        ),
        owners={
            ParticipantId(one.participant): ParticipantId(one.owner)
            for one in (() if snapshot is None else snapshot.owners)
        },
        parties=(case.generator, case.user),
        excluded=tuple(excluded),
        share_max=case.genesis.share(case.genesis.audit.owner_stake_share),
    )


def find_snapshot(case: Case, stage: int) -> m.SnapshotV1 | None:
    """Return the snapshot that a stage was drawn from: the one that its draws name, else the latest before its round.

    Raises ReceiptError where it is not shown, DivergenceError where the whole record has a later one before the round.
    """
    due_ms = compute_round_time_ms(case.chain, case.dossier.get_stage_rounds()[stage])
    before = [one for one in case.snapshots.values() if one.taken_ms < due_ms]
    latest = max(before, key=lambda one: (one.taken_ms, one.number), default=None)
    named = {one.snapshot for one in list_drawn(case, stage)}
    if not named:
        return latest
    if len(named) > 1:
        raise ReceiptError(f"stage {stage} was drawn from several snapshots: {sorted(named)}")
    number = named.pop()
    if number not in case.snapshots:
        raise ReceiptError(f"snapshot {number}, from which stage {stage} was drawn, is not shown")
    if case.is_record_whole and latest is not None and latest.number != number:
        raise DivergenceError(
            f"the snapshot of stage {stage}", str(number), f"{latest.number}, the latest before its round"
        )
    return case.snapshots[number]


def _has_empty_stage(case: Case) -> bool:
    drawn = {case.genesis.procedure.get_draw(one.stage) for one in case.dossier.all(t.VERIFIER_DRAWN)}
    return any(stage not in drawn for stage in case.dossier.get_stage_rounds())


def check_positions(case: Case, found: Findings) -> None:
    """R13: the positions of each stage are those of its round, which was to come when the claims were sealed."""
    closings = case.dossier.all(t.OPENINGS_CLOSED)
    if not closings:
        found.skip(NO_AUDIT if case.audit is None else "no stage came to its openings")
        return
    for closed in closings:
        sealed = case.dossier.get(t.STAGE_SEALED, stage=closed.stage, retry=closed.retry)
        expected = _draw_positions(case, sealed, closed.round_number)
        what = f"positions of stage {closed.stage}, look {closed.retry + 1}"
        found.equal(what, unpack_tokens(closed.positions), expected)


def _draw_positions(case: Case, sealed: m.StageSealedV1, round_number: int) -> tuple[int, ...]:
    corner: Corner = read_corner(sealed.corner)
    stream = case.open_stream(Tag.POSITIONS, round_number, sealed.retry << RETRY_SHIFT | sealed.stage)
    return draw_positions(stream, corner, prompt_count=len(case.prompt), sample_count=sealed.sample_count)
