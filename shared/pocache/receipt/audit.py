"""The audit of a whole record: everything that can be computed again, by the steps that judge a receipt.

Owns what concerns more than one job: the order of the record, one commitment per attempt, the log that only grows,
the money of all jobs together, and the tests over each worker's jobs (docs/protocol.md 14.6). Each job is judged by the steps R4 to R18 when it is over. Works
through the record once, in its order, and keeps of a finished job only what the others need. Needs no torch, no network
and no trust in whoever runs the services.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pocache.protocol.errors import PocacheError, ReceiptError
from pocache.protocol.ids import JobId, ModelId, NetworkId
from pocache.receipt.accounts import Accounts
from pocache.receipt.assemble import read_submission
from pocache.receipt.case import Case, RoundBook
from pocache.receipt.dossier import JOB_TOPICS, Dossier, Said, open_message
from pocache.receipt.ejections import Ejections
from pocache.receipt.export import Entry
from pocache.receipt.grown_log import GrownLog, LogError
from pocache.receipt.promise import compute_log_entry, verify_checkpoint_note
from pocache.receipt.report import DivergenceError, Status
from pocache.receipt.succession import Found, Succession
from pocache.receipt.trust import TrustRoots
from pocache.receipt.verify import open_model, run_job_steps
from pocache.receipt.witnessed import Witnessed
from pocache.runtime.network import Genesis, Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Stream, get_topic

A_RECORD: Final = "A1"
"""Every message is where it belongs, signed by who must, and none is missing between them."""
A_LOG: Final = "A2"
"""One commitment per attempt, and a log that only grew."""
A_MONEY: Final = "A3"
"""Nobody has paid out what was never paid in, and the ledger's journal only grew."""
A_EJECTION: Final = "A4"
"""Who was ejected, had to be, and who had to be, was; each bond is what the genesis says."""

_DIVERGENCES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Divergence:
    """One thing that is not as it must be."""

    step: str
    what: str
    stated: str = ""
    computed: str = ""
    code: str = ReceiptError.code
    job_id: bytes | None = None
    sequence: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {
            "job_id": None if self.job_id is None else self.job_id.hex(),
            "step": self.step,
            "what": self.what,
            "stated": self.stated,
            "computed": self.computed,
            "code": self.code,
            "sequence": self.sequence,
        }


@dataclass
class AuditReport:
    """What an audit found."""

    messages: int = 0
    jobs: int = 0
    jobs_open: int = 0
    commitments: int = 0
    checkpoints: int = 0
    rounds_verified: int = 0
    seeds_open: int = 0
    ejections: int = 0
    deposited_micro: int = 0
    witnessed: int = 0
    """Checkpoints that others were shown, and that the log was held against."""
    divergences: list[Divergence] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing diverges."""
        return not self.divergences

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-safe values."""
        counts = {name: value for name, value in vars(self).items() if name != "divergences"}
        first = self.divergences[0].to_dict() if self.divergences else None
        return {"sound": self.is_sound, **counts, "divergences": len(self.divergences), "first": first}


@dataclass(frozen=True, slots=True)
class _OpenSeed:
    """A sampling seed whose epoch's key was not published when its job was over."""

    job_id: JobId
    seed: bytes
    epoch_max: int


class Auditor:
    """Takes a record, message by message, and says what is wrong with it."""

    def __init__(
        self,
        network: NetworkId,
        genesis: Genesis,
        models: Mapping[ModelId, Model],
        trust: TrustRoots,
        get_round: Callable[[int], bytes | None],
    ) -> None:
        self._network, self._genesis, self._models, self._trust = network, genesis, models, trust
        self._rounds = RoundBook(network, genesis, get_round, is_canonical=False)
        self._jobs: dict[bytes, list[Said[Any]]] = {}
        self._over: set[bytes] = set()
        self._waiting: dict[bytes, Dossier] = {}
        """Jobs that are over and whose entry's checkpoint has not come yet, as after an outage of the store."""
        self._numbered = Succession()
        self._seeds: list[_OpenSeed] = []
        self._log = GrownLog()
        self._accounts = Accounts(genesis.rules.lease_fee_micro)
        self._ejections = Ejections(genesis, models)
        self._last_sequence = 0
        self._witnessed: list[Witnessed] = []
        self.report = AuditReport()

    def hold_against(self, witnessed: Iterable[Witnessed]) -> None:
        """Compare the log of the record, at its end, with what others were shown of it."""
        self._witnessed += witnessed

    def take(self, entry: Entry) -> None:
        """Look at the next message of RECORD."""
        self.report.messages += 1
        job_id: bytes | None = None
        try:
            if self._last_sequence and entry.sequence != self._last_sequence + 1:
                self._diverge(
                    A_RECORD,
                    "the record has a gap",
                    str(entry.sequence),
                    str(self._last_sequence + 1),
                    sequence=entry.sequence,
                )
            self._last_sequence = entry.sequence
            said = self._open(entry)
            job_id = getattr(said.body, "job_id", None)
            self._file(said)
        except LogError as error:
            self._diverge(
                A_LOG, error.what, error.stated, error.computed, job_id=job_id, sequence=entry.sequence
            )
        except PocacheError as error:
            self._diverge(A_RECORD, str(error), code=error.code, job_id=job_id, sequence=entry.sequence)

    def finish(self) -> AuditReport:
        """Look at what is left at the end of the record, and return the report."""
        for job_id in list(self._waiting):
            self._judge(job_id, self._waiting.pop(job_id))
        for error in (*self._log.find_leftovers(), *self._log.find_forks(self._witnessed)):
            self._diverge(A_LOG, error.what, error.stated, error.computed)
        for job_id, said in self._jobs.items():
            self._guard(job_id, self._judge, job_id, said)
        self._check_seeds()
        for account, stated, least in self._accounts.find_overdrawn():
            self._diverge(A_MONEY, f"money of {account}, micro-units", str(stated), f"at least {least}")
        for found in self._ejections.find_divergences():
            self._diverge(A_EJECTION, found.what, found.stated, found.computed, job_id=found.job_id)
        report = self.report
        report.ejections = self._ejections.count
        report.jobs_open = len(self._jobs)
        report.commitments, report.checkpoints = self._log.size, len(self._log.checkpoints)
        report.rounds_verified = len(self._rounds.verified)
        report.witnessed = len(self._witnessed)
        report.deposited_micro = self._accounts.deposited_micro
        return report

    def _open(self, entry: Entry) -> Said[Any]:
        """Check the message as its takers do: subject, kind, signature, signer, job (docs/protocol.md 2.5)."""
        if entry.stream != Stream.RECORD.value:
            raise ReceiptError(f"a message of {entry.stream} among those of the record")
        topic = get_topic(entry.subject)
        if topic.stream is not Stream.RECORD:
            raise ReceiptError(f"{entry.subject} is no subject of the record")
        said = open_message(entry.data, self._network, self._genesis, (topic,), is_canonical=False)
        job_id = getattr(said.body, "job_id", None)
        tokens = topic.parse(entry.subject)
        if "job" in tokens and (job_id is None or tokens["job"] != job_id.hex()):
            raise DivergenceError(
                "the job that the subject names", tokens["job"], "" if job_id is None else job_id.hex()
            )
        return said

    def _file(self, said: Said[Any]) -> None:
        """Put a message where it belongs, and judge the job that it ends."""
        body = said.body
        self._accounts.take(said)
        self._ejections.take(said)
        if said.topic is t.SNAPSHOT_TAKEN:
            self._follow("R11", self._numbered.take_snapshot(body))
        elif said.topic is t.EPOCH:
            self._follow("R5", self._numbered.take_epoch(body))
        elif said.topic is t.JOURNAL_CHECKPOINT:
            self._follow(A_MONEY, self._numbered.take_journal(body))
        elif said.topic is t.CHECKPOINT:
            self._log.take_checkpoint(body, said.data)
            for job_id in list(self._waiting):
                self._judge_when_logged(job_id, self._waiting.pop(job_id))
            self._verify_note(body)
        if said.topic not in JOB_TOPICS:
            return
        if said.topic is t.COMMITMENT_RECORDED:
            result = open_envelope(body.result, self._network, m.ResultV1)
            self._log.take_entry(body, compute_log_entry(result.body, result.envelope_id))
        if body.job_id in self._over:
            if said.topic in (t.PAYOUT_SETTLED, t.OUTCOME_DECIDED, t.COMMITMENT_RECORDED):
                raise ReceiptError(f"a {body.kind} about a job that was over")
            return
        known = self._jobs.setdefault(body.job_id, [])
        if all(one.envelope_id != said.envelope_id for one in known):
            known.append(said)
        if said.topic is t.OUTCOME_DECIDED:
            self._count_outcome(said, Dossier(known, is_strict=False))
        is_refusal = said.topic is t.HOLD_REFUSED and body.purpose == "escrow"
        if said.topic is t.PAYOUT_SETTLED or is_refusal:
            self._over.add(body.job_id)
            self._guard(
                body.job_id, self._judge_when_logged, body.job_id, Dossier(self._jobs.pop(body.job_id))
            )

    def _count_outcome(self, said: Said[m.OutcomeV1], dossier: Dossier) -> None:
        """Count an audited job for its generator; whether there is a commitment to it is for the job's own steps."""
        recorded = dossier.find(t.COMMITMENT_RECORDED)
        if recorded is not None and dossier.all(t.JOB_ADMITTED):
            self._ejections.take_outcome(said, recorded.generator, read_submission(dossier).model_id)

    def _verify_note(self, checkpoint: m.CheckpointV1) -> None:
        """Check that witnesses are told what the record's readers are told."""
        try:
            if checkpoint.note:
                verify_checkpoint_note(checkpoint, self._network, self._genesis.signer(Role.COMMITMENTS))
        except DivergenceError as error:
            raise LogError(error.what, error.stated, error.computed) from error
        except PocacheError as error:
            raise LogError("the checkpoint's note", str(error), "signed by the log") from error

    def _judge_when_logged(self, job_id: bytes, dossier: Dossier) -> None:
        recorded = dossier.find(t.COMMITMENT_RECORDED)
        if recorded is not None and recorded.log_index + 1 not in self._log.checkpoints:
            self._waiting[job_id] = dossier
            return
        self._judge(job_id, dossier)

    def _judge(self, job_id: bytes, said: Dossier | list[Said[Any]]) -> None:
        """Run the steps of a receipt over a job, as far as it has come."""
        dossier = said if isinstance(said, Dossier) else Dossier(said)
        if not dossier.all(t.JOB_ADMITTED):
            raise ReceiptError("messages about a job that was never admitted")
        model = self._models.get(ModelId(read_submission(dossier).model_id))
        if model is None:
            raise ReceiptError("the job's model has no entry here")
        case = Case(
            network=self._network,
            genesis=self._genesis,
            trust=self._trust,
            dossier=dossier,
            model=model,
            model_sender=self._genesis.signer(Role.OPERATOR),
            rounds=self._rounds,
            rounds_shown=None,
            snapshots=self._numbered.snapshots,
            is_record_whole=True,
            epochs=tuple(self._numbered.epochs),
            log=self._log.prove(dossier),
        )
        self.report.jobs += 1
        for result in run_job_steps(case):
            if result.status is Status.FAILED and (dossier.is_over or not result.is_missing):
                what = result.reason if not result.stated else result.reason.split(":", 1)[0]
                self._diverge(
                    result.step.value, what, result.stated, result.computed, code=result.code, job_id=job_id
                )
        self._note_seed(case)

    def _follow(self, step: str, found: Iterable[Found]) -> None:
        for one in found:
            self._diverge(step, *one)

    def _note_seed(self, case: Case) -> None:
        """Keep a seed whose key may be published later; what the epochs so far give was checked by R5."""
        if case.is_committed and case.submission.body.seed is None and self._numbered.epochs:
            seed = case.lease.body.seed
            if seed not in self._numbered.compute_seeds(case.job_id):
                self._seeds.append(_OpenSeed(case.job_id, seed, self._numbered.epochs[-1].number))

    def _check_seeds(self) -> None:
        published = max(
            (one.number - 1 for one in self._numbered.epochs if one.previous_key is not None), default=0
        )
        for one in self._seeds:
            if one.seed in self._numbered.compute_seeds(one.job_id):
                continue
            if one.epoch_max > published:
                self.report.seeds_open += 1
                continue
            self._diverge(
                "R5", "the sampling seed", one.seed.hex(), "of an epoch's published key", job_id=one.job_id
            )

    def _guard(self, job_id: bytes, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except PocacheError as error:
            self._diverge("R3", str(error), code=error.code, job_id=job_id)

    def _diverge(self, step: str, what: str, stated: str = "", computed: str = "", **where: Any) -> None:
        if len(self.report.divergences) < _DIVERGENCES_MAX:
            self.report.divergences.append(Divergence(step, what, stated, computed, **where))


def open_models(entries: tuple[bytes, ...], network: NetworkId, genesis: Genesis) -> dict[ModelId, Model]:
    """Return the models of signed entries. Raises ReceiptError for one that the operator did not sign."""
    models: dict[ModelId, Model] = {}
    for data in entries:
        model, sender = open_model(data, network)
        if sender != genesis.signer(Role.OPERATOR):
            raise ReceiptError(f"the entry of {model.entry.name} is not signed by the operator")
        models[model.model_id] = model
    return models
