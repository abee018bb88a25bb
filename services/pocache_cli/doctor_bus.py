"""The doctor's look at the bus: whether it answers, whose clock is right, what differs from what was provisioned."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pocache.bus.nats_bus import NatsBus, NatsSettings, connect_bus
from pocache.bus.provision import find_drift
from pocache.bus.reading import parse_time_ms
from pocache.bus.replies import NoResponderError
from pocache.protocol.beacon import compute_round_at, verify_round
from pocache.protocol.errors import BusError, ConfigError, PocacheError
from pocache.runtime.config import load_settings
from pocache.runtime.network import NetworkDirectory
from pocache.runtime.telemetry import configure_logging
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.topics import Stream
from pocache_cli.bootstrap import PROVISIONER
from pocache_cli.doctor import FAIL, OK, SKIP, WARN, Finding
from pocache_cli.observing import pick_reader
from pocache_cli.provision import plan_objects

if TYPE_CHECKING:
    from pocache.bus.specs import ConsumerSpec

SKEW_MS_MAX: Final = 1_000
"""Commitments are bound to rounds by clocks: more than this and a machine is late, or early, for its rounds."""
LAG_ROUNDS_MAX: Final = 2
_ANSWER_S: Final = 5.0
_SERVICES: Final = ("router", "commitments", "verifier", "ledger")


async def examine_bus(directory: NetworkDirectory, url: str | None, *, replicas: int) -> list[Finding]:
    """Return what is found on the bus; nothing is created and nothing published to a stream."""
    configure_logging("error")
    try:
        environ = {"POCACHE_NETWORK_DIR": str(directory.path), **({"POCACHE_NATS_URL": url} if url else {})}
        nats_url = load_settings(environ, name_default="").nats_url
    except ConfigError as error:
        return [Finding("bus", FAIL, str(error), "start the network, or set POCACHE_NATS_URL")]
    found = await _examine_as_reader(directory, nats_url)
    if any(one.check == "bus" and one.status == FAIL for one in found):
        return found  # who does not answer one does not answer the other
    return [*found, *await _examine_as_provisioner(directory, nats_url, replicas)]


async def _examine_as_reader(directory: NetworkDirectory, url: str) -> list[Finding]:
    try:
        name = pick_reader(directory)
    except ConfigError as error:
        return [Finding("bus", SKIP, str(error))]
    settings = replace(NatsSettings.of(directory, url, name), connect_s=_ANSWER_S)
    try:
        async with connect_bus(settings) as bus:
            started_s = time.monotonic()
            record = await bus.get_last(Stream.RECORD.value, ">")
            took_ms = (time.monotonic() - started_s) * 1_000
            size = 0 if record is None else record.sequence
            found = [
                Finding("bus", OK, f"{url} answers in {took_ms:.0f} ms; the record has {size:,} messages")
            ]
            return [*found, await _examine_beacon(directory, bus)]
    except NoResponderError:
        nothing = Finding("bus", OK, f"{url} answers; the record or the beacon's stream is not there")
        beacon = Finding("beacon", FAIL, "no round was ever published", "provision the streams first")
        return [nothing, beacon]
    except BusError as error:
        return [
            Finding(
                "bus", FAIL, str(error), "is nats-server running, and does it know this directory's users?"
            )
        ]


async def _examine_beacon(directory: NetworkDirectory, bus: NatsBus) -> Finding:
    chain = directory.genesis.beacon_chain
    last = await bus.get_last(Stream.BEACON.value, t.BEACON_ROUND.subject())
    due = compute_round_at(chain, time.time_ns() // 1_000_000)
    if last is None:
        return Finding(
            "beacon", FAIL, "no round was ever published", "start the beacon: `pocache serve beacon`"
        )
    try:
        body = open_envelope(last.data, directory.genesis.network_id, t.BEACON_ROUND.model).body
        verify_round(chain, body.round_number, body.signature, body.previous_signature or None)
    except PocacheError as error:
        return Finding(
            "beacon",
            FAIL,
            f"the latest round does not verify: {error}",
            "somebody else publishes on this subject",
        )
    lag = due - body.round_number
    if lag > LAG_ROUNDS_MAX:
        detail = f"round {body.round_number:,} is the latest, {due:,} is due: {lag:,} behind"
        return Finding("beacon", FAIL, detail, "is the beacon running? nothing is decided without rounds")
    if lag < -1:
        detail = f"round {body.round_number:,} is there, by this clock only {due:,} is due"
        return Finding("beacon", FAIL, detail, "this machine's clock is slow: synchronise it (NTP)")
    return Finding(
        "beacon", OK, f"round {body.round_number:,} verifies and is {max(0, lag)} behind this clock"
    )


async def _examine_as_provisioner(directory: NetworkDirectory, url: str, replicas: int) -> list[Finding]:
    if not (directory.path / "transport" / f"{PROVISIONER}.seed").exists():
        reason = f"no {PROVISIONER}.seed here: only the provisioner may look at streams"
        return [Finding(name, SKIP, reason) for name in ("clock", "streams", "services")]
    settings = replace(NatsSettings.of(directory, url, PROVISIONER), connect_s=_ANSWER_S)
    try:
        async with connect_bus(settings) as bus:
            streams, consumers = plan_objects(directory, replicas=replicas)
            drift = await find_drift(bus.client.jetstream(), streams, consumers)
            found = [await _examine_clock(bus)]
            if drift:
                remedy = (
                    "`pocache provision` creates what is missing; other settings are the operator's to change"
                )
                found += [Finding("streams", FAIL, sentence, remedy) for sentence in drift]
            else:
                detail = f"{len(streams)} streams and {len(consumers)} consumers are as provisioned"
                found.append(Finding("streams", OK, detail))
            found.append(await _examine_services(bus, consumers))
            return found
    except PocacheError as error:
        return [
            Finding("streams", FAIL, f"{error.code}: {error}", "does the server know the provisioner's key?")
        ]


async def _examine_clock(bus: NatsBus) -> Finding:
    before_ms = time.time_ns() // 1_000_000
    answer = await _ask(bus, f"$JS.API.STREAM.INFO.{Stream.BEACON.value}")
    after_ms = time.time_ns() // 1_000_000
    text = answer.get("ts")
    if not isinstance(text, str):
        return Finding("clock", SKIP, "this server does not say what time it is")
    skew_ms = parse_time_ms(text) - (before_ms + after_ms) // 2
    detail = f"{abs(skew_ms):,} ms {'behind' if skew_ms > 0 else 'ahead of'} the server's"
    if abs(skew_ms) > SKEW_MS_MAX + (after_ms - before_ms):
        return Finding("clock", FAIL, f"this machine's clock is {detail}", "synchronise both clocks (NTP)")
    return Finding("clock", OK, detail)


async def _examine_services(bus: NatsBus, consumers: tuple[ConsumerSpec, ...]) -> Finding:
    """Return which services ask for messages at this moment."""
    awake, behind = set(), []
    for spec in consumers:
        if spec.durable not in _SERVICES:
            continue
        info = await _ask(bus, f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.durable}")
        if info.get("num_waiting"):
            awake.add(spec.durable)
        pending = info.get("num_pending")
        if isinstance(pending, int) and pending > 1_000:
            behind.append(f"{spec.durable} has {pending:,} messages of {spec.stream} before it")
    asleep = [name for name in _SERVICES if name not in awake]
    if asleep:
        remedy = "; ".join(f"pocache serve {name}" for name in asleep)
        return Finding("services", FAIL, f"nobody asks for messages as {', '.join(asleep)}", remedy)
    if behind:
        return Finding(
            "services", WARN, "; ".join(behind), "they are behind: give them time, or more machine"
        )
    return Finding("services", OK, f"{', '.join(_SERVICES)} are asking for messages")


async def _ask(bus: NatsBus, subject: str) -> dict[str, object]:
    try:
        answer = json.loads(await bus.request(subject, b"", timeout_s=_ANSWER_S))
    except (ValueError, TimeoutError) as error:
        raise BusError(f"{subject}: the answer was not understood") from error
    return answer if isinstance(answer, dict) else {}
