"""Statements of the hot paths: written in SQLAlchemy Core, compiled once, and then handed to the driver as they are.

Building and executing a Core statement costs many times what a small indexed statement costs in the database itself.
Used inside a transaction of a :class:`pocache.storage.store.Store`; errors are SQLAlchemy's own. For statements whose
parameters and columns are integers, text, bytes and booleans only: nothing is converted on the way (a boolean comes
back from SQLite as 0 or 1). A list parameter has a fixed length, that of ``values`` at its making; ``PreparedIn`` asks
for as many keys as there are.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa

_CURSOR: Final = "pocache cursor"
_KEYS_MAX: Final = 256


class Prepared:
    """One statement with named parameters (``sa.bindparam``), compiled for each kind of database when first needed.

    ``order`` names the parameters in the order in which :meth:`rows` and :meth:`run_rows` are given them.
    """

    def __init__(
        self, statement: sa.Select[Any] | sa.Insert | sa.Update | sa.Delete | sa.TextClause, *order: str
    ) -> None:
        self._statement = statement
        self._named = order
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: sa.Connection, **values: Any) -> int:
        """Execute it and return how many rows it changed."""
        compiled = self._compile(connection)
        return compiled.execute(connection, compiled.arrange(values)).rowcount  # type: ignore[no-any-return]

    def run_many(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute it once for each mapping of parameters."""
        compiled = self._compile(connection)
        compiled.execute(connection, [compiled.arrange(row) for row in rows], is_many=True)

    def run_rows(self, connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute it once for each tuple of parameters, in the order named at its making."""
        if rows:
            compiled = self._compile(connection)
            compiled.execute(connection, compiled.arrange_rows(rows), is_many=True)

    def rows(self, connection: sa.Connection, *values: Any) -> list[tuple[Any, ...]]:
        """Return its rows as plain tuples; parameters in the order named at its making."""
        compiled = self._compile(connection)
        (parameters,) = compiled.arrange_rows((values,))
        return compiled.execute(connection, parameters).fetchall()  # type: ignore[no-any-return]

    def all(self, connection: sa.Connection, **values: Any) -> list[Any]:
        """Return its rows, whose cells are named as its columns are."""
        compiled = self._compile(connection)
        return [
            compiled.make_row(row)
            for row in compiled.execute(connection, compiled.arrange(values)).fetchall()
        ]

    def first(self, connection: sa.Connection, **values: Any) -> Any:
        """Return its first row, None when there is none."""
        compiled = self._compile(connection)
        rows = compiled.execute(connection, compiled.arrange(values)).fetchall()
        return compiled.make_row(rows[0]) if rows else None

    def scalar(self, connection: sa.Connection, **values: Any) -> Any:
        """Return the first cell of its first row, None when there is none."""
        compiled = self._compile(connection)
        rows = compiled.execute(connection, compiled.arrange(values)).fetchall()
        return rows[0][0] if rows else None

    def _compile(self, connection: sa.Connection) -> _Compiled:
        name = connection.dialect.name
        found = self._compiled.get(name)
        if found is None:
            found = self._compiled[name] = _Compiled(self._statement, self._named, connection.dialect)
        return found


class PreparedIn:
    """A query by a list of keys of any length: compiled for a few lengths, and shorter lists filled up by repetition."""

    def __init__(self, make: Callable[[list[sa.BindParameter[Any]]], sa.Select[Any]]) -> None:
        """Keep how the statement is made of its list of parameters."""
        self._make = make
        self._prepared: dict[int, Prepared] = {}

    def rows(self, connection: sa.Connection, keys: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the rows of all keys, as plain tuples, each once where each key is given once."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), _KEYS_MAX):
            part = tuple(keys[start : start + _KEYS_MAX])
            length = 1 << (len(part) - 1).bit_length()
            prepared = self._prepared.get(length)
            if prepared is None:
                names = [f"key_{index}" for index in range(length)]
                statement = self._make([sa.bindparam(name) for name in names])
                prepared = self._prepared[length] = Prepared(statement, *names)
            found += prepared.rows(connection, *part, *part[:1] * (length - len(part)))
        return found


class _Compiled:
    """A statement's text for one kind of database, and how its parameters are passed."""

    def __init__(self, statement: Any, named: tuple[str, ...], dialect: sa.Dialect) -> None:
        # Which values an INSERT or UPDATE sets follows from its own bound parameters.
        compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        self._sql: str = str(compiled)
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}
        self._order: tuple[str, ...] | None = tuple(compiled.positiontup) if compiled.positional else None
        self._pick: Callable[[Mapping[str, Any]], Any] | None = (
            itemgetter(*self._order) if self._order and len(self._order) > 1 else None
        )
        self._named = named
        self._errors = dialect.loaded_dbapi.Error
        columns = list(statement.selected_columns.keys()) if isinstance(statement, sa.Select) else []
        make_type: Any = namedtuple  # noqa: PYI024 - its columns are known at run time only
        row = make_type("Row", columns)
        self.make_row: Callable[[Any], Any] = row._make

    def arrange(self, values: Mapping[str, Any]) -> Any:
        """Return the parameters as the driver takes them. Raises KeyError when one is missing."""
        if self._fixed:
            values = {**self._fixed, **values}
        if self._pick is not None:
            return self._pick(values)
        return dict(values) if self._order is None else tuple(values[name] for name in self._order)

    def arrange_rows(self, rows: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Return tuples in the order named as the driver takes them."""
        if self._order == self._named:
            return rows
        return [self.arrange(dict(zip(self._named, row, strict=True))) for row in rows]

    def execute(self, connection: sa.Connection, parameters: Any, *, is_many: bool = False) -> Any:
        """Return the driver's cursor after execution."""
        # One cursor for all: whoever reads rows reads all of them before the next statement.
        pooled = connection.connection
        cursor = pooled.info.get(_CURSOR)
        if cursor is None:
            cursor = pooled.info[_CURSOR] = pooled.cursor()
        try:
            (cursor.executemany if is_many else cursor.execute)(self._sql, parameters)
        except self._errors as error:
            raise sa.exc.DBAPIError.instance(
                self._sql, parameters, error, self._errors, dialect=connection.dialect
            ) from error
        if TRACE is not None:
            TRACE(self._sql, parameters, is_many)
        return cursor


TRACE: Callable[[str, Any, bool], None] | None = None
"""Told of each statement, where a benchmark wants to know."""

_SAVEPOINT: Final = Prepared(sa.text("SAVEPOINT message"))
_RELEASE: Final = Prepared(sa.text("RELEASE SAVEPOINT message"))
_ROLLBACK: Final = Prepared(sa.text("ROLLBACK TO SAVEPOINT message"))


@contextmanager
def savepoint(connection: sa.Connection) -> Iterator[None]:
    """Undo what the block did when it raises, and nothing before it. Not nested."""
    _SAVEPOINT.run(connection)
    try:
        yield
    except BaseException:
        _ROLLBACK.run(connection)
        _RELEASE.run(connection)
        raise
    _RELEASE.run(connection)
