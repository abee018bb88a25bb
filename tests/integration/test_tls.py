"""TLS between a process and the bus, both sides verified, on a real server with accounts."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kit.certificates import Authority
from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.protocol.errors import BusError, ConfigError
from pocache.runtime.network import NetworkDirectory, TlsFiles
from pocache_cli.bootstrap import NetworkPlan, compute_operator, compute_users, create_network, load_parties
from pocache_cli.deployment import export_network, install_network

HOST = "127.0.0.1"
REFUSED_S = 2.0
"""How long a connection that must not come about is tried."""


@dataclass(frozen=True)
class Secured:
    """A server that every client must show a certificate to, and a network whose worker has one."""

    directory: NetworkDirectory
    authority: Authority
    url: str

    def settings(self, name: str) -> NatsSettings:
        """Return how somebody connects."""
        return NatsSettings.of(self.directory, self.url, name)


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[Secured]:
    directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1",)))
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("server", host=HOST)
    shutil.copyfile(authority.file, directory.path / "ca.pem")
    tls = directory.path / "tls"
    tls.mkdir()
    for file in authority.issue("worker-1"):
        shutil.copy(file, tls / file.name)
    settings = ServerSettings(
        tmp_path / "nats",
        operator=compute_operator(directory, compute_users(directory, load_parties(directory), ())),
        tls=TlsFiles(authority.file, certificate, key),
        sync_always=False,
    )
    async with EmbeddedServer(settings) as server:
        yield Secured(directory, authority, server.url)


async def test_who_shows_its_certificate_is_let_in(secured: Secured) -> None:
    async with connect_bus(secured.settings("worker-1")) as bus:
        assert bus.is_connected


async def test_who_shows_none_is_not(secured: Secured) -> None:
    """Its credentials are good; without a certificate it does not come to show them."""
    with pytest.raises(BusError):
        async with connect_bus(replace(secured.settings("ada"), connect_s=REFUSED_S)):
            pass


async def test_a_certificate_of_another_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    certificate, key = stranger.issue("worker-1")
    files = TlsFiles(secured.authority.file, certificate, key)
    with pytest.raises(BusError):
        async with connect_bus(replace(secured.settings("worker-1"), tls=files, connect_s=REFUSED_S)):
            pass


async def test_a_server_of_another_authority_is_not_believed(secured: Secured, tmp_path: Path) -> None:
    good = secured.settings("worker-1")
    assert good.tls is not None
    files = replace(good.tls, authority=Authority(tmp_path / "stranger", "stranger").file)
    with pytest.raises(BusError, match="certificate verify failed"):
        async with connect_bus(replace(good, tls=files, connect_s=REFUSED_S)):
            pass


async def test_a_server_by_another_name_is_not_believed(tmp_path: Path, secured: Secured) -> None:
    """The same authority signed it, for another address."""
    certificate, key = secured.authority.issue("other", host="127.0.0.9")
    settings = ServerSettings(
        tmp_path / "other", tls=TlsFiles(secured.authority.file, certificate, key), sync_always=False
    )
    async with EmbeddedServer(settings) as server:
        with pytest.raises(BusError):
            async with connect_bus(
                replace(secured.settings("worker-1"), url=server.url, connect_s=REFUSED_S)
            ):
                pass


async def test_a_key_that_others_can_read_is_refused(secured: Secured) -> None:
    """Before any connection, with what to do."""
    for file in ("tls/worker-1.key", "transport/worker-1.jwt", "transport/worker-1.seed"):
        path = secured.directory.path / file
        path.chmod(0o644)
        with pytest.raises(ConfigError, match="has mode 644: run `chmod 600"):
            NatsSettings.of(secured.directory, secured.url, "worker-1")
        path.chmod(0o600)


@pytest.mark.parametrize("file", ["ca.pem", "tls/worker-1.pem", "tls/worker-1.key"])
async def test_files_that_are_no_certificates_are_named(secured: Secured, file: str) -> None:
    (secured.directory.path / file).write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot use the TLS files beside"):
        async with connect_bus(secured.settings("worker-1")):
            pass


async def test_a_deployed_process_has_its_certificate(secured: Secured, tmp_path: Path) -> None:
    """Exported, mounted, installed: the same files, and the key readable by its owner alone."""
    export_network(secured.directory, tmp_path / "out")
    given = tmp_path / "given"
    given.mkdir()
    for source, target in (
        ("network", "network"),
        ("models", "models"),
        ("secrets/pocache-worker", "keys"),
    ):
        (given / target).symlink_to(tmp_path / "out" / source)
    own = NetworkDirectory(tmp_path / "own")
    install_network(given, own, "worker-1")
    settings = NatsSettings.of(own, secured.url, "worker-1")
    assert settings.tls is not None
    assert settings.tls.certificate is not None
    async with connect_bus(settings) as bus:
        assert bus.is_connected
