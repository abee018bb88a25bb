"""What was measured in a job's audit: distances row by row against their thresholds, token margins, and the draws.

Computed from the openings by the protocol's own comparison, stage by stage. Owns no verdict: the outcome's is shown
beside what is computed here, and a difference between the two is said.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from pocache.protocol.challenge import DeterministicStream, compute_seed
from pocache.protocol.encoding import RowKind, decode_leaf, unpack_tokens
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import ParticipantId
from pocache.protocol.matching import Comparison, compute_standard_q16
from pocache.receipt.case import Case
from pocache.receipt.draws import compute_draw_weights, compute_orders, find_snapshot, list_drawn
from pocache.receipt.stages import compare_parties, read_parts
from pocache.wire import messages as m
from pocache.wire import topics as t

ONE_Q16: Final = 65_536
_SCORES: Final = struct.Struct("<3f")


@dataclass(frozen=True, slots=True)
class Cell:
    """One row kind at one layer and position: how far apart the two sides are."""

    position: int
    kind: RowKind
    layer: int
    log2_q16: int
    """log₂ of the relative L2 distance."""
    standard_q16: int
    """The same in calibrated spreads above the honest centre."""


@dataclass(frozen=True, slots=True)
class Heatmap:
    """One comparison of a stage, row by row."""

    stage: int
    retry: int
    left: str
    right: str
    is_right_generator: bool
    verdict: str
    stated_verdict: str
    mean_q16: int
    peak_q16: int
    peak_match_max_q16: int
    peak_mismatch_min_q16: int
    mean_match_max_q16: int
    mean_mismatch_min_q16: int
    layer_count: int
    positions: tuple[int, ...]
    prompt_count: int
    cells: tuple[Cell, ...]
    worst: Cell


@dataclass(frozen=True, slots=True)
class Margin:
    """The score row of one opened output position, as its generator committed to it."""

    position: int
    logit: float
    logsumexp: float
    gap: float
    """How far the delivered token's perturbed score lies below the best one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody in a snapshot, and what sortition made of it."""

    participant: str
    stake_micro: int
    weight: int
    """What of the stake counts: less where its owner has more than the rules let count."""
    place: int | None
    """In the order that the round drew; None for who was left out."""
    why_not: str


@dataclass(frozen=True, slots=True)
class Draw:
    """How one stage's verifier was drawn."""

    stage: int
    round_number: int
    snapshot: int | None
    seed: bytes | None
    ticket: int | None
    """The first draw: a number below ``stake_micro``, the candidates' weights together."""
    stake_micro: int
    candidates: tuple[Candidate, ...]
    drawn: tuple[str, ...]
    problem: str = ""


class Measured:
    """What an audit measured, each part computed when it is asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def heatmaps(self) -> tuple[Heatmap, ...]:
        """The comparisons of the outcome, those with the generator first, the last stage before the others."""
        outcome = self.case.outcome
        if outcome is None:
            return ()
        maps = [self._compare(one) for one in outcome.comparisons]
        return tuple(sorted(maps, key=lambda one: (not one.is_right_generator, -one.stage, -one.retry)))

    def _compare(self, stated: m.ComparisonV1) -> Heatmap:
        case = self.case
        sealed = case.dossier.get(t.STAGE_SEALED, stage=stated.stage, retry=stated.retry)
        parties = {party.participant: party for party in sealed.parties}
        computed = compare_parties(case, sealed, parties[stated.left], parties[stated.right])
        cells = _standardise(case, computed)
        profile = case.model.profile
        return Heatmap(
            stage=stated.stage,
            retry=stated.retry,
            left=stated.left,
            right=stated.right,
            is_right_generator=stated.right == case.generator,
            verdict=computed.verdict.value,
            stated_verdict=stated.verdict,
            mean_q16=computed.mean_q16,
            peak_q16=computed.peak_q16,
            peak_match_max_q16=profile.peak_match_max_q16,
            peak_mismatch_min_q16=profile.peak_mismatch_min_q16,
            mean_match_max_q16=profile.mean_match_max_q16,
            mean_mismatch_min_q16=profile.mean_mismatch_min_q16,
            layer_count=case.model.schema.layer_count,
            positions=tuple(sorted({one.position for one in cells})),
            prompt_count=len(case.prompt),
            cells=cells,
            worst=max(cells, key=lambda one: one.standard_q16),
        )

    @cached_property
    def margins(self) -> tuple[Margin, ...]:
        """The generator's score rows at the opened output positions, ascending; none where the schema has none."""
        case = self.case
        found: dict[int, Margin] = {}
        for sealed in case.dossier.all(t.STAGE_SEALED):
            party = sealed.parties[0]
            for part in read_parts(case, sealed, party):
                for position, leaf in zip(unpack_tokens(part.positions), part.leaves, strict=True):
                    is_scored = position >= len(case.prompt) - 1
                    rows = decode_leaf(case.model.schema, position, is_scored, leaf)
                    row = rows.get((RowKind.SCORES, 0))
                    if row is not None and len(row) == _SCORES.size:
                        found[position] = Margin(position, *_SCORES.unpack(row))
        return tuple(found[position] for position in sorted(found))

    @cached_property
    def draws(self) -> tuple[Draw, ...]:
        """Sortition of every stage, with the candidates and their stakes."""
        if self.case.audit is None:
            return ()
        orders, problem = {}, ""
        try:
            orders = compute_orders(self.case)
        except PocacheError as error:
            problem = str(error)
        rounds = self.case.dossier.get_stage_rounds()
        return tuple(self._draw(stage, number, orders, problem) for stage, number in sorted(rounds.items()))

    def _draw(
        self, draw: int, round_number: int, orders: dict[int, tuple[ParticipantId, ...]], problem: str
    ) -> Draw:
        case = self.case
        procedure = case.genesis.procedure
        drawn = tuple(one.participant for one in list_drawn(case, draw))
        if draw not in orders:
            why = problem or "the round has not come yet"
            return Draw(draw, round_number, None, None, None, 0, (), drawn, why)
        before = _list_drawn_before(case, draw)
        weights = dict(compute_draw_weights(case, draw, before if procedure.is_excluding_drawn() else ()))
        snapshot = find_snapshot(case, draw)
        places = {one: place for place, one in enumerate(orders[draw])}
        members = () if snapshot is None else sorted(snapshot.members, key=lambda one: one.participant)
        owners = {} if snapshot is None else {one.participant: one.owner for one in snapshot.owners}
        candidates = []
        for one in members:
            participant = ParticipantId(one.participant)
            weight = weights.get(participant)
            why = "" if weight is not None else _tell_why_not(case, one, owners, before)
            candidates.append(
                Candidate(participant, one.stake_micro, weight or 0, places.get(participant), why)
            )
        total = sum(weights.values())
        seed = compute_seed(
            procedure.get_tag(draw),
            network=case.network,
            chain_hash=case.chain.chain_hash,
            round_number=round_number,
            randomness=case.rounds.get(round_number),
            root=case.root,
            leaf_count=case.leaf_count,
            job_id=case.job_id,
            stage=draw,
        )
        ticket = DeterministicStream(seed).below(total) if total else None
        number = None if snapshot is None else snapshot.number
        return Draw(draw, round_number, number, seed, ticket, total, tuple(candidates), drawn)


def _list_drawn_before(case: Case, draw: int) -> tuple[ParticipantId, ...]:
    earlier = (one for one in case.dossier.get_stage_rounds() if one < draw)
    return tuple(ParticipantId(said.participant) for one in earlier for said in list_drawn(case, one))


def _tell_why_not(
    case: Case, member: m.SnapshotMemberV1, owners: Mapping[str, str], before: Sequence[ParticipantId]
) -> str:
    participant = member.participant
    if participant == case.generator:
        return "generated this job"
    if participant == case.user:
        return "asked for this job"
    if case.model.model_id not in member.model_ids:
        return "does not serve this model"
    parties = {owners.get(one, one) for one in (case.generator, case.user)}
    if owners.get(participant, participant) in parties:
        return "has the owner of a party to this job"
    return "was drawn at an earlier stage" if participant in before else "cannot be drawn"


def _standardise(case: Case, computed: Comparison) -> tuple[Cell, ...]:
    thresholds = {(one.kind, one.layer): one for one in case.model.profile.thresholds}
    return tuple(
        Cell(position, kind, layer, log2_q16, compute_standard_q16(thresholds[kind, layer], log2_q16))
        for position, kind, layer, log2_q16 in computed.rows
    )


def list_running_sums(candidates: Sequence[Candidate]) -> list[tuple[Candidate, int, int]]:
    """Return each candidate that may be drawn with the interval of tickets that draws it first."""
    found, total = [], 0
    for one in candidates:
        if one.place is not None:
            found.append((one, total, total + one.weight))
            total += one.weight
    return found
