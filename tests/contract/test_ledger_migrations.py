"""Migrations lead to the schema that the code uses, on both databases, and carry what is there along."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa

from kit.ledger import make_ledger
from kit.network import make_key, make_network
from kit.postgres import PostgresServer
from pocache.protocol.errors import ConfigError
from pocache.storage.store import BASE_METADATA, Store, set_meta
from pocache_ledger import migrate
from pocache_ledger.migrations import FIRST, get_newest, get_revision, prepare, upgrade
from pocache_ledger.tables import METADATA, OPERATIONS, UNBONDINGS

NEW_IN_2 = ("journal_checkpoints", "unbondings")


def describe(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """Return all that the database knows of its tables, Alembic's own left out."""
    inspector = sa.inspect(connection)

    def sort(things: list[Any]) -> list[str]:
        return sorted(repr(sorted(thing.items(), key=repr)) for thing in things)

    return {
        name: {
            "columns": [
                {**column, "type": repr(column["type"])}
                for column in map(dict, inspector.get_columns(name))  # in their order
            ],
            "key": sorted(inspector.get_pk_constraint(name).items(), key=repr),
            "foreign": sort(inspector.get_foreign_keys(name)),
            "unique": sort(inspector.get_unique_constraints(name)),
            "checks": sort(inspector.get_check_constraints(name)),
            "indexes": sort(inspector.get_indexes(name)),
            "comment": inspector.get_table_comment(name) if connection.dialect.name == "postgresql" else None,
        }
        for name in inspector.get_table_names()
        if name != "alembic_version"
    }


def downgrade_to_first(url: str) -> None:
    """Make a database as a release before the migrations left it: its tables, and nothing about revisions."""

    def create(connection: sa.Connection) -> None:
        upgrade(connection, FIRST)
        connection.execute(sa.text("DROP TABLE alembic_version"))

    Store(url, prepare=create).close()


def test_the_migrated_schema_is_the_codes_own(
    database_url: str, postgres_url: str | None, tmp_path: Any
) -> None:
    """Columns, types, keys, constraints, indexes: what migrations made, and what the metadata makes."""
    other = postgres_url or f"sqlite:///{tmp_path / 'created.sqlite'}"
    with (
        closing(Store(database_url, prepare=upgrade)) as migrated,
        closing(Store(other, METADATA)) as created,
        migrated.begin() as ours,
        created.begin() as theirs,
    ):
        assert set(describe(ours)) == {*BASE_METADATA.tables, *METADATA.tables}
        assert describe(ours) == describe(theirs)
        assert get_revision(ours) == get_newest()


@pytest.fixture
def postgres_url(database_url: str, request: pytest.FixtureRequest) -> str | None:
    """A second database on the same server, where there is a server."""
    if database_url.startswith("sqlite"):
        return None
    url: str = request.getfixturevalue("postgres_server").create_database()
    return url


def test_an_older_ledger_goes_on_after_the_migration(database_url: str) -> None:
    """Its money, its journal and its ticks; what is new works on it."""
    downgrade_to_first(database_url)
    network = make_network()
    key = make_key("worker")
    with closing(Store(database_url)) as store, store.begin() as connection:
        found = set(sa.inspect(connection).get_table_names())
        assert not found & set(NEW_IN_2)
        set_meta(connection, "tick", "41")
        _post_as_the_first_release_did(connection, key.participant_id)
    ledger = make_ledger(network, database_url)
    assert ledger.tick == 41
    assert ledger.money(key).stake == 1_000
    assert ledger.withdraw(key, "stake", 400).action == "ack"
    assert ledger.totals().journal_entries == 2
    ledger.close()


def _post_as_the_first_release_did(connection: sa.Connection, participant: str) -> None:
    from pocache_ledger.accounts import Operation, Posting, post
    from pocache_ledger.books import Books

    lines = (Posting("world", -1_000), Posting(f"stake:{participant}", 1_000))
    books = Books(connection)
    post(books, Operation("deposit", b"wire", bytes(32), lines), now_ms=1)
    books.flush()
    assert connection.execute(sa.select(sa.func.count()).select_from(OPERATIONS)).scalar_one() == 1


def test_migrating_again_changes_nothing(database_url: str) -> None:
    """Revisions before and after are told."""
    assert migrate.migrate(database_url) == (None, get_newest())
    assert migrate.migrate(database_url) == (get_newest(), get_newest())


def test_sqlite_is_migrated_when_it_is_opened(tmp_path: Any) -> None:
    """By the ledger itself, in one transaction."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    downgrade_to_first(url)
    with closing(Store(url, prepare=prepare)) as store, store.begin() as connection:
        assert get_revision(connection) == get_newest()
        assert connection.execute(sa.select(UNBONDINGS)).all() == []


@pytest.mark.parametrize("is_old", [False, True], ids=["empty", "old"])
def test_postgres_is_migrated_by_its_operator(postgres_server: PostgresServer, is_old: bool) -> None:
    """A ledger that is started first says what to do, and leaves the database as it was."""
    url = postgres_server.create_database()
    if is_old:
        downgrade_to_first(url)
    with pytest.raises(ConfigError, match=r"python -m pocache_ledger\.migrate"):
        Store(url, prepare=prepare)
    with postgres_server.connect(sa.make_url(url).database or "") as connection:
        found = {
            name
            for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }
    assert not found & set(NEW_IN_2)
    assert bool(found) == is_old
    assert migrate.main([url]) == 0
    Store(url, prepare=prepare).close()


def test_a_database_of_a_newer_release_is_refused(database_url: str) -> None:
    """Nobody knows how to read it."""
    Store(database_url, prepare=upgrade).close()
    with closing(Store(database_url)) as store, store.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError):
        Store(database_url, prepare=prepare)
    with pytest.raises(ConfigError):
        Store(database_url, prepare=upgrade)


def test_a_migration_that_fails_leaves_the_database_as_it_was(database_url: str) -> None:
    """All steps are one transaction, on both databases."""
    downgrade_to_first(database_url)

    def fail(connection: sa.Connection) -> None:
        upgrade(connection)
        raise ConfigError("as the test has it")

    with pytest.raises(ConfigError, match="as the test has it"):
        Store(database_url, prepare=fail)
    with closing(Store(database_url)) as store, store.begin() as connection:
        assert not set(sa.inspect(connection).get_table_names()) & {*NEW_IN_2, "alembic_version"}


def test_the_command_says_what_it_did(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 0 and the revisions; 2 for wrong usage, and while a ledger is running."""
    assert migrate.main([], {"POCACHE_DATABASE_URL": database_url}) == 0
    assert f"at revision {get_newest()}; it was at none" in capsys.readouterr().out
    assert migrate.main([], {}) == 2
    assert migrate.main(["one", "two"], {}) == 2
    assert capsys.readouterr().err.count("usage:") == 2
    with closing(Store(database_url)):
        monkeypatch.setattr("pocache.storage.store.WRITER_WAIT_S", 0.05)
        assert migrate.main([database_url], {}) == 2
    assert "another process writes" in capsys.readouterr().err
