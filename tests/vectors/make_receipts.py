"""Make the receipts that are kept beside this file: ``python tests/vectors/make_receipts.py``, from the repository.

A demonstration network of processes on the engine without a model plays honest and cheating jobs; one receipt of each
ending is written, as JSON, with the trust file that its network has. To be run again when a message or the genesis
changes; keys and rounds are new each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / name) for name in ("tests", "shared", "services")]

from kit.local import FAKE_MODEL, SECTIONS, USER, start_network  # noqa: E402
from pocache.client import Job, PocacheClient, RefusedError  # noqa: E402
from pocache.protocol.ids import ModelId  # noqa: E402
from pocache.protocol.lifecycle import Phase  # noqa: E402
from pocache.receipt.export import Entry, Header, write_export  # noqa: E402
from pocache.receipt.format import decode_receipt, encode_json  # noqa: E402
from pocache.receipt.trust import make_trust  # noqa: E402
from pocache.receipt.verify import examine_receipt  # noqa: E402
from pocache.wire.topics import Stream  # noqa: E402
from pocache_cli.calibrate import build_engine  # noqa: E402
from pocache_cli.local_network import LocalNetwork, WorkerProcess  # noqa: E402

PROMPT: Final = (72, 105, 33, 10, 7, 9)
FOLDER: Final = Path(__file__).parent
POOR: Final = "poor"
RULES: Final[Mapping[str, Mapping[str, object]]] = {
    "receipts": {"name": "unified-pool", "stage_max": 3},
    "receipts-committee": {"name": "fixed-fee-committee", "committee_size": 3, "levy": "1", "recheck": "1/3"},
}
"""By the folder that a network's receipts are kept in."""
CHEATS: Final = {"other": "another-model", "silent": "never-opens", "twice": "two-commitments"}
CAPTURED: Final[Mapping[str, Mapping[str, object]]] = {
    **SECTIONS,
    "audit": {**SECTIONS["audit"], "window_rounds": 6, "lottery_share": "1/3"},
    "deadlines": {**SECTIONS["deadlines"], "opening_ticks": 8, "queue_ticks": 20},
}
COMMON: Final = frozenset(
    {"no_challenge", "agree", "lottery", "no_opening", "equivocation", "refused", "refunded"}
)
WANTED: Final[Mapping[str, frozenset[str]]] = {
    "receipts": COMMON | {"confirm_prior"},
    "receipts-committee": COMMON | {"conviction", "acquittal"},
}
LAZY: Final = "lazy"
"""A verifier that seals garbage, so that a committee has somebody to acquit."""
IDLE: Final = "fake:nobody"
"""A model that no worker serves: its jobs are given up."""
BATCHES_MAX: Final = 10
SETTLE_S: Final = 120.0


def get_workers(folder: str) -> tuple[WorkerProcess, ...]:
    """Return two honest generators, three that cheat, and honest verifiers; where committees are drawn, more, one lazy."""
    if folder != "receipts":
        verifiers = WorkerProcess(
            "verifiers",
            (*(f"verifier-{number}" for number in range(1, 6)), LAZY),
            roles="verify",
            cheats={LAZY: "garbage-claims"},
        )
    else:
        verifiers = WorkerProcess("verifiers", ("verifier-1", "verifier-2", "verifier-3"), roles="verify")
    return (
        WorkerProcess("generators", ("generator-1", "generator-2"), roles="generate"),
        WorkerProcess("cheats", tuple(CHEATS), roles="generate", cheats=CHEATS),
        verifiers,
    )


async def capture(network: LocalNetwork, wanted: frozenset[str], record: Path) -> dict[str, bytes]:
    """Play jobs until there is a receipt of every ending that is wanted; binary receipts by ending.

    The record of the first jobs goes to a file, while the one that nobody will do is still waiting.
    """
    found: dict[str, bytes] = {}
    cheating = {network.directory.signing_key(name).participant_id for name in CHEATS}
    served, idle = get_models(network)
    async with network.open_user(USER) as client, network.open_user(POOR) as poor:
        abandoned = await client.submit(idle, PROMPT, token_count_max=8)
        if "refused" in wanted:
            job = await poor.submit(served, PROMPT, token_count_max=8)
            with contextlib.suppress(RefusedError):
                await asyncio.wait_for(poor.wait(job, Phase.REFUSED), SETTLE_S)
            found["refused"] = await fetch(poor, job)
        for number in range(BATCHES_MAX):
            if wanted <= {*found, "refunded"}:
                break
            jobs = [await submit(client, served, 8 * number + index) for index in range(8)]
            # A challenge of every second honest job beside all of the cheats: some are left to the lottery.
            await asyncio.gather(
                *(_play(client, job, cheating, index % 2 == number % 2) for index, job in enumerate(jobs))
            )
            if number == 0:
                count = await export_record(network, record)
                print(f"record: {count} messages")  # noqa: T201
            for job in jobs:
                data = await fetch(client, job)
                found.setdefault(name_ending(data, network), data)
        if "refunded" in wanted:
            async with asyncio.timeout(SETTLE_S):
                await client.wait(abandoned, Phase.REFUNDED)
                await client.wait_payout(abandoned)
            found["refunded"] = await fetch(client, abandoned)
    missing = wanted - set(found)
    assert not missing, f"these endings were not played: {missing}"
    return {name: found[name] for name in sorted(found)}


async def submit(client: PocacheClient, model_id: ModelId, number: int) -> Job:
    """Submit one of a row of jobs; every third has a sampling seed of its user's own."""
    prompt = tuple(hashlib.sha256(bytes([number])).digest()[:6])
    seed = hashlib.sha256(b"seed of job %d" % number).digest() if number % 3 == 0 else None
    return await client.submit(model_id, prompt, token_count_max=8, seed=seed)


def get_models(network: LocalNetwork) -> tuple[ModelId, ModelId]:
    """Return the model that is served here, and the one that is not."""
    models = network.directory.load_models().values()
    served, idle = compute_model_id(FAKE_MODEL), compute_model_id(IDLE)
    assert {model.model_id for model in models} == {served, idle}
    return served, idle


def compute_model_id(source: str) -> ModelId:
    """Return the id of a model of the engine without one."""
    return build_engine(source, encoding="sketch", device="cpu", threads=1).capabilities().model_id


async def export_record(network: LocalNetwork, file: Path) -> int:
    """Write the network's rounds and record to a file, as `pocache audit --export` does."""
    directory = network.directory
    header = Header(
        directory.genesis.canonical_json(), tuple(one.envelope for one in directory.load_models().values())
    )
    entries: list[Entry] = []
    for stream in (Stream.RECORD, Stream.BEACON):
        read = [one async for one in network.operator.read(stream.value)]
        entries = [*(Entry(one.stream, one.sequence, one.subject, one.data) for one in read), *entries]
    return write_export(file, header, entries)


async def fetch(client: PocacheClient, job: Job) -> bytes:
    """Return a job's receipt, asking again until the store has heard of the payout too."""
    async with asyncio.timeout(SETTLE_S):
        while True:
            try:
                return await client.get_receipt(job)
            except RefusedError as error:
                if error.refusal_code != "E501":
                    raise
                await asyncio.sleep(0.2)


def name_ending(data: bytes, network: LocalNetwork) -> str:
    """Return how a job ended, and apart those that the lottery audited."""
    report, case = examine_receipt(data, make_trust(network.directory.genesis))
    assert report.is_valid, report.failure
    assert case is not None
    if report.case == "agree" and case.audit is not None and case.audit.reason == "lottery":
        return "lottery"
    return report.case


async def _play(client: PocacheClient, job: Job, cheating: Collection[str], is_challenged: bool) -> None:
    async with asyncio.timeout(SETTLE_S):
        await client.wait(job, Phase.COMMITTED)
        assert job.holder is not None
        if job.holder[1] in cheating or is_challenged:
            await client.challenge(job)
        await client.wait(job, Phase.SETTLED, Phase.REFUNDED)
        await client.wait_payout(job)


async def main() -> None:
    """Write one receipt of each ending under both rule sets, and the trust files."""
    for name in sys.argv[1:] or RULES:
        await make(name)


async def make(name: str) -> None:
    """Write one receipt of each ending under one rule set, and the trust file."""
    folder = FOLDER / name
    with tempfile.TemporaryDirectory() as scratch:
        async with start_network(
            Path(scratch) / "network",
            workers=get_workers(name),
            users=(USER, POOR),
            money={POOR: 1},
            idle_models=(IDLE,),
            sections={**CAPTURED, "rules": RULES[name]},
        ) as network:
            folder.mkdir(exist_ok=True)
            receipts = await capture(network, WANTED[name], folder / "record.jsonl.gz")
            (folder / "trust.json").write_text(
                make_trust(network.directory.genesis).to_json(), encoding="ascii"
            )
            for ending, data in receipts.items():
                (folder / f"{ending}.json").write_bytes(encode_json(decode_receipt(data)))
                print(f"{name}/{ending}: {len(data)} bytes")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
