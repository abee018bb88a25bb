"""From messages of RECORD and BEACON to rows: what each says is added once, in the record's own order.

Owns which message changes what. Every message is opened as its services sign it; one that is not what it must be is
noted and skipped, never trusted. The position in the stream is written with the effects, in one transaction: what is
delivered again changes nothing, and a crash loses nothing that the next start does not read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from pocache.bus.port import StreamRecord
from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import ModelId, NetworkId
from pocache.protocol.merkle import hash_leaf
from pocache.protocol.sprt import JobEvidence, JobRecord, Standing, advance_record, judge_job
from pocache.readmodel import tables as tb
from pocache.receipt.dossier import JOB_TOPICS, Said, open_message, open_party
from pocache.receipt.promise import compute_log_entry
from pocache.runtime.network import Genesis, Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.comparisons import read_looks
from pocache.wire.topics import TOPICS, Stream, Topic

FAULTS_MAX: Final = 1_000
STAKE_ACCOUNT: Final = "stake:"
ROUNDS_KEPT: Final = 50_000
_SHARED: Final = (
    t.JOB_EVENT,
    t.SNAPSHOT_TAKEN,
    t.EPOCH,
    t.CHECKPOINT,
    t.STAKE_POSTED,
    t.DEPOSITED,
    t.WITHDRAWAL_ACCEPTED,
    t.WITHDRAWAL_PAID,
    t.WORKER_EJECTED,
    t.BOND_TAKEN,
)
_TAKEN: Final = frozenset({*JOB_TOPICS, *_SHARED})
_BY_START: Final[Mapping[str, tuple[Topic[Any], ...]]] = {
    start: tuple(one for one in TOPICS if one.pattern.startswith(f"{start}.") or one.pattern == start)
    for start in {".".join(one.pattern.split(".")[:2]) for one in TOPICS}
}
_JOB_TALLIES: Final = ("phase", "ending", "audit", "verdict")
_FORGOTTEN_AT_ONCE: Final = 100
_JOB_SUMS: Final = ("generation_micro", "verification_micro", "pool_micro", "output_count", "slashed_count")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept; what is older is dropped, the oldest first, and only of jobs that are over."""

    jobs_max: int = 200_000
    dossier_bytes_max: int = 4 << 30


class Projection:
    """Applies messages to the database; one writer."""

    def __init__(
        self, network: NetworkId, genesis: Genesis, models: Mapping[ModelId, Model], bounds: Bounds
    ) -> None:
        self._network, self._genesis, self._bounds = network, genesis, bounds
        self._models = models
        self._handlers: dict[Topic[Any], Callable[[sa.Connection, StreamRecord, Any], None]] = {
            t.JOB_EVENT: self._take_event,
            t.JOB_ADMITTED: self._take_admitted,
            t.COMMITMENT_RECORDED: self._take_recorded,
            t.COMMITMENT_REBOUND: self._take_rebound,
            t.AUDIT_OPENED: self._take_audit,
            t.VERIFIER_DRAWN: self._take_drawn,
            t.OPENINGS_CLOSED: self._take_closed,
            t.OUTCOME_DECIDED: self._take_outcome,
            t.PAYOUT_SETTLED: self._take_payout,
            t.STAKE_POSTED: self._take_stake,
            t.DEPOSITED: self._take_deposit,
            t.WITHDRAWAL_ACCEPTED: self._take_withdrawal,
            t.WITHDRAWAL_PAID: self._take_paid,
            t.WORKER_EJECTED: self._take_ejection,
            t.BOND_TAKEN: self._take_bond,
            t.SNAPSHOT_TAKEN: self._take_snapshot,
            t.EPOCH: self._take_epoch,
            t.CHECKPOINT: self._take_checkpoint,
        }

    def apply(self, connection: sa.Connection, records: Iterable[StreamRecord]) -> int:
        """Apply messages, those of a stream in their order, and return how many were new."""
        cursors: dict[str, int] = {}
        count = 0
        for record in records:
            if record.stream not in cursors:
                cursors[record.stream] = get_cursor(connection, record.stream)
            if record.sequence <= cursors[record.stream]:
                continue
            try:
                with connection.begin_nested():
                    self._take(connection, record)
            except PocacheError as error:
                _note_fault(connection, record, f"{error.code}: {error}")
            cursors[record.stream] = record.sequence
            count += 1
        for stream, sequence in cursors.items():
            set_cursor(connection, stream, sequence)
        self._forget(connection)
        return count

    def _forget(self, connection: sa.Connection) -> None:
        """Drop the envelopes, then the rows, of the oldest jobs that are over, beyond what is kept."""
        bounds, jobs = self._bounds, tb.JOBS.c
        over = sa.or_(jobs.ending != "", jobs.phase == "refused")
        while (beyond := get_tally(connection, "sum", "dossier_bytes") - bounds.dossier_bytes_max) > 0:
            oldest = sa.select(jobs.number, jobs.job_id, jobs.dossier_bytes).where(
                over, jobs.dossier_bytes > 0
            )
            rows = connection.execute(oldest.order_by(jobs.number).limit(_FORGOTTEN_AT_ONCE)).all()
            for row in rows:
                if beyond > 0:
                    _drop_envelopes(connection, row.number, row.job_id, row.dossier_bytes)
                    beyond -= row.dossier_bytes
            if not rows:
                break
        count = connection.execute(sa.select(sa.func.count()).select_from(tb.JOBS)).scalar_one()
        if count > bounds.jobs_max:
            oldest = sa.select(jobs.number, jobs.job_id, jobs.dossier_bytes).where(over).order_by(jobs.number)
            for row in connection.execute(oldest.limit(count - bounds.jobs_max)).all():
                _drop_envelopes(connection, row.number, row.job_id, row.dossier_bytes)
                for table in (tb.JOBS, tb.PARTS, tb.PAYOUTS, tb.ROUND_USES):
                    connection.execute(sa.delete(table).where(table.c.number == row.number))

    def _take(self, connection: sa.Connection, record: StreamRecord) -> None:
        topic = _find_topic(record.subject)
        if record.stream == Stream.BEACON.value and topic is t.BEACON_ROUND:
            self._take_round(connection, record)
            return
        if topic not in _TAKEN or record.stream != Stream.RECORD.value:
            return
        said = open_message(record.data, self._network, self._genesis, (topic,))
        if topic in JOB_TOPICS:
            _keep_message(connection, record, said)
        handler = self._handlers.get(topic)
        if handler is not None:
            handler(connection, record, said.body)

    # jobs

    def _take_event(self, connection: sa.Connection, record: StreamRecord, body: m.JobEventV1) -> None:
        values = (
            record.sequence,
            body.job_id,
            record.stored_ms,
            body.phase,
            body.attempt,
            body.code,
            body.detail,
        )
        connection.exec_driver_sql(_INSERT_EVENT, values)
        changes: dict[str, Any] = {"phase": body.phase, "attempt": body.attempt}
        if body.generator is not None:
            changes["generator"] = body.generator
        _change_job(connection, record, body.job_id, **changes)

    def _take_admitted(self, connection: sa.Connection, record: StreamRecord, body: m.JobAdmittedV1) -> None:
        submission = open_party(body.submission, self._network, m.SubmissionV1).body
        number = _change_job(
            connection,
            record,
            body.job_id,
            user=body.user,
            model_id=submission.model_id,
            prompt_count=len(submission.prompt) // 4,
            token_count_max=submission.token_count_max,
            admitted_ms=record.stored_ms,
        )
        _add_part(connection, record, body.user, number, "user", 0)

    def _take_recorded(
        self, connection: sa.Connection, record: StreamRecord, body: m.CommitmentRecordedV1
    ) -> None:
        result = open_party(body.result, self._network, m.ResultV1)
        number = _change_job(
            connection,
            record,
            body.job_id,
            generator=body.generator,
            attempt=body.attempt,
            output_count=len(result.body.output) // 4,
            recorded_ms=body.recorded_ms,
            log_index=body.log_index,
        )
        _add_part(connection, record, body.generator, number, "generator", 0)
        leaf_hash = hash_leaf(compute_log_entry(result.body, result.envelope_id))
        entry = {"log_index": body.log_index, "number": number, "leaf_hash": leaf_hash}
        connection.execute(insert(tb.ENTRIES).values(**entry).on_conflict_do_nothing())
        _use_round(connection, body.audit_round, number, "lottery")

    def _take_rebound(
        self, connection: sa.Connection, record: StreamRecord, body: m.CommitmentReboundV1
    ) -> None:
        number = _change_job(connection, record, body.job_id)
        _use_round(connection, body.audit_round, number, "lottery")

    def _take_audit(self, connection: sa.Connection, record: StreamRecord, body: m.AuditOpenedV1) -> None:
        number = _change_job(connection, record, body.job_id, audit=body.reason)
        _use_round(connection, body.round_number, number, "audit")

    def _take_drawn(self, connection: sa.Connection, record: StreamRecord, body: m.VerifierDrawnV1) -> None:
        number = _change_job(connection, record, body.job_id)
        _add_part(connection, record, body.participant, number, "verifier", body.stage)
        _use_round(connection, body.round_number, number, "verifiers")

    def _take_closed(self, connection: sa.Connection, record: StreamRecord, body: m.OpeningsClosedV1) -> None:
        number = _change_job(connection, record, body.job_id)
        _use_round(connection, body.round_number, number, "positions")

    def _take_outcome(self, connection: sa.Connection, record: StreamRecord, body: m.OutcomeV1) -> None:
        columns = (tb.JOBS.c.generator, tb.JOBS.c.model_id, tb.JOBS.c.verdict)
        row = connection.execute(sa.select(*columns).where(tb.JOBS.c.job_id == body.job_id)).first()
        generator = None if row is None else row.generator
        shown = [one for one in body.comparisons if generator in (one.left, one.right)]
        changes: dict[str, Any] = {}
        if shown:
            worst = max(shown, key=lambda one: (one.stage, one.retry))
            changes = {
                "verdict": worst.verdict,
                "peak_q16": worst.peak_q16,
                "limit_q16": worst.peak_mismatch_min_q16,
            }
            if row is not None and not row.verdict and row.model_id is not None:  # an outcome counts once
                model = self._models.get(ModelId(row.model_id))
                limits = None if model is None else model.profile.limits.tokens
                evidence = judge_job(read_looks(shown, row.generator), limits)
                assert evidence is not None, "something is shown"
                _advance_test(connection, row.generator, row.model_id, evidence)
        _change_job(connection, record, body.job_id, **changes)

    def _take_payout(self, connection: sa.Connection, record: StreamRecord, body: m.PayoutSettledV1) -> None:
        number = _change_job(
            connection,
            record,
            body.job_id,
            ending=body.case,
            settled_ms=record.stored_ms,
            generation_micro=body.generation_micro,
            verification_micro=body.verification_micro if body.case not in _UNVERIFIED else 0,
            pool_micro=body.pool_micro,
            slashed_count=len(body.slashed),
        )
        for line in body.lines:
            account = line.account.removeprefix(STAKE_ACCOUNT)
            is_slashed = account in body.slashed
            values = {
                "held_micro": line.held_micro,
                "amount_micro": line.amount_micro,
                "is_slashed": is_slashed,
            }
            statement = insert(tb.PAYOUTS).values(account=account, number=number, **values)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["account", "number"],
                    set_={
                        "held_micro": tb.PAYOUTS.c.held_micro + line.held_micro,
                        "amount_micro": tb.PAYOUTS.c.amount_micro + line.amount_micro,
                    },
                )
            )
            net = line.amount_micro - line.held_micro
            _add_to_participant(
                connection,
                record,
                account,
                net_micro=net,
                lost_micro=-net if is_slashed and net < 0 else 0,
                slashed=int(is_slashed),
            )

    # money

    def _take_stake(self, connection: sa.Connection, record: StreamRecord, body: m.StakePostedV1) -> None:
        _add_to_participant(connection, record, body.participant)
        where = tb.PARTICIPANTS.c.participant == body.participant
        known = connection.execute(
            sa.select(tb.PARTICIPANTS.c.stake_entry, tb.PARTICIPANTS.c.stake_micro).where(where)
        ).one()
        if body.entry < known.stake_entry:
            return
        values = {"stake_micro": body.stake_micro, "free_micro": body.free_micro, "stake_entry": body.entry}
        connection.execute(sa.update(tb.PARTICIPANTS).where(where).values(**values))
        if body.stake_micro != known.stake_micro:
            change = {"stored_ms": record.stored_ms, "stake_micro": body.stake_micro}
            statement = insert(tb.STAKES).values(participant=body.participant, entry=body.entry, **change)
            connection.execute(statement.on_conflict_do_nothing())
            _tally(connection, "sum", "stake_micro", body.stake_micro - known.stake_micro)

    def _take_deposit(self, connection: sa.Connection, record: StreamRecord, body: m.DepositV1) -> None:
        known = sa.select(tb.TRANSFERS.c.sequence).where(
            tb.TRANSFERS.c.what == "deposit", tb.TRANSFERS.c.reference == body.reference
        )
        if connection.execute(known).first() is not None:
            return  # the ledger credits a reference once
        _add_transfer(
            connection, record, body.participant, "deposit", body.bucket, body.amount_micro, body.reference
        )
        _add_to_participant(connection, record, body.participant, deposited_micro=body.amount_micro)
        _tally(connection, "sum", "deposited_micro", body.amount_micro)

    def _take_withdrawal(
        self, connection: sa.Connection, record: StreamRecord, body: m.WithdrawalAcceptedV1
    ) -> None:
        asked = open_party(body.request, self._network, m.WithdrawalRequestV1).body
        what = (body.participant, "withdrawal accepted", asked.bucket, asked.amount_micro, asked.nonce.hex())
        _add_transfer(connection, record, *what)

    def _take_paid(self, connection: sa.Connection, record: StreamRecord, body: m.WithdrawalPaidV1) -> None:
        what = (body.participant, "withdrawal paid", body.bucket, body.amount_micro, body.nonce.hex())
        _add_transfer(connection, record, *what)
        _add_to_participant(connection, record, body.participant, withdrawn_micro=body.amount_micro)
        _tally(connection, "sum", "withdrawn_micro", body.amount_micro)

    def _take_ejection(self, connection: sa.Connection, record: StreamRecord, body: m.EjectionV1) -> None:
        key = {"participant": body.participant, "model_id": body.model_id}
        values = {
            "stored_ms": record.stored_ms,
            "test": body.test,
            "job_id": body.job_id,
            "job_count": body.job_count,
            "sum_q16": body.grade_sum_q16,
            "token_sum_q16": body.token_sum_q16,
        }
        _add_to_participant(connection, record, body.participant)
        done = connection.execute(insert(tb.EJECTIONS).values(**key, **values).on_conflict_do_nothing())
        if done.rowcount:
            _tally(connection, "sum", "ejections", 1)

    def _take_bond(self, connection: sa.Connection, record: StreamRecord, body: m.BondTakenV1) -> None:
        ejections = tb.EJECTIONS.c
        where = (ejections.participant == body.participant, ejections.model_id == body.model_id)
        values = {
            "bond_micro": body.bond_micro,
            "taken_micro": ejections.taken_micro + body.taken_micro,
            "open_micro": body.open_micro,
        }
        connection.execute(sa.update(tb.EJECTIONS).where(*where).values(**values))
        if body.taken_micro:
            what = (body.participant, "bond taken", "stake", body.taken_micro, body.model_id.hex())
            _add_transfer(connection, record, *what)
            _add_to_participant(connection, record, body.participant, lost_micro=body.taken_micro)

    # what many jobs share

    def _take_snapshot(self, connection: sa.Connection, record: StreamRecord, body: m.SnapshotV1) -> None:
        values = {
            "taken_ms": body.taken_ms,
            "member_count": len(body.members),
            "stake_micro": sum(one.stake_micro for one in body.members),
            "data": record.data,
        }
        statement = insert(tb.SNAPSHOTS).values(number=body.number, **values)
        connection.execute(statement.on_conflict_do_nothing())
        for one in body.members:
            _add_to_participant(connection, record, one.participant, flag="is_verifier")

    def _take_epoch(self, connection: sa.Connection, record: StreamRecord, body: m.EpochV1) -> None:
        statement = insert(tb.EPOCHS).values(number=body.number, data=record.data)
        connection.execute(statement.on_conflict_do_nothing())

    def _take_checkpoint(self, connection: sa.Connection, record: StreamRecord, body: m.CheckpointV1) -> None:
        values = {"size": body.size, "root": body.root, "at_ms": body.at_ms, "data": record.data}
        connection.execute(insert(tb.CHECKPOINTS).values(**values).on_conflict_do_nothing())

    def _take_round(self, connection: sa.Connection, record: StreamRecord) -> None:
        said = open_message(record.data, self._network, self._genesis, (t.BEACON_ROUND,))
        randomness = hashlib.sha256(said.body.signature).digest()
        uses = sa.select(sa.func.count()).where(tb.ROUND_USES.c.round == said.body.round_number)
        values = {
            "number": said.body.round_number,
            "stored_ms": record.stored_ms,
            "randomness": randomness,
            "uses": connection.execute(uses).scalar_one(),
            "data": record.data,
        }
        connection.execute(insert(tb.ROUNDS).values(**values).on_conflict_do_nothing())
        old = said.body.round_number - ROUNDS_KEPT
        connection.execute(sa.delete(tb.ROUNDS).where(tb.ROUNDS.c.number == old, tb.ROUNDS.c.uses == 0))


# What is said for each message goes to the driver as it stands: building it anew each time costs more than running it.
_INSERT_EVENT: Final = "INSERT INTO events (sequence, job_id, stored_ms, phase, attempt, code, detail) VALUES (?, ?, ?, ?, ?, ?, ?)"
_INSERT_MESSAGE: Final = (
    "INSERT INTO messages (sequence, job_id, kind, stored_ms, data) VALUES (?, ?, ?, ?, ?)"
)
_ADD_BYTES: Final = "UPDATE jobs SET dossier_bytes = dossier_bytes + ?, changed = ? WHERE job_id = ?"
_SELECT_JOB: Final = (
    "SELECT number, phase, ending, audit, verdict, generation_micro, verification_micro, pool_micro, output_count,"
    " slashed_count FROM jobs WHERE job_id = ?"
)
_INSERT_JOB: Final = "INSERT INTO jobs (number, job_id, changed) VALUES (?, ?, ?)"
_ADD_TALLY: Final = "INSERT INTO tallies (kind, name, value) VALUES (?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET value = value + ?"

_UNVERIFIED: Final = frozenset({"no_challenge", "refunded", "equivocation"})
"""Endings whose verification cost was set aside and not spent."""


def get_cursor(connection: sa.Connection, stream: str) -> int:
    """Return the sequence of the last message of a stream that had its effect."""
    name = f"cursor {stream}"
    found = connection.execute(sa.select(tb.META.c.value).where(tb.META.c.name == name)).scalar()
    return 0 if found is None else int(found)


def set_cursor(connection: sa.Connection, stream: str, sequence: int) -> None:
    """Remember how far a stream was read."""
    values = {"name": f"cursor {stream}", "value": str(sequence)}
    statement = insert(tb.META).values(**values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["name"], set_={"value": str(sequence)})
    )


def get_tally(connection: sa.Connection, kind: str, name: str) -> int:
    """Return a sum, 0 where nothing was added yet."""
    where = (tb.TALLIES.c.kind == kind, tb.TALLIES.c.name == name)
    return connection.execute(sa.select(tb.TALLIES.c.value).where(*where)).scalar() or 0


def _advance_test(
    connection: sa.Connection, participant: str, model_id: bytes, evidence: JobEvidence
) -> None:
    tests = tb.JOB_TESTS.c
    where = (tests.participant == participant, tests.model_id == model_id)
    row = connection.execute(sa.select(tb.JOB_TESTS).where(*where)).first()
    record = JobRecord()
    if row is not None:
        first, second, third, fourth = row.grades
        record = JobRecord(
            row.sum_q16,
            row.cycle_count,
            (first, second, third, fourth),
            Standing(row.standing),
            row.token_sum_q16,
        )
    record = advance_record(record, evidence.grade, evidence.token_evidence_q16)
    values = {
        "sum_q16": record.sum_q16,
        "token_sum_q16": record.token_sum_q16,
        "cycle_count": record.cycle_count,
        "grades": list(record.grade_counts),
        "standing": record.standing.value,
    }
    statement = insert(tb.JOB_TESTS).values(participant=participant, model_id=model_id, **values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["participant", "model_id"], set_=values)
    )


def _drop_envelopes(connection: sa.Connection, number: int, job_id: bytes, size: int) -> None:
    for table in (tb.MESSAGES, tb.EVENTS):
        connection.execute(sa.delete(table).where(table.c.job_id == job_id))
    connection.execute(sa.update(tb.JOBS).where(tb.JOBS.c.number == number).values(dossier_bytes=0))
    _tally(connection, "sum", "dossier_bytes", -size)


def _find_topic(subject: str) -> Topic[Any] | None:
    candidates = _BY_START.get(".".join(subject.split(".")[:2]), ())
    return next((one for one in candidates if one.matches(subject)), None)


def _keep_message(connection: sa.Connection, record: StreamRecord, said: Said[Any]) -> None:
    body = said.body
    values = (record.sequence, body.job_id, body.kind, record.stored_ms, record.data)
    connection.exec_driver_sql(_INSERT_MESSAGE, values)
    size = len(record.data)
    added = (size, record.sequence, body.job_id)
    if not connection.exec_driver_sql(_ADD_BYTES, added).rowcount:
        _change_job(connection, record, body.job_id)
        connection.exec_driver_sql(_ADD_BYTES, added)
    _tally(connection, "sum", "dossier_bytes", size)


def _change_job(connection: sa.Connection, record: StreamRecord, job_id: bytes, **changes: Any) -> int:
    """Set fields of a job's row, made when it is first heard of, keep the tallies true, and return its number."""
    row = connection.exec_driver_sql(_SELECT_JOB, (job_id,)).first()
    if row is None:
        connection.exec_driver_sql(_INSERT_JOB, (record.sequence, job_id, record.sequence))
        row = connection.exec_driver_sql(_SELECT_JOB, (job_id,)).one()
        _tally(connection, "sum", "jobs", 1)
    known = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for a row as a mapping
    fields = ", ".join(f"{name} = ?" for name in ("changed", *changes))
    statement = f"UPDATE jobs SET {fields} WHERE job_id = ?"  # noqa: S608 - names of columns, from this file
    connection.exec_driver_sql(statement, (record.sequence, *changes.values(), job_id))
    for name in _JOB_TALLIES:
        old, new = known[name], changes.get(name, known[name])
        if old != new:
            if old:
                _tally(connection, name, old, -1)
            if new:
                _tally(connection, name, new, 1)
    for name in _JOB_SUMS:
        if name in changes and changes[name] != known[name]:
            _tally(connection, "sum", name, changes[name] - known[name])
    number: int = known["number"]
    return number


def _tally(connection: sa.Connection, kind: str, name: str, delta: int) -> None:
    connection.exec_driver_sql(_ADD_TALLY, (kind, name, delta, delta))


def _add_part(
    connection: sa.Connection, record: StreamRecord, participant: str, number: int, role: str, stage: int
) -> None:
    values = {"participant": participant, "number": number, "role": role, "stage": stage}
    done = connection.execute(insert(tb.PARTS).values(**values).on_conflict_do_nothing())
    if done.rowcount:
        counted = {"user": "submitted", "generator": "generated", "verifier": "verified"}[role]
        flag = {"user": "is_user", "verifier": "is_verifier"}.get(role)
        _add_to_participant(connection, record, participant, flag=flag, **{counted: 1})


def _add_to_participant(
    connection: sa.Connection,
    record: StreamRecord,
    participant: str,
    *,
    flag: str | None = None,
    **amounts: int,
) -> None:
    names = (*amounts, *([flag] if flag is not None else []))
    columns = "".join(f", {name}" for name in names)
    marks = ", ?" * len(names)
    added = "".join(f", {name} = {name} + excluded.{name}" for name in amounts)
    flagged = f", {flag} = 1" if flag is not None else ""
    statement = (
        f"INSERT INTO participants (participant, seen_ms{columns}) VALUES (?, ?{marks})"  # noqa: S608 - names of columns, from this file
        f" ON CONFLICT (participant) DO UPDATE SET seen_ms = excluded.seen_ms{added}{flagged}"
    )
    values = (participant, record.stored_ms, *amounts.values(), *([True] if flag is not None else []))
    connection.exec_driver_sql(statement, values)


def _add_transfer(
    connection: sa.Connection,
    record: StreamRecord,
    participant: str,
    what: str,
    bucket: str,
    amount_micro: int,
    reference: str,
) -> None:
    connection.execute(
        insert(tb.TRANSFERS).values(
            sequence=record.sequence,
            participant=participant,
            stored_ms=record.stored_ms,
            what=what,
            bucket=bucket,
            amount_micro=amount_micro,
            reference=reference,
        )
    )


def _use_round(connection: sa.Connection, round_number: int, number: int, what: str) -> None:
    values = {"round": round_number, "number": number, "what": what}
    done = connection.execute(insert(tb.ROUND_USES).values(**values).on_conflict_do_nothing())
    if done.rowcount:
        where = tb.ROUNDS.c.number == round_number
        connection.execute(sa.update(tb.ROUNDS).where(where).values(uses=tb.ROUNDS.c.uses + 1))


def _note_fault(connection: sa.Connection, record: StreamRecord, reason: str) -> None:
    count = connection.execute(sa.select(sa.func.count()).select_from(tb.FAULTS)).scalar_one()
    _tally(connection, "sum", "faults", 1)
    if count < FAULTS_MAX:
        values = {"stream": record.stream, "sequence": record.sequence, "subject": record.subject[:200]}
        connection.execute(insert(tb.FAULTS).values(**values, reason=reason[:500]).on_conflict_do_nothing())
