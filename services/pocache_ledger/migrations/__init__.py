"""The ledger's schema, step by step: how a database of any earlier release becomes one of this.

A revision is never edited once it was released. SQLite is brought to the newest one when the ledger opens it, in the
same transaction; PostgreSQL by ``python -m pocache_ledger.migrate``, so that an operator decides when. Refused: a
database of a newer release.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from pocache.protocol.errors import ConfigError

FIRST: Final = "0001"
"""What ledgers wrote before there were migrations."""


def prepare(connection: sa.Connection) -> None:
    """Bring an SQLite database to the newest schema; refuse a PostgreSQL one that is not there yet."""
    if connection.dialect.name == "sqlite":
        upgrade(connection)
        return
    found, newest = get_revision(connection), get_newest()
    if found != newest:
        raise ConfigError(
            f"the ledger's database is at revision {found or 'none'}, this release needs {newest}: stop the ledger and "
            "run `python -m pocache_ledger.migrate`"
        )


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Bring a database to a revision, in the transaction that ``connection`` is in."""
    config = _make_config(connection)
    if get_revision(connection) is None and sa.inspect(connection).has_table("operations"):
        command.stamp(config, FIRST)
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise ConfigError(f"the ledger's database is of another release: {error}") from error


def get_revision(connection: sa.Connection) -> str | None:
    """Return the revision that a database is at, None before the first."""
    return MigrationContext.configure(connection).get_current_revision()


def get_newest() -> str:
    """Return the newest revision there is."""
    newest = ScriptDirectory.from_config(_make_config(None)).get_current_head()
    assert newest is not None
    return newest


def _make_config(connection: sa.Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
