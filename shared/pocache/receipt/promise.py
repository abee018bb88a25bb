"""Steps R4 to R7: what was asked for, leased, committed to, and logged (docs/protocol.md 14.3).

Recomputed here from the rules of docs/protocol.md 4 and 10.1, not by the services' own code: who judges a service
should not ask it how.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Final

from pocache.protocol.beacon import bind_round, compute_round_at, compute_round_time_ms
from pocache.protocol.checkpoint import find_cosigners, merge_cosignatures, parse_note, verify_checkpoint
from pocache.protocol.commitment import (
    Binding,
    Sampling,
    compute_binding_digest,
    compute_leaf_count,
    compute_sampling_seed,
    compute_token_hash,
)
from pocache.protocol.encoding import lp
from pocache.protocol.ids import Digest, EnvelopeId, JobId, ModelId, NetworkId, ParticipantId
from pocache.protocol.merkle import hash_leaf, verify_consistency, verify_inclusion
from pocache.receipt.case import Case
from pocache.receipt.dossier import NotShownError, open_message, open_party
from pocache.receipt.format import LogProof
from pocache.receipt.report import DivergenceError, Findings
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role

LOG_LEAF_DOMAIN: Final = b"pocache/v1/log-leaf"
NO_COMMITMENT: Final = "no generator committed to a result"


def check_submission(case: Case, found: Findings) -> None:
    """R4: the job is called after the user's own signed submission, which the model and the deposit fit."""
    submission, body = case.submission, case.submission.body
    found.equal(
        "the job id, the id of the submission's envelope", case.admitted.job_id, submission.envelope_id
    )
    found.equal("who signed the submission", case.admitted.user, submission.sender)
    found.equal("who signed the model's entry", case.model_sender, case.genesis.signer(Role.OPERATOR))
    found.equal("the model that was asked for", body.model_id, case.model.entry.model_id)
    if case.trust is not None and case.trust.profiles:
        digest = case.model.profile.digest().hex()
        wanted = "one of the pinned profiles"
        found.holds("the calibration profile", digest in case.trust.profiles, digest, wanted)
    entry, count = case.model.entry, len(case.prompt)
    found.holds("tokens of the prompt", count >= 1, count, "at least 1")
    found.holds(
        "its largest token",
        max(case.prompt) < entry.vocab_size,
        max(case.prompt),
        f"below {entry.vocab_size}",
    )
    total = count + body.token_count_max
    limit = entry.context_tokens_max
    found.holds("prompt and longest output", total <= limit, total, f"at most {limit} tokens")
    leaf_count = compute_leaf_count(count, body.token_count_max)
    cg = case.model.prices.compute_generation_cost(count, body.token_count_max)
    cv = _compute_full_cv(case, leaf_count)
    found.equal("Cg of the longest output, micro-units", case.admitted.generation_max_micro, cg)
    found.equal("Cv of it at full depth", case.admitted.verification_max_micro, cv)
    products = case.genesis.rule_set.compute_products(cg, cv)
    asked = case.dossier.get(t.ROUTER_HOLD_REQUESTED, purpose="escrow")
    found.equal("who the deposit was asked of", asked.party, case.user)
    found.equal("the deposit that was asked for", asked.amount_micro, products.deposit)
    if case.dossier.is_refused:
        refused = case.dossier.get(t.HOLD_REFUSED, purpose="escrow")
        found.equal("whose deposit was refused", refused.party, case.user)
        found.note("why the deposit was refused", f"{refused.code}: {refused.reason}")
        return
    held = case.dossier.get(t.HOLD_PLACED, purpose="escrow")
    found.equal(
        "the deposit that is held", (held.party, held.amount_micro), (asked.party, asked.amount_micro)
    )


def check_lease(case: Case, found: Findings) -> None:
    """R5: the router leased this submission, to this generator, with a seed that nobody chose."""
    _check_attempts(case, found)
    if not case.is_committed:
        if not case.is_record_whole:
            found.equal("epochs, which a job without a commitment does not need", len(case.epochs), 0)
        found.skip(NO_COMMITMENT)
        return
    lease, submission = case.lease, case.submission.body
    found.equal("who signed the lease", lease.sender, case.genesis.signer(Role.ROUTER))
    body = lease.body
    found.equal("its job", body.job_id, case.job_id)
    found.equal("its user", body.user, case.user)
    found.equal("its model", body.model_id, submission.model_id)
    found.equal("its salt", body.salt, submission.salt)
    prompt_hash = compute_token_hash(submission.salt, submission.prompt)
    found.equal("its hash of the prompt", body.prompt_hash, prompt_hash)
    found.equal("its count of the prompt's tokens", body.prompt_count, len(case.prompt))
    found.equal("its longest output", body.token_count_max, submission.token_count_max)
    found.equal("its sampling", str(body.sampling), str(submission.sampling))
    found.equal("whether it ends at an end of sequence", body.eos_stop, submission.eos_stop)
    found.equal("its row schema", body.schema_digest, case.model.schema.digest())
    found.equal("its set of profiles", body.profile_set, case.model.profile_set)
    cg = case.model.prices.compute_generation_cost(len(case.prompt), submission.token_count_max)
    cv = _compute_full_cv(case, compute_leaf_count(len(case.prompt), submission.token_count_max))
    stake = case.genesis.rule_set.compute_products(cg, cv).generator_stake
    held = case.dossier.get(
        t.HOLD_PLACED, purpose="generator_stake", attempt=body.attempt, party=body.generator
    )
    found.equal("the stake that the generator put up, βCg of the longest output", held.amount_micro, stake)
    _check_seed(case, found)


def _check_attempts(case: Case, found: Findings) -> None:
    """Check that each attempt before the committed one was closed by the store, and charged for by the router (10.6)."""
    closed = sorted(one.attempt for one in case.dossier.all(t.ATTEMPT_CLOSED))
    charged = sorted(one.attempt for one in case.dossier.all(t.ATTEMPT_CHARGED))
    found.equal("attempts that were closed, and charged for", closed, charged)
    held = {
        (one.attempt, one.party)
        for one in case.dossier.all(t.HOLD_PLACED)
        if one.purpose == "generator_stake"
    }
    unheld = sorted(
        one.attempt
        for one in case.dossier.all(t.ATTEMPT_CHARGED)
        if (one.attempt, one.generator) not in held
    )
    found.equal("attempts that were charged for, and whose stake was never held", unheld, [])
    before = case.recorded.attempt - 1 if case.is_committed else len(closed)
    found.equal("attempts that ended without a commitment", closed, list(range(1, before + 1)))


def _check_seed(case: Case, found: Findings) -> None:
    submission, seed = case.submission.body, case.lease.body.seed
    if submission.seed is not None:
        expected = compute_sampling_seed(submission.seed, b"", case.job_id)
        found.equal("the sampling seed, of the user's own", seed, expected)
        if not case.is_record_whole:
            found.equal("epochs, which a seed of the user's own does not need", len(case.epochs), 0)
        return
    keys = [
        (one.number, following.previous_key)
        for one, following in pairwise(case.epochs)
        if following.previous_key is not None
        and following.number == one.number + 1
        and hashlib.sha256(following.previous_key).digest() == one.key_hash
    ]
    seeds = {compute_sampling_seed(None, key, case.job_id): number for number, key in keys}
    if seed in seeds:
        found.note("the sampling seed, of the published key of epoch", seeds[Digest(seed)])
        return
    shown = [one.number for one in case.epochs]
    found.holds("the epoch of the sampling seed", bool(shown), shown, "announced before the seed was issued")
    open_epochs = set(shown) - {number for number, _ in keys}
    if not open_epochs:
        found.equal("the sampling seed", seed, compute_sampling_seed(None, keys[-1][1], case.job_id))
    found.leave_open(
        f"the key of epoch {max(open_epochs)} is not published here: the seed cannot be computed yet"
    )


def check_commitment(case: Case, found: Findings) -> None:
    """R6: the leaseholder's signed promise is about this lease and this output, and came in time."""
    if not case.is_committed:
        found.skip(NO_COMMITMENT)
        return
    recorded, lease, result = case.recorded, case.lease.body, case.result.body
    found.equal("who signed the result", case.result.sender, case.generator)
    found.equal("who held the lease", lease.generator, case.generator)
    found.equal(
        "job and attempt of the result", (result.job_id, result.attempt), (case.job_id, recorded.attempt)
    )
    found.equal("attempt of the lease", lease.attempt, recorded.attempt)
    _check_output(case, found)
    found.equal("N, the leaves", result.leaf_count, compute_leaf_count(len(case.prompt), len(case.output)))
    found.equal("the numeric stack", result.stack, case.model.entry.stack)
    found.equal("the binding digest", result.binding, _compute_binding(case))
    late_ms = recorded.received_ms - lease.deadline_ms
    found.holds("when it came, ms after the lease's deadline", late_ms <= 0, late_ms, "at most 0")
    current = compute_round_at(case.chain, recorded.received_ms)
    lag = current - result.latest_round
    lag_max = case.genesis.audit.commitment_lag_rounds_max
    found.holds("age of the round that it names, in rounds", 0 <= lag <= lag_max, lag, f"0 … {lag_max}")
    waited_ms = recorded.recorded_ms - recorded.received_ms
    found.holds("ms from its arrival to its entry", waited_ms >= 0, waited_ms, "at least 0")


def _check_output(case: Case, found: Findings) -> None:
    """Check the vocabulary and the end: at the first EOS, else at full length, or by the user's wish (4.7.4)."""
    lease, entry, output = case.lease.body, case.model.entry, case.output
    found.holds(
        "tokens of the output",
        1 <= len(output) <= lease.token_count_max,
        len(output),
        f"1 … {lease.token_count_max}",
    )
    found.holds("its largest token", max(output) < entry.vocab_size, max(output), f"below {entry.vocab_size}")
    stops = [index for index, token in enumerate(output) if lease.eos_stop and token in entry.eos_tokens]
    last = len(output) - 1
    found.holds("ends of sequence in it, by index", stops in ([], [last]), stops, f"none, or {last} alone")
    reason = case.result.body.finish_reason
    if not stops and reason != "cancelled":
        found.equal("its length, without an end of sequence", len(output), lease.token_count_max)
    is_full = len(output) == lease.token_count_max
    found.equal("how it ended", reason, "stop" if stops else "length" if is_full else "cancelled")
    _check_cancellation(case, found)


def _check_cancellation(case: Case, found: Findings) -> None:
    """Check that a cancelled output carries its user's signed request, and that no other carries one."""
    result = case.result.body
    is_carried = result.cancellation is not None
    found.equal("whether it carries a cancellation", is_carried, result.finish_reason == "cancelled")
    if result.cancellation is None:
        return
    opened = open_party(result.cancellation, case.network, m.CancelRequestV1)
    found.equal("who cancelled it", opened.sender, case.user)
    found.equal("the job that was cancelled", opened.body.job_id, case.job_id)


def _compute_binding(case: Case) -> Digest:
    lease, result = case.lease.body, case.result.body
    sampling = Sampling(
        temperature_micro=lease.sampling.temperature_micro,
        top_k=lease.sampling.top_k,
        top_p_micro=lease.sampling.top_p_micro,
    )
    return compute_binding_digest(
        Binding(
            network=case.network,
            job_id=case.job_id,
            attempt=lease.attempt,
            lease_id=case.lease.envelope_id,
            prompt_hash=Digest(lease.prompt_hash),
            output_hash=compute_token_hash(lease.salt, result.output),
            model_id=ModelId(lease.model_id),
            stack=result.stack,
            sampling_digest=sampling.digest(),
            seed=Digest(lease.seed),
            schema_digest=Digest(lease.schema_digest),
            profile_set=Digest(lease.profile_set),
        )
    )


def check_log(case: Case, found: Findings) -> None:
    """R7: the entry is in the log under its own checkpoint, which was made before the round that decided."""
    if not case.is_committed:
        found.skip(NO_COMMITMENT)
        return
    recorded, log = case.recorded, case.log
    if log is None:
        raise NotShownError("the log's proofs are not shown")
    entry, latest = _open_checkpoint(case, log.checkpoint), _open_checkpoint(case, log.latest)
    found.equal("size of the log with this entry", entry.size, recorded.log_index + 1)
    found.equal("when that checkpoint was made, ms", entry.at_ms, recorded.recorded_ms)
    leaf = compute_log_entry(case.result.body, case.result.envelope_id)
    verify_inclusion(hash_leaf(leaf), recorded.log_index, entry.size, log.inclusion, Digest(entry.root))
    found.note("root that the inclusion proof leads to", entry.root)
    verify_log_growth(log, entry, latest)
    found.note("size of the log that this one was only appended to", latest.size)
    for checkpoint in (entry, latest):
        check_note(case, checkpoint)
    _check_witnesses(case, latest, found)
    _check_binding_of_round(case, found)


def verify_log_growth(log: LogProof, entry: m.CheckpointV1, latest: m.CheckpointV1) -> None:
    """Check that the latest checkpoint's log is the entry's with more behind it. Raises MerkleError."""
    verify_consistency(entry.size, latest.size, Digest(entry.root), Digest(latest.root), log.consistency)


def check_note(case: Case, checkpoint: m.CheckpointV1) -> None:
    """Check that a checkpoint's note, where it has one, says the same and is signed by the log. Raises PocacheError."""
    if checkpoint.note:
        verify_checkpoint_note(checkpoint, case.network, case.genesis.signer(Role.COMMITMENTS))


def verify_checkpoint_note(checkpoint: m.CheckpointV1, network: NetworkId, log_key: ParticipantId) -> None:
    """Check a note against the checkpoint that carries it. Raises DivergenceError, CodecError, SignatureError."""
    note = verify_checkpoint(checkpoint.note, network, log_key)
    noted = note.checkpoint
    if len(note.signatures) != 1:
        raise DivergenceError(
            "signatures of the checkpoint's note", str(len(note.signatures)), "the log's alone"
        )
    if (noted.size, noted.root) != (checkpoint.size, checkpoint.root):
        raise DivergenceError(
            "what the checkpoint's note says",
            f"{noted.size}, {noted.root.hex()}",
            f"{checkpoint.size}, {checkpoint.root.hex()}",
        )


def _check_witnesses(case: Case, latest: m.CheckpointV1, found: Findings) -> None:
    """Check every witness's line in its one spelling, and that enough of those that the user pins are there."""
    assert case.log is not None, "looked at before"
    cosigners: frozenset[ParticipantId] = frozenset()
    if case.log.cosigned:
        note = parse_note(case.log.cosigned)
        lines = find_cosigners(case.network, note, map(ParticipantId, case.genesis.witnesses))
        expected = merge_cosignatures(latest.note, list(lines.values())) if latest.note and lines else b""
        found.equal("the cosigned note, in its one spelling", case.log.cosigned.hex(), expected.hex())
        cosigners = frozenset(lines)
        found.note("witnesses who cosigned the log", len(cosigners))
    if case.trust is not None and case.trust.witnesses and not case.is_record_whole:
        counted, quorum = len(cosigners & set(case.trust.witnesses)), case.trust.witness_quorum
        found.holds(
            "cosignatures of the witnesses that you pinned", counted >= quorum, counted, f"at least {quorum}"
        )


def _open_checkpoint(case: Case, data: bytes) -> m.CheckpointV1:
    return open_message(
        data, case.network, case.genesis, (t.CHECKPOINT,), is_canonical=not case.is_record_whole
    ).body


def _check_binding_of_round(case: Case, found: Findings) -> None:
    """Check that the audit's round was to come when it was named, each time that one was (5.4, 4.8.4)."""
    recorded, audit = case.recorded, case.genesis.audit
    current = compute_round_at(case.chain, recorded.recorded_ms)
    window_close = max(current + audit.window_rounds, recorded.audit_round + 1)
    found.equal("last round of the window", recorded.window_close_round, window_close)
    check_bound(
        case, found, "the round that decides on the audit", recorded.audit_round, recorded.recorded_ms
    )
    previous, close_round = recorded.audit_round, recorded.window_close_round
    for rebound in sorted(case.dossier.all(t.COMMITMENT_REBOUND), key=lambda one: one.missed_round):
        found.equal("the round that came too early", rebound.missed_round, previous)
        check_bound(case, found, "the round that decides instead", rebound.audit_round, rebound.rebound_ms)
        close_round = max(close_round, rebound.audit_round + 1)
        found.equal("last round of the window then", rebound.window_close_round, close_round)
        previous = rebound.audit_round


def check_bound(case: Case, found: Findings, what: str, round_number: int, event_ms: int) -> None:
    """Check that a round was still to come, by Δ, when an event was bound to it (docs/protocol.md 5.4)."""
    first = bind_round(case.chain, event_ms, case.genesis.audit.bind_delay_ms)
    found.holds(what, round_number >= first, round_number, f"{first} or later")
    ahead_ms = compute_round_time_ms(case.chain, round_number) - event_ms
    found.note("ms from the event to that round", ahead_ms)


def compute_log_entry(result: m.ResultV1, result_id: EnvelopeId) -> bytes:
    """Return the bytes of a commitment's entry in the log (docs/protocol.md 4.8)."""
    return lp(
        LOG_LEAF_DOMAIN,
        JobId(result.job_id),
        result.attempt.to_bytes(4, "big"),
        result.root,
        result.leaf_count.to_bytes(8, "big"),
        result.binding,
        result_id,
    )


def _compute_full_cv(case: Case, leaf_count: int) -> int:
    layer_count = case.model.schema.layer_count
    return case.model.prices.compute_verification_cost(
        layer_max=layer_count - 1, position_max=leaf_count - 1, layer_count=layer_count
    )
