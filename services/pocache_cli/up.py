"""``pocache up``: a whole network on this machine, kept running until it is told to stop.

Made for trying things: one machine runs everything, so its operator is trusted here with what a deployment divides.
The directory holds the network for the next start; a process that dies is started again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pocache.protocol.payoff import RULES_DEFAULT
from pocache_cli.failure import exit_on_error
from pocache_cli.rules_option import RULES
from pocache_cli.up_announcer import Announcer
from pocache_cli.up_plan import (
    DIRECTORY_DEFAULT,
    GENERATOR_PREFIX,
    LEVY,
    NETWORK_FOLDER,
    SECTIONS,
    USERS_DEFAULT,
    VERIFIER_PREFIX,
    VERIFIERS_DEFAULT,
    WITNESS_PREFIX,
    WORKERS_DEFAULT,
    Options,
    name_parties,
    name_users,
    plan_beacon,
    plan_processes,
    verify_beacon,
    verify_counts,
    verify_rules,
)

if TYPE_CHECKING:
    from pocache.runtime.network import NetworkDirectory
    from pocache_cli.local_network import LocalNetwork

USER_DEPOSIT_MICRO: Final = 1_000_000_000
STAKE_MICRO: Final = 10_000_000_000
STOP_S: Final = 90.0
"""Longer than every process together needs to drain, by force at the end."""


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=DIRECTORY_DEFAULT,
    show_default=True,
    help="Where the network, its model and its state are kept.",
)
@click.option(
    "--model",
    help="A causal LM: a directory, a cached id, fake:NAME, or reference, the one that ships with this (default).",
)
@click.option(
    "--users", type=click.IntRange(1, 1_000), help=f"How many users a new network has ({USERS_DEFAULT})."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help=f"How many generators a new network has ({WORKERS_DEFAULT}).",
)
@click.option(
    "--verifiers",
    type=click.IntRange(1, 64),
    help=f"How many verifiers a new network has ({VERIFIERS_DEFAULT}).",
)
@click.option(
    "--witnesses",
    type=click.IntRange(0, 16),
    help="How many witnesses cosign a new network's log (0); each is a process of its own here.",
)
@click.option(
    "--beacon",
    metavar="local|T-of-N|quicknet",
    callback=lambda _context, _parameter, text: _check_beacon(text),
    help="Where a new network's randomness comes from: one key here (local), any T of N processes here such as 3-of-5, "
    "or drand's quicknet, which needs the Internet.",
)
@click.option(
    "--rules",
    type=click.Choice(RULES),
    help=f"The rules of payment of a new network (default: {RULES_DEFAULT}).",
)
@click.option(
    "--port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="The bus's port; 0 is a free one.",
)
@click.option(
    "--gateway", is_flag=True, help="Serve the OpenAI-compatible gateway as well, and print a key for it."
)
@click.option(
    "--gateway-port",
    default=8_080,
    show_default=True,
    type=click.IntRange(1, 65_535),
    help="The gateway's port.",
)
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on standard output.")
def up(
    *,
    folder: Path,
    model: str | None,
    users: int | None,
    workers: int | None,
    verifiers: int | None,
    witnesses: int | None,
    beacon: str | None,
    rules: str | None,
    port: int,
    gateway: bool,
    gateway_port: int,
    log_level: str,
    as_json: bool,
) -> None:
    """Run a network on this machine until Ctrl-C: a bus, five services, workers, users with money."""
    options = Options(
        folder.absolute(),
        model,
        users,
        workers,
        verifiers,
        witnesses,
        beacon,
        rules,
        port,
        gateway_port if gateway else None,
        log_level,
        as_json,
    )
    with exit_on_error("up", as_json=as_json):
        is_stopped = _run(options)
    sys.exit(0 if is_stopped else 1)


def _run(options: Options) -> bool:
    from pocache.protocol.errors import BusError
    from pocache.runtime.lifecycle import DrainTimeoutError, run_until_signalled
    from pocache.runtime.telemetry import configure_logging

    configure_logging("error")
    announcer = Announcer(options)
    try:
        asyncio.run(run_until_signalled(lambda stop: _serve(options, announcer, stop), drain_s=STOP_S))
    except DrainTimeoutError as error:
        raise BusError(f"stopped by force: {error}") from error
    announcer.say("stopped")
    return announcer.was_ready


async def _serve(options: Options, announcer: Announcer, stop: asyncio.Event) -> None:
    from pocache_cli.local_network import READY_S
    from pocache_cli.supervision import Supervised, SupervisedServer, Supervisor

    async with AsyncExitStack() as stack:
        async with cancelled_by(stop) as interruption:
            network = await _start(options, announcer, stack)
        if interruption.is_set():
            return
        announcer.announce(network)
        supervised: list[Supervised] = [SupervisedServer(network.server), *network.children.values()]
        await Supervisor(supervised, say=announcer.say, ready_s=READY_S).run(stop)
        announcer.say("stopping")


async def _start(options: Options, announcer: Announcer, stack: AsyncExitStack) -> LocalNetwork:
    from pocache_cli.bootstrap import NetworkPlan, create_network, plan_rules, read_roles
    from pocache_cli.local_network import run_network

    path = options.folder / NETWORK_FOLDER
    is_new = not (path / "genesis.json").exists()
    announcer.say(f"{'creating' if is_new else 'opening'} the network in {path}")
    generators = name_parties(GENERATOR_PREFIX, options.workers or WORKERS_DEFAULT)
    verifiers = name_parties(VERIFIER_PREFIX, options.verifiers or VERIFIERS_DEFAULT)
    users = name_users(options.users or USERS_DEFAULT)
    rules = plan_rules(options.rules or RULES_DEFAULT, len(verifiers), levy=LEVY)
    plan = NetworkPlan(
        "local",
        users,
        (*generators, *verifiers),
        sections={**SECTIONS, "rules": rules},
        period_s=1,
        beacon=plan_beacon(options.beacon),
        witnesses=name_parties(WITNESS_PREFIX, options.witnesses or 0),
    )
    directory = create_network(path, plan)
    roles = {name: role.value for name, role in read_roles(directory).items()}
    if not is_new:
        verify_counts(options, roles)
        verify_beacon(options, directory.genesis.chain, roles)
        verify_rules(options, directory)
    source = await _register_model(options, announcer, directory)
    network = await stack.enter_async_context(
        run_network(
            directory,
            plan_processes(roles),
            model=source,
            log_level=options.log_level,
            port=options.port,
            witnesses=[name for name in roles if name.startswith(WITNESS_PREFIX)],
            gateway_port=options.gateway_port,
            say=announcer.say,
        )
    )
    for name, role in roles.items():
        if name.startswith(WITNESS_PREFIX):
            continue
        if role == "user":
            await network.deposit(name, "available", USER_DEPOSIT_MICRO, f"up/{name}")
        elif role == "worker":
            await network.deposit(name, "stake", STAKE_MICRO, f"up/{name}")
    return network


async def _register_model(options: Options, announcer: Announcer, directory: NetworkDirectory) -> str:
    """Return where the model of this network is loaded from, preparing and registering it when it has none yet."""
    from pocache.protocol.errors import ConfigError
    from pocache_cli.bootstrap import register_model
    from pocache_cli.models import DEFAULT_MODEL, prepare_model, read_source, record_source, resolve_source

    wanted = None if options.model is None else resolve_source(options.model)
    known = list(directory.load_models())
    if known:
        source = read_source(directory, known[0])
        if source is None:
            raise ConfigError(
                f"{directory.path} does not say where its model {known[0].hex()} was loaded from"
            )
        if wanted not in (None, source):
            raise ConfigError(f"this network serves {source}: choose another --dir for {wanted}")
        return source
    source = wanted or DEFAULT_MODEL
    description = await prepare_model(source, folder=options.folder, say=announcer.say)
    entry = register_model(directory, description)
    record_source(directory, entry.model_id, source)
    return source


@asynccontextmanager
async def cancelled_by(stop: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """Cancel the block when ``stop`` is set, and go on behind it; what is yielded is set then."""
    task = asyncio.current_task()
    assert task is not None
    interruption = asyncio.Event()

    async def watch() -> None:
        await stop.wait()
        interruption.set()
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield interruption
    except asyncio.CancelledError:
        if not interruption.is_set() or task.uncancel() > 0:
            raise
    finally:
        watcher.cancel()


def _check_beacon(text: str | None) -> str | None:
    """Refuse what is none of the beacons, as wrong usage."""
    from pocache.protocol.errors import PocacheError

    try:
        plan_beacon(text)
    except (PocacheError, ValueError) as error:
        raise click.BadParameter(str(error)) from error
    return text
