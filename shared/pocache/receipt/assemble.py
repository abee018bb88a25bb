"""Putting a receipt together: of everything that was kept, exactly what this job's steps need (docs/protocol.md 14.1).

A pure function of the record, for whoever has it: the commitment store when it is asked, an auditor who exports one.
Nothing is judged; what is missing is left out, and whoever verifies will say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise

from pocache.protocol.commitment import compute_sampling_seed
from pocache.protocol.errors import ReceiptError
from pocache.protocol.ids import JobId
from pocache.receipt.dossier import JOB_TOPICS, Dossier, Said
from pocache.receipt.format import LogProof, Receipt
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.codec import decode
from pocache.wire.envelope import parse_envelope


def assemble_receipt(
    dossier: Dossier,
    *,
    genesis_json: bytes,
    model_envelope: bytes,
    get_round: Callable[[int], bytes | None],
    get_snapshot: Callable[[int], bytes | None],
    epochs: Sequence[Said[m.EpochV1]],
    log: LogProof | None,
) -> Receipt:
    """Return the receipt of a job; ``epochs`` are all that is known, ascending."""
    rounds = map(get_round, dossier.get_needed_rounds())
    snapshots = map(get_snapshot, dossier.get_needed_snapshots())
    return Receipt(
        genesis=genesis_json,
        model=model_envelope,
        record=tuple(one.data for topic in JOB_TOPICS for one in dossier.said(topic)),
        rounds=tuple(one for one in rounds if one is not None),
        snapshots=tuple(one for one in snapshots if one is not None),
        epochs=tuple(one.data for one in pick_epochs(dossier, epochs)),
        log=log,
    )


def pick_epochs(dossier: Dossier, epochs: Sequence[Said[m.EpochV1]]) -> list[Said[m.EpochV1]]:
    """Return the epoch that a job's seed is of, and the one that publishes its key, where there is one yet.

    None for a seed of the user's own, or no seed at all. An epoch whose key is not published yet is the last.
    """
    recorded = dossier.find(t.COMMITMENT_RECORDED)
    if recorded is None or read_submission(dossier).seed is not None:
        return []
    seed = _read_seed(recorded)
    for one, following in pairwise(epochs):
        key = following.body.previous_key
        if key is None or hashlib.sha256(key).digest() != one.body.key_hash:
            continue
        if compute_sampling_seed(None, key, JobId(recorded.job_id)) == seed:
            return [one, following]
    return list(epochs[-1:])


def read_submission(dossier: Dossier) -> m.SubmissionV1:
    """Return the user's submission, its envelope not verified: for who assembles, not for who judges."""
    return decode(m.SubmissionV1, parse_envelope(dossier.get(t.JOB_ADMITTED).submission).payload)


def _read_seed(recorded: m.CommitmentRecordedV1) -> bytes:
    result = decode(m.ResultV1, parse_envelope(recorded.result).payload)
    lease = parse_envelope(result.lease)
    if lease.kind != m.LeaseV1.kind:
        raise ReceiptError("the recorded result carries no lease")
    return decode(m.LeaseV1, lease.payload).seed
