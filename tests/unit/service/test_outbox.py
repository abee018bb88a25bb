"""The outbox: what is at hand, what waits in the database alone, and what a crash leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pocache.service import outbox as module
from pocache.service.outbox import Outbox, OutboxRow
from pocache.storage.store import OUTBOX, Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.sqlite'}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def put(outbox: Outbox, *texts: str) -> list[int]:
    """Decide these messages in one transaction; return the numbers of their rows."""
    rows = [OutboxRow(outbox.allocate(), "a.b", text.encode(), text) for text in texts]
    with outbox.begin() as transaction:
        transaction.put(rows)
        assert rows[0].number not in outbox, "at hand before it was durable"
    return [row.number for row in rows]


def read_numbers(store: Store) -> list[int]:
    with store.begin() as connection:
        return list(connection.execute(sa.select(OUTBOX.c.number).order_by(OUTBOX.c.number)).scalars())


def take_texts(outbox: Outbox, count: int = 100) -> list[str]:
    return [row.message_id for row in outbox.take(count)]


def test_what_is_put_is_at_hand_and_deleted_after_it_is_stored(store: Store) -> None:
    outbox = Outbox(store)
    numbers = put(outbox, "1", "2", "3")
    rows = outbox.take(2)
    assert [row.message_id for row in rows] == ["1", "2"]
    outbox.confirm(row.number for row in rows)
    assert [number in outbox for number in numbers] == [False, False, True]
    assert read_numbers(store) == numbers
    (last,) = put(outbox, "4")
    assert read_numbers(store) == [numbers[2], last]
    assert not outbox.has_confirmed
    assert take_texts(outbox) == ["3", "4"]


def test_a_transaction_that_fails_puts_and_forgets_nothing(store: Store) -> None:
    outbox = Outbox(store)
    first = put(outbox, "1")
    outbox.confirm([row.number for row in outbox.take(1)])
    with pytest.raises(ZeroDivisionError), outbox.begin() as transaction:
        transaction.put([OutboxRow(outbox.allocate(), "a.b", b"2", "2")])
        raise ZeroDivisionError
    assert outbox.has_confirmed
    assert read_numbers(store) == first
    assert (len(outbox), outbox.take(1)) == (0, [])


def test_what_was_not_stored_is_said_again_by_the_next_life_and_numbers_grow(url: str) -> None:
    store = Store(url)
    outbox = Outbox(store)
    first, second = put(outbox, "1", "2")
    outbox.confirm([row.number for row in outbox.take(1)])  # stored, and killed before it was forgotten
    store.close()
    store = Store(url)
    outbox = Outbox(store)
    assert outbox.is_behind
    assert first in outbox
    assert second in outbox
    (third,) = put(outbox, "3")
    assert third > second
    outbox.catch_up()
    assert not outbox.is_behind
    assert take_texts(outbox) == ["1", "2", "3"]
    store.close()


def test_memory_holds_no_more_than_its_bound_and_the_rest_comes_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_MAX", 4)
    outbox = Outbox(store)
    said = [str(number) for number in range(11)]
    for text in said:
        put(outbox, text)
    assert outbox.is_behind
    taken: list[str] = []
    while len(taken) < len(said):
        rows = outbox.take(3)
        if not rows:
            outbox.catch_up()
            continue
        taken += [row.message_id for row in rows]
        outbox.confirm(row.number for row in rows)
    assert taken == said
    assert len(outbox) == 0


def test_what_was_refused_comes_again_and_what_was_stored_does_not(store: Store) -> None:
    outbox = Outbox(store)
    numbers = put(outbox, "1", "2", "3", "4")
    outbox.take(3)
    outbox.confirm([numbers[0], numbers[2]])
    outbox.catch_up(numbers[1])
    assert take_texts(outbox) == ["2", "4"]
    assert numbers[1] in outbox
