"""The one tree of errors, each with a stable code and what becomes of the message that caused it.

PocacheError
├── InputError                 E1xx  what came from outside is malformed or out of bounds
│   ├── CodecError             E101  bytes that do not decode into the kind they claim
│   ├── EnvelopeError          E102  envelope malformed, of another kind, or signed by the wrong participant
│   ├── SignatureError         E103  a signature or key that does not verify
│   ├── LimitError             E104  a size, count or depth beyond its named limit
│   └── EncodingError          E105  rows, leaves or tokens that do not decode exactly
├── AdmissionError             E2xx  a well-formed request that the network refuses
│   ├── UnknownModelError      E201
│   ├── PromptError            E202  prompt empty, too long, or with tokens outside the vocabulary
│   ├── SamplingError          E203  sampling parameters out of range
│   ├── FundsError             E204  unknown account, or balance too short
│   ├── BackpressureError      E205  a queue is full; try again later
│   ├── ExpiredError           E206  a deadline or validity has passed
│   ├── UnknownJobError        E207  no such job, attempt or stage here
│   ├── ConflictError          E208  contradicts what is already recorded
│   └── NotAuthorizedError     E209  the sender is not the party that may do this
├── VerificationError          E3xx  a cryptographic or numeric check failed
│   ├── MerkleError            E301
│   ├── BeaconError            E302
│   ├── OpeningError           E303  an opening with a wrong, missing, extra, duplicated or malformed leaf
│   ├── CommitmentError        E304
│   ├── ChallengeError         E305
│   ├── MatchingError          E306  a comparison that has no numbers or the wrong ones
│   └── ReceiptError           E307  a receipt or record that says other than what can be computed from it
├── PayoffError                E401  parameters or standings that cannot be settled
├── LedgerError                E402  an operation that the ledger's rules refuse
├── NotYetError                E501  depends on something that has not arrived; redeliver
├── ConfigError                E601  configuration missing or contradictory; says what to set
├── EngineError                E701  the engine cannot run this model or request
│   ├── EngineCancelledError   E702  the generation was abandoned on request: it has no rows
│   └── LeavesError            E703  declared in pocache_worker.leaves
├── BrokenEngineError          E704  declared in pocache_worker.engines
├── BusError                   E801  the bus is unreachable, denied, or not provisioned
├── HaltedError                E802  declared in pocache.service.process
├── ChildFailedError           E803  declared in pocache_cli.children
├── DiskFullError              E804  declared in pocache.storage.store
└── GatewayError               E805  declared in pocache.client.http
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Disposition(StrEnum):
    """What a service does with the message whose handling raised."""

    TERMINATE = "terminate"
    """Redelivery cannot repair it: refuse, tell the sender, never deliver again."""

    REDELIVER = "redeliver"
    """It may succeed later: deliver again after a delay."""

    HALT = "halt"
    """Our own state is in doubt: stop the service rather than skip."""


class PocacheError(Exception):
    """Root of every error that this project raises on purpose."""

    code: ClassVar[str] = "E000"
    disposition: ClassVar[Disposition] = Disposition.TERMINATE


class InputError(PocacheError):
    """What came from outside is malformed or out of bounds."""

    code = "E100"


class CodecError(InputError):
    """Bytes that do not decode into the kind they claim."""

    code = "E101"


class EnvelopeError(InputError):
    """An envelope that is malformed, of another kind, or signed by the wrong participant."""

    code = "E102"


class SignatureError(InputError):
    """A signature or key that does not verify."""

    code = "E103"


class LimitError(InputError):
    """A size, count or depth beyond its named limit."""

    code = "E104"


class EncodingError(InputError):
    """Rows, leaves or tokens that do not decode exactly."""

    code = "E105"


class AdmissionError(PocacheError):
    """A well-formed request that the network refuses."""

    code = "E200"


class UnknownModelError(AdmissionError):
    """The model is not served on this network."""

    code = "E201"


class PromptError(AdmissionError):
    """A prompt that is empty, too long, or has tokens outside the vocabulary."""

    code = "E202"


class SamplingError(AdmissionError):
    """Sampling parameters out of range."""

    code = "E203"


class FundsError(AdmissionError):
    """Unknown account, or a balance too short for the deposit or stake."""

    code = "E204"


class BackpressureError(AdmissionError):
    """A queue is full; nothing was dropped, try again later."""

    code = "E205"


class ExpiredError(AdmissionError):
    """A deadline or a validity has passed."""

    code = "E206"


class UnknownJobError(AdmissionError):
    """No such job, attempt or stage here."""

    code = "E207"


class ConflictError(AdmissionError):
    """Contradicts what is already recorded."""

    code = "E208"


class NotAuthorizedError(AdmissionError):
    """The sender is not the party that may do this."""

    code = "E209"


class EjectedError(AdmissionError):
    """The worker was ejected from this model: it gets no further lease of it."""

    code = "E210"


class VerificationError(PocacheError):
    """A cryptographic or numeric check failed."""

    code = "E300"


class MerkleError(VerificationError):
    """A Merkle proof that does not lead to its root."""

    code = "E301"


class BeaconError(VerificationError):
    """A beacon round, key or chain that does not verify."""

    code = "E302"


class OpeningError(VerificationError):
    """An opening with a wrong, missing, extra, duplicated or malformed leaf."""

    code = "E303"


class CommitmentError(VerificationError):
    """A commitment that does not bind what it must."""

    code = "E304"


class ChallengeError(VerificationError):
    """A draw whose inputs are not what the protocol demands."""

    code = "E305"


class MatchingError(VerificationError):
    """A comparison that has no numbers, or the wrong ones: never a verdict."""

    code = "E306"


class ReceiptError(VerificationError):
    """A receipt or a record that says other than what can be computed from it."""

    code = "E307"


class PayoffError(PocacheError):
    """Parameters or standings that cannot be settled."""

    code = "E401"


class LedgerError(PocacheError):
    """An operation that the ledger's rules refuse."""

    code = "E402"


class NotYetError(PocacheError):
    """Depends on something that has not arrived yet."""

    code = "E501"
    disposition = Disposition.REDELIVER


class ConfigError(PocacheError):
    """Configuration that is missing or contradictory; the message says what to set."""

    code = "E601"


class EngineError(PocacheError):
    """The engine cannot run this model or this request."""

    code = "E701"


class EngineCancelledError(EngineError):
    """The generation was abandoned because its caller asked: it has no rows and no commitment."""

    code = "E702"
    disposition = Disposition.REDELIVER


class BusError(PocacheError):
    """The bus is unreachable, denied, or not provisioned."""

    code = "E801"
    disposition = Disposition.REDELIVER
