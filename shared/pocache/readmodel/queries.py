"""What pages and commands ask the read model: rows in pages of bounded size, by key and never by offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from pocache.readmodel import tables as tb

PAGE_ROWS: Final = 50
PAGE_ROWS_MAX: Final = 1_000
MINUTES_SHOWN: Final = 60
_MINUTE_MS: Final = 60_000
OPEN_PHASES: Final = ("escrowing", "queued", "locking", "generating", "lapsing", "committed", "abandoning")

Row = sa.RowMapping


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows, and the key to go on from, None at the end."""

    rows: Sequence[Row]
    next_key: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The network in numbers."""

    phases: Mapping[str, int]
    endings: Mapping[str, int]
    audits: Mapping[str, int]
    verdicts: Mapping[str, int]
    sums: Mapping[str, int]
    minutes: Sequence[tuple[int, int, int]]
    """(minute's start in ms, jobs admitted, jobs settled), ascending, without gaps."""
    round_number: int
    round_stored_ms: int
    log_size: int
    worker_count: int
    verifier_count: int
    user_count: int
    verifier_stake_micro: int
    latest: Sequence[Row]

    @property
    def open_count(self) -> int:
        """Jobs that are not over."""
        return sum(self.phases.get(one, 0) for one in OPEN_PHASES)

    @property
    def committed_count(self) -> int:
        """Jobs that came to a commitment, whatever became of them."""
        return self.log_size

    @property
    def audited_count(self) -> int:
        """Jobs that were audited."""
        return sum(self.audits.values())


def read_overview(connection: sa.Connection, *, now_ms: int) -> Overview:
    """Return the network in numbers."""
    tallies: dict[str, dict[str, int]] = {}
    for row in connection.execute(sa.select(tb.TALLIES)):
        tallies.setdefault(row.kind, {})[row.name] = row.value
    latest_round = connection.execute(
        sa.select(tb.ROUNDS.c.number, tb.ROUNDS.c.stored_ms).order_by(tb.ROUNDS.c.number.desc()).limit(1)
    ).first()
    people = tb.PARTICIPANTS.c
    counts = connection.execute(
        sa.select(
            sa.func.count().filter(people.generated > 0),
            sa.func.count().filter(people.is_user),
        )
    ).one()
    snapshot = connection.execute(
        sa.select(tb.SNAPSHOTS.c.member_count, tb.SNAPSHOTS.c.stake_micro)
        .order_by(tb.SNAPSHOTS.c.number.desc())
        .limit(1)
    ).first()
    size = connection.execute(sa.select(sa.func.max(tb.ENTRIES.c.log_index))).scalar()
    return Overview(
        phases=tallies.get("phase", {}),
        endings=tallies.get("ending", {}),
        audits=tallies.get("audit", {}),
        verdicts=tallies.get("verdict", {}),
        sums=tallies.get("sum", {}),
        minutes=_read_minutes(connection, now_ms),
        round_number=0 if latest_round is None else latest_round.number,
        round_stored_ms=0 if latest_round is None else latest_round.stored_ms,
        log_size=0 if size is None else size + 1,
        worker_count=counts[0],
        user_count=counts[1],
        verifier_count=0 if snapshot is None else snapshot.member_count,
        verifier_stake_micro=0 if snapshot is None else snapshot.stake_micro,
        latest=list_jobs(connection, limit=12).rows,
    )


def _read_minutes(connection: sa.Connection, now_ms: int) -> list[tuple[int, int, int]]:
    last = now_ms // _MINUTE_MS
    first = last - MINUTES_SHOWN + 1
    counts = []
    for column in (tb.JOBS.c.admitted_ms, tb.JOBS.c.settled_ms):
        minute = column.op("/")(_MINUTE_MS)
        rows = connection.execute(
            sa.select(minute, sa.func.count()).where(column >= first * _MINUTE_MS).group_by(minute)
        )
        counts.append({int(row[0]): int(row[1]) for row in rows})
    return [
        (one * _MINUTE_MS, counts[0].get(one, 0), counts[1].get(one, 0)) for one in range(first, last + 1)
    ]


def list_jobs(
    connection: sa.Connection,
    *,
    phase: str | None = None,
    ending: str | None = None,
    audit: str | None = None,
    slashed: bool = False,
    participant: str | None = None,
    before: int | None = None,
    limit: int = PAGE_ROWS,
) -> Page:
    """Return jobs, the latest first; ``phase`` may be ``open`` for all that are not over."""
    jobs = tb.JOBS.c
    where: list[Any] = []
    if phase == "open":
        where.append(jobs.phase.in_(OPEN_PHASES))
    elif phase:
        where.append(jobs.phase == phase)
    if ending:
        where.append(jobs.ending == ending)
    if audit:
        where.append(jobs.audit == audit)
    if slashed:
        where.append(jobs.slashed_count > 0)
    if participant:
        own = sa.select(tb.PARTS.c.number).where(tb.PARTS.c.participant == participant)
        where.append(jobs.number.in_(own))
    if before is not None:
        where.append(jobs.number < before)
    return _page(connection, sa.select(tb.JOBS).where(*where), jobs.number, limit)


def list_changed(connection: sa.Connection, after: int, limit: int) -> Sequence[Row]:
    """Return the jobs about which something was said after a position of the record, in that order."""
    jobs = tb.JOBS.c
    statement = sa.select(tb.JOBS).where(jobs.changed > after).order_by(jobs.changed).limit(limit)
    return connection.execute(statement).mappings().all()


def get_job(connection: sa.Connection, job_id: bytes) -> Row | None:
    """Return a job's row."""
    return connection.execute(sa.select(tb.JOBS).where(tb.JOBS.c.job_id == job_id)).mappings().first()


def find_jobs(connection: sa.Connection, prefix_hex: str, limit: int = PAGE_ROWS) -> Sequence[Row]:
    """Return jobs whose id begins with these hexadecimal digits."""
    whole = prefix_hex[: len(prefix_hex) // 2 * 2]
    low = bytes.fromhex(whole).ljust(32, b"\x00")
    high = bytes.fromhex(whole).ljust(32, b"\xff")
    statement = sa.select(tb.JOBS).where(tb.JOBS.c.job_id.between(low, high)).limit(PAGE_ROWS_MAX)
    rows = connection.execute(statement).mappings().all()
    return [row for row in rows if row["job_id"].hex().startswith(prefix_hex)][:limit]


def list_events(connection: sa.Connection, job_id: bytes) -> Sequence[Row]:
    """Return what the router said about a job, in order."""
    events = tb.EVENTS.c
    statement = (
        sa.select(tb.EVENTS).where(events.job_id == job_id).order_by(events.sequence).limit(PAGE_ROWS_MAX)
    )
    return connection.execute(statement).mappings().all()


def list_messages(connection: sa.Connection, job_id: bytes) -> Sequence[Row]:
    """Return when which message about a job was stored, in order."""
    messages = tb.MESSAGES.c
    columns = (
        messages.sequence,
        messages.kind,
        messages.stored_ms,
        sa.func.length(messages.data).label("size"),
    )
    statement = sa.select(*columns).where(messages.job_id == job_id).order_by(messages.sequence)
    return connection.execute(statement.limit(PAGE_ROWS_MAX)).mappings().all()


def list_parts(connection: sa.Connection, number: int) -> Sequence[Row]:
    """Return who took part in a job."""
    statement = (
        sa.select(tb.PARTS).where(tb.PARTS.c.number == number).order_by(tb.PARTS.c.role, tb.PARTS.c.stage)
    )
    return connection.execute(statement.limit(PAGE_ROWS_MAX)).mappings().all()


def list_payouts(connection: sa.Connection, number: int) -> Sequence[Row]:
    """Return what a job's pool took from and gave to whom."""
    statement = sa.select(tb.PAYOUTS).where(tb.PAYOUTS.c.number == number).order_by(tb.PAYOUTS.c.account)
    return connection.execute(statement).mappings().all()


def list_participants(connection: sa.Connection, role: str, *, limit: int = PAGE_ROWS_MAX) -> Sequence[Row]:
    """Return those who have generated, are drawn as verifiers, have asked for jobs; or everybody."""
    people = tb.PARTICIPANTS.c
    where = {
        "worker": sa.or_(people.generated > 0, people.is_verifier, people.stake_micro > 0),
        "user": people.is_user,
    }.get(role, sa.true())
    statement = sa.select(tb.PARTICIPANTS).where(where)
    ordered = statement.order_by(people.stake_micro.desc(), people.participant)
    return connection.execute(ordered.limit(limit)).mappings().all()


def get_participant(connection: sa.Connection, participant: str) -> Row | None:
    """Return somebody's row."""
    where = tb.PARTICIPANTS.c.participant == participant
    return connection.execute(sa.select(tb.PARTICIPANTS).where(where)).mappings().first()


def list_job_tests(connection: sa.Connection, participant: str | None = None) -> Sequence[Row]:
    """Return what the test over audited jobs says of everybody, or of this worker, for each model."""
    statement = sa.select(tb.JOB_TESTS).order_by(tb.JOB_TESTS.c.participant, tb.JOB_TESTS.c.model_id)
    if participant is not None:
        statement = statement.where(tb.JOB_TESTS.c.participant == participant)
    return connection.execute(statement.limit(PAGE_ROWS_MAX)).mappings().all()


def list_ejections(connection: sa.Connection, participant: str | None = None) -> Sequence[Row]:
    """Return who was ejected from which model, everybody or this worker, the latest first."""
    statement = sa.select(tb.EJECTIONS).order_by(tb.EJECTIONS.c.stored_ms.desc(), tb.EJECTIONS.c.participant)
    if participant is not None:
        statement = statement.where(tb.EJECTIONS.c.participant == participant)
    return connection.execute(statement.limit(PAGE_ROWS_MAX)).mappings().all()


def list_involvements(
    connection: sa.Connection, participant: str, *, before: int | None = None, limit: int = PAGE_ROWS
) -> Page:
    """Return the jobs somebody took part in, as what, and what it got out of them; the latest first."""
    parts, payouts, jobs = tb.PARTS.c, tb.PAYOUTS.c, tb.JOBS.c
    where = [parts.participant == participant]
    if before is not None:
        where.append(parts.number < before)
    joined = tb.PARTS.join(tb.JOBS, parts.number == jobs.number).outerjoin(
        tb.PAYOUTS, sa.and_(payouts.number == parts.number, payouts.account == parts.participant)
    )
    columns = (parts.role, parts.stage, payouts.held_micro, payouts.amount_micro, payouts.is_slashed)
    statement = sa.select(tb.JOBS, *columns).select_from(joined).where(*where)
    return _page(connection, statement, parts.number, limit)


def list_slashes(
    connection: sa.Connection, account: str | None = None, *, limit: int = PAGE_ROWS
) -> Sequence[Row]:
    """Return the jobs in which somebody, or this account, was slashed; the latest first."""
    payouts = tb.PAYOUTS.c
    where = [payouts.is_slashed, *([payouts.account == account] if account is not None else [])]
    joined = tb.PAYOUTS.join(tb.JOBS, payouts.number == tb.JOBS.c.number)
    columns = (payouts.account, payouts.held_micro, payouts.amount_micro)
    statement = sa.select(tb.JOBS, *columns).select_from(joined).where(*where)
    return connection.execute(statement.order_by(payouts.number.desc()).limit(limit)).mappings().all()


def list_stakes(connection: sa.Connection, participant: str, *, limit: int = 200) -> Sequence[Row]:
    """Return somebody's stake after each of its latest changes, ascending."""
    stakes = tb.STAKES.c
    statement = sa.select(tb.STAKES).where(stakes.participant == participant).order_by(stakes.entry.desc())
    return connection.execute(statement.limit(limit)).mappings().all()[::-1]


def list_transfers(connection: sa.Connection, participant: str, *, limit: int = PAGE_ROWS) -> Sequence[Row]:
    """Return what somebody brought into the network and took out of it, the latest first."""
    transfers = tb.TRANSFERS.c
    statement = sa.select(tb.TRANSFERS).where(transfers.participant == participant)
    return connection.execute(statement.order_by(transfers.sequence.desc()).limit(limit)).mappings().all()


def list_rounds(
    connection: sa.Connection, *, before: int | None = None, used: bool = False, limit: int = PAGE_ROWS
) -> Page:
    """Return rounds of the beacon, the latest first."""
    rounds = tb.ROUNDS.c
    where: list[Any] = [] if before is None else [rounds.number < before]
    if used:
        where.append(rounds.uses > 0)
    return _page(connection, sa.select(tb.ROUNDS).where(*where), rounds.number, limit)


def get_round_row(connection: sa.Connection, number: int) -> Row | None:
    """Return a round."""
    return connection.execute(sa.select(tb.ROUNDS).where(tb.ROUNDS.c.number == number)).mappings().first()


def list_round_uses(connection: sa.Connection, number: int, *, limit: int = 200) -> Sequence[Row]:
    """Return what was drawn from a round for which jobs."""
    uses = tb.ROUND_USES.c
    joined = tb.ROUND_USES.join(tb.JOBS, uses.number == tb.JOBS.c.number)
    statement = sa.select(tb.JOBS, uses.what).select_from(joined).where(uses.round == number)
    return connection.execute(statement.order_by(uses.number).limit(limit)).mappings().all()


def list_entries(connection: sa.Connection, *, before: int | None = None, limit: int = PAGE_ROWS) -> Page:
    """Return entries of the commitment log with their jobs and the checkpoint of each, the latest first."""
    entries, jobs, checkpoints = tb.ENTRIES.c, tb.JOBS.c, tb.CHECKPOINTS.c
    joined = tb.ENTRIES.outerjoin(tb.JOBS, entries.number == jobs.number).outerjoin(
        tb.CHECKPOINTS, checkpoints.size == entries.log_index + 1
    )
    columns = (
        entries.log_index,
        entries.leaf_hash,
        jobs.job_id,
        jobs.generator,
        checkpoints.root,
        checkpoints.at_ms,
    )
    statement = sa.select(*columns).select_from(joined)
    if before is not None:
        statement = statement.where(entries.log_index < before)
    return _page(connection, statement, entries.log_index, limit)


def get_checkpoint(connection: sa.Connection, size: int | None = None) -> Row | None:
    """Return the checkpoint of a size, or the latest."""
    statement = sa.select(tb.CHECKPOINTS).order_by(tb.CHECKPOINTS.c.size.desc()).limit(1)
    if size is not None:
        statement = statement.where(tb.CHECKPOINTS.c.size == size)
    return connection.execute(statement).mappings().first()


def list_faults(connection: sa.Connection, *, limit: int = PAGE_ROWS) -> Sequence[Row]:
    """Return messages of the record that are not what they must be."""
    statement = sa.select(tb.FAULTS).order_by(tb.FAULTS.c.sequence.desc()).limit(limit)
    return connection.execute(statement).mappings().all()


def _page(connection: sa.Connection, statement: Any, key: Any, limit: int) -> Page:
    """Return one page in descending order of a key; rows beyond it say whether there is another."""
    limit = max(1, min(limit, PAGE_ROWS_MAX))
    rows = connection.execute(statement.order_by(key.desc()).limit(limit + 1)).mappings().all()
    if len(rows) <= limit:
        return Page(rows, None)
    shown = rows[:limit]
    return Page(shown, int(shown[-1][key.name]))
