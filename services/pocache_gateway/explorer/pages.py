"""What each page shows: from the path and the query to the values of a template.

Bad input is answered with words: an id that is none is not looked up, a filter that does not exist is not applied in
silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from pocache.protocol.errors import PocacheError
from pocache.protocol.ids import ModelId
from pocache.protocol.limits import ROUND_MAX
from pocache.protocol.sprt import CLEAR_Q16, EJECT_Q16, ONE_Q16
from pocache.readmodel import queries
from pocache.readmodel.dossiers import to_job_id
from pocache.readmodel.model import ReadModel
from pocache.receipt.case import RoundBook
from pocache.wire.topics import Stream
from pocache_gateway.explorer.charts import draw_bars, draw_steps
from pocache_gateway.explorer.formats import show_share, show_time
from pocache_gateway.explorer.jobview import JobViews, get_due_ms, list_rail

_PARTICIPANT: Final = re.compile(r"U[A-Z2-7]{55}")
_PREFIX: Final = re.compile(r"[0-9a-f]{4,64}")
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
PHASES: Final = (
    "open", "escrowing", "queued", "locking", "generating", "lapsing", "committed", "abandoning", "settled", "refunded", "refused",
)  # fmt: skip
ENDINGS: Final = (
    "no_challenge", "agree", "confirm_generator", "confirm_prior", "acquittal", "conviction", "void", "no_opening", "equivocation", "refunded",
)  # fmt: skip
AUDITS: Final = ("lottery", "challenge")


class NotFoundError(Exception):
    """What was asked for is not here, and why."""


@dataclass(frozen=True)
class PageContext:
    """What a page is made from."""

    model: ReadModel
    connection: sa.Connection
    views: JobViews
    path: Mapping[str, str]
    query: Mapping[str, str]
    now_ms: int
    may_read: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class PageKind:
    """A template and what fills it."""

    template: str
    make: Callable[[PageContext], dict[str, Any]]


def make_overview(page: PageContext) -> dict[str, Any]:
    """The network in numbers, and its latest jobs."""
    overview = queries.read_overview(page.connection, now_ms=page.now_ms)
    top = max((one[1] for one in overview.minutes), default=0)
    sums = overview.sums
    return {
        "here": "overview",
        "overview": overview,
        "cursor": page.model.get_cursor(Stream.RECORD.value),
        "bars": draw_bars(
            [(f"{show_time(at)[:5]}: {count} jobs", count) for at, count, _ in overview.minutes], top
        ),
        "bars_top": top,
        "bars_from": overview.minutes[0][0] if overview.minutes else 0,
        "per_minute": sum(one[1] for one in overview.minutes[-6:-1]) / 5,
        "challenge_share": show_share(overview.audited_count, overview.committed_count),
        "verification_share": show_share(sums.get("verification_micro", 0), sums.get("generation_micro", 0)),
        "models": list(page.model.models.values()),
    }


def make_jobs(page: PageContext) -> dict[str, Any]:
    """Jobs, the latest first, filtered."""
    phase = _choose(page, "state", PHASES)
    ending = _choose(page, "ending", ENDINGS)
    audit = _choose(page, "audit", AUDITS)
    slashed = _choose(page, "slashed", ("yes",))
    text = page.query.get("q", "").strip().lower()
    values: dict[str, Any] = {
        "here": "jobs",
        "filters": {"state": phase, "ending": ending, "audit": audit, "slashed": slashed},
        "choices": {"state": PHASES, "ending": ENDINGS, "audit": AUDITS},
        "q": text[:80],
        "problem": "",
    }
    if text:
        is_prefix = _PREFIX.fullmatch(text) is not None
        rows = queries.find_jobs(page.connection, text) if is_prefix else ()
        problem = (
            "" if is_prefix else "A job is looked for by the first four or more hexadecimal digits of its id."
        )
        return {**values, "page": queries.Page(rows, None), "problem": problem}
    found = queries.list_jobs(
        page.connection,
        phase=phase or None,
        ending=ending or None,
        audit=audit or None,
        slashed=bool(slashed),
        before=_read_key(page),
    )
    return {**values, "page": found}


def make_job(page: PageContext) -> dict[str, Any]:
    """One job, all of it."""
    job_id = to_job_id(page.path["job"])
    if job_id is None:
        raise NotFoundError("That is no job's id: an id is 64 hexadecimal digits in lower case.")
    row = queries.get_job(page.connection, job_id)
    if row is None:
        raise NotFoundError("No job of this id is in the record, as far as it was read here.")
    view = page.views.get(page.connection, row)
    model = page.model.models.get(ModelId(row["model_id"])) if row["model_id"] else None
    may_read = page.may_read(row["user"])
    return {
        "here": "jobs",
        "job": row,
        "view": view,
        "rail": list_rail(row),
        "model_name": "a model not known here" if model is None else model.entry.name,
        "parts": queries.list_parts(page.connection, row["number"]),
        "messages": queries.list_messages(page.connection, job_id),
        "may_read": may_read,
        "texts": view.texts if may_read else {},
        "tokens": view.tokens if may_read else {},
        "has_receipt": (bool(row["ending"]) or row["phase"] == "refused") and row["dossier_bytes"] > 0,
        "cursor": page.model.get_cursor(Stream.RECORD.value),
    }


def make_workers(page: PageContext) -> dict[str, Any]:
    """Those who generate and verify."""
    rows = queries.list_participants(page.connection, "worker")
    order = ("cleared", "open", "ejected")
    standings: dict[str, str] = {}
    for one in queries.list_job_tests(page.connection):
        worst = max(standings.get(one["participant"], "cleared"), one["standing"], key=order.index)
        standings[one["participant"]] = worst
    slashes = queries.list_slashes(page.connection, limit=20)
    return {"here": "workers", "rows": rows, "standings": standings, "slashes": slashes}


def make_accounts(page: PageContext) -> dict[str, Any]:
    """Everybody's money, as far as the record says."""
    rows = queries.list_participants(page.connection, "everybody")
    overview = queries.read_overview(page.connection, now_ms=page.now_ms)
    return {"here": "accounts", "rows": rows, "sums": overview.sums}


def make_participant(page: PageContext) -> dict[str, Any]:
    """One participant: what it did, what it has staked, why it was slashed."""
    participant = page.path["participant"]
    if _PARTICIPANT.fullmatch(participant) is None:
        raise NotFoundError("That is no participant: an id is 56 capitals and digits that begin with U.")
    row = queries.get_participant(page.connection, participant)
    if row is None:
        raise NotFoundError("Nobody of this id is in the record, as far as it was read here.")
    stakes = queries.list_stakes(page.connection, participant)
    points = [(one["stored_ms"], one["stake_micro"]) for one in stakes]
    if points:
        points.append((max(page.now_ms, points[-1][0]), points[-1][1]))
    return {
        "here": "workers",
        "person": row,
        "page": queries.list_involvements(page.connection, participant, before=_read_key(page)),
        "slashes": queries.list_slashes(page.connection, participant),
        "stakes": stakes,
        "stake_line": draw_steps(points),
        "tests": [
            {
                **one,
                "job_count": sum(one["grades"]),
                "bits": one["sum_q16"] / ONE_Q16,
                "token_bits": one["token_sum_q16"] / ONE_Q16,
            }
            for one in queries.list_job_tests(page.connection, participant)
        ],
        "ejections": queries.list_ejections(page.connection, participant),
        "is_ejecting": page.model.genesis.ejection is not None,
        "bits_ejected": EJECT_Q16 / ONE_Q16,
        "bits_cleared": CLEAR_Q16 / ONE_Q16,
        "transfers": queries.list_transfers(page.connection, participant),
    }


def make_rounds(page: PageContext) -> dict[str, Any]:
    """Rounds of the beacon."""
    used = _choose(page, "used", ("yes",))
    found = queries.list_rounds(page.connection, before=_read_key(page), used=bool(used))
    return {"here": "rounds", "page": found, "used": used, "chain": page.model.genesis.beacon_chain,
            "source": page.model.genesis.chain.source}  # fmt: skip


def make_round(page: PageContext) -> dict[str, Any]:
    """One round: its signature verified now, and what it decided."""
    number = _read_number(page.path["number"])
    row = None if number is None else queries.get_round_row(page.connection, number)
    if number is None or row is None:
        raise NotFoundError("No round of this number is kept here.")
    model = page.model
    book = RoundBook(model.network, model.genesis, lambda _number: row["data"])
    problem = ""
    try:
        book.get(number)
    except PocacheError as error:
        problem = f"{error.code}: {error}"
    return {
        "here": "rounds",
        "round": row,
        "due_ms": get_due_ms(model, number),
        "problem": problem,
        "uses": queries.list_round_uses(page.connection, number),
        "chain": model.genesis.beacon_chain,
    }


def make_log(page: PageContext) -> dict[str, Any]:
    """The commitment log: its latest checkpoint, held against the root that its entries give here."""
    checkpoint = queries.get_checkpoint(page.connection)
    tree, computed = page.model.tree, None
    if checkpoint is not None and checkpoint["size"] <= len(tree):
        computed = tree.root(checkpoint["size"])
    return {
        "here": "log",
        "page": queries.list_entries(page.connection, before=_read_key(page)),
        "checkpoint": checkpoint,
        "computed": computed,
        "entry_count": len(tree),
        "faults": queries.list_faults(page.connection),
        "witnesses": page.model.genesis.witnesses,
    }


def make_verify(page: PageContext) -> dict[str, Any]:
    """A receipt from a file, judged in the reader's own browser."""
    del page
    return {"here": "verify"}


def _choose(page: PageContext, name: str, choices: tuple[str, ...]) -> str:
    value = page.query.get(name, "")
    if value and value not in choices:
        raise NotFoundError(f"There is no {name} “{value[:40]}”: it may be {', '.join(choices)}.")
    return value


def _read_key(page: PageContext) -> int | None:
    text = page.query.get("before")
    if text is None:
        return None
    number = _read_number(text)
    if number is None:
        raise NotFoundError("before is the number that the page before ended with.")
    return number


def _read_number(text: str) -> int | None:
    if _NUMBER.fullmatch(text) is None or not text.isascii() or int(text) > ROUND_MAX:
        return None
    return int(text)


PAGES: Final[Mapping[str, PageKind]] = {
    "overview": PageKind("overview.html", make_overview),
    "jobs": PageKind("jobs.html", make_jobs),
    "job": PageKind("job.html", make_job),
    "workers": PageKind("workers.html", make_workers),
    "accounts": PageKind("accounts.html", make_accounts),
    "participant": PageKind("participant.html", make_participant),
    "rounds": PageKind("rounds.html", make_rounds),
    "round": PageKind("round.html", make_round),
    "log": PageKind("log.html", make_log),
    "verify": PageKind("verify.html", make_verify),
}
