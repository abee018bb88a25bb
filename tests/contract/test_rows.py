"""Rows by their columns, on each kind of database: what is written is found, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa

from pocache.storage.rows import delete_rows, find_row, insert_row, update_rows, upsert
from pocache.storage.store import Store

METADATA = sa.MetaData()
THINGS = sa.Table(
    "things",
    METADATA,
    sa.Column("owner", sa.LargeBinary(32), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("user", sa.String(8), nullable=False),  # a name that PostgreSQL has a meaning of its own for
    sa.Column("is_used", sa.Boolean, nullable=False, default=False),
    sa.Column("note", sa.LargeBinary, nullable=True),
)
NAMES = sa.Table("names", METADATA, sa.Column("name", sa.Text, primary_key=True))
A, B = {"owner": b"\x00a", "number": 1 << 40}, {"owner": b"\x00b", "number": 2}


@pytest.fixture
def connection(database_url: str) -> Iterator[sa.Connection]:
    """A transaction on a database that holds the row B."""
    with closing(Store(database_url, METADATA)) as store, store.begin() as connection:
        insert_row(connection, THINGS, {**B, "user": "bob", "note": b"\xff"})
        yield connection


def read(connection: sa.Connection) -> list[tuple[Any, ...]]:
    """Every row, as SQLAlchemy itself reads it."""
    return [tuple(row) for row in connection.execute(sa.select(THINGS).order_by(THINGS.c.owner))]


def test_a_row_takes_defaults_for_what_is_not_said(connection: sa.Connection) -> None:
    """Booleans have their default, what may be empty is empty."""
    insert_row(connection, THINGS, {**A, "user": "ann"})
    assert read(connection) == [(b"\x00a", 1 << 40, "ann", False, None), (b"\x00b", 2, "bob", False, b"\xff")]


def test_a_row_is_found_by_its_key_alone(connection: sa.Connection) -> None:
    """Cells are named as the columns; no row is None."""
    found = find_row(connection, THINGS, B)
    assert (found.owner, found.number, found.user, found.note) == (b"\x00b", 2, "bob", b"\xff")
    assert not found.is_used
    assert find_row(connection, THINGS, {**B, "number": 3}) is None


def test_a_key_that_is_there_is_updated_and_only_where_said(connection: sa.Connection) -> None:
    """The first upsert inserts, the second changes what it names, and the other row stays as it is."""
    upsert(connection, THINGS, A, {"user": "ann", "note": b"1"})
    upsert(connection, THINGS, A, {"user": "amy"})
    assert read(connection)[0] == (b"\x00a", 1 << 40, "amy", False, b"1")
    upsert(connection, THINGS, A, {"user": "amy", "is_used": True, "note": None})
    assert read(connection) == [(b"\x00a", 1 << 40, "amy", True, None), (b"\x00b", 2, "bob", False, b"\xff")]


def test_a_key_alone_is_put_once(connection: sa.Connection) -> None:
    """Nothing to change is no error, and changes nothing."""
    for _ in range(2):
        upsert(connection, NAMES, {"name": "x"}, {})
    assert connection.execute(sa.select(NAMES)).all() == [("x",)]


def test_rows_of_a_key_are_changed_and_deleted(connection: sa.Connection) -> None:
    """A part of the key takes all of its rows, and says how many; what matches nothing changes nothing."""
    insert_row(connection, THINGS, {**B, "number": 3, "user": "bea"})
    insert_row(connection, THINGS, {**A, "user": "ann"})
    assert update_rows(connection, THINGS, {"owner": B["owner"]}, {"is_used": True}) == 2
    assert update_rows(connection, THINGS, {"owner": b"\x00c"}, {"is_used": True}) == 0
    assert [row[3] for row in read(connection)] == [False, True, True]
    delete_rows(connection, THINGS, {"owner": B["owner"]})
    assert [row[0] for row in read(connection)] == [A["owner"]]


def test_a_second_row_of_a_key_is_refused(connection: sa.Connection) -> None:
    """As SQLAlchemy's own error, which the dispatcher knows."""
    with pytest.raises(sa.exc.IntegrityError):
        insert_row(connection, THINGS, {**B, "user": "bea"})
