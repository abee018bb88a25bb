"""`pocache economics`: what each party is paid, what deters, and what attacks gain, with numbers (docs/economics.md).

Owns the command's arguments. The numbers come from the functions that settle real jobs and decide real disputes;
parameters under which a payout would be negative are refused with the inequality they violate, exit code 2. A simulation
in which an attack by up to a third of the stake gains under `fixed-fee-committee` exits 1.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pocache.protocol.errors import PayoffError
from pocache.protocol.limits import MICRO_MAX, OUTPUT_TOKENS_MAX, STAGE_COUNT_MAX
from pocache.protocol.payoff import (
    DEFAULT_COMMITTEE,
    FIXED_FEE_COMMITTEE,
    UNIFIED_POOL,
    FixedFeeCommittee,
    Rational,
    UnifiedPool,
    compute_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pocache.protocol.committee_table import CommitteeRow
    from pocache.protocol.incentives import DetectionTable
    from pocache.protocol.payoff import TableRow
    from pocache_cli.economics_simulation import Case
    from pocache_cli.economics_view import Incentives

_JOBS_MAX: Final = 10_000_000
_DETECTION_BYTES_MAX: Final = 1_000_000

_COMMITTEE_FACTORS: Final = {
    "beta_generator": "β_G: what the generator stakes, over Cg.",
    "beta_verifier": "β_V: what each verifier stakes, over Cv.",
    "phi": "φ: what a verification is paid, over Cv.",
    "levy": "λ: what every job pays into the reserve, over Cv.",
    "lottery": "q_a: the share of jobs that is audited unasked.",
    "recheck": "q_r: the share of agreements that is looked at again.",
    "bounty": "What a cheated user gets besides its escrow, over Cg.",
    "bonus": "What the finder of a cheat gets, over Cg.",
    "reserve": "ρ: how much the levy exceeds the expected audits.",
}
_COMMITTEE_COUNTS: Final = {
    "committee_size": "M: the members of a committee.",
    "committee_count": "How many committees may be called.",
}
_UNIFIED_ONLY: Final = ("beta", "stages")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the command was given besides the rules, in the protocol's own types."""

    cg: int
    cv: int
    detection: DetectionTable
    full_depth_share: Fraction
    output_count: int
    collusion: Fraction
    challenge_share: Fraction
    generation_cost: Fraction
    verification_cost: Fraction


def _parse_rational(_context: click.Context, _parameter: click.Parameter, text: str) -> Rational:
    """Read a fraction exactly; a usage error for anything else."""
    try:
        return Rational.parse(text)
    except PayoffError as error:
        raise click.BadParameter(str(error)) from error


def _parse_share(context: click.Context, parameter: click.Parameter, text: str) -> Fraction:
    """Read a fraction from 0 to 1 exactly; a usage error for anything else."""
    share = _parse_rational(context, parameter, text).value
    if share > 1:
        message = f"{text} is more than 1"
        raise click.BadParameter(message)
    return share


def _factor(name: str, default: object, text: str, *, is_share: bool = False) -> Callable[[Any], Any]:
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        metavar="FRACTION",
        callback=_parse_share if is_share else _parse_rational,
        default=str(default),
        show_default=True,
        help=text,
    )


def _count(name: str, low: int, high: int, default: int, text: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        type=click.IntRange(low, high),
        default=default,
        show_default=True,
        help=text,
    )


def _committee_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in reversed(_COMMITTEE_COUNTS.items()):
        command = _count(name, 1, 1_000, getattr(DEFAULT_COMMITTEE, name), text)(command)
    for name, text in reversed(_COMMITTEE_FACTORS.items()):
        command = _factor(name, getattr(DEFAULT_COMMITTEE, name), text)(command)
    return command


@click.command("economics")
@click.option(
    "--rules",
    type=click.Choice([UNIFIED_POOL, FIXED_FEE_COMMITTEE]),
    default=UNIFIED_POOL,
    show_default=True,
    help="The rule set: unified-pool is the paper's Table 1, fixed-fee-committee ours. --simulate plays both.",
)
@_factor("alpha", "6/5", "α: what the user pays, over cost.")
@_factor("beta", "5", "β of unified-pool: what generator and verifiers stake, over cost.")
@_count("cg_micro", 0, MICRO_MAX, 1_000_000, "Cg: the cost of generating, in micro-units.")
@_count("cv_micro", 0, MICRO_MAX, 100_000, "Cv: the cost of verifying once, in micro-units.")
@_count("stages", 1, STAGE_COUNT_MAX, 6, "K of unified-pool: the last stage of a dispute.")
@_committee_options
@_factor("full_depth", "1/2", "Which share of audits goes through all layers.", is_share=True)
@_count("output_tokens", 1, OUTPUT_TOKENS_MAX, 128, "The shortest output for which the stake is to deter.")
@_factor("collusion", "1/3", "a: which share of the stake sides with a cheat.", is_share=True)
@_factor("challenge_share", "1/20", "How often users challenge under unified-pool.", is_share=True)
@_factor("generation_cost", "4/5", "What generating really costs, over Cg.", is_share=True)
@_factor("verification_cost", "3/5", "What verifying really costs, over Cv.", is_share=True)
@click.option(
    "--detection",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `pocache evaluate --json` measured; stated defaults otherwise.",
)
@click.option("--simulate", is_flag=True, help="Play every attack under both rule sets.")
@_count("jobs", 1, _JOBS_MAX, 20_000, "How many jobs of each attack are simulated.")
@_count("seed", 0, 2**63 - 1, 1, "The simulation's seed: the same gives the same.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the simulation as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def economics(
    context: click.Context,
    /,
    *,
    rules: str,
    simulate: bool,
    jobs: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Print what each party is paid, gross, in every case; what deters; and what attacks gain."""
    if plot is not None and not simulate:
        message = "--plot draws a simulation: add --simulate"
        raise click.UsageError(message)
    if not simulate:
        _refuse_foreign(context, rules)
    try:
        inputs = _read_inputs(arguments)
        if simulate:
            both = (_build_unified(arguments), _build_committee(arguments))
            is_held = _simulate(*both, inputs, jobs=jobs, seed=seed, plot=plot, as_json=as_json)
            context.exit(0 if is_held else 1)
        elif rules == UNIFIED_POOL:
            _show_unified(_build_unified(arguments), inputs, as_json=as_json)
        else:
            _show_committee(_build_committee(arguments), inputs, as_json=as_json)
    except PayoffError as error:
        message = f"{error.code} {error}"
        raise click.UsageError(message) from error


def _refuse_foreign(context: click.Context, rules: str) -> None:
    """Refuse arguments that the chosen rule set does not have, rather than ignore them."""
    foreign = _UNIFIED_ONLY if rules == FIXED_FEE_COMMITTEE else (*_COMMITTEE_FACTORS, *_COMMITTEE_COUNTS)
    given = click.core.ParameterSource.DEFAULT
    for name in foreign:
        if context.get_parameter_source(name) is not given:
            message = f"--{name.replace('_', '-')} is no parameter of {rules}"
            raise click.UsageError(message)


def _build_unified(arguments: dict[str, Any]) -> UnifiedPool:
    return UnifiedPool(arguments["alpha"], arguments["beta"], arguments["stages"])


def _build_committee(arguments: dict[str, Any]) -> FixedFeeCommittee:
    own = {name: arguments[name] for name in (*_COMMITTEE_FACTORS, *_COMMITTEE_COUNTS)}
    return FixedFeeCommittee(alpha=arguments["alpha"], **own)


def _read_inputs(arguments: dict[str, Any]) -> _Inputs:
    return _Inputs(
        cg=arguments["cg_micro"],
        cv=arguments["cv_micro"],
        detection=_read_detection(arguments["detection"]),
        full_depth_share=arguments["full_depth"],
        output_count=arguments["output_tokens"],
        collusion=arguments["collusion"],
        challenge_share=arguments["challenge_share"],
        generation_cost=arguments["generation_cost"],
        verification_cost=arguments["verification_cost"],
    )


def _read_detection(file: Path | None) -> DetectionTable:
    """Read what `pocache evaluate` wrote: one object, or JSON lines of which the last one is meant; PayoffError."""
    from pocache.protocol.incentives import DEFAULT_DETECTION, parse_evaluation

    if file is None:
        return DEFAULT_DETECTION
    with file.open("rb") as stream:
        content = stream.read(_DETECTION_BYTES_MAX + 1)
    if len(content) > _DETECTION_BYTES_MAX:
        message = f"{file} is longer than {_DETECTION_BYTES_MAX} bytes: not an evaluation"
        raise PayoffError(message)
    try:
        text = content.decode("utf-8").strip()
        record = json.loads(text if text.startswith("{\n") else text.splitlines()[-1])
    except (ValueError, IndexError) as error:
        message = f"{file} is not an evaluation: {error}"
        raise PayoffError(message) from error
    if not isinstance(record, dict):
        message = f"{file} is not an evaluation: no object"
        raise PayoffError(message)
    return parse_evaluation(record)


def _show_unified(rules: UnifiedPool, inputs: _Inputs, *, as_json: bool) -> None:
    from pocache_cli import economics_view as view

    rows = compute_table(rules, inputs.cg, inputs.cv, rules.stage_max)
    incentives = _compute_unified_incentives(rules, inputs)
    parameters = {
        "rules": rules.name,
        "alpha": str(rules.alpha),
        "beta": str(rules.beta),
        "cg_micro": inputs.cg,
        "cv_micro": inputs.cv,
        "stages": rules.stage_max,
    }
    if as_json:
        _echo_json(parameters, rows, incentives)
        return
    costs = f"Cg {inputs.cg:,}, Cv {inputs.cv:,} (micro-units)"
    view.print_unified_table(rows, title=f"{rules.name}: α {rules.alpha}, β {rules.beta}, {costs}")
    view.print_incentives(incentives)


def _show_committee(rules: FixedFeeCommittee, inputs: _Inputs, *, as_json: bool) -> None:
    from pocache.protocol.committee_table import compute_committee_table
    from pocache_cli import economics_view as view

    rows = compute_committee_table(rules, inputs.cg, inputs.cv)
    incentives = _compute_committee_incentives(rules, inputs)
    factors = {name: str(getattr(rules, name)) for name in ("alpha", *_COMMITTEE_FACTORS)}
    counts = {name: getattr(rules, name) for name in _COMMITTEE_COUNTS}
    if as_json:
        costs = {"cg_micro": inputs.cg, "cv_micro": inputs.cv}
        _echo_json({"rules": rules.name, **factors, **counts, **costs}, rows, incentives)
        return
    title = (
        f"{rules.name}: α {rules.alpha}, β_G {rules.beta_generator}, β_V {rules.beta_verifier}, φ {rules.phi},"
        f" λ {rules.levy}, M {rules.committee_size}, Cg {inputs.cg:,}, Cv {inputs.cv:,} (micro-units)"
    )
    view.print_committee_table(rows, title=title)
    view.print_incentives(incentives)


def _compute_unified_incentives(rules: UnifiedPool, inputs: _Inputs) -> Incentives:
    from pocache.protocol import incentives, truth
    from pocache_cli.economics_view import Incentives

    terms = incentives.build_unified_terms(
        challenge_share=inputs.challenge_share,
        full_depth_share=Fraction(1),  # a challenge goes through all layers
        output_count=inputs.output_count,
        collusion=inputs.collusion,
    )
    beta = rules.beta.value
    rows = incentives.compute_deterrence(inputs.detection, alpha=rules.alpha.value, beta=beta, terms=terms)
    return Incentives(
        beta=beta,
        beta_min=incentives.get_beta_min(rows),
        detection=inputs.detection,
        terms=terms,
        deterrence=rows,
        truth=truth.compute_unified_truth(rules, inputs.cg, inputs.cv),
        capital=truth.compute_locked_capital(
            rules, inputs.cg, inputs.cv, audit_share=terms.audit_share, recheck=terms.recheck
        ),
    )


def _compute_committee_incentives(rules: FixedFeeCommittee, inputs: _Inputs) -> Incentives:
    from pocache.protocol import incentives, truth
    from pocache_cli.economics_view import Incentives

    terms = incentives.build_committee_terms(
        rules,
        full_depth_share=inputs.full_depth_share,
        output_count=inputs.output_count,
        collusion=inputs.collusion,
    )
    beta = rules.beta_generator.value
    rows = incentives.compute_deterrence(inputs.detection, alpha=rules.alpha.value, beta=beta, terms=terms)
    return Incentives(
        beta=beta,
        beta_min=incentives.get_beta_min(rows),
        detection=inputs.detection,
        terms=terms,
        deterrence=rows,
        truth=truth.compute_committee_truth(rules, inputs.cg, inputs.cv),
        capital=truth.compute_locked_capital(
            rules, inputs.cg, inputs.cv, audit_share=terms.audit_share, recheck=terms.recheck
        ),
        verifier_beta_min=incentives.compute_verifier_stake_min(
            rules, cg=inputs.cg, cv=inputs.cv, collusion=inputs.collusion
        ),
    )


def _simulate(
    unified: UnifiedPool,
    committee: FixedFeeCommittee,
    inputs: _Inputs,
    *,
    jobs: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> bool:
    """Play every attack, show what it gains, and return whether `fixed-fee-committee` holds what it promises."""
    from pocache_cli import economics_simulation as simulation
    from pocache_cli import economics_view as view
    from pocache_cli.economics_play import Setting

    setting = Setting(
        cg=inputs.cg,
        cv=inputs.cv,
        generation_cost=inputs.generation_cost,
        verification_cost=inputs.verification_cost,
        challenge_share=inputs.challenge_share,
        full_depth_share=inputs.full_depth_share,
        output_count=inputs.output_count,
    )
    for rules in (unified, committee):
        rules.validate_costs(inputs.cg, inputs.cv)
    if inputs.cg == 0:
        message = "Cg > 0 is violated: gains are counted in Cg"
        raise PayoffError(message)
    cases = simulation.build_cases(unified, committee, setting, inputs.detection)
    results = [simulation.simulate(case, setting, jobs=jobs, seed=seed) for case in _show_progress(cases)]
    failing = simulation.get_failures(results)
    if plot is not None:
        from pocache_cli.economics_plot import draw_plot

        plot.write_text(draw_plot(results, jobs=jobs, seed=seed), encoding="utf-8")
    if as_json:
        honest = {
            rules.name: dict(
                zip(("generator", "verifier_per_assignment", "user"), map(float, profits), strict=True)
            )
            for rules in (unified, committee)
            for profits in (simulation.compute_honest_profits(rules, setting),)
        }
        summary = {"jobs": jobs, "seed": seed, "honest": honest, "holds": not failing}
        click.echo(json.dumps({**summary, "attacks": view.build_results_json(results)}))
        return not failing
    verdict = (
        f"Under {FIXED_FEE_COMMITTEE} no attack by up to a third of the stake gains."
        if not failing
        else f"Under {FIXED_FEE_COMMITTEE} these gain: {', '.join(sorted({row.attack for row in failing}))}."
    )
    view.print_results(
        results, title=f"Gain over honesty per job, in Cg: {jobs:,} jobs, seed {seed}", caption=verdict
    )
    if plot is not None:
        click.echo(f"plot: {plot}", err=True)
    return not failing


def _show_progress(cases: Sequence[Case]) -> Iterator[Case]:
    """Yield the cases; on a terminal, with a bar on stderr."""
    if not sys.stderr.isatty():
        yield from cases
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(cases, description="playing attacks", console=Console(stderr=True), transient=True)


def _echo_json(
    parameters: dict[str, Any], rows: Sequence[TableRow | CommitteeRow], incentives: Incentives
) -> None:
    from pocache_cli.economics_view import build_incentives_json

    body = [dataclasses.asdict(row) for row in rows]
    click.echo(json.dumps({**parameters, "rows": body, "incentives": build_incentives_json(incentives)}))
