"""``pocache up``: a whole network on this machine, kept running until it is told to stop.

Made for trying things: one machine runs everything, so its operator is trusted here with what a deployment divides.
The directory holds the network for the next start; a process that dies is started again.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pocache.protocol.payoff import RULES_DEFAULT
from pocache_cli.failure import exit_on_error
from pocache_cli.rules_option import RULES

if TYPE_CHECKING:
    from pocache.runtime.network import ChainConfig, NetworkDirectory
    from pocache_cli.bootstrap_beacon import BeaconPlan
    from pocache_cli.local_network import LocalNetwork, WorkerProcess

DIRECTORY_DEFAULT: Final = Path(".pocache")
NETWORK_FOLDER: Final = "network"
USERS_DEFAULT, WORKERS_DEFAULT, VERIFIERS_DEFAULT = 3, 2, 5
USER_NAMES: Final = ("ada", "grace", "edsger", "barbara", "alan", "frances", "donald", "radia")
GENERATOR_PREFIX: Final = "worker-"
VERIFIER_PREFIX: Final = "verifier-"
WITNESS_PREFIX: Final = "witness-"
USER_DEPOSIT_MICRO: Final = 1_000_000_000
STAKE_MICRO: Final = 10_000_000_000
MEMBERS_MAX: Final = 16
"""Processes of a threshold beacon, on one machine."""
_THRESHOLD: Final = re.compile(r"([1-9][0-9]?)-of-([1-9][0-9]?)")
_UP_LABEL: Final = "pocache up"
STOP_S: Final = 90.0
"""Longer than every process together needs to drain, by force at the end."""

SECTIONS: Final[Mapping[str, Mapping[str, object]]] = {
    "audit": {
        "lottery_share": "1/5",
        "bind_delay_ms": 1_000,
        "window_rounds": 20,
        "commitment_lag_rounds_max": 10,
    },
    "deadlines": {"queue_ticks": 600, "lease_ticks": 300, "seal_ticks": 120, "opening_ticks": 60},
    "ejection": {},
}
"""Rounds of one second: who waits at a terminal sees the payout in half a minute."""
LEVY: Final = "1/3"
"""λ: what audits of a fifth of all jobs cost under `fixed-fee-committee`."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command's arguments; counts are None where they were not given."""

    folder: Path
    model: str | None
    users: int | None
    workers: int | None
    verifiers: int | None
    witnesses: int | None
    beacon: str | None
    rules: str | None
    port: int
    gateway_port: int | None
    log_level: str
    as_json: bool


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


def name_users(count: int) -> tuple[str, ...]:
    """Return the users' names: people first, then numbers."""
    return (*USER_NAMES[:count], *(f"user-{number}" for number in range(len(USER_NAMES) + 1, count + 1)))


def name_parties(prefix: str, count: int) -> tuple[str, ...]:
    """Return ``prefix-1`` to ``prefix-count``."""
    return tuple(f"{prefix}{number}" for number in range(1, count + 1))


def verify_counts(options: Options, roles: Mapping[str, str]) -> None:
    """Refuse numbers that an existing network does not have. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError

    verifiers = sum(name.startswith(VERIFIER_PREFIX) for name in roles)
    witnesses = sum(name.startswith(WITNESS_PREFIX) for name in roles)
    found = {
        "users": sum(role == "user" for role in roles.values()) - witnesses,
        "witnesses": witnesses,
        "workers": sum(role == "worker" for role in roles.values()) - verifiers,
        "verifiers": verifiers,
    }
    for name, count in found.items():
        wanted = getattr(options, name)
        if wanted not in (None, count):
            raise ConfigError(f"the network here has {count} {name}: for {wanted}, choose another --dir")


def _check_beacon(text: str | None) -> str | None:
    """Refuse what is none of the beacons, as wrong usage."""
    from pocache.protocol.errors import PocacheError

    try:
        plan_beacon(text)
    except (PocacheError, ValueError) as error:
        raise click.BadParameter(str(error)) from error
    return text


def plan_beacon(text: str | None) -> BeaconPlan:
    """Return where rounds come from: ``local`` (the default), ``T-of-N``, ``quicknet``. Raises ConfigError."""
    from pocache.protocol.beacon import QUICKNET
    from pocache.protocol.errors import ConfigError
    from pocache_cli.bootstrap_beacon import BeaconPlan

    if text in (None, "local"):
        return BeaconPlan()
    if text == "quicknet":
        return BeaconPlan("relay", relayed=QUICKNET)
    shares = _THRESHOLD.fullmatch(text or "")
    if shares is None or not 1 <= int(shares[1]) <= int(shares[2]) <= MEMBERS_MAX:
        raise ConfigError(f"{text!r} is no beacon: local, quicknet, or T-of-N with 1 ≤ T ≤ N ≤ {MEMBERS_MAX}")
    return BeaconPlan("threshold", threshold=int(shares[1]), member_count=int(shares[2]))


def verify_beacon(options: Options, chain: ChainConfig, roles: Mapping[str, str]) -> None:
    """Refuse another beacon than an existing network has. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError

    if options.beacon is None:
        return
    plan = plan_beacon(options.beacon)
    members = sum(role == "beacon" for role in roles.values())
    if plan.source != chain.source or (plan.source == "threshold" and plan.member_count != members):
        raise ConfigError(
            f"the network here has a {chain.source} beacon: for {options.beacon}, choose another --dir"
        )


def verify_rules(options: Options, directory: NetworkDirectory) -> None:
    """Refuse other rules than an existing network has. Raises ConfigError."""
    from pocache.protocol.errors import ConfigError

    name = directory.genesis.rules.name
    if options.rules not in (None, name):
        raise ConfigError(f"the network here is paid by {name}: for {options.rules}, choose another --dir")


def plan_processes(roles: Mapping[str, str]) -> tuple[WorkerProcess, ...]:
    """Return the worker processes: generators share one engine, verifiers another, so that nobody checks itself."""
    from pocache_cli.local_network import WorkerProcess

    workers = [name for name, role in roles.items() if role == "worker"]
    verifiers = tuple(name for name in workers if name.startswith(VERIFIER_PREFIX))
    generators = tuple(name for name in workers if name not in verifiers)
    return (
        WorkerProcess("generators", generators, roles="generate"),
        WorkerProcess("verifiers", verifiers, roles="verify"),
    )


class Announcer:
    """What the command says: progress on standard error and the rest on standard output, or JSON lines."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.was_ready = False

    def say(self, text: str) -> None:
        """Say what is going on."""
        if self._options.as_json:
            self._write("progress", text=text)
        else:
            click.echo(text, err=True)

    def announce(self, network: LocalNetwork) -> None:
        """Say that the network is ready, where it is, and how to use it."""
        from pocache_cli.bootstrap import read_roles

        self.was_ready = True
        path = network.directory.path
        users = [
            name
            for name, role in read_roles(network.directory).items()
            if role.value == "user" and not name.startswith(WITNESS_PREFIX)
        ]
        models = {model_id.hex(): one.entry.name for model_id, one in network.directory.load_models().items()}
        hints = self._make_hints(path, users)
        gateway = self._make_gateway(network, users[0])
        if self._options.as_json:
            self._write(
                "ready",
                url=network.server.url,
                network_dir=str(path),
                network_id=network.directory.genesis.network_id.hex(),
                users=users,
                models=models,
                submit=hints[0],
                pids={name: child.pid for name, child in network.children.items()},
                **({} if gateway is None else {"gateway": gateway}),
            )
            return
        click.echo(f"ready at {network.server.url}")
        click.echo(f"  network  {path}")
        click.echo(f"  users    {', '.join(users)}")
        for hint in hints:
            click.echo(f"  {hint}")
        if gateway is not None:
            click.echo(f"  gateway  {gateway['url']}  (OpenAI's clients: base_url={gateway['url']}/v1)")
            click.echo(f"  explorer {gateway['explorer']}")
            click.echo(f"  key      {gateway['key']}  (of {users[0]}; more by `pocache api-keys issue`)")
        click.echo("  Ctrl-C stops it; the same command starts it again")

    def _make_gateway(self, network: LocalNetwork, account: str) -> dict[str, str] | None:
        """Return where the gateway is, with a key of the first user's; None when there is none."""
        if self._options.gateway_port is None:
            return None
        from pocache.storage.api_keys import open_api_keys

        state = network.directory.path / "state"
        state.mkdir(parents=True, exist_ok=True)
        with open_api_keys(f"sqlite:///{state / 'gateway.sqlite'}") as store:
            for one in store.list():
                if one.label == _UP_LABEL:
                    store.revoke(one.key_id)  # of the start before: nobody can show it again
            secret, _ = store.issue(account, label=_UP_LABEL)
        url = f"http://127.0.0.1:{self._options.gateway_port}"
        return {"url": url, "key": secret, "explorer": f"{url}/explorer"}

    def _make_hints(self, path: Path, users: Sequence[str]) -> tuple[str, ...]:
        is_default = path == (DIRECTORY_DEFAULT / NETWORK_FOLDER).absolute()
        where = "" if is_default else f" --network-dir {path}"
        is_fake = (self._options.model or "").startswith("fake:")
        what = "--tokens 1,2,3" if is_fake else '"Once upon a time"'
        return (
            f"pocache submit {what} --as {users[0]}{where}",
            f"pocache balance {users[0]}{where}",
        )

    @staticmethod
    def _write(event: str, **fields: Any) -> None:
        click.echo(json.dumps({"event": event, **fields}))
        sys.stdout.flush()
