"""From accepted leaves to a verdict: what two parties opened in a stage, decoded and compared.

Owns which rows are compared: those at the stage's positions that lie within both corners, hidden states and scores only
where both are at full depth. Refuses to compare when a leaf is missing: a verdict rests on every position that was
drawn, or there is none. The verdict itself is ``pocache.protocol.matching``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa

from pocache.protocol.challenge import Corner
from pocache.protocol.dispute_terms import GENERATOR_STAGE, Compare, Party
from pocache.protocol.encoding import RowKey, RowKind, RowSchema, decode_leaf, unpack_tokens
from pocache.protocol.errors import ConfigError, MatchingError
from pocache.protocol.matching import Comparison, compare
from pocache.runtime.network import Model
from pocache.storage.prepared import Prepared
from pocache.storage.rows import insert_row
from pocache.wire.codec import decode, encode
from pocache.wire.comparisons import make_comparison
from pocache.wire.messages import ComparisonV1, OpeningV1
from pocache_verifier.jobs import Job
from pocache_verifier.tables import COMPARISONS, OPENINGS

_LAYER_KINDS = (RowKind.K, RowKind.V)
_GET_OPENINGS: Final = Prepared(
    sa.select(OPENINGS.c.body).where(
        OPENINGS.c.job_id == sa.bindparam("job_id"), OPENINGS.c.participant == sa.bindparam("participant")
    )
)
_GET_COMPARISONS: Final = Prepared(
    sa.select(COMPARISONS.c.body)
    .where(COMPARISONS.c.job_id == sa.bindparam("job_id"))
    .order_by(COMPARISONS.c.number)
)


def verify_profile(model: Model) -> None:
    """Refuse a model whose profile lacks a row of its schema: disputes over it could not be decided. ConfigError."""
    known = {(threshold.kind, threshold.layer) for threshold in model.profile.thresholds}
    missing = [key for key in model.schema.row_keys(scored=True) if key not in known]
    if missing:
        kind, layer = missing[0]
        raise ConfigError(
            f"the profile of {model.entry.name} has no threshold for {kind.name} rows of layer {layer}, nor for"
            f" {len(missing) - 1} others: calibrate the model again"
        )
    if model.schema.has_scores and model.profile.limits.tokens is None:
        raise ConfigError(
            f"the profile of {model.entry.name} has no token limits, so a cheap model's tokens would pass:"
            " calibrate the model again"
        )


def get_schema(job: Job, party: Party) -> RowSchema:
    """Return the schema of a party's leaves: the model's for the generator, its corner's for a verifier."""
    if party.stage == GENERATOR_STAGE:
        return job.model.schema
    return job.model.schema.restrict(party.corner.layer_max, full_depth=party.corner.full_depth)


def read_leaves(connection: sa.Connection, job: Job, participant: str) -> dict[int, bytes]:
    """Return the leaves that a party opened in the current stage, by position."""
    leaves: dict[int, bytes] = {}
    for row in _GET_OPENINGS.all(connection, job_id=job.job_id, participant=participant):
        part = decode(OpeningV1, row.body)
        leaves.update(zip(unpack_tokens(part.positions), part.leaves, strict=True))
    return leaves


def compare_parties(connection: sa.Connection, job: Job, command: Compare) -> Comparison:
    """Compare a stage's verifier (ours) with the other party (theirs), whose norm divides. Raises MatchingError.

    Against the generator the tokens are checked as well; an earlier verifier has drawn none.
    """
    ours, theirs = (
        {
            position: _restrict(rows, command.corner)
            for position, rows in _decode_rows(connection, job, party, command.positions)
        }
        for party in (command.ours, command.theirs)
    )
    return compare(
        job.model.profile,
        ours,
        theirs,
        job.model.schema.float_format,
        checks_tokens=command.theirs.stage == GENERATOR_STAGE,
    )


def keep_comparison(connection: sa.Connection, job: Job, command: Compare, comparison: Comparison) -> None:
    """Write down the numbers of a comparison, for the outcome."""
    body = make_comparison(
        comparison,
        stage=command.stage,
        retry=command.retry,
        left=command.ours.participant,
        right=command.theirs.participant,
    )
    number = len(_GET_COMPARISONS.all(connection, job_id=job.job_id)) + 1
    insert_row(connection, COMPARISONS, {"job_id": job.job_id, "number": number, "body": encode(body)})


def read_comparisons(connection: sa.Connection, job: Job) -> tuple[ComparisonV1, ...]:
    """Return every comparison of a job's dispute, in order."""
    rows = _GET_COMPARISONS.all(connection, job_id=job.job_id)
    return tuple(decode(ComparisonV1, row.body) for row in rows)


def _decode_rows(
    connection: sa.Connection, job: Job, party: Party, positions: Iterable[int]
) -> Iterable[tuple[int, dict[RowKey, bytes]]]:
    schema = get_schema(job, party)
    leaves = read_leaves(connection, job, party.participant)
    for position in positions:
        if position not in leaves:
            raise MatchingError(f"{party.participant} opened no leaf at position {position}")
        is_scored = position >= job.prompt_count - 1
        yield position, decode_leaf(schema, position, is_scored, leaves[position])


def _restrict(rows: dict[RowKey, bytes], corner: Corner) -> dict[RowKey, bytes]:
    """Return the rows within a corner; behind the last layer only at full depth."""
    return {
        (kind, layer): row
        for (kind, layer), row in rows.items()
        if (layer <= corner.layer_max if kind in _LAYER_KINDS else corner.full_depth)
    }
