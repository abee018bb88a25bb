"""``pocache demo``: the whole network on this machine, honest and cheating workers, and the payouts at the end."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import click

from pocache.protocol.errors import ConfigError, PocacheError

JOBS_DEFAULT: Final = 24
TOKENS_DEFAULT: Final = 32
PREPARE_S_MAX: Final = 600.0


@click.command()
@click.option("--model", help="A causal LM: a directory, a cached id, or fake:NAME (default: a small random one is built).")
@click.option("--jobs", default=JOBS_DEFAULT, show_default=True, type=click.IntRange(20, 10_000), help="How many jobs.")
@click.option("--tokens", default=TOKENS_DEFAULT, show_default=True, type=click.IntRange(2, 1_024), help="Tokens a job.")
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="Keep the network here.")
@click.option("--rules", default="unified-pool", show_default=True, type=click.Choice(["unified-pool"]))
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on standard output.")
def demo(model: str | None, jobs: int, tokens: int, folder: Path | None, rules: str, as_json: bool) -> None:
    """Run the whole network here, with honest and cheating workers, and see who is paid and who is slashed.

    Exits 1 when a challenged cheat is paid, an honest party is slashed, a job hangs, or money is not conserved.
    """
    del rules  # one rule set exists; the option is where the next will be chosen
    from rich.console import Console

    from pocache.runtime.telemetry import configure_logging
    from pocache_cli.demo_view import DemoView, print_report

    configure_logging("error")
    console = Console(stderr=True) if as_json else Console()
    view = DemoView(console)
    started_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="pocache-demo-") as scratch:
            report = asyncio.run(_run(model, jobs, tokens, folder or Path(scratch), view))
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


async def _run(model: str | None, jobs: int, tokens: int, folder: Path, view: Any) -> Any:
    from pocache_cli.bootstrap import create_network, register_model
    from pocache_cli.local_network import run_network
    from pocache_cli.scenario import Scenario, choose_cast

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(view.shown())
        view.say("making keys and the genesis")
        name = model or str(folder / "model")
        cast = choose_cast(name)
        directory = create_network(folder / "network", cast.plan())
        description = await prepare_model(name, build=model is None, folder=folder, say=view.say)
        entry = register_model(directory, description)
        network = await stack.enter_async_context(
            run_network(directory, cast.processes(), model=name, say=view.say)
        )
        scenario = Scenario(
            network,
            cast,
            model_id=next(iter(directory.load_models())),
            encode=make_encoder(name, entry.vocab_size),
            job_count=jobs,
            token_count_max=tokens,
            say=view.say,
        )
        view.names = scenario.names
        await stack.enter_async_context(view.watching(network.operator, directory.genesis))
        return await scenario.play()


async def prepare_model(
    model: str, *, build: bool, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Build the small model when none was named, calibrate it, and return its description.

    In a process of its own, so that this one never holds torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "model.json"
    if out.exists():
        return dict(json.loads(out.read_text(encoding="ascii")))
    if build:
        say("building a small model with random weights")
    else:
        say(f"loading {model}")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pocache_cli.prepare",
        model,
        str(out),
        "build" if build else "use",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        async with asyncio.timeout(PREPARE_S_MAX):
            async for line in process.stdout:
                say(line.decode(errors="replace").strip())
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        last = (await errors).decode(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(f"the model {model} could not be prepared: {' '.join(last)}")
    await errors
    return dict(json.loads(out.read_text(encoding="ascii")))


def make_encoder(model: str, vocab_size: int) -> Callable[[str], Sequence[int]]:
    """Return the model's own tokenizer, or bytes folded into the vocabulary where it brings none."""
    file = Path(model) / "tokenizer.json"
    if not model.startswith("fake:") and file.exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        return lambda text: list(tokenizer.encode(text).ids)
    return lambda text: [byte % vocab_size for byte in text.encode()]
