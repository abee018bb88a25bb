"""The doctor on a bus where something is missing: before anything was provisioned, and before any service has started."""

from __future__ import annotations

from pathlib import Path

from pocache.bus.nats_bus import NatsSettings, connect_bus
from pocache.bus.server import EmbeddedServer, ServerSettings
from pocache.bus.specs import StreamSpec
from pocache_cli.bootstrap import (
    PROVISIONER,
    NetworkPlan,
    compute_operator,
    compute_users,
    create_network,
    load_parties,
)
from pocache_cli.doctor import Finding
from pocache_cli.doctor_bus import examine_bus
from pocache_cli.provision import plan_objects, provision_objects


async def test_what_is_missing_and_who_is_not_there(tmp_path: Path) -> None:
    """Nothing provisioned; then one stream with other settings; then all of it, and nobody at work."""
    directory = create_network(tmp_path / "network", NetworkPlan("local", ("ada",), ("worker-1",)))
    users = compute_users(directory, load_parties(directory), directory.load_models())
    settings = ServerSettings(
        tmp_path / "nats", users=users, operator=compute_operator(directory, users), sync_always=False
    )
    async with EmbeddedServer(settings) as server:

        async def examine() -> dict[str, list[Finding]]:
            found: dict[str, list[Finding]] = {}
            for one in await examine_bus(directory, server.url, replicas=1):
                found.setdefault(one.check, []).append(one)
            return found

        found = await examine()
        assert {one.status for one in found["streams"]} == {"fail"}
        assert "stream RECORD is missing" in {one.detail for one in found["streams"]}
        async with connect_bus(NatsSettings.of(directory, server.url, PROVISIONER)) as bus:
            streams, consumers = plan_objects(directory)
            beacon = next(one for one in streams if one.name == "BEACON")
            narrow = StreamSpec(beacon.name, beacon.subjects, max_msgs=7)
            await provision_objects(bus, (narrow,), ())
            await provision_objects(bus, tuple(one for one in streams if one is not beacon), consumers)
        found = await examine()
        [drift] = found["streams"]
        assert "stream BEACON" in drift.detail
        assert "max_msgs is 7, wanted 1000000" in drift.detail
        assert drift.remedy
        assert [one.status for one in found["bus"]] == ["ok"]
        assert [one.status for one in found["clock"]] == ["ok"]
        assert "no round was ever published" in found["beacon"][0].detail
        assert found["services"][0].status == "fail"
        for name in ("router", "commitments", "verifier", "ledger"):
            assert name in found["services"][0].detail
            assert f"pocache serve {name}" in found["services"][0].remedy
    found = await examine()
    assert {one.status for all_ in found.values() for one in all_} == {"fail"}
    assert "nats-server" in found["bus"][0].remedy
