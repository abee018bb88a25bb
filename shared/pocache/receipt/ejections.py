"""Step A4 of an audit: every ejection and every bond, computed again from the outcomes on the record.

Owns one record of the tests for each worker and model, advanced by the outcomes in their order (docs/protocol.md 7.8).
What crosses must have been followed by an ejection that says the same, an ejection must have crossed, an ejected worker is
in no later snapshot for the model, and bonds are what the genesis says and no more. Judged at the end of the record: what
the pool or the ledger had not said yet when it ended is no divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pocache.protocol.ids import ModelId
from pocache.protocol.sprt import JobRecord, advance_record, compute_bond, judge_job
from pocache.receipt.dossier import Said
from pocache.runtime.network import Genesis, Model
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.comparisons import read_looks
from pocache.wire.topics import Role

Key = tuple[str, bytes]
"""A worker and a model."""
NOBODY = "none: by its genesis this network ejects nobody"


class Finding(NamedTuple):
    """What is not as it must be."""

    what: str
    stated: str
    computed: str
    job_id: bytes | None = None


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
        after = advance_record(before, evidence.grade, evidence.token_evidence_q16)
        self._records[key] = after
        if after is not before and after.crossed is not None:
            computed = m.EjectionV1(
                participant=generator,
                model_id=model_id,
                test=after.crossed.value,
                job_id=body.job_id,
                outcome=said.envelope_id,
                job_count=after.job_count,
                grade_sum_q16=after.sum_q16,
                token_sum_q16=after.token_sum_q16,
            )
            self._crossed[key] = _Crossing(computed)

    def find_divergences(self) -> Iterator[Finding]:
        """Yield what does not hold, at the end of the record."""
        yield from self._findings
        for key, crossing in self._crossed.items():
            if key not in self._ejected and crossing.is_overdue:
                computed = crossing.said
                yield Finding(_name("the ejection", key), "none", _describe(computed), computed.job_id)
        for key, one in self._ejected.items():
            stated, known = one.said.body, self._crossed.get(key)
            what = _name("the ejection", key)
            if known is None:
                record = self._records.get(key, JobRecord())
                yield Finding(what, _describe(stated), self._describe_record(record), stated.job_id)
            elif known.said != stated:
                yield Finding(what, _describe(stated), _describe(known.said), stated.job_id)
            if one.is_overdue and key not in self._bonds:
                yield Finding(_name("the bond", key), "none", "one is taken", stated.job_id)
        yield from self._find_bonds()

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


def _name(what: str, key: Key) -> str:
    return f"{what} of {key[0]} for model {key[1].hex()[:12]}"


def _describe(body: m.EjectionV1) -> str:
    return (
        f"by {body.test} after {body.job_count} jobs, sums {body.grade_sum_q16}, {body.token_sum_q16}, outcome"
        f" {body.outcome.hex()[:16]} of job {body.job_id.hex()[:16]}"
    )
