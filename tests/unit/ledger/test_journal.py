"""The command that reads a stopped ledger's journal: what holds, what does not and where, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from kit.ledger import LedgerHarness, make_ledger
from kit.network import Network, make_key
from pocache.receipt.export import Entry, Header, write_export
from pocache.wire import messages as m
from pocache.wire import topics as t
from pocache.wire.topics import Role
from pocache_ledger.books import CHECKPOINT_ENTRIES
from pocache_ledger.journal import main
from pocache_ledger.tables import OPERATIONS

USER = make_key("user")


@pytest.fixture
def database(network: Network, tmp_path: Path) -> tuple[str, Path]:
    """A stopped ledger of 70 entries, and an export of the record with its one checkpoint."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger = make_ledger(network, url)
    for index in range(CHECKPOINT_ENTRIES + 6):
        ledger.fund(USER, available=1, reference=str(index))
    ledger.pass_rounds(1)
    (checkpoint,) = ledger.outbox_of(t.JOURNAL_CHECKPOINT)
    ledger.close()
    return url, write_record(ledger, tmp_path / "record.jsonl", checkpoint, Role.LEDGER)


def write_record(ledger: LedgerHarness, file: Path, checkpoint: m.JournalCheckpointV1, signer: Role) -> Path:
    network = ledger.network
    data = network.seal(network.keys[signer], checkpoint)
    entry = Entry("RECORD", 1, t.JOURNAL_CHECKPOINT.subject(), data)
    write_export(file, Header(network.genesis.canonical_json(), ()), [entry])
    return file


def check(
    capsys: pytest.CaptureFixture[str], *arguments: str, environ: dict[str, str] | None = None
) -> tuple[int, dict[str, object]]:
    code = main([*arguments, "--json"], environ or {})
    told: dict[str, object] = json.loads(capsys.readouterr().out)
    return code, told


def test_a_journal_that_holds(database: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    url, record = database
    assert check(capsys, url) == (0, {"holds": True, "entries": 70, "checkpoints": 0})
    told = {"holds": True, "entries": 70, "checkpoints": 1}
    assert check(capsys, "--record", str(record), environ={"POCACHE_DATABASE_URL": url}) == (0, told)
    assert main([url], {}) == 0
    assert capsys.readouterr().out == "the journal holds: 70 entries, and was held against no checkpoint\n"


def test_the_first_entry_that_does_not_is_named(
    database: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = database
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.update(OPERATIONS).where(OPERATIONS.c.number == 9).values(at_ms=1))
    engine.dispose()
    code, told = check(capsys, url)
    assert (code, told["holds"]) == (1, False)
    assert "entry 9 is broken" in str(told["reason"])


def test_a_chain_that_was_computed_anew_is_found_by_the_record(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another ledger's journal, as whole as this one's."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger = make_ledger(network, url)
    for index in range(CHECKPOINT_ENTRIES):
        ledger.fund(USER, available=1, reference=str(index))
    ledger.close()
    said = m.JournalCheckpointV1(entries=CHECKPOINT_ENTRIES, head=bytes(32), at_ms=1)
    record = write_record(ledger, tmp_path / "record.jsonl.gz", said, Role.LEDGER)
    assert check(capsys, url)[0] == 0
    code, told = check(capsys, "--record", str(record), url)
    assert code == 1
    assert "entry 64 is not the one of the checkpoint" in str(told["reason"])


def test_what_cannot_be_read_is_told_and_left_alone(
    database: tuple[str, Path], network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, record = database
    missing, empty = tmp_path / "none.sqlite", tmp_path / "empty.sqlite"
    empty.touch()
    forger = make_ledger(network)
    forged = write_record(
        forger,
        tmp_path / "forged.jsonl",
        m.JournalCheckpointV1(entries=1, head=bytes(32), at_ms=1),
        Role.ROUTER,
    )
    forger.close()
    for arguments, words in (
        ((f"sqlite:///{missing}",), "is no database"),
        ((f"sqlite:///{empty}",), "at revision none"),
        (("no url",), "not a database URL"),
        (("--record", str(forged), url), "did not sign"),
        (("--record", str(tmp_path / "nothing"), url), "cannot read"),
        (("--record", str(empty), url), "pocache_ledger.journal"),
    ):
        assert main(arguments, {}) == 2
        assert words in capsys.readouterr().err
    assert not missing.exists()
    ledger = make_ledger(network, url)
    assert main([url], {}) == 2
    assert "another process writes" in capsys.readouterr().err
    ledger.close()
    with pytest.raises(SystemExit, match="2"):
        main([], {})
    assert "which database" in capsys.readouterr().err
    assert record.exists()
