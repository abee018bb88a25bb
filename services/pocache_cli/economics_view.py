"""What `pocache economics` prints, for people and for scripts: tables, and the same as plain values for JSON.

Owns headings, units and rounding. Exact fractions stay exact in JSON wherever they are money, and are rounded where they
are rates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pocache.protocol.committee_table import CommitteeRow
    from pocache.protocol.incentives import AuditTerms, DetectionTable, Deterrence
    from pocache.protocol.payoff import TableRow
    from pocache.protocol.truth import CapitalRow, TruthRow
    from pocache_cli.economics_simulation import Result


@dataclass(frozen=True, slots=True)
class Incentives:
    """All of a rule set that is not a row of its table."""

    beta: Fraction
    """The generator's."""
    beta_min: Fraction | None
    detection: DetectionTable
    terms: AuditTerms
    deterrence: Sequence[Deterrence]
    truth: Sequence[TruthRow]
    capital: Sequence[CapitalRow]
    verifier_beta_min: Fraction | None = None
    """`fixed-fee-committee` only: below it a ring gains by convicting the honest."""


def build_incentives_json(incentives: Incentives) -> dict[str, Any]:
    """Return the incentives as plain values: money exact, rates as decimals."""
    return {
        "detection_source": incentives.detection.source,
        "unpriced_attacks": list(incentives.detection.unpriced),
        "audit_share": float(incentives.terms.audit_share),
        "collusion": float(incentives.terms.collusion),
        "capture": float(incentives.terms.capture),
        "output_tokens": incentives.terms.output_count,
        "beta": float(incentives.beta),
        "beta_min": _to_rate(incentives.beta_min),
        "is_deterred": incentives.beta_min is not None and incentives.beta_min <= incentives.beta,
        "verifier_beta_min": _to_rate(incentives.verifier_beta_min),
        "attacks": [
            {
                "attack": row.attack,
                "saving": float(row.saving),
                "conviction": float(row.conviction),
                "beta_min": _to_rate(row.beta_min),
                "lottery_min": _to_rate(row.lottery_min),
            }
            for row in incentives.deterrence
        ],
        "truth": [
            {
                "verifier": row.verifier,
                "generator": row.generator,
                "lie": row.lie,
                "truth_micro": _to_money(row.truth_micro),
                "lie_micro": _to_money(row.lie_micro),
                "incentive_micro": _to_money(row.incentive_micro),
            }
            for row in incentives.truth
        ],
        "locked_capital": [
            {
                "party": row.party,
                "count": row.count,
                "each_micro": row.each_micro,
                "expected_micro": _to_money(row.expected_micro),
            }
            for row in incentives.capital
        ],
    }


def build_results_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return simulated rows as plain values; gains are in Cg."""
    return [
        {
            "rules": result.rules,
            "attack": result.attack,
            "share": float(result.share),
            "exact_gain": float(result.exact_gain),
            "simulated_gain": result.simulated_gain,
            "standard_error": result.standard_error,
            "gains": result.is_gain,
        }
        for result in results
    ]


def print_unified_table(rows: Sequence[TableRow], *, title: str) -> None:
    """Show Table 1 with numbers."""
    _print_table(
        title,
        "Gross payouts from the pool; who loses a stake is paid 0.",
        ("case", "k", "pool", "generator", "user", "deciding", "prior", "losing"),
        ([row.case.value, *_format(dataclasses.astuple(row)[1:])] for row in rows),
    )


def print_committee_table(rows: Sequence[CommitteeRow], *, title: str) -> None:
    """Show every outcome of `fixed-fee-committee` with numbers."""
    headings = (
        "case",
        "verifiers",
        "pool",
        "generator",
        "user",
        "first V",
        "other V",
        "treasury",
        "reserve",
        "drawn",
        "losing",
    )
    _print_table(
        title,
        "Gross payouts from the pool; `drawn` was moved into it from the reserve.",
        headings,
        ([row.case, *_format(dataclasses.astuple(row)[1:])] for row in rows),
    )


def print_incentives(incentives: Incentives) -> None:
    """Show what deters, what the truth is worth, and what is locked."""
    from pocache.protocol.truth import get_lies_that_pay

    terms, lies = incentives.terms, get_lies_that_pay(incentives.truth)
    least = "none deters" if incentives.beta_min is None else f"{float(incentives.beta_min):.3f}"
    caption = (
        f"β_min {least}, β {float(incentives.beta):g}; audited {float(terms.audit_share):.1%}, {terms.output_count}"
        f" output tokens, {float(terms.collusion):.1%} of the stake sides with the cheat. {incentives.detection.source}"
    )
    if incentives.detection.unpriced:
        caption += f". Saving unknown, not counted: {', '.join(incentives.detection.unpriced)}"
    if incentives.verifier_beta_min is not None:
        caption += (
            f". A ring that convicts the honest gains below β_V = {float(incentives.verifier_beta_min):.3f}"
        )
    _print_table(
        "What deters each attack",
        caption,
        ("attack", "saves", "convicted", "β_min", "lottery_min"),
        (
            [
                row.attack,
                f"{float(row.saving):.3f}",
                f"{float(row.conviction):.4f}",
                "none" if row.beta_min is None else f"{float(row.beta_min):.2f}",
                "none" if row.lottery_min is None else f"{float(row.lottery_min):.4f}",
            ]
            for row in incentives.deterrence
        ),
    )
    _print_table(
        "What the truth is worth to each verifier (micro-units, net of stake)",
        f"All others are honest. Situations in which a lie is worth as much or more: {len(lies)} of {len(incentives.truth)}.",
        ("verifier", "generator", "lie", "truth", "lie pays", "truth is worth"),
        (
            [
                row.verifier,
                row.generator,
                row.lie,
                *_format((row.truth_micro, row.lie_micro, row.incentive_micro)),
            ]
            for row in incentives.truth
        ),
    )
    _print_table(
        "Locked for one job (micro-units)",
        "From dispatch until it is settled; verifiers from the round that draws them.",
        ("party", "at most", "each", "on average"),
        (
            [row.party, *_format((row.count, row.each_micro, row.expected_micro))]
            for row in incentives.capital
        ),
    )


def print_results(results: Sequence[Result], *, title: str, caption: str) -> None:
    """Show what each attack gains."""
    _print_table(
        title,
        caption,
        ("rules", "attack", "stake", "expected", "simulated", "± 1 s.e.", ""),
        (
            [
                result.rules,
                result.attack,
                f"{float(result.share):.0%}" if result.share else "",
                f"{float(result.exact_gain):+.4f}",
                f"{result.simulated_gain:+.4f}",
                f"{result.standard_error:.4f}",
                "gains" if result.is_gain else "",
            ]
            for result in results
        ),
    )


def _format(values: Iterable[Any]) -> list[str]:
    return [f"{round(value):,}" for value in values]


def _to_money(value: Fraction) -> int | str:
    """Return whole micro-units as a number, others as a fraction's text: no digit is lost."""
    return value.numerator if value.denominator == 1 else str(value)


def _to_rate(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


def _print_table(title: str, caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # rich loads only when a table is drawn, so that --help and --json stay quick.
    from rich.console import Console
    from rich.table import Table

    body = [list(row) for row in rows]
    table = Table(title=title, caption=caption)
    for index, heading in enumerate(headings):
        is_number = all(
            not row[index] or row[index][0] in "+-0123456789" or row[index] == "none" for row in body
        )
        # Where the terminal is narrow lines are folded between words; of a number every digit is shown.
        cells = [row[index] for row in body]
        width = max(
            (len(part) for cell in cells for part in ([cell] if is_number else cell.split())), default=0
        )
        table.add_column(
            heading,
            justify="right" if is_number else "left",
            min_width=width,
            no_wrap=is_number,
            overflow="fold",
        )
    for row in body:
        table.add_row(*row)
    Console().print(table)
