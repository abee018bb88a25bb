"""`pocache economics`: what each party is paid in every case, with numbers (docs/economics.md).

Owns the command's arguments and how the table is shown. The numbers come from the function that settles real
jobs; parameters under which a payout would be negative are refused with the inequality they violate, exit
code 2.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from pocache.protocol.errors import PayoffError
from pocache.protocol.limits import MICRO_MAX, STAGE_COUNT_MAX
from pocache.protocol.payoff import Rational, UnifiedPool, compute_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pocache.protocol.payoff import TableRow


def _parse_rational(_context: click.Context, _parameter: click.Parameter, text: str) -> Rational:
    """Read a fraction exactly; a usage error for anything else."""
    try:
        return Rational.parse(text)
    except PayoffError as error:
        raise click.BadParameter(str(error)) from error


@click.command("economics")
@click.option(
    "--rules",
    type=click.Choice(["unified-pool"]),
    default="unified-pool",
    show_default=True,
    help="The rule set: unified-pool is the paper's Table 1.",
)
@click.option(
    "--alpha",
    metavar="FRACTION",
    callback=_parse_rational,
    default="6/5",
    show_default=True,
    help="α: what the user pays, over cost.",
)
@click.option(
    "--beta",
    metavar="FRACTION",
    callback=_parse_rational,
    default="5",
    show_default=True,
    help="β: what generator and verifiers stake, over cost.",
)
@click.option(
    "--cg-micro",
    type=click.IntRange(0, MICRO_MAX),
    default=1_000_000,
    show_default=True,
    help="Cg: the cost of generating, in micro-units.",
)
@click.option(
    "--cv-micro",
    type=click.IntRange(0, MICRO_MAX),
    default=100_000,
    show_default=True,
    help="Cv: the cost of verifying once, in micro-units.",
)
@click.option(
    "--stages",
    type=click.IntRange(1, STAGE_COUNT_MAX),
    default=6,
    show_default=True,
    help="K: the last stage of a dispute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def economics(
    *, rules: str, alpha: Rational, beta: Rational, cg_micro: int, cv_micro: int, stages: int, as_json: bool
) -> None:
    """Print what each party is paid, gross, in every case and at every stage."""
    try:
        rows = compute_table(UnifiedPool(alpha, beta, stages), cg_micro, cv_micro, stages)
    except PayoffError as error:
        message = f"{error.code} {error}"
        raise click.UsageError(message) from error
    if as_json:
        parameters = {
            "rules": rules,
            "alpha": str(alpha),
            "beta": str(beta),
            "cg_micro": cg_micro,
            "cv_micro": cv_micro,
            "stages": stages,
        }
        click.echo(json.dumps({**parameters, "rows": [dataclasses.asdict(row) for row in rows]}))
        return
    _print_table(rows, title=f"{rules}: α {alpha}, β {beta}, Cg {cg_micro:,}, Cv {cv_micro:,} (micro-units)")


def _print_table(rows: Sequence[TableRow], *, title: str) -> None:
    # rich loads only when a table is drawn, so that --help and --json stay quick.
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption="Gross payouts from the pool; who loses a stake is paid 0.")
    table.add_column("case", no_wrap=True)
    for heading in ("k", "pool", "generator", "user", "deciding", "prior", "losing"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        amounts = (
            row.pool_micro,
            row.generator_micro,
            row.user_micro,
            row.deciding_verifier_micro,
            row.prior_verifier_micro,
        )
        numbers = (f"{amount:,}" for amount in amounts)
        table.add_row(row.case.value, str(row.k), *numbers, str(row.losing_verifiers))
    Console().print(table)
