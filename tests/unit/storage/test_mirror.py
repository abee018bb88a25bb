"""Rows in memory for the length of a transaction: read once, taken back to a mark, written where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa

from pocache.storage.mirror import Mirror
from pocache.storage.prepared import Prepared, PreparedIn
from pocache.storage.store import Store

METADATA = sa.MetaData()
THINGS = sa.Table(
    "things",
    METADATA,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)


class Rows:
    """Rows to read, and which were asked for."""

    def __init__(self) -> None:
        self.rows = {"one": 1, "two": 2}
        self.asked: list[tuple[str, ...]] = []

    def load(self, keys: Sequence[str]) -> list[tuple[str, int]]:
        """Return those that there are."""
        self.asked.append(tuple(keys))
        return [(key, self.rows[key]) for key in keys if key in self.rows]


def test_each_key_is_read_once_also_one_that_there_is_not() -> None:
    rows = Rows()
    mirror = Mirror(rows.load)
    mirror.look_up(["one", "none", "one"])
    assert [mirror.get(key) for key in ("one", "none", "two", "two")] == [1, None, 2, 2]
    assert rows.asked == [("one", "none"), ("two",)]


def test_changes_are_taken_back_to_a_mark() -> None:
    mirror = Mirror(Rows().load)
    mirror.put("one", 10)
    mark = mirror.mark()
    mirror.put("one", 11)
    mirror.put("new", 12)
    mirror.put("one", 13)
    mirror.rewind(mark)
    assert (mirror.get("one"), mirror.get("new")) == (10, None)
    assert mirror.take_changes() == [("one", 1, 10)]


def test_only_what_differs_from_the_database_is_to_be_written() -> None:
    """Once, with what the database has; what was changed and changed back is not."""
    mirror = Mirror(Rows().load)
    mirror.put("new", 1)
    mirror.put("one", 5)
    mirror.put("one", 6)
    mirror.put("two", 7)
    mirror.put("two", 2)
    assert mirror.take_changes() == [("new", None, 1), ("one", 1, 6)]
    assert mirror.take_changes() == []
    mirror.put("one", 8)
    assert mirror.take_changes() == [("one", 6, 8)]


def test_what_is_forgotten_is_read_again() -> None:
    rows = Rows()
    mirror = Mirror(rows.load)
    mirror.put("one", 5)
    mirror.forget()
    rows.rows["one"] = 3
    assert mirror.get("one") == 3
    assert mirror.take_changes() == []


@pytest.fixture
def connection(database_url: str) -> Iterator[sa.Connection]:
    """A transaction on either database."""
    store = Store(database_url, METADATA)
    with store.begin() as opened:
        yield opened
    store.close()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 257, 600])
def test_a_list_of_any_length_is_asked_for(connection: sa.Connection, count: int) -> None:
    """Each row once, whatever the list was filled up with."""
    add = Prepared(sa.insert(THINGS).values(name=sa.bindparam("n"), amount=sa.bindparam("a")), "a", "n")
    add.run_rows(connection, [(2**53 + index, f"thing {index}") for index in range(700)])
    get = PreparedIn(lambda keys: sa.select(THINGS).where(THINGS.c.name.in_(keys)))
    found = get.rows(connection, [*(f"thing {index}" for index in range(count)), "nothing"])
    assert sorted(found) == sorted((f"thing {index}", 2**53 + index) for index in range(count))
