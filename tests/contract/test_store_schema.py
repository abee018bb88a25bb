"""A state directory of another release: completed where nothing has to be guessed, refused with what to do elsewhere."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from chaos.disks import FileLimit, mount_small
from pocache.protocol.errors import ConfigError
from pocache.storage.store import DiskFullError, Store, get_meta, set_meta
from pocache_commitments.tables import METADATA as COMMITMENTS
from pocache_router.tables import METADATA as ROUTER
from pocache_verifier.tables import METADATA as VERIFIER
from pocache_worker.tables import METADATA as WORKER


def make_metadata(*columns: sa.Column[Any], **table: Any) -> sa.MetaData:
    """One table ``things`` with a key and these columns."""
    metadata = sa.MetaData()
    key = sa.Column("number", sa.Integer, primary_key=True, autoincrement=False)
    sa.Table("things", metadata, key, *columns, *table.get("more", ()))
    return metadata


def name(kind: Any = None, **options: Any) -> sa.Column[Any]:
    """The first release's column, or another one of its name."""
    return sa.Column("name", kind or sa.String(8), **options)


@pytest.fixture
def first(database_url: str) -> sa.MetaData:
    """A database that an earlier release wrote, with a row in it."""
    metadata = make_metadata(name(nullable=False))
    with closing(Store(database_url, metadata)) as store, store.begin() as connection:
        connection.execute(sa.insert(metadata.tables["things"]).values(number=1, name="one"))
    return metadata


@pytest.mark.parametrize(
    "metadata", [ROUTER, COMMITMENTS, VERIFIER, WORKER], ids=["router", "commitments", "verifier", "worker"]
)
def test_what_a_service_made_it_opens_again(database_url: str, metadata: sa.MetaData) -> None:
    """No column of today's tables looks different once it is in a database."""
    for _ in range(2):
        Store(database_url, metadata).close()


def test_what_is_new_and_may_be_empty_is_added(database_url: str, first: sa.MetaData) -> None:
    """Columns, an index and a table; what was there stays; and the earlier release can still open it."""
    note = sa.Column("note", sa.Text)
    weight = sa.Column("weight", sa.Integer, nullable=False, server_default="7")
    later = make_metadata(
        name(nullable=False),
        note,
        weight,
        more=(sa.Index("things_by_name", "name"),),
    )
    sa.Table("others", later, sa.Column("number", sa.Integer, primary_key=True))
    with closing(Store(database_url, later)) as store, store.begin() as connection:
        assert connection.execute(sa.select(later.tables["things"])).all() == [(1, "one", None, 7)]
        inspector = sa.inspect(connection)
        assert [index["name"] for index in inspector.get_indexes("things")] == ["things_by_name"]
        assert inspector.has_table("others")
    with closing(Store(database_url, first)) as store, store.begin() as connection:
        connection.execute(sa.insert(first.tables["things"]).values(number=2, name="two"))


CHANGED = {
    "a column that must be filled": (
        make_metadata(name(nullable=False), sa.Column("must", sa.Integer, nullable=False)),
        "no column must",
    ),
    "another type": (make_metadata(name(sa.LargeBinary)), "things.name is VARCHAR"),
    "emptier": (make_metadata(name()), "may not be empty"),
    "a column less": (make_metadata(), "column name that this release does not fill"),
    "another key": (make_metadata(name(primary_key=True)), r"the key of table things is \(number\)"),
}
"""Tables that cannot be made from the first release's, and what is said of each."""


@pytest.mark.parametrize(("metadata", "said"), CHANGED.values(), ids=CHANGED.keys())
def test_what_cannot_be_made_to_fit_is_refused(
    database_url: str, first: sa.MetaData, metadata: sa.MetaData, said: str
) -> None:
    """By its name, with what to do, and nothing was changed."""
    with pytest.raises(ConfigError, match=f"{said}.*docs/operations.md"):
        Store(database_url, metadata)
    with closing(Store(database_url, first)) as store, store.begin() as connection:
        assert connection.execute(sa.select(first.tables["things"])).all() == [(1, "one")]


def test_another_schema_version_is_refused_before_anything_is_completed(
    database_url: str, first: sa.MetaData
) -> None:
    """A release that means something else by the same columns says so by a number."""
    with closing(Store(database_url, first)) as store, store.begin() as connection:
        set_meta(connection, "schema_version", "2")
    later = make_metadata(name(nullable=False), sa.Column("note", sa.Text))
    with pytest.raises(ConfigError, match=r"schema version 2, this release writes 1.*docs/operations.md"):
        Store(database_url, later)


@pytest.mark.parametrize("way", ["disk", "limit"])
def test_a_full_disk_ends_the_writer_and_loses_nothing(tmp_path: Path, way: str) -> None:
    """The transaction fails as a whole, by a name of its own; with room again the store goes on where it was."""
    metadata = make_metadata(sa.Column("data", sa.LargeBinary, nullable=False))
    things = metadata.tables["things"]
    with mount_small(tmp_path / "disk", 4 << 20) as mounted:
        disk = mounted if way == "disk" else FileLimit()
        url = f"sqlite:///{tmp_path / 'disk' / 'small.sqlite'}"
        with closing(Store(url, metadata)) as store:
            with store.begin() as connection:
                connection.execute(sa.insert(things).values(number=1, data=b"kept"))
            disk.fill(os.getpid())
            try:
                with pytest.raises(DiskFullError, match="make room") as failed, store.begin() as connection:
                    connection.execute(sa.insert(things).values(number=2, data=bytes(1 << 20)))
            finally:
                disk.clear(os.getpid())
            assert failed.value.code == "E804"
        with closing(Store(url, metadata)) as store, store.begin() as connection:
            assert [row.number for row in connection.execute(sa.select(things))] == [1]
            assert get_meta(connection, "schema_version") == "1"


def test_a_store_that_is_opened_on_a_full_disk_is_not_wrongly_configured(tmp_path: Path) -> None:
    """Whoever supervises it may start it again: exit code 1, not 2."""
    limit = FileLimit()
    limit.fill(os.getpid())
    try:
        with pytest.raises(DiskFullError):
            Store(f"sqlite:///{tmp_path / 'new.sqlite'}", make_metadata())
    finally:
        limit.clear(os.getpid())
