"""Record what participants of release 0.1 said, and what came of it: ``python tests/vectors/make_recorded.py``.

Run once a release that changes what participants say, under a new file name; a file that was released is never written
again (``--unreleased`` while 0.1 is not). ``tests/contract/test_recorded_client.py`` plays each against today's services.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
FILE: Final = Path(__file__).parent / "recorded_v1.jsonl.gz"


def make_recorded() -> bytes:
    """Return the lines of a session: its genesis, every message that no service said, with the time, then every payout."""
    from kit.loopback import Habit, Loopback
    from kit.recording import describe
    from pocache.wire import topics as t
    from pocache.wire.envelope import open_envelope, parse_envelope

    services: set[str] = set()
    lines: list[dict[str, Any]] = []
    store = Loopback._store

    def note(self: Loopback, topic: Any, subject: str, data: bytes) -> None:
        services.update(str(self.network.keys[role].participant_id) for role in self.services)
        if parse_envelope(data).kid not in services:
            text = base64.b64encode(data).decode("ascii")
            lines.append({"at_ms": self.clock_ms, "subject": subject, "data": text})
        store(self, topic, subject, data)

    Loopback._store = note  # type: ignore[method-assign]
    try:
        loopback = Loopback(habits={"verifier-2": Habit("lazy")})
        for options in ({}, {"challenge": True}, {"challenge": True}, {"seed": None}):
            loopback.play(**options)
        loopback.tick(3)
    finally:
        Loopback._store = store  # type: ignore[method-assign]
    payouts = []
    for entry in loopback.record:
        if t.PAYOUT_SETTLED.matches(entry.subject):
            body = open_envelope(entry.data, loopback.network.network_id, t.PAYOUT_SETTLED.model).body
            payouts.append({"payout": describe(body)})
    network = loopback.network
    head = {
        "genesis": network.genesis.canonical_json().decode("ascii"),
        "network_id": network.network_id.hex(),
        "model": base64.b64encode(network.model_envelope).decode("ascii"),
    }
    return b"".join(json.dumps(line, sort_keys=True).encode() + b"\n" for line in (head, *lines, *payouts))


def main() -> None:
    """Write the file, unless it is there."""
    if FILE.exists() and sys.argv[1:] != ["--unreleased"]:
        sys.exit(f"{FILE} is there: what was released is never written again; before that, with --unreleased")
    sys.path[:0] = [str(ROOT / name) for name in ("tests", "shared", "services")]
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    FILE.write_bytes(gzip.compress(make_recorded(), mtime=0))


if __name__ == "__main__":
    main()
