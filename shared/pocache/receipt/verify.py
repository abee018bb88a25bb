"""Judging a receipt, step by step, without trusting whoever made it (docs/protocol.md 14.3).

Owns the order of the steps and what happens when one does not hold: it is named, with what was said and what must be,
and nothing after it is looked at. Bytes from anybody go in; a report comes out, whatever they are. No network, no clock,
no torch. Not covered, and said in docs/protocol.md 14.4: whether the tokens are the model's where nobody audited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from pydantic import ValidationError

from pocache.protocol.errors import PocacheError, ReceiptError
from pocache.protocol.ids import NetworkId
from pocache.receipt.case import Case, RoundBook
from pocache.receipt.dossier import JOB_TOPICS, Dossier, NotShownError, get_order, open_message
from pocache.receipt.draws import check_audit, check_corner, check_positions, check_rounds, check_sortition
from pocache.receipt.format import Receipt, decode_receipt
from pocache.receipt.payment import check_payoff, check_payout
from pocache.receipt.promise import check_commitment, check_lease, check_log, check_submission
from pocache.receipt.replay import check_outcome
from pocache.receipt.report import DivergenceError, Findings, Report, Status, Step, StepResult
from pocache.receipt.stages import check_claims, check_comparisons, check_openings
from pocache.receipt.strict_json import read_json
from pocache.receipt.trust import TrustRoots
from pocache.runtime.network import SERVICE_ROLES, Genesis, Model, compute_network_id
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import ModelEntryV1

JOB_STEPS: Final[tuple[tuple[Step, Callable[[Case, Findings], None]], ...]] = (
    (Step.SUBMISSION, check_submission),
    (Step.LEASE, check_lease),
    (Step.COMMITMENT, check_commitment),
    (Step.LOG, check_log),
    (Step.ROUNDS, check_rounds),
    (Step.AUDIT, check_audit),
    (Step.CORNER, check_corner),
    (Step.SORTITION, check_sortition),
    (Step.CLAIMS, check_claims),
    (Step.POSITIONS, check_positions),
    (Step.OPENINGS, check_openings),
    (Step.COMPARISONS, check_comparisons),
    (Step.OUTCOME, check_outcome),
    (Step.PAYOFF, check_payoff),
    (Step.PAYOUT, check_payout),
)
"""The steps that look at one job, alike for a receipt and for the audit of the whole record."""


@dataclass
class _Opened:
    """What the first three steps leave for the others."""

    receipt: Receipt | None = None
    network: NetworkId | None = None
    genesis: Genesis | None = None
    case: Case | None = None


def verify_receipt(data: bytes, trust: TrustRoots) -> Report:
    """Judge a receipt in either form; never raises.

    Steps R1 to R18 in their order. The first that does not hold ends it; those behind it are not reached.
    """
    return examine_receipt(data, trust)[0]


def examine_receipt(data: bytes, trust: TrustRoots) -> tuple[Report, Case | None]:
    """Judge a receipt, and return with the report the job as it was opened, None where it could not be."""
    opened = _Opened()

    def read_form(found: Findings) -> None:
        opened.receipt = decode_receipt(data)
        found.note("bytes", len(data))
        found.note("envelopes of the record", len(opened.receipt.record))

    def read_trust(found: Findings) -> None:
        assert opened.receipt is not None, "read before"
        opened.network, opened.genesis = check_trust(opened.receipt, trust, found)

    def read_envelopes(found: Findings) -> None:
        assert opened.receipt is not None
        assert opened.network is not None
        assert opened.genesis is not None
        opened.case = _open_case(opened.receipt, opened.network, opened.genesis, trust, found)

    results: list[StepResult] = []
    head = ((Step.FORMAT, read_form), (Step.TRUST, read_trust), (Step.ENVELOPES, read_envelopes))
    for step, check in head:
        results.append(run_step(step, check))
        if results[-1].status is Status.FAILED:
            break
    case = opened.case
    if case is not None:
        results += run_job_steps(case)
    report = Report(
        steps=complete(results),
        job_id=None if case is None else case.dossier.job_id,
        network_id=opened.network,
        case="" if case is None else get_ending(case),
    )
    return report, case


def run_job_steps(case: Case) -> list[StepResult]:
    """Run steps R4 to R18 over one job, to the first that does not hold."""
    results: list[StepResult] = []
    for step, check in JOB_STEPS:
        results.append(run_step(step, lambda found, check=check: check(case, found)))  # type: ignore[misc]
        if results[-1].status is Status.FAILED:
            break
    return results


def run_step(step: Step, check: Callable[[Findings], None]) -> StepResult:
    """Run one step and return its answer, whatever happens in it."""
    found = Findings()
    try:
        check(found)
    except PocacheError as error:
        both = (error.stated, error.computed) if isinstance(error, DivergenceError) else ("", "")
        return StepResult(
            step,
            Status.FAILED,
            tuple(found.compared),
            error.code,
            str(error),
            stated=both[0],
            computed=both[1],
            is_missing=isinstance(error, NotShownError),
        )
    except Exception as error:  # noqa: BLE001
        # The boundary to hostile input: what nobody thought of is a failure that says so, never a pass, never a crash.
        reason = f"{type(error).__name__}: {error}"[:400]
        return StepResult(
            step,
            Status.FAILED,
            tuple(found.compared),
            code=PocacheError.code,
            reason=reason,
            is_internal=True,
        )
    if not found.is_applicable:
        return StepResult(step, Status.NOT_APPLICABLE, tuple(found.compared), reason=found.skipped)
    if found.unchecked:
        return StepResult(step, Status.UNCHECKED, tuple(found.compared), reason=found.unchecked)
    return StepResult(step, Status.HOLDS, tuple(found.compared))


def complete(results: Sequence[StepResult]) -> tuple[StepResult, ...]:
    """Return the steps that were run, and those that were not reached."""
    reached = {one.step for one in results}
    return (*results, *(StepResult(step, Status.NOT_REACHED) for step in Step if step not in reached))


def get_ending(case: Case) -> str:
    """Return how a job ended, as its record says it; empty while it has not."""
    payout = case.dossier.find(t.PAYOUT_SETTLED)
    if payout is not None:
        return payout.case
    return "refused" if case.dossier.is_refused else ""


def check_trust(receipt: Receipt, trust: TrustRoots, found: Findings) -> tuple[NetworkId, Genesis]:
    """R2: the genesis is that of the pinned network, with the pinned operator and the pinned beacon chain."""
    network = compute_network_id(receipt.genesis)
    found.equal("the network, SHA-256 of its genesis", network.hex(), trust.network_id)
    genesis = read_genesis(receipt.genesis)
    found.equal("the operator", genesis.signer(t.Role.OPERATOR), trust.operator)
    chain = genesis.beacon_chain
    found.equal("the beacon's chain hash", chain.chain_hash.hex(), trust.chain_hash)
    found.equal("its scheme", chain.scheme.value, trust.chain_scheme)
    found.equal("its public key", chain.public_key.hex(), trust.chain_public_key)
    return network, genesis


def read_genesis(data: bytes) -> Genesis:
    """Return the genesis in these bytes, with all that a verification takes from it. Raises ReceiptError, CodecError."""
    read_json(data, bytes_max=len(data))  # refused: keys given twice, floats, anything too deep
    try:
        genesis = Genesis.model_validate_json(data)
        missing = [role.value for role in SERVICE_ROLES if role.value not in genesis.signers]
        if missing:
            raise ReceiptError(f"the genesis names no signer for {', '.join(missing)}")
        genesis.beacon_chain, genesis.round_signers, genesis.rule_set, genesis.procedure  # noqa: B018 - built here: a bad value is named here
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the genesis"
        raise ReceiptError(
            f"the genesis is none that this release knows the rules of: {where}: {first['msg']}"
        ) from None
    except ValueError as error:
        raise ReceiptError(f"the genesis is none that this release knows the rules of: {error}") from None
    return genesis


def open_model(data: bytes, network: NetworkId) -> tuple[Model, Any]:
    """Return the model of a signed entry, and who signed it. Raises ReceiptError for an entry that contradicts itself."""
    opened = open_envelope(data, network, ModelEntryV1)
    try:
        return Model(opened.body, data), opened.sender
    except (ValueError, KeyError, TypeError) as error:
        raise ReceiptError(f"the model's entry contradicts itself: {error}") from None


def _open_case(
    receipt: Receipt, network: NetworkId, genesis: Genesis, trust: TrustRoots, found: Findings
) -> Case:
    """R3: open every envelope, each in its one spelling, by its signer, about this one job, in its place."""
    record = [open_message(one, network, genesis, JOB_TOPICS) for one in receipt.record]
    if [get_order(one) for one in record] != sorted(get_order(one) for one in record):
        raise ReceiptError("the record is not in its order: by topic, then by envelope id")
    dossier = Dossier(record)
    found.holds("messages about the job", len(dossier) > 0, len(dossier), "at least one")
    model, sender = open_model(receipt.model, network)
    open_message(receipt.model, network, genesis, (_MODEL,))
    rounds = [open_message(one, network, genesis, (t.BEACON_ROUND,)) for one in receipt.rounds]
    snapshots = [open_message(one, network, genesis, (t.SNAPSHOT_TAKEN,)) for one in receipt.snapshots]
    epochs = [open_message(one, network, genesis, (t.EPOCH,)) for one in receipt.epochs]
    numbers = tuple(one.body.round_number for one in rounds)
    _verify_ascending("rounds", numbers)
    _verify_ascending("snapshots", [one.body.number for one in snapshots])
    _verify_ascending("epochs", [one.body.number for one in epochs])
    if len(epochs) > 2:
        raise ReceiptError(f"{len(epochs)} epochs where two are enough")
    _verify_log(receipt, network, genesis, is_committed=bool(dossier.all(t.COMMITMENT_RECORDED)))
    found.note("rounds, snapshots, epochs", (len(rounds), len(snapshots), len(epochs)))
    by_number = dict(zip(numbers, receipt.rounds, strict=True))
    return Case(
        network=network,
        genesis=genesis,
        trust=trust,
        dossier=dossier,
        model=model,
        model_sender=sender,
        rounds=RoundBook(network, genesis, by_number.get),
        rounds_shown=numbers,
        snapshots={one.body.number: one.body for one in snapshots},
        is_record_whole=False,
        epochs=tuple(one.body for one in epochs),
        log=receipt.log,
    )


def _verify_log(receipt: Receipt, network: NetworkId, genesis: Genesis, *, is_committed: bool) -> None:
    if receipt.log is None:
        return
    if not is_committed:
        raise ReceiptError("proofs from the log, for a job without a commitment")
    for data in (receipt.log.checkpoint, receipt.log.latest):
        open_message(data, network, genesis, (t.CHECKPOINT,))


def _verify_ascending(name: str, numbers: Sequence[int]) -> None:
    if any(after <= before for before, after in pairwise(numbers)):
        raise ReceiptError(f"the {name} do not ascend, each once")


_MODEL: Final[t.Topic[ModelEntryV1]] = t.Topic("models.entries", ModelEntryV1, None, t.Role.OPERATOR)
"""A model's entry comes in a file, on no subject; it is signed by the operator like a message."""
