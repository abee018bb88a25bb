"""The embedded server says why it does not start, keeps its address and its store, and ends with its context."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.permissions import NatsUser, generate_transport_key
from pocache.bus.provision import provision
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.bus.specs import StreamSpec
from pocache.protocol.errors import BusError

RECORD = StreamSpec(name="RECORD", subjects=("record.>",), deny_delete=True, deny_purge=True)


async def test_the_process_ends_with_the_context(tmp_path: Path) -> None:
    async with EmbeddedServer(ServerSettings(tmp_path)) as server:
        pid = server.pid
        assert pid is not None
        os.kill(pid, 0)
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_restart_keeps_the_address_and_what_was_acknowledged(tmp_path: Path) -> None:
    async with EmbeddedServer(ServerSettings(tmp_path)) as server:
        url, settings = server.url, NatsSettings(url=server.url, name="t")
        async with connect_bus(settings) as bus:
            await provision(bus.client.jetstream(), [RECORD], [])
            await bus.publish("record.a", b"kept")
        await server.kill()
        await server.start()
        assert server.url == url
        await server.restart()
        async with connect_bus(settings) as bus:
            assert [record.data async for record in bus.read("RECORD")] == [b"kept"]


async def test_a_port_that_is_taken_is_an_error_in_the_server_s_words(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    port = int(nats_server.url.rpartition(":")[2])
    with pytest.raises(BusError, match="address already in use"):
        async with EmbeddedServer(ServerSettings(tmp_path / "other", port=port)):
            pass


async def test_a_configuration_that_the_server_refuses_leaves_the_old_one_running(
    nats_server: EmbeddedServer,
) -> None:
    """The subject has a wildcard inside a token, which only the server knows to be wrong."""
    user = NatsUser("u", generate_transport_key(b"\x05" * 32).public, publish_allow=("a..b",))
    with pytest.raises(BusError, match="Failed to reload"):
        await nats_server.reload((user,))
    async with connect_bus(NatsSettings(url=nats_server.url, name="t")) as bus:
        assert bus.is_connected


async def test_a_stopped_server_does_not_reload(nats_server: EmbeddedServer) -> None:
    await nats_server.kill()
    with pytest.raises(BusError, match="not running"):
        await nats_server.reload()


async def test_a_user_s_permissions_are_the_ones_of_the_table(nats_server: EmbeddedServer) -> None:
    key = generate_transport_key(b"\x06" * 32)
    mute = NatsUser("mute", key.public, publish_allow=("only.this",), subscribe_allow=("_INBOX.mute.>",))
    await nats_server.reload(
        (mute, replace(mute, name="other", nkey_public=generate_transport_key(b"\x07" * 32).public))
    )
    async with connect_bus(NatsSettings(url=nats_server.url, name="mute", nkey_seed=key.seed)) as bus:
        await bus.publish_core("only.this", b"x")
        await bus.publish_core("something.else", b"x")
        with pytest.raises(BusError):
            async with bus.subscribe_core("_INBOX.other.>"):
                pass
        assert bus.denied == ("publish to something.else", "subscription to _inbox.other.>")
