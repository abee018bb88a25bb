"""What `pocache demo` and `pocache top` draw alike: how many jobs are in which phase, and who gained or lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pocache.protocol.lifecycle import Phase

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

PHASES: Final = tuple(phase.value for phase in Phase)
_RARE: Final = frozenset({Phase.LAPSING.value, Phase.ABANDONING.value})
"""Shown only when some job is there: a line of them all is wider than a terminal."""


def draw_phases(counts: Mapping[str, int]) -> Table:
    """Return the jobs by phase, in the order of a job's life."""
    shown = [phase for phase in PHASES if phase not in _RARE or counts.get(phase)]
    return draw_counts({phase: counts.get(phase, 0) for phase in shown})


def draw_counts(counts: Mapping[str, int], styles: Mapping[str, str] | None = None) -> Table:
    """Return names above their numbers; ``styles`` colours some of these."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_row(*(Text(name, style="dim") for name in counts))
    table.add_row(
        *(
            Text(f"{value:,}", style=f"bold {(styles or {}).get(name, '')}".rstrip())
            for name, value in counts.items()
        )
    )
    return table


def draw_gain(amount_micro: int, digits: int = 6) -> Text:
    """Return units with their sign, red where they were lost."""
    from rich.text import Text

    return Text(f"{amount_micro / 1e6:+.{digits}f}", style="red" if amount_micro < 0 else "green")
