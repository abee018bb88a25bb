"""A forgery for each field that a step checks, signed by whoever would have to sign it: the step is named.

The forgers are the services themselves and the parties, each with its own key: signatures hold, what they say does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kit.endings import Played, play
from kit.forging import drop, find_said, forge, open_body, replace_record, reseal
from kit.loopback import OUTPUT, Habit, Loopback, make_result
from kit.network import make_key, make_network
from pocache.protocol.beacon import compute_secret, sign_round
from pocache.protocol.encoding import pack_tokens, unpack_tokens
from pocache.protocol.ids import Digest
from pocache.receipt.format import LogProof, Receipt
from pocache.receipt.report import Report, Step
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role, Topic

ONES = b"\x01" * 32
STRANGER = make_key("stranger")
Forge = Callable[[Played], Receipt]


def changed(topic: Topic[Any], which: dict[str, object] | None = None, **changes: Any) -> Forge:
    """Return a forger that changes fields of one message."""
    return lambda played: forge(played.receipt, played.loopback.network, topic, which, **changes)


def dropped(topic: Topic[Any], **which: object) -> Forge:
    """Return a forger that leaves a message out."""
    return lambda played: drop(played.receipt, played.loopback.network, topic, **which)


def unheld(attempt: int) -> Forge:
    """Return a forger that leaves out a generator's hold, what was asked and what was answered."""
    which = {"purpose": "generator_stake", "attempt": attempt}

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        asked = drop(played.receipt, network, t.ROUTER_HOLD_REQUESTED, **which)
        return drop(asked, network, t.HOLD_PLACED, **which)

    return make


def released(**changes: Any) -> Forge:
    """Return a forger of the lease: signed by the router, with a result that the generator binds to it."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        recorded = find_said(played.receipt, network, t.COMMITMENT_RECORDED).body
        result = open_body(network, recorded.result, m.ResultV1)
        signer = changes.get("signer")
        fields = {name: value for name, value in changes.items() if name != "signer"}
        lease = reseal(network, result.lease, m.LeaseV1, signer, **fields)
        bound = make_result(network, lease, Digest(result.root), 0, latest_round=result.latest_round)
        data = network.seal(make_key(played.loopback.generator), bound)
        return forge(played.receipt, network, t.COMMITMENT_RECORDED, result=data)

    return make


def recommitted(signer: Any = None, **changes: Any) -> Forge:
    """Return a forger of the result, signed by the generator."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        recorded = find_said(played.receipt, network, t.COMMITMENT_RECORDED).body
        result = reseal(network, recorded.result, m.ResultV1, signer, **changes)
        return forge(played.receipt, network, t.COMMITMENT_RECORDED, result=result)

    return make


def logged(**changes: Any) -> Forge:
    """Return a forger of the log's proofs."""

    def make(played: Played) -> Receipt:
        log = played.receipt.log
        assert log is not None
        fields = {name: value(log) if callable(value) else value for name, value in changes.items()}
        return replace(played.receipt, log=replace(log, **fields))

    return make


def check_pointed(field: str, **changes: Any) -> Forge:
    """Return a forger of a checkpoint, signed by the store."""

    def make(played: Played) -> Receipt:
        log = played.receipt.log
        assert log is not None
        data = reseal(played.loopback.network, getattr(log, field), m.CheckpointV1, **changes)
        fields: dict[str, Any] = {field: data}
        return replace(played.receipt, log=replace(log, **fields))

    return make


def rounded(change: Callable[[Played, tuple[bytes, ...]], tuple[bytes, ...]]) -> Forge:
    """Return a forger of the rounds."""
    return lambda played: replace(played.receipt, rounds=change(played, played.receipt.rounds))


def modelled(signer: Any = None, **changes: Any) -> Forge:
    """Return a forger of the model's entry, signed by the operator."""

    def make(played: Played) -> Receipt:
        data = reseal(played.loopback.network, played.receipt.model, m.ModelEntryV1, signer, **changes)
        return replace(played.receipt, model=data)

    return make


def snapped(**changes: Any) -> Forge:
    """Return a forger of the snapshot, signed by the pool."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        data = reseal(network, played.receipt.snapshots[0], m.SnapshotV1, **changes)
        return replace(played.receipt, snapshots=(data,))

    return make


def sealed_as(change: Callable[[Played, m.StageSealedV1], dict[str, Any]]) -> Forge:
    """Return a forger of the first sealed stage, signed by the pool."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        body = find_said(played.receipt, network, t.STAGE_SEALED).body
        return forge(played.receipt, network, t.STAGE_SEALED, {"stage": body.stage}, **change(played, body))

    return make


def with_party(index: int, change: Callable[[Played, m.StagePartyV1], dict[str, Any]]) -> Forge:
    """Return a forger of one party of the first sealed stage."""

    def make_parties(played: Played, body: m.StageSealedV1) -> dict[str, Any]:
        parties = list(body.parties)
        parties[index] = parties[index].model_copy(update=change(played, parties[index]))
        return {"parties": tuple(parties)}

    return sealed_as(make_parties)


def reclaimed(signer: Any = None, **changes: Any) -> Forge:
    """Return a forger of the verifier's claim inside the stage, signed by the verifier unless told."""

    def make(played: Played, party: m.StagePartyV1) -> dict[str, Any]:
        assert party.claim is not None
        return {"claim": reseal(played.loopback.network, party.claim, m.ClaimSealedV1, signer, **changes)}

    return with_party(1, make)


def reopened(signer: Any = None, **changes: Any) -> Forge:
    """Return a forger of the generator's first opening, signed by the generator unless told."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        who = make_key(played.loopback.generator).participant_id
        said = find_said(played.receipt, network, t.OPENING_ACCEPTED, participant=who)
        opening = open_body(network, said.body.opening, m.OpeningV1)
        fields = {name: value(opening) if callable(value) else value for name, value in changes.items()}
        data = reseal(network, said.body.opening, m.OpeningV1, signer, **fields)
        return replace_record(
            played.receipt,
            network,
            lambda one: reseal(network, one, m.OpeningAcceptedV1, opening=data) if one == said.data else one,
        )

    return make


def decided(**changes: Any) -> Forge:
    """Return a forger of the outcome; values may be functions of it."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        body = find_said(played.receipt, network, t.OUTCOME_DECIDED).body
        fields = {name: value(body) if callable(value) else value for name, value in changes.items()}
        return forge(played.receipt, network, t.OUTCOME_DECIDED, **fields)

    return make


def paid(**changes: Any) -> Forge:
    """Return a forger of the payout; values may be functions of it."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        body = find_said(played.receipt, network, t.PAYOUT_SETTLED).body
        fields = {name: value(body) if callable(value) else value for name, value in changes.items()}
        return forge(played.receipt, network, t.PAYOUT_SETTLED, **fields)

    return make


def compared_as(**changes: Any) -> Forge:
    """Return a forger of the outcome's first comparison."""
    return decided(
        comparisons=lambda body: (body.comparisons[0].model_copy(update=changes), *body.comparisons[1:])
    )


def line_as(index: int, **changes: Any) -> Forge:
    """Return a forger of one line of the payout."""

    def change(body: m.PayoutSettledV1) -> tuple[m.PayoutLineV1, ...]:
        lines = list(body.lines)
        fields = {name: value(lines[index]) if callable(value) else value for name, value in changes.items()}
        lines[index] = lines[index].model_copy(update=fields)
        return tuple(lines)

    return paid(lines=change)


def false_round(played: Played, rounds: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Sign the round by another chain's key, in an envelope of this beacon."""
    network = played.loopback.network
    body = open_body(network, rounds[0], m.BeaconRoundV1)
    secret = compute_secret(hashlib.sha256(b"another").digest())
    return (
        reseal(network, rounds[0], m.BeaconRoundV1, signature=sign_round(secret, body.round_number)),
        *rounds[1:],
    )


def other_challenge(played: Played) -> Receipt:
    """A challenge by somebody else than the user."""
    network = played.loopback.network
    body = m.ChallengeRequestV1(job_id=played.job_id, attempt=1)
    return forge(played.receipt, network, t.AUDIT_OPENED, challenge=network.seal(STRANGER, body))


def other_submission(played: Played) -> Receipt:
    """A submission that is not the one that the job is called after."""
    network = played.loopback.network
    body = find_said(played.receipt, network, t.JOB_ADMITTED).body
    return forge(
        played.receipt,
        network,
        t.JOB_ADMITTED,
        submission=reseal(network, body.submission, m.SubmissionV1, token_count_max=6),
    )


def stronger_member(played: Played) -> Receipt:
    """The member that was drawn has less stake in the snapshot than it had: another one would have been drawn."""
    network = played.loopback.network
    snapshot = open_body(network, played.receipt.snapshots[0], m.SnapshotV1)
    drawn = find_said(played.receipt, network, t.VERIFIER_DRAWN).body.participant
    members = tuple(
        one.model_copy(update={"stake_micro": 1}) if one.participant == drawn else one
        for one in snapshot.members
    )
    return snapped(members=members)(played)


def other_evidence(played: Played) -> Receipt:
    """The same promise again, under a later round, is no contradiction."""
    network = played.loopback.network
    recorded = find_said(played.receipt, network, t.COMMITMENT_RECORDED).body
    again = reseal(network, recorded.result, m.ResultV1, latest_round=1)
    forged = forge(played.receipt, network, t.EVIDENCE, result=again)
    return forge(forged, network, t.EQUIVOCATION, second_envelope_id=network.envelope_id(again))


def rebound(**changes: Any) -> Forge:
    """Return a forger of the result whose binding fits what it says: only the rule itself is broken."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        recorded = find_said(played.receipt, network, t.COMMITMENT_RECORDED).body
        result = open_body(network, recorded.result, m.ResultV1)
        body = make_result(
            network, result.lease, Digest(result.root), 0, **{"latest_round": result.latest_round, **changes}
        )
        data = network.seal(make_key(played.loopback.generator), body)
        return forge(played.receipt, network, t.COMMITMENT_RECORDED, result=data)

    return make


def recancelled(name: str = "user", **changes: Any) -> Forge:
    """Return a forger of the cancellation inside the result."""

    def make(played: Played) -> Receipt:
        key = make_key(name)
        body = m.CancelRequestV1(**{"job_id": played.job_id, **changes})
        return recommitted(cancellation=played.loopback.network.seal(key, body))(played)

    return make


def both(*forgers: tuple[Topic[Any], dict[str, object], dict[str, Any]]) -> Forge:
    """Return a forger of several messages that agree with each other."""

    def make(played: Played) -> Receipt:
        receipt = played.receipt
        for topic, which, changes in forgers:
            receipt = forge(receipt, played.loopback.network, topic, which, **changes)
        return receipt

    return make


def resubmitted(**changes: Any) -> Forge:
    """Return a forger of the user's submission, signed by the user, under the job id of the first."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        body = find_said(played.receipt, network, t.JOB_ADMITTED).body
        data = reseal(network, body.submission, m.SubmissionV1, **changes)
        return forge(played.receipt, network, t.JOB_ADMITTED, submission=data)

    return make


def earlier_round(played: Played) -> Receipt:
    """The audit by a true round of the chain that was known when the commitment was made."""
    network = played.loopback.network
    audit = find_said(played.receipt, network, t.AUDIT_OPENED).body
    number = 2
    [data] = [
        one.data
        for one in played.loopback.rounds
        if open_body(network, one.data, m.BeaconRoundV1).round_number == number
    ]
    signature = open_body(network, data, m.BeaconRoundV1).signature
    forged = forge(
        played.receipt,
        network,
        t.AUDIT_OPENED,
        round_number=number,
        randomness=hashlib.sha256(signature).digest(),
    )
    kept = [
        one
        for one in played.receipt.rounds
        if open_body(network, one, m.BeaconRoundV1).round_number != audit.round_number
    ]
    return replace(forged, rounds=(data, *kept))


def challenged_attempt(played: Played) -> Receipt:
    """The user's challenge of another attempt."""
    network = played.loopback.network
    body = m.ChallengeRequestV1(job_id=played.job_id, attempt=2)
    return forge(played.receipt, network, t.AUDIT_OPENED, challenge=network.seal(make_key("user"), body))


def evidence(signer: Any = None, lease_signer: Any = None, **lease_changes: Any) -> Forge:
    """Return a forger of the second result: its signer, its lease."""

    def make(played: Played) -> Receipt:
        network = played.loopback.network
        said = find_said(played.receipt, network, t.EVIDENCE).body
        result = open_body(network, said.result, m.ResultV1)
        lease = result.lease
        if lease_signer is not None or lease_changes:
            lease = reseal(network, lease, m.LeaseV1, lease_signer, **lease_changes)
        data = reseal(network, said.result, m.ResultV1, signer, lease=lease)
        forged = forge(played.receipt, network, t.EVIDENCE, result=data)
        return forge(forged, network, t.EQUIVOCATION, second_envelope_id=network.envelope_id(data))

    return make


def extra_snapshot(played: Played) -> Receipt:
    """One more snapshot than anything was drawn from."""
    network = played.loopback.network
    extra = reseal(network, played.receipt.snapshots[0], m.SnapshotV1, number=9)
    return replace(played.receipt, snapshots=(*played.receipt.snapshots, extra))


def extra_request(played: Played) -> Receipt:
    """A stake was asked for, and the ledger's answer is not shown."""
    network = played.loopback.network
    said = find_said(played.receipt, network, t.VERIFIER_HOLD_REQUESTED)
    extra = reseal(network, said.data, m.HoldRequestV1, stage=3, party=STRANGER.participant_id)
    grown = replace(played.receipt, record=(*played.receipt.record, extra))
    return replace_record(grown, network, lambda data: data)


def moved_payment(played: Played) -> Receipt:
    """One micro-unit goes to another line: the sums stay."""
    body = find_said(played.receipt, played.loopback.network, t.PAYOUT_SETTLED).body
    lines = [
        one.model_copy(update={"amount_micro": one.amount_micro + change})
        for one, change in zip(body.lines[-2:], (-1, 1), strict=True)
    ]
    return paid(lines=(*body.lines[:-2], *lines))(played)


def split_line(body: m.PayoutSettledV1) -> tuple[m.PayoutLineV1, ...]:
    """The first account has a line of nothing before its own."""
    nothing = m.PayoutLineV1(account=body.lines[0].account, amount_micro=0, held_micro=0)
    return (nothing, *body.lines)


def smaller_claim(played: Played, party: m.StagePartyV1) -> dict[str, Any]:
    """A claim of fewer leaves than its corner has, as its verifier signed it."""
    assert party.claim is not None
    claim = reseal(played.loopback.network, party.claim, m.ClaimSealedV1, leaf_count=3)
    return {"leaf_count": 3, "claim": claim}


def later_stage(played: Played, party: m.StagePartyV1) -> dict[str, Any]:
    """The verifier of a stage that is not the one that is sealed."""
    assert party.claim is not None
    return {"stage": 2, "claim": reseal(played.loopback.network, party.claim, m.ClaimSealedV1, stage=2)}


ESCROW: dict[str, object] = {"purpose": "escrow"}
VERIFIER_STAKE: dict[str, object] = {"purpose": "verifier_stake"}
HALF = m.CornerV1(layer_max=0, position_max=6, full_depth=False)

FORGERIES: list[tuple[str, str, Forge, Step]] = [
    # R4
    ("submission", "agree", other_submission, Step.SUBMISSION),
    ("admitted user", "agree", changed(t.JOB_ADMITTED, user=STRANGER.participant_id), Step.SUBMISSION),
    ("Cg of the quote", "agree", changed(t.JOB_ADMITTED, generation_max_micro=1), Step.SUBMISSION),
    ("Cv of the quote", "agree", changed(t.JOB_ADMITTED, verification_max_micro=1), Step.SUBMISSION),
    (
        "deposit asked",
        "agree",
        changed(t.ROUTER_HOLD_REQUESTED, {"purpose": "escrow"}, amount_micro=1),
        Step.SUBMISSION,
    ),
    ("deposit held", "agree", changed(t.HOLD_PLACED, {"purpose": "escrow"}, amount_micro=1), Step.SUBMISSION),
    (
        "whose deposit",
        "agree",
        changed(t.HOLD_PLACED, {"purpose": "escrow"}, party=STRANGER.participant_id),
        Step.SUBMISSION,
    ),
    ("no deposit", "agree", dropped(t.HOLD_PLACED, purpose="escrow"), Step.SUBMISSION),
    ("model of another id", "agree", modelled(model_id=ONES), Step.SUBMISSION),
    ("model's prices", "agree", modelled(output_token_micro=1), Step.SUBMISSION),
    ("model's context", "agree", modelled(context_tokens_max=4), Step.SUBMISSION),
    ("model's vocabulary", "agree", modelled(vocab_size=6), Step.SUBMISSION),
    ("not refused after all", "refused", dropped(t.HOLD_REFUSED), Step.SUBMISSION),
    ("submission under another's id", "agree", resubmitted(expires_ms=2**50), Step.SUBMISSION),
    (
        "a smaller deposit",
        "agree",
        both(
            (t.ROUTER_HOLD_REQUESTED, ESCROW, {"amount_micro": 1}),
            (t.HOLD_PLACED, ESCROW, {"amount_micro": 1}),
        ),
        Step.SUBMISSION,
    ),
    (
        "a deposit of another",
        "agree",
        both(
            (t.ROUTER_HOLD_REQUESTED, ESCROW, {"party": STRANGER.participant_id}),
            (t.HOLD_PLACED, ESCROW, {"party": STRANGER.participant_id}),
        ),
        Step.SUBMISSION,
    ),
    (
        "another's deposit refused",
        "refused",
        changed(t.HOLD_REFUSED, party=STRANGER.participant_id),
        Step.SUBMISSION,
    ),
    # R5
    *[
        (f"lease: {name}", "agree", released(**{name: value}), Step.LEASE)
        for name, value in {
            "user": STRANGER.participant_id,
            "model_id": ONES,
            "prompt_hash": ONES,
            "prompt_count": 4,
            "token_count_max": 6,
            "sampling": m.SamplingV1(temperature_micro=1),
            "eos_stop": False,
            "seed": ONES,
            "salt": b"another sixteen.",
            "schema_digest": ONES,
            "profile_set": ONES,
            "job_id": ONES,
            "signer": STRANGER,
        }.items()
    ],
    (
        "generator's stake",
        "agree",
        changed(t.HOLD_PLACED, {"purpose": "generator_stake"}, amount_micro=1),
        Step.LEASE,
    ),
    ("no generator's stake", "agree", dropped(t.HOLD_PLACED, purpose="generator_stake"), Step.LEASE),
    ("an attempt not closed", "refunded", dropped(t.ATTEMPT_CLOSED, attempt=1), Step.LEASE),
    ("an attempt not charged for", "refunded", dropped(t.ATTEMPT_CHARGED, attempt=2), Step.LEASE),
    ("an attempt charged whose stake nobody held", "refunded", unheld(2), Step.LEASE),
    ("no epoch", "epoch_seed", lambda p: replace(p.receipt, epochs=()), Step.LEASE),
    (
        "an epoch too many",
        "agree",
        lambda p: replace(p.receipt, epochs=play("epoch_seed").receipt.epochs),
        Step.LEASE,
    ),
    # R6
    ("result by another", "agree", recommitted(STRANGER), Step.COMMITMENT),
    (
        "recorded for another",
        "agree",
        changed(t.COMMITMENT_RECORDED, generator=STRANGER.participant_id),
        Step.COMMITMENT,
    ),
    ("attempt", "agree", changed(t.COMMITMENT_RECORDED, attempt=2), Step.LEASE),
    ("lease of another", "agree", released(generator=STRANGER.participant_id), Step.LEASE),
    ("output", "agree", recommitted(output=pack_tokens((8, 9, 10, 11, 13))), Step.COMMITMENT),
    ("longer output", "agree", recommitted(output=pack_tokens((*OUTPUT, 3))), Step.COMMITMENT),
    ("shorter output", "agree", recommitted(output=pack_tokens(OUTPUT[:-1])), Step.COMMITMENT),
    ("token outside", "agree", recommitted(output=pack_tokens((*OUTPUT[:-1], 100))), Step.COMMITMENT),
    ("goes on after EOS", "agree", recommitted(output=pack_tokens((8, 2, 10, 11, 12))), Step.COMMITMENT),
    ("finish reason", "agree", recommitted(finish_reason="stop"), Step.COMMITMENT),
    ("leaf count", "agree", recommitted(leaf_count=6), Step.COMMITMENT),
    ("binding", "agree", recommitted(binding=ONES), Step.COMMITMENT),
    ("stack", "agree", recommitted(stack="another/1"), Step.COMMITMENT),
    ("stale round", "agree", recommitted(latest_round=0), Step.COMMITMENT),
    ("round to come", "agree", recommitted(latest_round=2**40), Step.COMMITMENT),
    ("too late", "agree", changed(t.COMMITMENT_RECORDED, received_ms=2**52), Step.COMMITMENT),
    ("recorded before it came", "agree", changed(t.COMMITMENT_RECORDED, recorded_ms=1), Step.COMMITMENT),
    ("result of another attempt", "agree", recommitted(attempt=2), Step.COMMITMENT),
    ("result of another job", "agree", recommitted(job_id=ONES), Step.COMMITMENT),
    ("bound to another stack", "agree", rebound(stack="another/1"), Step.COMMITMENT),
    ("bound to more tokens than were asked for", "agree", rebound(tokens=(*OUTPUT, 13)), Step.COMMITMENT),
    (
        "bound to tokens after the end",
        "agree",
        rebound(tokens=(8, 2, 10, 11, 12), finish_reason="stop"),
        Step.COMMITMENT,
    ),
    ("bound to an early end", "agree", rebound(tokens=OUTPUT[:-1]), Step.COMMITMENT),
    ("bound to an end that is none", "agree", rebound(finish_reason="stop"), Step.COMMITMENT),
    (
        "bound to an end that nobody wanted",
        "agree",
        rebound(tokens=OUTPUT[:-1], finish_reason="cancelled"),
        Step.COMMITMENT,
    ),
    ("cancelled by another", "cancelled", recancelled("verifier-1"), Step.COMMITMENT),
    ("another job cancelled", "cancelled", recancelled(job_id=ONES), Step.COMMITMENT),
    ("cancelled by nobody", "cancelled", recommitted(cancellation=None), Step.COMMITMENT),
    ("cancelled, and not said so", "cancelled", recommitted(finish_reason="length"), Step.COMMITMENT),
    ("whole, and cancelled", "agree", recommitted(finish_reason="cancelled"), Step.COMMITMENT),
    ("bound to a token outside", "agree", rebound(tokens=(*OUTPUT[:-1], 100)), Step.COMMITMENT),
    # R7
    ("another root", "agree", recommitted(root=ONES), Step.LOG),
    ("index", "agree", changed(t.COMMITMENT_RECORDED, log_index=1), Step.LOG),
    ("no proofs", "agree", lambda p: replace(p.receipt, log=None), Step.LOG),
    ("inclusion too long", "agree", logged(inclusion=(Digest(ONES),)), Step.LOG),
    ("consistency too long", "agree", logged(consistency=(Digest(ONES),)), Step.LOG),
    ("checkpoint's root", "agree", check_pointed("checkpoint", root=ONES), Step.LOG),
    ("checkpoint's size", "agree", check_pointed("checkpoint", size=2), Step.LOG),
    ("checkpoint's time", "agree", check_pointed("checkpoint", at_ms=1), Step.LOG),
    ("latest root", "agree", check_pointed("latest", root=ONES), Step.LOG),
    ("latest size", "agree", check_pointed("latest", size=3), Step.LOG),
    ("audit round that was known", "agree", changed(t.COMMITMENT_RECORDED, audit_round=2), Step.LOG),
    ("window", "agree", changed(t.COMMITMENT_RECORDED, window_close_round=99), Step.LOG),
    # R8
    ("a round missing", "agree", rounded(lambda _, rounds: rounds[1:]), Step.ROUNDS),
    (
        "a round too many",
        "no_challenge",
        rounded(lambda p, rounds: (*rounds, p.loopback.rounds[-1].data)),
        Step.ROUNDS,
    ),
    ("a round of another key", "agree", rounded(false_round), Step.ROUNDS),
    # R9
    (
        "lottery that did not take it",
        "agree",
        changed(t.AUDIT_OPENED, reason="lottery", challenge=None),
        Step.AUDIT,
    ),
    ("challenge of nobody", "agree", changed(t.AUDIT_OPENED, challenge=None), Step.AUDIT),
    ("challenge of another", "agree", other_challenge, Step.AUDIT),
    ("randomness", "agree", changed(t.AUDIT_OPENED, randomness=ONES), Step.AUDIT),
    ("audit of another attempt", "agree", changed(t.AUDIT_OPENED, attempt=2), Step.AUDIT),
    ("no audit", "agree", dropped(t.AUDIT_OPENED), Step.ROUNDS),
    ("window not closed", "no_challenge", dropped(t.WINDOW_CLOSED), Step.ROUNDS),
    ("lottery audit with a challenge", "lottery", changed(t.AUDIT_OPENED, challenge=b"x"), Step.AUDIT),
    (
        "deepened by another",
        "deepened",
        lambda p: forge(
            p.receipt,
            p.loopback.network,
            t.AUDIT_DEEPENED,
            challenge=p.loopback.network.seal(STRANGER, m.ChallengeRequestV1(job_id=p.job_id, attempt=1)),
        ),
        Step.AUDIT,
    ),
    ("no evidence", "equivocation", dropped(t.EVIDENCE), Step.AUDIT),
    ("evidence that agrees", "equivocation", other_evidence, Step.AUDIT),
    (
        "evidence of something else",
        "equivocation",
        changed(t.EQUIVOCATION, second_envelope_id=ONES),
        Step.AUDIT,
    ),
    (
        "first result of something else",
        "equivocation",
        changed(t.EQUIVOCATION, first_envelope_id=ONES),
        Step.AUDIT,
    ),
    ("challenge by a round that was known", "agree", earlier_round, Step.AUDIT),
    ("lottery by a round that was known", "lottery", earlier_round, Step.AUDIT),
    ("challenge of another attempt", "agree", challenged_attempt, Step.AUDIT),
    ("evidence by another", "equivocation", evidence(STRANGER), Step.AUDIT),
    ("evidence under a false lease", "equivocation", evidence(lease_signer=STRANGER), Step.AUDIT),
    (
        "evidence under another's lease",
        "equivocation",
        evidence(generator=STRANGER.participant_id),
        Step.AUDIT,
    ),
    # R10
    (
        "corner of a challenge",
        "agree",
        changed(t.AUDIT_OPENED, corner=m.CornerV1(layer_max=0, position_max=6, full_depth=False)),
        Step.CORNER,
    ),
    (
        "corner of the lottery",
        "lottery",
        changed(t.AUDIT_OPENED, corner=m.CornerV1(layer_max=1, position_max=6, full_depth=True)),
        Step.CORNER,
    ),
    # R11
    ("drawn", "agree", changed(t.VERIFIER_DRAWN, participant=STRANGER.participant_id), Step.SORTITION),
    ("place", "agree", changed(t.VERIFIER_DRAWN, place=1), Step.SORTITION),
    ("stake of who was drawn", "agree", stronger_member, Step.SORTITION),
    ("snapshot after the round", "agree", snapped(taken_ms=2**52), Step.SORTITION),
    ("another snapshot", "agree", snapped(number=7), Step.SORTITION),
    ("no snapshot", "agree", lambda p: replace(p.receipt, snapshots=()), Step.SORTITION),
    ("round of the draw", "agree", changed(t.VERIFIER_DRAWN, round_number=2), Step.SORTITION),
    ("stage bound too early", "confirm_prior", changed(t.STAGE_BOUND, ended_ms=2**52), Step.SORTITION),
    ("a snapshot too many", "agree", extra_snapshot, Step.SORTITION),
    # R12
    ("generator's root", "agree", with_party(0, lambda _p, _b: {"root": ONES}), Step.CLAIMS),
    ("generator's leaves", "agree", with_party(0, lambda _p, _b: {"leaf_count": 3}), Step.CLAIMS),
    (
        "another generator",
        "agree",
        with_party(0, lambda _p, _b: {"participant": STRANGER.participant_id}),
        Step.CLAIMS,
    ),
    ("verifier's root", "agree", with_party(1, lambda _p, _b: {"root": ONES}), Step.CLAIMS),
    (
        "verifier's corner",
        "agree",
        with_party(1, lambda _p, b: {"corner": b.corner.model_copy(update={"layer_max": 0})}),
        Step.CLAIMS,
    ),
    ("verifier's stage", "agree", with_party(1, lambda _p, _b: {"stage": 2}), Step.CLAIMS),
    ("no claim", "agree", with_party(1, lambda _p, _b: {"claim": None}), Step.CLAIMS),
    ("claim by another", "agree", reclaimed(STRANGER), Step.CLAIMS),
    *[
        (f"claim: {name}", "agree", reclaimed(**{name: value}), Step.CLAIMS)
        for name, value in {
            "root": ONES,
            "leaf_count": 3,
            "stack": "other",
            "retry": 1,
            "stage": 2,
            "attempt": 2,
            "job_id": ONES,
        }.items()
    ],
    ("generator's corner", "agree", with_party(0, lambda _p, _b: {"corner": HALF}), Step.CLAIMS),
    ("claim of too few leaves", "agree", with_party(1, smaller_claim), Step.CLAIMS),
    ("verifier of another stage", "agree", with_party(1, later_stage), Step.CLAIMS),
    ("sealed after the round", "agree", sealed_as(lambda _p, _b: {"sealed_ms": 2**52}), Step.CLAIMS),
    ("no openings' end", "agree", dropped(t.OPENINGS_CLOSED), Step.ROUNDS),
    # R13
    ("positions", "agree", changed(t.OPENINGS_CLOSED, positions=pack_tokens((0, 1, 2, 6))), Step.POSITIONS),
    ("sample count", "agree", sealed_as(lambda _p, _b: {"sample_count": 3}), Step.POSITIONS),
    # R14
    (
        "leaf",
        "agree",
        reopened(leaves=lambda o: (o.leaves[0][:-1] + bytes([o.leaves[0][-1] ^ 1]), *o.leaves[1:])),
        Step.OPENINGS,
    ),
    ("leaf too short", "agree", reopened(leaves=lambda o: (o.leaves[0][:-1], *o.leaves[1:])), Step.OPENINGS),
    ("leaf missing", "agree", reopened(leaves=lambda o: o.leaves[1:]), Step.OPENINGS),
    ("proof", "agree", reopened(proof=lambda o: ONES + o.proof[32:]), Step.OPENINGS),
    ("proof too long", "agree", reopened(proof=lambda o: o.proof + ONES), Step.OPENINGS),
    ("opening by another", "agree", reopened(STRANGER), Step.OPENINGS),
    ("opening of another stage", "agree", reopened(stage=2), Step.OPENINGS),
    ("part count", "agree", reopened(part_count=3), Step.OPENINGS),
    ("opening not accepted", "agree", dropped(t.OPENING_ACCEPTED), Step.OPENINGS),
    (
        "silent after all",
        "no_opening",
        lambda p: forge(
            p.receipt,
            p.loopback.network,
            t.OPENINGS_CLOSED,
            opened=find_said(p.receipt, p.loopback.network, t.OPENINGS_CLOSED).body.missing,
            missing=find_said(p.receipt, p.loopback.network, t.OPENINGS_CLOSED).body.opened,
        ),
        Step.OPENINGS,
    ),
    ("nobody missing", "no_opening", changed(t.OPENINGS_CLOSED, missing=()), Step.OPENINGS),
    # R15
    *[
        (f"comparison: {name}", "confirm_prior", compared_as(**{name: value}), Step.COMPARISONS)
        for name, value in {
            "verdict": "match",
            "mean_q16": 0,
            "peak_q16": 0,
            "row_count": 1,
            "distance_peak_q16": 0,
            "mean_match_max_q16": 2**40,
            "peak_match_max_q16": 2**40,
            "mean_mismatch_min_q16": 2**40,
            "peak_mismatch_min_q16": 2**40,
            "right": STRANGER.participant_id,
        }.items()
    ],
    # R16
    ("case", "agree", decided(case="confirm_generator"), Step.OUTCOME),
    ("acquitted cheat", "confirm_prior", decided(case="void", deciding=None, prior=None), Step.OUTCOME),
    ("deciding", "confirm_prior", decided(deciding=lambda b: b.prior), Step.OUTCOME),
    ("prior", "confirm_prior", decided(prior=None), Step.OUTCOME),
    (
        "outcome's corner",
        "agree",
        decided(corner=m.CornerV1(layer_max=0, position_max=6, full_depth=False)),
        Step.OUTCOME,
    ),
    ("outcome's stage", "agree", decided(stage=2), Step.OUTCOME),
    (
        "standing",
        "agree",
        decided(verifiers=lambda b: (b.verifiers[0].model_copy(update={"opened": False}),)),
        Step.OUTCOME,
    ),
    (
        "a comparison left out",
        "confirm_prior",
        decided(comparisons=lambda b: b.comparisons[1:]),
        Step.OUTCOME,
    ),
    (
        "comparisons in another order",
        "confirm_prior",
        decided(comparisons=lambda b: b.comparisons[::-1]),
        Step.OUTCOME,
    ),
    ("no outcome", "agree", dropped(t.OUTCOME_DECIDED), Step.OUTCOME),
    (
        "a verifier's stake that was never asked for",
        "agree",
        dropped(t.HOLD_PLACED, purpose="verifier_stake"),
        Step.OUTCOME,
    ),
    ("a stage that was never bound", "void", dropped(t.STAGE_BOUND, stage=3), Step.ROUNDS),
    # R17
    ("paid case", "agree", paid(case="void"), Step.PAYOFF),
    ("paid as unchallenged", "confirm_prior", paid(case="no_challenge", stage=0), Step.PAYOFF),
    ("paid Cg", "agree", paid(generation_micro=1), Step.PAYOFF),
    ("paid Cv", "agree", paid(verification_micro=1), Step.PAYOFF),
    ("pool", "agree", paid(pool_micro=lambda b: b.pool_micro + 1), Step.PAYOFF),
    ("slashed nobody", "confirm_prior", paid(slashed=()), Step.PAYOFF),
    ("slashed the honest", "agree", paid(slashed=(make_key("worker").participant_id,)), Step.PAYOFF),
    ("paid stage", "agree", paid(stage=2), Step.PAYOFF),
    ("paid attempt", "agree", paid(attempt=2), Step.PAYOFF),
    ("refunded with a commitment", "agree", paid(case="refunded"), Step.PAYOFF),
    ("refunded for no reason", "refunded", dropped(t.JOB_ABANDONED), Step.PAYOFF),
    ("no payout", "agree", dropped(t.PAYOUT_SETTLED), Step.PAYOFF),
    # R18
    ("one micro-unit more", "agree", line_as(0, amount_micro=lambda one: one.amount_micro + 1), Step.PAYOUT),
    (
        "one micro-unit less put in",
        "agree",
        line_as(1, held_micro=lambda one: one.held_micro - 1),
        Step.PAYOUT,
    ),
    ("a line left out", "agree", paid(lines=lambda b: b.lines[1:]), Step.PAYOUT),
    (
        "a line too many",
        "agree",
        paid(lines=lambda b: (*b.lines, m.PayoutLineV1(account="treasury", amount_micro=1, held_micro=0))),
        Step.PAYOUT,
    ),
    ("a line twice", "agree", paid(lines=lambda b: (*b.lines, b.lines[0])), Step.PAYOUT),
    ("paid to another", "agree", line_as(1, account=STRANGER.participant_id), Step.PAYOUT),
    ("a hold that was not asked for", "agree", dropped(t.VERIFIER_HOLD_REQUESTED), Step.PAYOUT),
    ("a hold of another amount", "agree", changed(t.VERIFIER_HOLD_REQUESTED, amount_micro=1), Step.PAYOUT),
    ("a hold without an answer", "agree", extra_request, Step.PAYOUT),
    (
        "a stake too small",
        "agree",
        both(
            (t.VERIFIER_HOLD_REQUESTED, {}, {"amount_micro": 1}),
            (t.HOLD_PLACED, VERIFIER_STAKE, {"amount_micro": 1}),
        ),
        Step.PAYOUT,
    ),
    ("paid one to the other", "agree", moved_payment, Step.PAYOUT),
    ("an account in two lines", "agree", paid(lines=split_line), Step.PAYOUT),
    ("paid for what was not done", "refunded", paid(generation_micro=1), Step.PAYOFF),
    ("refunded less", "refunded", line_as(0, amount_micro=1), Step.PAYOUT),
    ("refund's hold", "refunded", line_as(0, account=STRANGER.participant_id), Step.PAYOUT),
]


@pytest.mark.parametrize(
    ("ending", "forger", "step"),
    [one[1:] for one in FORGERIES],
    ids=[f"{one[3].value} {one[0]}" for one in FORGERIES],
)
def test_a_forgery_is_rejected_by_the_step_that_checks_it(ending: str, forger: Forge, step: Step) -> None:
    played = play(ending)
    report: Report = played.verify(forger(played))
    assert report.failure is not None
    assert not report.failure.is_internal, report.failure.reason
    assert (report.failure.step, bool(report.failure.reason)) == (step, True), report.failure.reason


def test_every_step_has_forgeries() -> None:
    """Those of the form and of the trust roots are in test_format; those of envelopes below."""
    assert {one[3] for one in FORGERIES} == set(Step) - {Step.FORMAT, Step.TRUST, Step.ENVELOPES}


@pytest.mark.parametrize("role", [Role.ROUTER, Role.VERIFIER, Role.LEDGER, Role.BEACON, Role.OPERATOR])
def test_a_message_signed_by_another_service_is_refused(role: Role) -> None:
    """Every service is trusted with its own words alone."""
    played = play("agree")
    network = played.loopback.network
    said = find_said(played.receipt, network, t.COMMITMENT_RECORDED)
    forged = network.seal(network.keys[role], said.body)
    record = tuple(forged if one == said.data else one for one in played.receipt.record)
    verify_envelopes(played, replace(played.receipt, record=record), "signed by the commitments")


def verify_envelopes(played: Played, receipt: Receipt, reason: str) -> None:
    failure = played.verify(receipt).failure
    assert failure is not None
    assert (failure.step, failure.is_internal) == (Step.ENVELOPES, False)
    assert reason in failure.reason


def test_the_records_order_is_one() -> None:
    played = play("agree")
    verify_envelopes(played, replace(played.receipt, record=played.receipt.record[::-1]), "not in its order")


def test_a_message_twice_is_refused() -> None:
    played = play("agree")
    record = tuple(
        sorted((*played.receipt.record, played.receipt.record[0]), key=played.receipt.record.index)
    )
    verify_envelopes(played, replace(played.receipt, record=record), "twice")


def test_a_second_word_on_the_same_thing_is_refused() -> None:
    """Two outcomes, both signed: the pool contradicts itself."""
    played = play("agree")
    network = played.loopback.network
    other = forge(played.receipt, network, t.OUTCOME_DECIDED, case="void")
    added = find_said(other, network, t.OUTCOME_DECIDED).data
    both = replace_record(
        replace(played.receipt, record=(*played.receipt.record, added)), network, lambda data: data
    )
    verify_envelopes(played, both, "two different outcome.v1")


def test_a_message_of_another_job_is_refused() -> None:
    played = play("agree")
    record = play("epoch_seed").receipt.record[0]
    receipt = replace(played.receipt, record=(record, *played.receipt.record[1:]))
    failure = played.verify(receipt).failure
    assert failure is not None
    assert failure.step is Step.ENVELOPES


def test_another_networks_envelopes_are_refused() -> None:
    played = play("agree")
    other = make_network(rules={"name": "unified-pool", "stage_max": 4})
    said = find_said(played.receipt, played.loopback.network, t.JOB_ADMITTED)
    forged = other.seal(other.keys[Role.ROUTER], said.body)
    record = tuple(forged if one == said.data else one for one in played.receipt.record)
    verify_envelopes(played, replace(played.receipt, record=record), "signature")


def test_rounds_snapshots_and_epochs_ascend() -> None:
    played = play("agree")
    verify_envelopes(
        played, replace(played.receipt, rounds=played.receipt.rounds[::-1]), "rounds do not ascend"
    )
    twice = (*played.receipt.snapshots, *played.receipt.snapshots)
    verify_envelopes(played, replace(played.receipt, snapshots=twice), "snapshots do not ascend")


def test_proofs_for_a_job_without_a_commitment_are_refused() -> None:
    played = play("refunded")
    log: LogProof | None = play("agree").receipt.log
    verify_envelopes(played, replace(played.receipt, log=log), "without a commitment")


def test_two_forgeries_that_agree_with_each_other_are_found_by_the_rows() -> None:
    """Pool and ledger together acquit a cheat: the opened rows say otherwise."""
    played = play("confirm_prior")
    network = played.loopback.network
    body = find_said(played.receipt, network, t.OUTCOME_DECIDED).body
    acquitted = forge(
        played.receipt,
        network,
        t.OUTCOME_DECIDED,
        case="confirm_generator",
        prior=None,
        comparisons=body.comparisons[:1],
    )
    failure = played.verify(acquitted).failure
    assert failure is not None
    assert failure.step is Step.OUTCOME
    assert "confirm_prior" in failure.computed


def test_a_dishonest_majority_of_flavours_is_what_the_record_says() -> None:
    """Sanity of the kit: rows of equal flavour match, others do not."""
    loopback = Loopback(
        habits={name: Habit("together") for name in ("verifier-1", "verifier-2", "verifier-3")}
    )
    job_id = loopback.play(challenge=True)
    outcome = loopback.find(t.OUTCOME_DECIDED, job_id)
    assert outcome.case == "confirm_prior"
    assert unpack_tokens(loopback.find(t.OPENINGS_CLOSED, job_id).positions)
