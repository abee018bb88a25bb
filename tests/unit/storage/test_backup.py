"""A copy of a database in use is whole, and never replaces anything."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from pocache.storage.backup import main
from pocache.storage.store import Store, get_meta, set_meta


def test_a_database_in_use_is_copied_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was committed is in the copy; what is written later, or not yet committed, is not."""
    source, copy = tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite"
    with closing(Store(f"sqlite:///{source}")) as store:
        with store.begin() as connection:
            set_meta(connection, "tick", "41")
        with store.begin() as connection:
            set_meta(connection, "tick", "42")
            assert main([str(source), str(copy)]) == 0
    assert "whole" in capsys.readouterr().out
    with closing(Store(f"sqlite:///{copy}")) as store, store.begin() as connection:
        assert get_meta(connection, "tick") == "41"


def test_nothing_is_replaced_and_no_half_copy_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is there, one that is missing, one that is no database."""
    source, there, nothing = tmp_path / "a.sqlite", tmp_path / "b.sqlite", tmp_path / "c.sqlite"
    Store(f"sqlite:///{source}").close()
    there.write_text("mine")
    nothing.write_bytes(b"no database" * 1_000)
    assert main([str(source), str(there)]) == 2
    assert main([str(tmp_path / "missing"), str(tmp_path / "d")]) == 2
    assert main([str(nothing), str(tmp_path / "d")]) == 2
    assert main([str(source), str(tmp_path / "no" / "folder")]) == 2
    assert main(["one"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "d").exists()


def test_a_damaged_database_is_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A backup that cannot be restored is found out when it is made."""
    source = tmp_path / "a.sqlite"
    with closing(Store(f"sqlite:///{source}")) as store, store.begin() as connection:
        connection.execute(sa.text("CREATE TABLE filler (data BLOB)"))
        for _ in range(50):
            connection.execute(sa.text("INSERT INTO filler VALUES (randomblob(3000))"))
    with source.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 8192)
    assert main([str(source), str(tmp_path / "copy.sqlite")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "copy.sqlite").exists()
