"""Steps R12, R14 and R15: what each party sealed, what it opened, and how the rows compare (docs/protocol.md 14.3).

Owns the walk from a party's own signed claim to the rows that it showed: claim, root, multiproof, leaf, row, and the
exact comparison by the model's profile. Takes nobody's word for what a party said.
"""

from __future__ import annotations

from collections.abc import Iterable

from pocache.protocol.challenge import Corner
from pocache.protocol.dispute import compute_common_corner
from pocache.protocol.dispute_terms import GENERATOR_STAGE
from pocache.protocol.encoding import RowKey, RowKind, decode_leaf, unpack_tokens
from pocache.protocol.errors import ReceiptError
from pocache.protocol.ids import Digest
from pocache.protocol.matching import Comparison, compare
from pocache.protocol.opening import verify_opening
from pocache.receipt.case import Case, read_corner
from pocache.receipt.dossier import open_party
from pocache.receipt.draws import NO_AUDIT
from pocache.receipt.promise import check_bound
from pocache.receipt.report import Findings
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.comparisons import make_comparison

_LAYER_KINDS = (RowKind.K, RowKind.V)


def check_claims(case: Case, found: Findings) -> None:
    """R12: the generator's commitment and every verifier's own claim, sealed before the round of the positions."""
    stages = case.dossier.all(t.STAGE_SEALED)
    if not stages:
        found.skip(NO_AUDIT if case.audit is None else "no claim was sealed")
        return
    for sealed in stages:
        _check_generator(case, found, sealed)
        _check_verifiers(case, found, sealed)
        closed = case.dossier.find(t.OPENINGS_CLOSED, stage=sealed.stage, retry=sealed.retry)
        if closed is None:
            if not case.dossier.all(t.EQUIVOCATION) and case.dossier.is_over:
                raise ReceiptError(
                    f"the openings of stage {sealed.stage}, look {sealed.retry + 1}, are not shown"
                )
            continue
        what = f"the round that draws the positions of stage {sealed.stage}, look {sealed.retry + 1}"
        check_bound(case, found, what, closed.round_number, sealed.sealed_ms)


def _check_generator(case: Case, found: Findings, sealed: m.StageSealedV1) -> None:
    generator = sealed.parties[0]
    what = f"the generator's commitment, as stage {sealed.stage} has it"
    stated = (generator.participant, generator.stage, generator.root, generator.leaf_count)
    found.equal(what, stated, (case.generator, 0, case.root, case.leaf_count))
    found.equal("what it covers", str(read_corner(generator.corner)), str(case.full_corner))


def _check_verifiers(case: Case, found: Findings, sealed: m.StageSealedV1) -> None:
    stages = [party.stage for party in sealed.parties[1:]]
    procedure = case.genesis.procedure
    is_own_last = procedure.get_stage(stages[-1]) == sealed.stage
    is_ascending = stages == sorted(set(stages)) and is_own_last and stages[0] >= 1
    found.holds("stages of the verifiers", is_ascending, stages, f"ascending, {sealed.stage} the last")
    names = {party.participant for party in sealed.parties}
    found.equal("parties of the stage, each once", len(names), len(sealed.parties))
    for party in sealed.parties[1:]:
        if party.claim is None:
            raise ReceiptError(f"the claim of stage {party.stage} is not shown")
        claim = open_party(party.claim, case.network, m.ClaimSealedV1)
        body = claim.body
        found.equal(f"who signed the claim of stage {party.stage}", claim.sender, party.participant)
        signed = (body.job_id, body.attempt, body.stage, body.root, body.leaf_count)
        told_stage = procedure.get_told_stage(party.stage)
        stated = (sealed.job_id, sealed.attempt, told_stage, party.root, party.leaf_count)
        found.equal(f"what the claim of stage {party.stage} says", stated, signed)
        found.equal("its corner", str(party.corner), str(body.corner))
        found.equal("its leaves", body.leaf_count, body.corner.position_max + 1)
        found.equal("its numeric stack", body.stack, case.model.entry.stack)
        if procedure.get_stage(party.stage) == sealed.stage:
            found.equal("its look", body.retry, sealed.retry)


def check_openings(case: Case, found: Findings) -> None:
    """R14: every part that was taken leads to its party's root, and who opened has opened all of its positions."""
    if not case.dossier.all(t.OPENINGS_CLOSED) and not case.dossier.all(t.OPENING_ACCEPTED):
        found.skip(NO_AUDIT if case.audit is None else "nothing was opened")
        return
    counted = 0
    for closed in case.dossier.all(t.OPENINGS_CLOSED):
        sealed = case.dossier.get(t.STAGE_SEALED, stage=closed.stage, retry=closed.retry)
        positions = unpack_tokens(closed.positions)
        names = [party.participant for party in sealed.parties]
        what = f"who opened stage {closed.stage}, look {closed.retry + 1}, and who did not"
        found.equal(what, sorted((*closed.opened, *closed.missing)), sorted(names))
        for party in sealed.parties:
            asked = [position for position in positions if position <= party.corner.position_max]
            parts = read_parts(case, sealed, party)
            counted += sum(len(part.leaves) for part in parts)
            shown = [position for part in parts for position in unpack_tokens(part.positions)]
            is_whole = shown == asked and all(part.part_count == len(parts) for part in parts)
            is_opened = party.participant in closed.opened
            found.equal(f"whether {party.participant} opened all it was asked for", is_opened, is_whole)
    stray = [one for one in case.dossier.all(t.OPENING_ACCEPTED) if not _belongs(case, one)]
    if stray:
        raise ReceiptError(f"an opening of {stray[0].participant}, who is no party of stage {stray[0].stage}")
    found.note("leaves whose multiproofs lead to their roots", counted)


def _belongs(case: Case, accepted: m.OpeningAcceptedV1) -> bool:
    sealed = case.dossier.find(t.STAGE_SEALED, stage=accepted.stage, retry=accepted.retry)
    return sealed is not None and accepted.participant in [party.participant for party in sealed.parties]


def read_parts(case: Case, sealed: m.StageSealedV1, party: m.StagePartyV1) -> list[m.OpeningV1]:
    """Return the parts of a party's opening in their order, each signature, leaf and multiproof verified."""
    key = (sealed.stage, sealed.retry, party.participant)
    if key not in case.parts:
        case.parts[key] = _open_parts(case, sealed, party)
    return case.parts[key]


def _open_parts(case: Case, sealed: m.StageSealedV1, party: m.StagePartyV1) -> list[m.OpeningV1]:
    schema = case.get_schema(party.stage, read_corner(party.corner))
    parts: dict[int, m.OpeningV1] = {}
    for accepted in case.dossier.all(t.OPENING_ACCEPTED):
        which = (accepted.stage, accepted.retry, accepted.participant)
        if which != (sealed.stage, sealed.retry, party.participant):
            continue
        opened = open_party(accepted.opening, case.network, m.OpeningV1)
        body = opened.body
        signed = (opened.sender, body.job_id, body.attempt, body.stage, body.retry)
        stage = sealed.stage if party.stage == 0 else case.genesis.procedure.get_told_stage(sealed.stage)
        if signed != (party.participant, sealed.job_id, sealed.attempt, stage, sealed.retry):
            raise ReceiptError(f"the opening of {party.participant} is another's, or of another stage")
        if body.part in parts or not body.part < body.part_count:
            raise ReceiptError(f"part {body.part} of {body.part_count} of an opening, twice or out of range")
        verify_opening(
            unpack_tokens(body.positions),
            body.leaves,
            body.proof,
            schema=schema,
            prompt_count=len(case.prompt),
            leaf_count=party.leaf_count,
            root=Digest(party.root),
        )
        parts[body.part] = body
    return [parts[number] for number in sorted(parts)]


def check_comparisons(case: Case, found: Findings) -> None:
    """R15: every comparison of the outcome, computed again from the opened rows, number for number."""
    outcome = case.outcome
    if outcome is None or not outcome.comparisons:
        found.skip(NO_AUDIT if case.audit is None else "nothing was compared")
        return
    for stated in outcome.comparisons:
        sealed = case.dossier.get(t.STAGE_SEALED, stage=stated.stage, retry=stated.retry)
        parties = {party.participant: party for party in sealed.parties}
        if stated.left not in parties or stated.right not in parties:
            raise ReceiptError(
                f"a comparison of {stated.left} and {stated.right}, who are no parties of stage {stated.stage}"
            )
        computed = compare_parties(case, sealed, parties[stated.left], parties[stated.right])
        what = (
            f"stage {stated.stage}, look {stated.retry + 1}: {stated.left[:8]}… against {stated.right[:8]}…"
        )
        again = make_comparison(
            computed, stage=stated.stage, retry=stated.retry, left=stated.left, right=stated.right
        )
        found.equal(what, str(stated), str(again))


def compare_parties(
    case: Case, sealed: m.StageSealedV1, ours: m.StagePartyV1, theirs: m.StagePartyV1
) -> Comparison:
    """Return the comparison of a stage's verifier (ours) with another party (theirs), whose norm divides; once each."""
    key = (sealed.stage, sealed.retry, ours.participant, theirs.participant)
    if key not in case.comparisons:
        closed = case.dossier.get(t.OPENINGS_CLOSED, stage=sealed.stage, retry=sealed.retry)
        corner = compute_common_corner(read_corner(ours.corner), read_corner(theirs.corner))
        positions = [one for one in unpack_tokens(closed.positions) if one <= corner.position_max]
        rows = [
            {
                position: _restrict(leaf, corner)
                for position, leaf in _read_rows(case, sealed, party, positions)
            }
            for party in (ours, theirs)
        ]
        case.comparisons[key] = compare(
            case.model.profile,
            rows[0],
            rows[1],
            case.model.schema.float_format,
            checks_tokens=theirs.stage == GENERATOR_STAGE,
        )
    return case.comparisons[key]


def _read_rows(
    case: Case, sealed: m.StageSealedV1, party: m.StagePartyV1, positions: Iterable[int]
) -> Iterable[tuple[int, dict[RowKey, bytes]]]:
    schema = case.get_schema(party.stage, read_corner(party.corner))
    leaves = {
        position: leaf
        for part in read_parts(case, sealed, party)
        for position, leaf in zip(unpack_tokens(part.positions), part.leaves, strict=True)
    }
    for position in positions:
        if position not in leaves:
            raise ReceiptError(f"{party.participant} opened no leaf at position {position}")
        is_scored = position >= len(case.prompt) - 1
        yield position, decode_leaf(schema, position, is_scored, leaves[position])


def _restrict(rows: dict[RowKey, bytes], corner: Corner) -> dict[RowKey, bytes]:
    """Return the rows within a corner; behind the last layer only at full depth."""
    return {
        (kind, layer): row
        for (kind, layer), row in rows.items()
        if (layer <= corner.layer_max if kind in _LAYER_KINDS else corner.full_depth)
    }
