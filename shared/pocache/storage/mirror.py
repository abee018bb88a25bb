"""Rows of one table as a transaction sees them: read once, changed in memory, written at its end together.

For a service that is the only writer of its database, within one transaction. A key that there is no row of is
remembered as such. Changes are taken back to a mark without asking the database. Not covered: writing; whoever owns the
table asks for :meth:`Mirror.take_changes` and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Mirror(Generic[K, V]):
    """Immutable values by key, None for a row that there is not."""

    __slots__ = ("_load", "_now", "_undo")

    def __init__(self, load: Callable[[Sequence[K]], Iterable[tuple[K, V]]]) -> None:
        """Keep how rows are read: of those keys that there are, in any order."""
        self._load = load
        self._now: dict[K, V | None] = {}
        self._undo: list[tuple[K, V | None]] = []

    def look_up(self, keys: Iterable[K]) -> None:
        """Read these keys at once, those that are not known yet."""
        now = self._now
        wanted = [key for key in dict.fromkeys(keys) if key not in now]
        if wanted:
            now.update(dict.fromkeys(wanted))
            now.update(self._load(wanted))

    def get(self, key: K) -> V | None:
        """Return the value of a key, None where there is no such row."""
        try:
            return self._now[key]
        except KeyError:
            self.look_up((key,))
            return self._now[key]

    def put(self, key: K, value: V) -> None:
        """Set the value of a key."""
        self._undo.append((key, self.get(key)))
        self._now[key] = value

    def mark(self) -> int:
        """Return how much was changed so far, for :meth:`rewind`."""
        return len(self._undo)

    def rewind(self, mark: int) -> None:
        """Take back what was changed since ``mark``."""
        undo = self._undo
        while len(undo) > mark:
            key, value = undo.pop()
            self._now[key] = value

    def take_changes(self) -> list[tuple[K, V | None, V | None]]:
        """Return what differs from the database, in the order of its first change; it is to be written now.

        Each is a key, what the database has, and what it is now; None where there is no row.
        """
        before: dict[K, V | None] = {}
        for key, value in self._undo:
            before.setdefault(key, value)
        self._undo.clear()
        now = self._now
        return [(key, value, after) for key, value in before.items() if (after := now[key]) != value]

    def forget(self) -> None:
        """Know nothing any more: the database went back, or was changed by others."""
        self._now.clear()
        self._undo.clear()
