"""``python -m pocache_ledger.migrate [URL]``: bring a ledger's database to the schema that this release needs.

The URL is that of ``POCACHE_DATABASE_URL`` unless given. Refuses while a ledger is running on the database. Exits 0 when
the database is at the newest revision, 2 when it cannot be brought there, with the reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from pocache.protocol.errors import ConfigError
from pocache.storage.store import Store
from pocache_ledger.migrations import get_revision, upgrade


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Migrate, say from what to what, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    url = given[0] if given else (os.environ if environ is None else environ).get("POCACHE_DATABASE_URL")
    if len(given) > 1 or not url or url.startswith("-"):
        sys.stderr.write("usage: python -m pocache_ledger.migrate [URL], or set POCACHE_DATABASE_URL\n")
        return 2
    try:
        before, after = migrate(url)
    except ConfigError as error:
        sys.stderr.write(f"pocache_ledger.migrate: {error}\n")
        return 2
    sys.stdout.write(f"the ledger's database is at revision {after}; it was at {before or 'none'}\n")
    return 0


def migrate(url: str) -> tuple[str | None, str | None]:
    """Upgrade a database and return the revisions before and after. Raises ConfigError."""
    revisions: list[str | None] = []

    def prepare(connection: sa.Connection) -> None:
        revisions.append(get_revision(connection))
        upgrade(connection)
        revisions.append(get_revision(connection))

    Store(url, prepare=prepare).close()
    return revisions[0], revisions[1]


if __name__ == "__main__":
    sys.exit(main())
