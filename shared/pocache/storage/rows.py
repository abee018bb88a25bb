"""Rows by their columns: found, inserted, changed, replaced and deleted by statements that are written once.

Each table and set of columns gets one statement (``pocache.storage.prepared``), kept for as long as the process lives:
names of columns are the code's own and never a message's. Values are integers, text, bytes, booleans and None, and come
back as the driver gives them: a boolean of SQLite as 0 or 1. Refuses, in effect, what the table's own constraints do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from pocache.storage.prepared import Prepared


def find_row(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any]) -> Any:
    """Return the row of ``key``, None when there is none."""
    return _prepare_select(table, tuple(key)).first(connection, **key)


def insert_row(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
    """Insert a row; columns that are not named take their default, or are left empty."""
    _prepare_insert(table, tuple(values)).run(connection, **values)


def update_rows(
    connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> int:
    """Change the rows of ``key``, and return how many those are."""
    return _prepare_update(table, tuple(key), tuple(values)).run(connection, **key, **values)


def upsert(
    connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """Update the row of ``key``, the table's primary key, with ``values``, or insert it."""
    _prepare_upsert(table, tuple(key), tuple(values)).run(connection, **key, **values)


def delete_rows(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any]) -> None:
    """Delete the rows of ``key``."""
    _prepare_delete(table, tuple(key)).run(connection, **key)


@cache
def _prepare_select(table: sa.Table, key: tuple[str, ...]) -> Prepared:
    return Prepared(sa.select(table).where(*_make_condition(table, key)))


@cache
def _prepare_insert(table: sa.Table, names: tuple[str, ...]) -> Prepared:
    return Prepared(sa.insert(table).values(_make_values(table, names)))


@cache
def _prepare_update(table: sa.Table, key: tuple[str, ...], names: tuple[str, ...]) -> Prepared:
    changes: dict[str, Any] = {name: sa.bindparam(name) for name in names}
    return Prepared(sa.update(table).where(*_make_condition(table, key)).values(changes))


@cache
def _prepare_upsert(table: sa.Table, key: tuple[str, ...], names: tuple[str, ...]) -> Prepared:
    # In the words of one dialect, which both kinds of database understand.
    insert = postgresql.insert(table).values(_make_values(table, key + names))
    if not names:
        return Prepared(insert.on_conflict_do_nothing(index_elements=list(key)))
    changes = {name: insert.excluded[name] for name in names}
    return Prepared(insert.on_conflict_do_update(index_elements=list(key), set_=changes))


@cache
def _prepare_delete(table: sa.Table, key: tuple[str, ...]) -> Prepared:
    return Prepared(sa.delete(table).where(*_make_condition(table, key)))


def _make_condition(table: sa.Table, key: tuple[str, ...]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == sa.bindparam(name) for name in key]


def _make_values(table: sa.Table, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what an INSERT of these columns sets: parameters, and the defaults of the others."""
    defaults = {
        column.name: column.default.arg
        for column in table.columns
        if isinstance(column.default, sa.ColumnDefault) and column.default.is_scalar
    }
    return {**defaults, **{name: sa.bindparam(name) for name in names}}
