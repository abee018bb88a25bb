"""``python -m pocache.storage.backup FROM TO``: copy a service's SQLite database while it may be in use.

By SQLite's own online backup: the copy is one moment's state, checked as a whole, synced, and then given its name. Refuses
to replace a file. Not covered: PostgreSQL, which has pg_dump, and whether copies of several services fit each other
(docs/operations.md says in which order they do).
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pocache.protocol.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy, say how much, and return the exit code: 0, or 2 with the reason."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2 or any(one.startswith("-") for one in given):
        sys.stderr.write("usage: python -m pocache.storage.backup FROM TO\n")
        return 2
    try:
        size = copy_database(Path(given[0]), Path(given[1]))
    except ConfigError as error:
        sys.stderr.write(f"pocache.storage.backup: {error}\n")
        return 2
    sys.stdout.write(f"{given[1]}: {size} bytes, whole\n")
    return 0


def copy_database(source: Path, target: Path) -> int:
    """Copy a database and return the copy's size in bytes. Raises ConfigError, leaving no half of a copy."""
    if not source.is_file():
        raise ConfigError(f"{source} is not there")
    if target.exists():
        raise ConfigError(f"{target} is there already")
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60.0)) as reader,
            closing(sqlite3.connect(part)) as writer,
        ):
            reader.backup(writer)
            found = writer.execute("PRAGMA integrity_check").fetchone()
        if found != ("ok",):
            raise ConfigError(f"{source} is damaged: {found}")
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"cannot copy {source} to {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
