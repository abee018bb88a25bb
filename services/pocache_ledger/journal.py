"""``python -m pocache_ledger.journal [--record EXPORT] [--json] [URL]``: whether a ledger's journal holds, and if not, where.

The URL is that of ``POCACHE_DATABASE_URL`` unless given. With an export of the record (``pocache audit --export``) the
journal is also held against every checkpoint that the ledger published there (docs/protocol.md 9.9.2): without one, who
rewrote the database and its chain is not found. Nothing is changed, but the ledger must not be running: the database is
opened as its writer. Exits 0 when it holds, 1 when it does not, 2 for wrong usage or a database that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from pocache.protocol.errors import CodecError, ConfigError, LedgerError, PocacheError
from pocache.protocol.limits import ENTRY_TEXT_BYTES_MAX
from pocache.receipt.export import Entry, open_export, read_entries, read_header
from pocache.receipt.verify import read_genesis
from pocache.storage.store import Store
from pocache.wire import topics as t
from pocache.wire.envelope import open_envelope
from pocache.wire.messages import JournalCheckpointV1
from pocache.wire.topics import Role
from pocache_ledger.accounts import verify_journal
from pocache_ledger.migrations import get_newest, get_revision


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Check, say what was found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pocache_ledger.journal", description="Check a journal.")
    parser.add_argument(
        "url", nargs="?", default=(os.environ if environ is None else environ).get("POCACHE_DATABASE_URL")
    )
    parser.add_argument("--record", type=Path, help="an export of the record, whose checkpoints must be met")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(None if arguments is None else list(arguments))
    if not given.url:
        parser.error("which database? Give its URL, or set POCACHE_DATABASE_URL")
    try:
        checkpoints = {} if given.record is None else read_checkpoints(given.record)
        entries = check_journal(given.url, checkpoints)
    except LedgerError as error:
        found = {"holds": False, "reason": str(error)}
    except PocacheError as error:
        sys.stderr.write(f"pocache_ledger.journal: {error}\n")
        return 2
    else:
        found = {"holds": True, "entries": entries, "checkpoints": len(checkpoints)}
    sys.stdout.write((json.dumps(found) if given.json else _describe(found)) + "\n")
    return 0 if found["holds"] else 1


def check_journal(url: str, checkpoints: Mapping[int, bytes]) -> int:
    """Return how many entries a ledger's journal has. Raises LedgerError for one that does not hold, ConfigError."""
    try:
        database = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"not a database URL: {error}") from error
    if database.get_backend_name() == "sqlite" and not Path(database.database or "").is_file():
        raise ConfigError(f"{database.database} is no database")  # which opening it would make
    with closing(Store(url, prepare=_verify_revision)) as store, store.begin() as connection:
        return verify_journal(connection, checkpoints)


def read_checkpoints(file: Path) -> dict[int, bytes]:
    """Return the heads by number of entries that the ledger signed in an export. Raises CodecError, EnvelopeError."""
    try:
        with open_export(file, "rb") as stream:
            header = read_header(stream.readline(ENTRY_TEXT_BYTES_MAX + 1))
            genesis = read_genesis(header.genesis)
            ledger = genesis.signer(Role.LEDGER)
            said = [
                open_envelope(one.data, genesis.network_id, JournalCheckpointV1)
                for one in _filter(read_entries(stream))
            ]
    except (OSError, EOFError) as error:
        raise CodecError(f"cannot read {file}: {error}") from error
    if any(one.sender != ledger for one in said):
        raise ConfigError(f"{file} has a checkpoint of the journal that the network's ledger did not sign")
    return {one.body.entries: one.body.head for one in said}


def _verify_revision(connection: sa.Connection) -> None:
    """Refuse what this release would have to change before it can read it."""
    found, newest = get_revision(connection), get_newest()
    if found != newest:
        raise ConfigError(
            f"the database is at revision {found or 'none'}, this release reads {newest}: is it a ledger's? If so, run "
            "`python -m pocache_ledger.migrate` on a copy of it"
        )


def _filter(entries: Iterator[Entry]) -> Iterator[Entry]:
    return (one for one in entries if t.JOURNAL_CHECKPOINT.matches(one.subject))


def _describe(found: Mapping[str, object]) -> str:
    if not found["holds"]:
        return f"the journal does not hold: {found['reason']}"
    against = (
        f"goes through {found['checkpoints']} checkpoints of the record"
        if found["checkpoints"]
        else ("was held against no checkpoint")
    )
    return f"the journal holds: {found['entries']} entries, and {against}"


if __name__ == "__main__":
    sys.exit(main())
