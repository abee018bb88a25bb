"""The tables that a service finds and those that it needs: whether the one will do for the other.

For services without migrations of their own. What an earlier release lacks and nobody has to fill in is added: tables,
columns that may be empty or have a default of the database's own, indexes. What a later release added and may be
left empty is left alone, so that a service can go one release back. Everything else is refused, by its name, with what to
do: nothing is converted, dropped or guessed. Not covered: what a column means; a release that changes that
gives it another name, or raises ``SCHEMA_VERSION``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import CreateColumn

from pocache.protocol.errors import ConfigError

WHAT_TO_DO = (
    "the release that wrote this database fits it: go back to it, let it finish every open job, and only then start "
    "this one on an empty state directory (docs/operations.md, Upgrade)"
)


def prepare_tables(
    connection: sa.Connection, metadatas: Sequence[sa.MetaData], *, shown: str = "the database"
) -> None:
    """Create or complete the tables of ``metadatas``. Raises ConfigError naming what cannot be made to fit."""
    inspector = sa.inspect(connection)
    found = set(inspector.get_table_names())
    tables = [table for metadata in metadatas for table in metadata.sorted_tables]
    problems = [
        problem
        for table in tables
        if table.name in found
        for problem in _compare(connection, inspector, table)
    ]
    if problems:
        raise ConfigError(f"{shown}: {'; '.join(problems)}: {WHAT_TO_DO}")
    for table in tables:
        if table.name in found:
            _complete(connection, inspector, table)
    for metadata in metadatas:
        metadata.create_all(connection)


def _compare(connection: sa.Connection, inspector: sa.Inspector, table: sa.Table) -> list[str]:
    """Return what of a table's columns and key cannot be made to fit."""
    columns = {column["name"]: column for column in inspector.get_columns(table.name)}
    problems = []
    for column in table.columns:
        known = columns.get(column.name)
        if known is None:
            if not _may_be_added(column):
                problems.append(f"table {table.name} has no column {column.name}")
            continue
        wanted, has = _get_type(connection, column.type), _get_type(connection, known["type"])
        if wanted != has:
            problems.append(f"column {table.name}.{column.name} is {has}, this release needs {wanted}")
        elif column.nullable and not known["nullable"]:
            problems.append(
                f"column {table.name}.{column.name} may not be empty, this release leaves it empty"
            )
    for name, known in columns.items():
        if name not in table.columns and not known["nullable"] and known["default"] is None:
            problems.append(f"table {table.name} has a column {name} that this release does not fill")
    key = list(inspector.get_pk_constraint(table.name)["constrained_columns"])
    if key != [column.name for column in table.primary_key.columns]:
        problems.append(f"the key of table {table.name} is ({', '.join(key)})")
    return problems


def _complete(connection: sa.Connection, inspector: sa.Inspector, table: sa.Table) -> None:
    """Add the columns and indexes that an earlier release did not have."""
    columns = {column["name"] for column in inspector.get_columns(table.name)}
    for column in table.columns:
        if column.name not in columns:
            text = CreateColumn(column).compile(dialect=connection.dialect)
            name = connection.dialect.identifier_preparer.format_table(table)
            connection.execute(sa.text(f"ALTER TABLE {name} ADD COLUMN {text}"))
    indexes = {index["name"] for index in inspector.get_indexes(table.name)}
    for index in table.indexes:
        if index.name not in indexes:
            index.create(connection)


def _may_be_added(column: sa.Column[Any]) -> bool:
    return not column.primary_key and (column.nullable or column.server_default is not None)


def _get_type(connection: sa.Connection, kind: Any) -> str:
    """Return a type as this kind of database writes it."""
    text: str = kind.compile(dialect=connection.dialect)
    return text
