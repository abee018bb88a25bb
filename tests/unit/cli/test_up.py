"""``pocache up``: its arguments, who takes part, and being stopped before it is ready."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pocache.protocol.beacon import QUICKNET
from pocache.protocol.errors import ConfigError
from pocache.runtime.network import NetworkDirectory
from pocache.storage.api_keys import open_api_keys
from pocache_cli import up as module
from pocache_cli.bootstrap import NetworkPlan, create_network, pick_user, plan_rules, read_roles
from pocache_cli.bootstrap_beacon import BeaconPlan
from pocache_cli.up import cancelled_by, up
from pocache_cli.up_announcer import Announcer
from pocache_cli.up_plan import (
    LEVY,
    SECTIONS,
    Options,
    name_parties,
    name_users,
    plan_beacon,
    plan_processes,
    verify_beacon,
    verify_counts,
    verify_rules,
)

ROLES = {
    "operator": "operator",
    "ada": "user",
    "worker-1": "worker",
    "worker-2": "worker",
    "verifier-1": "worker",
    "witness-1": "user",
    "witness-2": "user",
}


def make_options(**changes: Any) -> Options:
    fields: dict[str, Any] = {
        "folder": Path("/nowhere"),
        "model": None,
        "users": None,
        "workers": None,
        "verifiers": None,
        "witnesses": None,
        "beacon": None,
        "rules": None,
        "port": 0,
        "gateway_port": None,
        "log_level": "info",
        "as_json": False,
    }
    return Options(**{**fields, **changes})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(up, list(arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--users", "0"),
        ("--workers", "0"),
        ("--workers", "65"),
        ("--verifiers", "none"),
        ("--port", "65536"),
        ("--witnesses", "17"),
        ("--beacon", "lottery"),
        ("--beacon", "3-of-2"),
        ("--beacon", "0-of-2"),
        ("--beacon", "3-of-17"),
        ("--log-level", "loud"),
        ("--rules", "none"),
        ("surprise",),
    ],
)
def test_unusable_arguments_are_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize(("is_ready", "code"), [(True, 0), (False, 1)])
def test_arguments_become_options(monkeypatch: pytest.MonkeyPatch, is_ready: bool, code: int) -> None:
    """Stopped after it was ready is success, stopped before is not."""
    seen: list[Options] = []

    def take(options: Options) -> bool:
        seen.append(options)
        return is_ready

    monkeypatch.setattr(module, "_run", take)
    arguments = ["--dir", "here", "--model", "fake:x", "--users", "2", "--workers", "4", "--verifiers", "5"]
    arguments += ["--witnesses", "2", "--beacon", "2-of-3"]
    arguments += ["--rules", "unified-pool"]
    assert run(*arguments, "--port", "4222", "--json").exit_code == code
    assert seen == [
        make_options(
            folder=Path("here").absolute(),
            model="fake:x",
            users=2,
            workers=4,
            verifiers=5,
            witnesses=2,
            beacon="2-of-3",
            rules="unified-pool",
            port=4222,
            as_json=True,
        )
    ]


def test_a_network_of_other_numbers_is_not_opened(tmp_path: Path) -> None:
    """What the arguments ask for must be what is there; left out, what is there is taken."""
    plan = NetworkPlan("local", name_users(1), (*name_parties("worker-", 2), *name_parties("verifier-", 1)))
    create_network(tmp_path / "network", plan)
    result = run("--dir", str(tmp_path), "--users", "4", "--json")
    assert result.exit_code == 2
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", "E601")
    assert "has 1 users" in last["reason"]


@pytest.mark.parametrize(
    ("name", "count"), [("users", 1), ("workers", 2), ("verifiers", 1), ("witnesses", 2)]
)
def test_counts_are_those_of_the_directory(name: str, count: int) -> None:
    verify_counts(make_options(), ROLES)
    verify_counts(make_options(**{name: count}), ROLES)
    with pytest.raises(ConfigError, match=f"{count} {name}"):
        verify_counts(make_options(**{name: count + 1}), ROLES)


def test_a_beacon_is_one_key_any_t_of_n_or_drands() -> None:
    assert plan_beacon(None) == plan_beacon("local") == BeaconPlan()
    assert plan_beacon("2-of-3") == BeaconPlan("threshold", threshold=2, member_count=3)
    assert plan_beacon("quicknet").relayed == QUICKNET


@pytest.mark.parametrize("beacon", ["local", "2-of-3"])
def test_another_beacon_than_the_networks_is_refused(tmp_path: Path, beacon: str) -> None:
    """The genesis fixes it; left out, what is there is taken."""
    others = {"local": "2-of-3", "2-of-3": "2-of-4"}
    directory = create_network(
        tmp_path, NetworkPlan("local", ("ada",), ("worker-1",), beacon=plan_beacon(beacon))
    )
    roles = {name: role.value for name, role in read_roles(directory).items()}
    for same in (None, beacon):
        verify_beacon(make_options(beacon=same), directory.genesis.chain, roles)
    for other in (others[beacon], "quicknet"):
        with pytest.raises(ConfigError, match="another --dir"):
            verify_beacon(make_options(beacon=other), directory.genesis.chain, roles)
def test_the_rules_are_those_of_the_directory(tmp_path: Path) -> None:
    """Left out, what is there is taken; a network of other rules is not opened."""
    plan = NetworkPlan("local", ("ada",), ("worker-1",), sections={"rules": plan_rules("unified-pool", 3)})
    directory = create_network(tmp_path, plan)
    verify_rules(make_options(), directory)
    verify_rules(make_options(rules="unified-pool"), directory)
    with pytest.raises(ConfigError, match="is paid by unified-pool"):
        verify_rules(make_options(rules="fixed-fee-committee"), directory)


@pytest.mark.parametrize(
    ("verifiers", "size"), [(1, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 5), (8, 7), (64, 7)]
)
def test_a_committee_fits_the_verifiers_that_there_are(verifiers: int, size: int, tmp_path: Path) -> None:
    """One is left for the audit; and the network's own checks take what comes out."""
    rules = plan_rules("fixed-fee-committee", verifiers, levy=LEVY)
    assert rules["committee_size"] == size
    sections = {**SECTIONS, "rules": rules}
    genesis = create_network(
        tmp_path, NetworkPlan("local", ("ada",), ("worker-1",), sections=sections)
    ).genesis
    assert genesis.rule_set.name == "fixed-fee-committee"


def test_an_interrupted_creation_is_named(tmp_path: Path) -> None:
    (tmp_path / "network" / "keys").mkdir(parents=True)
    result = run("--dir", str(tmp_path))
    assert result.exit_code == 2
    assert "interrupted" in result.stderr


def test_names() -> None:
    """Unique, however many."""
    assert name_users(2) == ("ada", "grace")
    assert name_users(10)[7:] == ("radia", "user-9", "user-10")
    assert len(set(name_users(1_000))) == 1_000
    assert name_parties("worker-", 2) == ("worker-1", "worker-2")


def test_nobody_verifies_with_the_engine_that_generated() -> None:
    generators, verifiers = plan_processes(ROLES)
    assert (generators.identities, generators.roles) == (("worker-1", "worker-2"), "generate")
    assert (verifiers.identities, verifiers.roles) == (("verifier-1",), "verify")
    assert not generators.cheats
    assert not verifiers.cheats


def test_the_first_user_is_the_default(tmp_path: Path) -> None:
    create_network(tmp_path, NetworkPlan("local", ("ada", "grace"), ("worker-1",)))
    directory = NetworkDirectory(tmp_path)
    assert {name for name, role in read_roles(directory).items() if role.value == "user"} == {"ada", "grace"}
    assert pick_user(directory, None) == "ada"
    assert pick_user(directory, "grace") == "grace"
    for name in ("worker-1", "nobody", "operator"):
        with pytest.raises(ConfigError, match="there are: ada, grace"):
            pick_user(directory, name)


async def test_a_signal_interrupts_the_start() -> None:
    """What is under way is cancelled and cleaned up, and the rest of the command goes on."""
    stop = asyncio.Event()
    cleaned = False
    async with cancelled_by(stop) as interruption:
        asyncio.get_running_loop().call_soon(stop.set)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned = True
    assert interruption.is_set()
    assert cleaned
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "this task is not cancelled any more"


async def test_a_start_that_is_not_interrupted_goes_on() -> None:
    stop = asyncio.Event()
    async with cancelled_by(stop) as interruption:
        await asyncio.sleep(0)
    stop.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not interruption.is_set()


async def test_a_cancellation_by_somebody_else_is_not_swallowed() -> None:
    entered = asyncio.Event()

    async def start() -> None:
        async with cancelled_by(asyncio.Event()):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(start())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_gateway_is_announced_with_a_key_that_is_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the first user's; the key of the start before is taken back, as nobody can show it again."""
    directory = create_network(tmp_path / "net", NetworkPlan("test", ("ada", "grace"), ("worker-1",)))
    network: Any = SimpleNamespace(
        directory=directory, server=SimpleNamespace(url="nats://here"), children={}
    )
    told = []
    for _ in range(2):
        Announcer(make_options(gateway_port=8_080, as_json=True)).announce(network)
        told.append(json.loads(capsys.readouterr().out)["gateway"])
    with open_api_keys(f"sqlite:///{directory.path / 'state' / 'gateway.sqlite'}") as keys:
        assert keys.find(told[0]["key"]) is None
        entry = keys.find(told[1]["key"])
    assert entry is not None
    assert (entry.account, told[1]["url"]) == ("ada", "http://127.0.0.1:8080")
    Announcer(make_options(as_json=True)).announce(network)
    assert "gateway" not in json.loads(capsys.readouterr().out)
