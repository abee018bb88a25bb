"""What a deployment does before its services: its keys divided, its streams provisioned, its dead letters collected.

On a real server with the users that ``pocache keys nats-config`` would give it, and each process with its own keys alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result
from nats.js import api

from chaos.cluster import pick_ports
from kit.kustomize import build
from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.permissions import NatsUser, generate_transport_key
from pocache.bus.provision import compute_stream_config
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.runtime.config import Settings, load_settings
from pocache.runtime.network import NetworkDirectory, write_secret
from pocache.service import deadletters
from pocache.service.provisioning import DELIVER_MAX
from pocache.storage.api_keys import open_api_keys
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Role, Stream
from pocache_cli.bootstrap import (
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    load_parties,
    register_model,
)
from pocache_cli.children import pick_python_environment
from pocache_cli.deployment import export_network, install_accounts, install_network
from pocache_cli.main import main
from pocache_cli.prepare import main as prepare
from pocache_cli.provision import plan_objects, provision_objects
from pocache_cli.trust import Trust

WATCHER = generate_transport_key(b"w" * 32)
WAIT_S = 30.0


@dataclass(frozen=True)
class Site:
    """A server with a network's users, and the network exported for its processes."""

    url: str
    directory: NetworkDirectory
    folder: Path

    def install(self, name: str) -> NetworkDirectory:
        """Return the directory of a process that was given its own keys and what is public."""
        given = self.folder / "given" / name
        given.mkdir(parents=True)
        for source, target in (
            ("network", "network"),
            ("models", "models"),
            (f"secrets/pocache-{name}", "keys"),
        ):
            (given / target).symlink_to(self.folder / "out" / source)
        own = NetworkDirectory(self.folder / "own" / name)
        install_network(given, own, name)
        return own

    def settings(self, own: NetworkDirectory, name: str) -> Settings:
        """Return the settings of a process."""
        environ = {"POCACHE_NETWORK_DIR": str(own.path), "POCACHE_NATS_URL": self.url, "POCACHE_NAME": name}
        return load_settings(environ, name_default=name)

    @asynccontextmanager
    async def connect(self, name: str, seed: str) -> AsyncIterator[NatsBus]:
        """Connect as somebody."""
        async with connect_bus(NatsSettings(url=self.url, name=name, nkey_seed=seed)) as bus:
            yield bus

    async def run(self, *arguments: str) -> Result:
        """Run a command of ours beside the server."""
        return await asyncio.to_thread(CliRunner().invoke, main, list(arguments))


@pytest_asyncio.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1", "worker-2")))
    export_network(directory, tmp_path / "out")
    write_secret(directory.path / "transport" / "watcher.seed", WATCHER.seed)
    Trust(directory).issue("watcher")
    watcher = NatsUser("watcher", WATCHER.public, publish_allow=(">",), subscribe_allow=(">",))
    users = (*compute_users(directory, load_parties(directory), []), watcher)
    settings = ServerSettings(
        tmp_path / "nats", operator=compute_operator(directory, users), sync_always=False
    )
    async with EmbeddedServer(settings) as server:
        monkeypatch.setenv("POCACHE_NATS_URL", server.url)
        yield Site(server.url, directory, tmp_path)


async def test_the_provisioner_makes_everything_of_public_files(site: Site) -> None:
    """It was given its own NATS key and nobody else's, and makes the consumers of every worker all the same."""
    own = site.install("provisioner")
    assert sorted(one.name for one in own.path.rglob("*.seed")) == ["provisioner.seed"]
    assert plan_objects(own) == plan_objects(site.directory)
    for _ in range(2):  # the second time nothing is left to do
        done = await site.run("provision", "--network-dir", str(own.path), "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert set(report["streams"]) == {one.value for one in Stream} | {"DEADLETTER", "ADVISORIES"}
        workers = [
            party.participant for party in load_parties(site.directory) if party.name.startswith("worker")
        ]
        assert {f"TASKS.verify-{worker}" for worker in workers} <= set(report["consumers"])
        assert report["drift"] == []


async def test_drift_is_told_by_name_and_mended_by_nobody(site: Site) -> None:
    own = site.install("provisioner")
    streams, _ = plan_objects(own)
    spec = next(one for one in streams if one.name == "TASKS")
    async with site.connect("watcher", site.directory.transport_seed("watcher")) as bus:
        js = bus.client.jetstream()
        await js.add_stream(compute_stream_config(replace(spec, max_msgs=7)))
        await js.add_stream(compute_stream_config(next(one for one in streams if one.name == "RECORD")))
        await js.add_consumer(
            "RECORD", api.ConsumerConfig(durable_name="ledger", ack_policy=api.AckPolicy.EXPLICIT)
        )
        done = await site.run("provision", "--network-dir", str(own.path), "--json")
        assert done.exit_code == 1
        report = json.loads(done.stdout)
        assert [sentence.split(" exists")[0] for sentence in report["drift"]] == [
            "stream TASKS",
            "consumer RECORD.ledger",
        ]
        assert f"max_msgs is 7, wanted {spec.max_msgs}" in report["drift"][0]
        assert report["drift"][0] in done.stderr
        assert (await js.stream_info("TASKS")).config.max_msgs == 7
        assert "INTAKE" in report["streams"], "what can be made is made"


async def test_more_replicas_than_servers_is_no(site: Site) -> None:
    own = site.install("provisioner")
    done = await site.run("provision", "--network-dir", str(own.path), "--replicas", "3", "--json")
    assert done.exit_code == 1
    assert "replicas" in json.loads(done.stdout)["reason"]


def mount_gateway(site: Site, *accounts: str) -> Path:
    """Return what a gateway's Pod is given: its Secret is exported with these accounts, its files may be changed."""
    out, given = site.folder / "gateway-out", site.folder / "gateway-given"
    export_network(site.directory, out, accounts)
    given.mkdir()
    for source, target in (
        ("network", "network"),
        ("models", "models"),
        ("secrets/pocache-gateway", "keys"),
    ):
        (out / source).rename(given / target)
    return given


async def test_a_gateway_is_given_its_accounts_and_the_reader(site: Site) -> None:
    """And connects as each of them, with nothing else in its directory: no other user, no service, no operator."""
    given = mount_gateway(site, "ada")
    own = NetworkDirectory(site.folder / "own" / "gateway")
    for _ in range(2):  # a container that starts again finds the files of before
        files = install_accounts(given, own)
    assert sorted(str(Path(file).relative_to(own.path)) for file in files) == [
        "keys/ada.seed",
        "transport/ada.jwt",
        "transport/ada.seed",
        "transport/reader.jwt",
        "transport/reader.seed",
    ]
    assert sorted(one.name for one in own.path.rglob("*.seed")) == ["ada.seed", "ada.seed", "reader.seed"]
    for name in ("ada", "reader"):
        async with connect_bus(NatsSettings.of(own, site.url, name)) as bus:
            assert bus.is_connected
    done = await site.run(
        "keys", "install", str(given), "--accounts", "--network-dir", str(own.path), "--json"
    )
    assert (done.exit_code, json.loads(done.stdout)["keys"]) == (0, list(files))
    done = await site.run("api-keys", "issue", "ada", "--network-dir", str(own.path), "--json")
    assert (done.exit_code, json.loads(done.stdout)["account"]) == (0, "ada")
    done = await site.run("api-keys", "issue", "worker-1", "--network-dir", str(own.path))
    assert done.exit_code == 2
    assert "the gateway cannot sign for worker-1" in done.stderr


async def test_a_gateways_secret_that_lacks_something_is_named(site: Site) -> None:
    """The account, its way to the bus, or a name that is no user's: the Pod's first log line says which."""
    out = str(site.folder / "nowhere")
    done = await site.run(
        "keys",
        "export",
        "--network-dir",
        str(site.directory.path),
        "--out",
        out,
        "--gateway-account",
        "worker-1",
    )
    assert done.exit_code == 2
    assert "cannot sign for worker-1, which is no user here; there are: ada" in done.stderr
    assert not Path(out).exists(), "nothing was written"
    given = mount_gateway(site, "ada")
    own = str(site.folder / "own" / "gateway")
    for missing, said in (
        ("ada.transport.seed", "no ada.transport.seed in"),
        ("ada.signing.seed", "no account's signing key in"),
    ):
        (given / "keys" / missing).unlink()
        done = await site.run("keys", "install", str(given), "--accounts", "--network-dir", own)
        assert done.exit_code == 2
        assert said in done.stderr
    done = await site.run("keys", "install", str(given), "--network-dir", own)
    assert (done.exit_code, "say whose keys" in done.stderr) == (2, True)


async def test_without_its_key_it_is_wrongly_configured(site: Site) -> None:
    own = site.install("router")
    done = await site.run("provision", "--network-dir", str(own.path), "--json")
    assert done.exit_code == 2
    assert "provisioner.seed" in done.stderr


async def test_the_collector_is_a_process_of_its_own(site: Site) -> None:
    """A submission that nobody can handle goes to the dead letters and leaves its queue; then the collector stops."""
    provisioner = site.install("provisioner")
    async with site.connect("provisioner", provisioner.transport_seed("provisioner")) as bus:
        await provision_objects(bus, *plan_objects(provisioner))
    stop = asyncio.Event()
    settings = site.settings(site.install("deadletters"), "deadletters")
    running = asyncio.ensure_future(deadletters.serve(settings, stop))
    async with (
        site.connect("watcher", site.directory.transport_seed("watcher")) as watcher,
        asyncio.timeout(WAIT_S),
    ):
        async with watcher.subscribe_core("dead.>") as buried:
            await watcher.publish("jobs.submitted", b"hopeless")
            async with watcher.pull("SUBMISSIONS", "router", credit=1) as batches:
                for _ in range(DELIVER_MAX):
                    await (await anext(batches))[0].nak()
                letter = await anext(
                    buried
                )  # the server gives a message up when it is asked for the next one
        assert (letter.subject, letter.data) == ("dead.SUBMISSIONS.router", b"hopeless")
        js = watcher.client.jetstream()
        while (
            await js.stream_info("SUBMISSIONS")
        ).state.messages:  # each asks the server, who deletes it after the copy
            pass
        stop.set()
        await running


async def test_the_operator_deposits_from_outside(site: Site) -> None:
    """What is stored is signed by the operator, for the participant of that name; nobody else can."""
    own = site.install("provisioner")
    async with site.connect("provisioner", own.transport_seed("provisioner")) as bus:
        await provision_objects(bus, *plan_objects(own))
    words = ("deposit", "worker-1", "25", "--bucket", "stake", "--reference", "first", "--json")
    done = await site.run(*words, "--network-dir", str(site.directory.path))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["amount_micro"] == 25
    participant = site.directory.signing_key("worker-1").participant_id
    subject = t.DEPOSITED.subject(participant=participant)
    assert t.DEPOSITED.stream is not None
    async with site.connect("watcher", site.directory.transport_seed("watcher")) as bus:
        record = await bus.get_last(t.DEPOSITED.stream.value, subject)
    assert record is not None
    opened = open_envelope(record.data, site.directory.genesis.network_id, m.DepositV1)
    assert opened.sender == site.directory.genesis.signer(Role.OPERATOR)
    assert (opened.body.bucket, opened.body.amount_micro, opened.body.reference) == ("stake", 25, "first")
    unknown = await site.run(
        "deposit", "nobody", "25", "--reference", "x", "--network-dir", str(site.directory.path)
    )
    assert unknown.exit_code == 2


async def test_the_collector_without_its_stream_ends(site: Site) -> None:
    """Nothing is provisioned: an orchestrator starts it again until something is."""
    settings = site.settings(site.install("deadletters"), "deadletters")
    with pytest.raises(Exception, match="ADVISORIES"):
        await asyncio.wait_for(deadletters.serve(settings, asyncio.Event()), WAIT_S)


async def test_a_gateway_runs_with_what_the_manifest_gives_it(site: Site) -> None:
    """Its own environment, from the overlay as it is built; only paths, addresses and ports are this machine's."""
    prepare("fake:example", site.folder / "model.json")
    description = {**json.loads((site.folder / "model.json").read_bytes()), "name": "example"}
    register_model(site.directory, description)
    given = mount_gateway(site, "ada")
    own = NetworkDirectory(site.folder / "own" / "gateway")
    install_accounts(given, own)
    objects = build(Path(__file__).parents[2] / "deploy" / "k8s" / "overlays" / "local")
    gateway = next(
        one for one in objects if (one["kind"], one["metadata"]["name"]) == ("StatefulSet", "gateway")
    )
    container = gateway["spec"]["template"]["spec"]["containers"][0]
    settings = next(one for one in objects if one["metadata"]["name"].startswith("pocache-settings"))
    health, http = pick_ports(2)
    environ = {
        **settings["data"],
        **{one["name"]: one["value"] for one in container["env"] if "value" in one},
        "POCACHE_NAME": "gateway",
        "POCACHE_NETWORK_DIR": str(own.path),
        "POCACHE_STATE_DIR": str(site.folder / "state"),
        "POCACHE_NATS_URL": site.url,
        "POCACHE_HEALTH_HOST": "127.0.0.1",
        "POCACHE_HEALTH_PORT": str(health),
        "POCACHE_GATEWAY_HOST": "127.0.0.1",
        "POCACHE_GATEWAY_PORT": str(http),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pocache_cli",
        *container["command"][1:],
        env={**os.environ, **pick_python_environment(), **environ},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient() as client:
            path = container["readinessProbe"]["httpGet"]["path"]
            async with asyncio.timeout(60):
                while not await is_answered(client, f"http://127.0.0.1:{health}{path}"):
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
            metrics = await client.get(f"http://127.0.0.1:{health}/metrics")
            assert (metrics.status_code, "pocache_" in metrics.text) == (200, True)
            with open_api_keys(f"sqlite:///{site.folder / 'state' / 'gateway.sqlite'}") as keys:
                secret, _ = keys.issue("ada")
            headers = {"authorization": f"Bearer {secret}"}
            models = await client.get(f"http://127.0.0.1:{http}/v1/models", headers=headers)
            assert [one["id"] for one in models.json()["data"]] == ["example"]
            assert (await client.get(f"http://127.0.0.1:{http}/explorer")).status_code == 200
    finally:
        process.terminate()
        code = await process.wait()
    assert code == 0


async def is_answered(client: httpx.AsyncClient, url: str) -> bool:
    """Whether a probe would be content."""
    try:
        return (await client.get(url)).status_code == 200
    except httpx.TransportError:
        return False
