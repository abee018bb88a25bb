"""Step A4 of an audit: every ejection and every bond, computed again from the outcomes on the record.

Owns one record of the tests for each worker and model, advanced by the outcomes in their order (docs/protocol.md 7.8).
What crosses must have been followed by an ejection that says the same, an ejection must have crossed, an ejected worker is
in no later snapshot for the model, and bonds are what the genesis says and no more. Judged at the end of the record: what
the pool or the ledger had not said yet when it ended is no divergence, and neither is one outcome that the bus stored a
little after those that were decided behind it, as an outage can have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pocache.protocol.ids import ModelId
from pocache.protocol.sprt import JobEvidence, JobRecord, advance_record, compute_bond, judge_job
from pocache.receipt.dossier import Said
from pocache.runtime.network import Genesis, Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.comparisons import read_looks
from pocache.wire.topics import Role

Key = tuple[str, bytes]
"""A worker and a model."""
LATE_MAX: Final = 8
"""Of one worker's outcomes with one model, how many may have been stored before one that was decided before them."""
NOBODY: Final = "none: by its genesis this network ejects nobody"


class Finding(NamedTuple):
    """What is not as it must be."""

    what: str
    stated: str
    computed: str
    job_id: bytes | None = None


class _Count(NamedTuple):
    """An outcome that was counted."""

    outcome: bytes
    job_id: bytes
    evidence: JobEvidence


@dataclass
class _Crossing:
    """An outcome by which a test crossed."""

    said: m.EjectionV1
    is_overdue: bool = False
    """Whether the pool has said something since."""


@dataclass
class _Bond:
    """What the ledger has said of what an ejection costs."""

    first: m.BondTakenV1
    taken_micro: int = 0


@dataclass
class _Ejected:
    """An ejection, and what came of it."""

    said: Said[m.EjectionV1]
    decided: set[bytes] = field(default_factory=set)
    """Jobs whose outcome came later on the record, which the ledger reads in its order."""
    is_overdue: bool = False
    """Whether the ledger has paid one of these."""


class Ejections:
    """Takes every message of the record; what is about nobody's tests changes nothing."""

    def __init__(self, genesis: Genesis, models: Mapping[ModelId, Model]) -> None:
        self._share, self._models = genesis.bond_share, models
        self._records: dict[Key, JobRecord] = {}
        self._counts: dict[Key, list[_Count]] = {}
        self._counted: set[bytes] = set()
        self._crossed: dict[Key, _Crossing] = {}
        self._ejected: dict[Key, _Ejected] = {}
        self._bonds: dict[Key, _Bond] = {}
        self._findings: list[Finding] = []

    @property
    def count(self) -> int:
        """How many ejections the record has."""
        return len(self._ejected)

    def take(self, said: Said[Any]) -> None:
        """Note what a message says of ejections; outcomes are counted by :meth:`take_outcome`."""
        body = said.body
        if said.topic.signer is Role.VERIFIER:
            for crossing in self._crossed.values():
                crossing.is_overdue = True
        if said.topic is t.WORKER_EJECTED:
            self._take_ejection(said)
        elif said.topic is t.BOND_TAKEN:
            self._take_bond(body)
        elif said.topic is t.SNAPSHOT_TAKEN:
            self._take_snapshot(body)
        elif said.topic is t.PAYOUT_SETTLED:
            for one in self._ejected.values():
                one.is_overdue |= body.job_id in one.decided

    def take_outcome(self, said: Said[m.OutcomeV1], generator: str, model_id: bytes) -> None:
        """Count an audited job for its generator, once."""
        body = said.body
        model = self._models.get(ModelId(model_id))
        for one in self._ejected.values():
            if not one.is_overdue:
                one.decided.add(body.job_id)
        if self._share is None or model is None or body.job_id in self._counted:
            return
        self._counted.add(body.job_id)
        evidence = judge_job(read_looks(body.comparisons, generator), model.profile.limits.tokens)
        if evidence is None:
            return
        key = (generator, model_id)
        before = self._records.get(key, JobRecord())
        counted = _Count(said.envelope_id, body.job_id, evidence)
        after = _advance(before, counted)
        self._records[key] = after
        self._counts.setdefault(key, []).append(counted)
        computed = None if after is before else _make_ejection(key, after, counted)
        if computed is not None:
            self._crossed[key] = _Crossing(computed)

    def find_divergences(self) -> Iterator[Finding]:
        """Yield what does not hold, at the end of the record."""
        yield from self._findings
        for key, crossing in self._crossed.items():
            if key not in self._ejected and crossing.is_overdue:
                due = crossing.said
                yield Finding(_name("the ejection", key), "none", _describe(due), due.job_id)
        for key, one in self._ejected.items():
            stated, known = one.said.body, self._crossed.get(key)
            what = _name("the ejection", key)
            if (known is None or known.said != stated) and not self._is_of_another_order(key, stated):
                record = self._records.get(key, JobRecord())
                computed = self._describe_record(record) if known is None else _describe(known.said)
                yield Finding(what, _describe(stated), computed, stated.job_id)
            if one.is_overdue and key not in self._bonds:
                yield Finding(_name("the bond", key), "none", "one is taken", stated.job_id)
        yield from self._find_bonds()

    def _is_of_another_order(self, key: Key, stated: m.EjectionV1) -> bool:
        """Whether an ejection is that of the same outcomes, one of which was decided up to LATE_MAX places earlier."""
        counts, end = self._counts.get(key, []), stated.job_count
        start = max(0, end - 4 * LATE_MAX)
        before = JobRecord()
        for one in counts[:start]:
            before = _advance(before, one)
        for place in range(start, min(end, len(counts))):
            for late in range(place + 1, min(place + LATE_MAX + 1, len(counts))):
                moved = [*counts[start:place], counts[late], *counts[place:late], *counts[late + 1 :]]
                if _find_crossing(key, before, moved[: end - start]) == stated:
                    return True
        return False

    def _take_ejection(self, said: Said[m.EjectionV1]) -> None:
        body = said.body
        key = (body.participant, body.model_id)
        known = self._ejected.setdefault(key, _Ejected(said))
        if known.said.envelope_id != said.envelope_id:
            stated, computed = _describe(body), _describe(known.said.body)
            self._findings.append(Finding(_name("a second ejection", key), stated, computed, body.job_id))

    def _take_bond(self, body: m.BondTakenV1) -> None:
        key = (body.participant, body.model_id)
        known = self._bonds.setdefault(key, _Bond(body))
        known.taken_micro += body.taken_micro
        terms, first = ((one.ejection, one.stake_micro, one.bond_micro) for one in (body, known.first))
        if terms != first:
            stated, computed = (f"{stake, due} for {by.hex()}" for by, stake, due in (terms, first))
            self._findings.append(Finding(_name("stake and bond", key), stated, computed))
        if known.taken_micro + body.open_micro > body.bond_micro:
            stated = f"{known.taken_micro}, and {body.open_micro} open"
            self._findings.append(Finding(_name("the bond", key), stated, f"at most {body.bond_micro}"))

    def _take_snapshot(self, body: m.SnapshotV1) -> None:
        for member in body.members:
            for model_id in member.model_ids:
                key = (member.participant, model_id)
                if key in self._ejected:
                    what = _name(f"snapshot {body.number}", key)
                    self._findings.append(Finding(what, "may be drawn", "was ejected before"))

    def _find_bonds(self) -> Iterator[Finding]:
        for key, bond in self._bonds.items():
            stated, ejected = bond.first, self._ejected.get(key)
            if ejected is None or stated.ejection != ejected.said.envelope_id:
                computed = "none" if ejected is None else ejected.said.envelope_id.hex()
                yield Finding(_name("the bond's ejection", key), stated.ejection.hex(), computed)
            due = 0 if self._share is None else compute_bond(stated.stake_micro, self._share)
            if stated.bond_micro != due:
                yield Finding(_name("the bond", key), str(stated.bond_micro), str(due))

    def _describe_record(self, record: JobRecord) -> str:
        if self._share is None:
            return NOBODY
        return f"{record.job_count} audited jobs with sums {record.sum_q16}, {record.token_sum_q16}: {record.standing.value}"


def _advance(record: JobRecord, counted: _Count) -> JobRecord:
    return advance_record(record, counted.evidence.grade, counted.evidence.token_evidence_q16)


def _find_crossing(key: Key, record: JobRecord, counts: Iterable[_Count]) -> m.EjectionV1 | None:
    """Return the ejection that these outcomes lead to, in this order; None where they lead to none."""
    for counted in counts:
        record = _advance(record, counted)
        ejection = _make_ejection(key, record, counted)
        if ejection is not None:
            return ejection
    return None


def _make_ejection(key: Key, record: JobRecord, counted: _Count) -> m.EjectionV1 | None:
    """Return what the pool must say of a record that the outcome counted last has made crossing."""
    if record.crossed is None:
        return None
    return m.EjectionV1(
        participant=key[0],
        model_id=key[1],
        test=record.crossed.value,
        job_id=counted.job_id,
        outcome=counted.outcome,
        job_count=record.job_count,
        grade_sum_q16=record.sum_q16,
        token_sum_q16=record.token_sum_q16,
    )


def _name(what: str, key: Key) -> str:
    return f"{what} of {key[0]} for model {key[1].hex()[:12]}"


def _describe(body: m.EjectionV1) -> str:
    return (
        f"by {body.test} after {body.job_count} jobs, sums {body.grade_sum_q16}, {body.token_sum_q16}, outcome"
        f" {body.outcome.hex()[:16]} of job {body.job_id.hex()[:16]}"
    )
