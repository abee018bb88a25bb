"""What tests of several kinds need: a PostgreSQL server for the session, a database of each kind for a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(autouse=True)
def _default_logging() -> Iterator[None]:
    """A command run inside a test sets the process's log level; the next test must not inherit it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[object]:
    """A PostgreSQL server; skipped where there is none, and a failure where everything is required."""
    from kit.postgres import NoPostgresError, run_postgres

    try:
        with run_postgres() as server:
            yield server
    except NoPostgresError as error:
        if os.environ.get("POCACHE_REQUIRE") == "all":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind that a ledger may have."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    url: str = request.getfixturevalue("postgres_server").create_database()
    return url
