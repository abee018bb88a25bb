"""The one step of a receipt that needs the model: the prefill, run again, against the rows that were opened.

Owns what is compared: each party's opened rows of each stage with this machine's own, by the profile that the network
uses. Refuses a model of other bytes, and another numeric stack than the profile was measured on: what differs then is
not evidence. A receipt without openings has nothing to be compared with.
"""

from __future__ import annotations

from typing import Any, Final

from pocache.engine.port import Engine, VerifyRequest
from pocache.protocol.challenge import Corner
from pocache.protocol.commitment import Sampling
from pocache.protocol.dispute import compute_common_corner
from pocache.protocol.dispute_terms import GENERATOR_STAGE
from pocache.protocol.encoding import RowKey, RowKind, decode_leaf, unpack_tokens
from pocache.protocol.errors import ConfigError
from pocache.protocol.matching import compare
from pocache.receipt.case import Case, read_corner
from pocache.receipt.stages import read_parts
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache_cli.calibrate import build_engine

_LAYER_KINDS: Final = (RowKind.K, RowKind.V)
_ONE_Q16: Final = 65_536


def recompute_case(case: Case, model: str, *, device: str) -> list[dict[str, Any]]:
    """Return a line for each party that opened rows: how far they are from this machine's. Raises ConfigError."""
    if not case.dossier.all(t.OPENINGS_CLOSED):
        return []
    engine = build_engine(model, encoding=case.model.schema.encoding, device=device, threads=None)
    _verify_engine(case, engine)
    leaves = _run_prefill(case, engine)
    convicted = set() if case.outcome is None else _find_convicted(case)
    lines: list[dict[str, Any]] = []
    for closed in case.dossier.all(t.OPENINGS_CLOSED):
        sealed = case.dossier.get(t.STAGE_SEALED, stage=closed.stage, retry=closed.retry)
        for party in sealed.parties:
            parts = read_parts(case, sealed, party)
            if party.participant in closed.opened and parts:
                lines.append(
                    _compare(case, leaves, sealed, party, is_expected=party.participant in convicted)
                )
    return lines


def _verify_engine(case: Case, engine: Engine) -> None:
    found, entry = engine.capabilities(), case.model.entry
    if found.model_id != entry.model_id:
        raise ConfigError(f"this model's bytes are {found.model_id.hex()}, the job's {entry.model_id.hex()}")
    if found.schema.digest() != case.model.schema.digest():
        raise ConfigError("this engine's rows have another schema than the job's")
    if found.stack != entry.stack:
        raise ConfigError(
            f"this machine's stack is {found.stack!r}, the profile is for {entry.stack!r}: no comparison would mean anything"
        )


def _run_prefill(case: Case, engine: Engine) -> list[bytes]:
    lease = case.lease.body
    sampling = Sampling(lease.sampling.temperature_micro, lease.sampling.top_k, lease.sampling.top_p_micro)
    [capture] = engine.verify(
        [
            VerifyRequest(
                job_id=case.job_id,
                tokens=case.prompt + case.output,
                prompt_count=len(case.prompt),
                corner=case.full_corner,
                sampling=sampling,
                seed=lease.seed,
                network=case.network,
            )
        ]
    )
    return capture.leaves


def _find_convicted(case: Case) -> set[str]:
    payout = case.dossier.find(t.PAYOUT_SETTLED)
    return set() if payout is None else set(payout.slashed)


def _compare(
    case: Case, leaves: list[bytes], sealed: m.StageSealedV1, party: m.StagePartyV1, *, is_expected: bool
) -> dict[str, Any]:
    corner = compute_common_corner(read_corner(party.corner), case.full_corner)
    schema = case.get_schema(party.stage, read_corner(party.corner))
    ours: dict[int, dict[RowKey, bytes]] = {}
    theirs: dict[int, dict[RowKey, bytes]] = {}
    for part in read_parts(case, sealed, party):
        for position, leaf in zip(unpack_tokens(part.positions), part.leaves, strict=True):
            is_scored = position >= len(case.prompt) - 1
            own = decode_leaf(case.model.schema, position, is_scored, leaves[position])
            ours[position] = _restrict(own, corner)
            theirs[position] = _restrict(decode_leaf(schema, position, is_scored, leaf), corner)
    found = compare(
        case.model.profile,
        ours,
        theirs,
        case.model.schema.float_format,
        checks_tokens=party.stage == GENERATOR_STAGE,
    )
    numbers = f"mean {found.mean_q16 / _ONE_Q16:+.2f}, worst row {found.peak_q16 / _ONE_Q16:+.2f}"
    if found.tokens is not None:
        numbers += f", {found.tokens.mismatch_count} of {found.tokens.token_count} tokens not its best"
    return {
        "participant": party.participant,
        "stage": sealed.stage,
        "retry": sealed.retry,
        "verdict": found.verdict.value,
        "mean_q16": found.mean_q16,
        "peak_q16": found.peak_q16,
        "row_count": found.row_count,
        "expected_mismatch": is_expected,
        "text": f"stage {sealed.stage}: {found.row_count} rows of {party.participant}: {found.verdict.value} ({numbers})",
    }


def _restrict(rows: dict[RowKey, bytes], corner: Corner) -> dict[RowKey, bytes]:
    return {
        (kind, layer): row
        for (kind, layer), row in rows.items()
        if (layer <= corner.layer_max if kind in _LAYER_KINDS else corner.full_depth)
    }
