"""What a verification found: each step with what was compared, and the first that failed.

Owns the steps' numbers and names, which are those of docs/protocol.md 14.3, and their answers. There are four: it holds,
it does not, it has nothing to look at in this job, or it cannot be looked at yet and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pocache.protocol.errors import ReceiptError


class Step(StrEnum):
    """The steps in their order; the value is the number."""

    FORMAT = "R1"
    TRUST = "R2"
    ENVELOPES = "R3"
    SUBMISSION = "R4"
    LEASE = "R5"
    COMMITMENT = "R6"
    LOG = "R7"
    ROUNDS = "R8"
    AUDIT = "R9"
    CORNER = "R10"
    SORTITION = "R11"
    CLAIMS = "R12"
    POSITIONS = "R13"
    OPENINGS = "R14"
    COMPARISONS = "R15"
    OUTCOME = "R16"
    PAYOFF = "R17"
    PAYOUT = "R18"

    @property
    def subject(self) -> str:
        """What the step looks at, in a few words."""
        return _SUBJECTS[self]


_SUBJECTS = {
    Step.FORMAT: "size, form and canonical spelling",
    Step.TRUST: "the network, operator and beacon chain that you pinned",
    Step.ENVELOPES: "every envelope, its signer, its job",
    Step.SUBMISSION: "the user's submission, the model, the job id, the deposit",
    Step.LEASE: "the router's lease is for this submission",
    Step.COMMITMENT: "the generator's commitment binds lease, tokens and output",
    Step.LOG: "the commitment is in the log, before its round",
    Step.ROUNDS: "the beacon's rounds are the chain's",
    Step.AUDIT: "why the job was audited, or was not",
    Step.CORNER: "how deep the audit went",
    Step.SORTITION: "the verifiers were drawn by stake",
    Step.CLAIMS: "the claims were sealed before the positions could be known",
    Step.POSITIONS: "the positions were drawn",
    Step.OPENINGS: "the opened rows are those that were committed",
    Step.COMPARISONS: "the comparisons, in exact integers",
    Step.OUTCOME: "the outcome is the rules'",
    Step.PAYOFF: "the payoffs are the rules'",
    Step.PAYOUT: "everybody was paid so, and the pool is empty",
}


class Status(StrEnum):
    """How a step went."""

    HOLDS = "holds"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    UNCHECKED = "unchecked"
    """It applies, and cannot be decided from what is here: the reason says what is missing."""
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Compared:
    """One thing that a step looked at, and what it found there."""

    what: str
    value: str


@dataclass(slots=True)
class Findings:
    """What one step compares while it runs."""

    compared: list[Compared] = field(default_factory=list)
    unchecked: str = ""
    is_applicable: bool = True
    skipped: str = ""

    def equal(self, what: str, stated: object, computed: object) -> None:
        """Note that what was said is what comes out. Raises DivergenceError with both otherwise."""
        if type(stated) is not type(computed) and not (isinstance(stated, int) and isinstance(computed, int)):
            stated, computed = _plain(stated), _plain(computed)
        if stated != computed:
            raise DivergenceError(what, describe(stated), describe(computed))
        self.compared.append(Compared(what, describe(stated)))

    def holds(self, what: str, condition: bool, value: object, wanted: str) -> None:
        """Note that a condition on a value holds. Raises DivergenceError otherwise."""
        if not condition:
            raise DivergenceError(what, describe(value), wanted)
        self.compared.append(Compared(what, describe(value)))

    def note(self, what: str, value: object) -> None:
        """Note what was found where only finding it is the check."""
        self.compared.append(Compared(what, describe(value)))

    def skip(self, reason: str) -> None:
        """Say that this job has nothing for the step to look at."""
        self.is_applicable, self.skipped = False, reason

    def leave_open(self, reason: str) -> None:
        """Say that something that applies cannot be checked from what is here."""
        self.unchecked = reason


class DivergenceError(ReceiptError):
    """What was said and what can be computed differ."""

    def __init__(self, what: str, stated: str, computed: str) -> None:
        self.what, self.stated, self.computed = what, stated, computed
        super().__init__(f"{what}: it says {stated}; it must be {computed}")


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step's answer."""

    step: Step
    status: Status
    compared: tuple[Compared, ...] = ()
    code: str = ""
    reason: str = ""
    stated: str = ""
    computed: str = ""
    is_internal: bool = False
    """The step failed by a bug of this program, not by the receipt: never a pass, and to be reported."""
    is_missing: bool = False
    """What failed it is only that something was not said; of a job that is not over it may still be."""

    def to_dict(self) -> dict[str, Any]:
        """Return the step as JSON-safe values."""
        return {
            "step": self.step.value,
            "title": self.step.subject,
            "status": self.status.value,
            "compared": [{"what": one.what, "value": one.value} for one in self.compared],
            "code": self.code,
            "reason": self.reason,
            "stated": self.stated,
            "computed": self.computed,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All steps of one job."""

    steps: tuple[StepResult, ...]
    job_id: bytes | None = None
    network_id: bytes | None = None
    case: str = ""
    """How the job ended, as the receipt says it."""

    @property
    def failure(self) -> StepResult | None:
        """The first step that does not hold."""
        return next((one for one in self.steps if one.status is Status.FAILED), None)

    @property
    def is_valid(self) -> bool:
        """Whether no step failed and every one was reached."""
        return bool(self.steps) and all(
            one.status not in (Status.FAILED, Status.NOT_REACHED) for one in self.steps
        )

    @property
    def is_complete(self) -> bool:
        """Whether everything that applies could be checked."""
        return self.is_valid and all(one.status is not Status.UNCHECKED for one in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-safe values."""
        failure = self.failure
        return {
            "valid": self.is_valid,
            "complete": self.is_complete,
            "failed": None if failure is None else failure.step.value,
            "job_id": None if self.job_id is None else self.job_id.hex(),
            "network_id": None if self.network_id is None else self.network_id.hex(),
            "case": self.case,
            "steps": [one.to_dict() for one in self.steps],
        }


_SHOWN_CHARS_MAX = 400


def describe(value: object) -> str:
    """Return a value as a person reads it: bytes as hexadecimal digits, long ones cut."""
    plain = _plain(value)
    text = plain if isinstance(plain, str) else str(plain)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + f"… ({len(text)} characters)"


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_plain(one) for one in value)
    return value
