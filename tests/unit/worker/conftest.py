"""Worker identities on a database in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.worker import Bench, make_bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An honest worker."""
    made = make_bench()
    yield made
    made.harness.close()


@pytest.fixture
def silent_bench() -> Iterator[Bench]:
    """A worker that never opens."""
    made = make_bench(opens=False)
    yield made
    made.harness.close()
