"""Which beacon a process is: the genesis says it, the process's own settings say where from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from kit.network import Network, make_network
from pocache.protocol.beacon import DRAND_DEFAULT, QUICKNET, Chain
from pocache.protocol.errors import ConfigError
from pocache.runtime.config import Settings, load_settings
from pocache.runtime.network import NetworkDirectory
from pocache.service.entry import ServiceContext, load_context
from pocache.wire.topics import Role
from pocache_beacon.__main__ import open_beacon
from pocache_beacon.local import LocalBeacon
from pocache_beacon.relay import RelayBeacon, read_relay_settings
from pocache_beacon.threshold import ThresholdBeacon
from pocache_cli.bootstrap import NetworkPlan, create_network
from pocache_cli.bootstrap_beacon import BeaconPlan

NETWORK: Network = make_network()


def make_context(path: Path, plan: BeaconPlan, *, name: str = "beacon", **variables: str) -> ServiceContext:
    """Create a network and return what a beacon process of this name sees of it."""
    directory = create_network(path, NetworkPlan(name="test", users=(), workers=(), beacon=plan))
    return load_context(make_settings(directory, name=name, **variables))


def make_settings(directory: NetworkDirectory, *, name: str = "beacon", **variables: str) -> Settings:
    environ: Mapping[str, str] = {
        "POCACHE_NETWORK_DIR": str(directory.path),
        "POCACHE_NATS_URL": "nats://127.0.0.1:1",
        "POCACHE_NAME": name,
        **{f"POCACHE_BEACON_{key.upper()}": value for key, value in variables.items()},
    }
    return load_settings(environ, name_default="beacon")


@pytest.mark.parametrize(
    ("plan", "name", "kind"),
    [
        (BeaconPlan(), "beacon", LocalBeacon),
        (BeaconPlan("threshold", threshold=2, member_count=3), "beacon-3", ThresholdBeacon),
        (BeaconPlan("relay", relayed=QUICKNET), "beacon", RelayBeacon),
        (BeaconPlan("relay", relayed=DRAND_DEFAULT), "beacon", RelayBeacon),
    ],
    ids=["local", "threshold", "quicknet", "default"],
)
async def test_the_genesis_chooses(tmp_path: Path, plan: BeaconPlan, name: str, kind: type) -> None:
    context = make_context(tmp_path, plan, name=name, endpoints="https://api.drand.sh")
    async with open_beacon(context, cast("Any", None)) as beacon:
        assert type(beacon) is kind
        assert not beacon.is_ready


@pytest.mark.parametrize("chain", [QUICKNET, DRAND_DEFAULT], ids=["quicknet", "default"])
def test_a_relayed_chain_is_pinned_whole(tmp_path: Path, chain: Chain) -> None:
    """The genesis has drand's chain, beacon id included, and the directory no secret of it."""
    context = make_context(tmp_path, BeaconPlan("relay", relayed=chain))
    assert context.genesis.beacon_chain == chain
    assert context.genesis.round_signers == {context.genesis.signer(Role.BEACON)}
    assert not (tmp_path / "secrets").exists()


async def test_a_relay_without_servers_says_what_to_set(tmp_path: Path) -> None:
    context = make_context(tmp_path, BeaconPlan("relay", relayed=QUICKNET), endpoints=" , ")
    with pytest.raises(ConfigError, match="POCACHE_BEACON_ENDPOINTS"):
        async with open_beacon(context, cast("Any", None)):
            pass


def test_a_relays_settings_are_read(tmp_path: Path) -> None:
    directory = NetworkDirectory(tmp_path)
    settings = read_relay_settings(
        make_settings(directory, endpoints="https://a, https://b/v2", timeout_s="7", hedge_ms="250")
    )
    assert (settings.endpoints, settings.timeout_s, settings.hedge_s) == (
        ("https://a", "https://b/v2"),
        7.0,
        0.25,
    )
    for name in ("timeout_s", "hedge_ms"):
        with pytest.raises(ConfigError, match=f"POCACHE_BEACON_{name.upper()}"):
            read_relay_settings(make_settings(directory, endpoints="https://a", **{name: "soon"}))


def test_only_members_may_carry_rounds_of_a_threshold_beacon(tmp_path: Path) -> None:
    context = make_context(tmp_path, BeaconPlan("threshold", threshold=2, member_count=3), name="beacon-1")
    members = {member.participant for member in context.genesis.chain.members}
    assert context.genesis.round_signers == members
    assert len(members) == 3
    assert NETWORK.genesis.round_signers == {NETWORK.genesis.signer(Role.BEACON)}
