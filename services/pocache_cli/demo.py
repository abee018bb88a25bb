"""``pocache demo``: the whole network on this machine, honest and cheating workers, and the payouts at the end."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import click

from pocache.protocol.errors import ConfigError, PocacheError
from pocache_cli.rules_option import rules_option

JOBS_DEFAULT: Final = 24
TOKENS_DEFAULT: Final = 32
REPORT_COLUMNS: Final = 130
"""The width of the report where there is no terminal to ask."""


@click.command()
@click.option(
    "--model",
    help="A causal LM: a directory, a cached id, fake:NAME, or reference, which ships with this (default).",
)
@click.option(
    "--jobs", default=JOBS_DEFAULT, show_default=True, type=click.IntRange(20, 10_000), help="How many jobs."
)
@click.option(
    "--tokens", default=TOKENS_DEFAULT, show_default=True, type=click.IntRange(2, 1_024), help="Tokens a job."
)
@rules_option
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="Keep the network here."
)
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on standard output.")
def demo(model: str | None, jobs: int, tokens: int, rules: str, folder: Path | None, as_json: bool) -> None:
    """Run the whole network here, with honest and cheating workers, and see who is paid and who is slashed.

    Exits 1 when a challenged cheat is paid, an honest party is slashed, a job hangs, or money is not conserved.
    """
    from rich.console import Console

    from pocache.runtime.telemetry import configure_logging
    from pocache_cli.demo_view import DemoView, print_report

    configure_logging("error")
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=REPORT_COLUMNS)
    view = DemoView(console)
    started_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="pocache-demo-") as scratch:
            report = asyncio.run(_run(model, jobs, tokens, rules, folder or Path(scratch), view))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("pocache demo: stopped before its end", err=True)
        sys.exit(1)
    except ConfigError as error:
        click.echo(f"pocache demo: {error}", err=True)
        sys.exit(2)
    except PocacheError as error:
        click.echo(f"pocache demo: {error.code}: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(report.to_dict()))
        for problem in report.problems:
            click.echo(f"problem: {problem}", err=True)
    else:
        print_report(console, report, time.monotonic() - started_s)
    sys.exit(1 if report.problems else 0)


async def _run(model: str | None, jobs: int, tokens: int, rules: str, folder: Path, view: Any) -> Any:
    from pocache_cli.bootstrap import create_network, register_model
    from pocache_cli.local_network import run_network
    from pocache_cli.models import DEFAULT_MODEL, load_tokenizer, make_encoder, prepare_model
    from pocache_cli.scenario import Scenario, choose_cast

    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: every process of the network is stopped in order before this one ends.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(view.shown())
        view.say("making keys and the genesis")
        name = model or DEFAULT_MODEL
        cast = choose_cast(name, rules)
        directory = create_network(folder / "network", cast.plan())
        description = await prepare_model(name, folder=folder, say=view.say)
        entry = register_model(directory, description)
        network = await stack.enter_async_context(
            run_network(directory, cast.processes(), model=name, say=view.say)
        )
        codec = load_tokenizer(name)
        scenario = Scenario(
            network,
            cast,
            model_id=next(iter(directory.load_models())),
            encode=make_encoder(name, entry.vocab_size),
            decode=None if codec is None else codec.decode,
            job_count=jobs,
            token_count_max=tokens,
            say=view.say,
        )
        view.names = scenario.names
        await stack.enter_async_context(view.watching(network.operator, directory.genesis))
        return await scenario.play()
