"""Jobs of every ending, played once a session."""

from __future__ import annotations

import pytest

from kit.endings import ENDINGS, Played, play


@pytest.fixture(params=ENDINGS)
def played(request: pytest.FixtureRequest) -> Played:
    """A job of each ending."""
    return play(request.param)
