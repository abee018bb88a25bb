"""How numbers, times and ids are written on pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

_ONE_Q16: Final = 65_536
_UNIT_MICRO: Final = 1_000_000
_SHORT_FROM: Final = 16


def show_units(micro: int | None, *, signed: bool = False) -> str:
    """Return micro-units as units, with at least two decimals and no more than there are."""
    if micro is None:
        return "–"
    sign = "−" if micro < 0 else "+" if signed and micro > 0 else ""
    whole, rest = divmod(abs(micro), _UNIT_MICRO)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole:,}.{decimals}"


def show_time(ms: int | None) -> str:
    """Return a time of day in UTC, to the second."""
    return "–" if not ms else _moment(ms).strftime("%H:%M:%S")


def show_date(ms: int | None) -> str:
    """Return date and time in UTC."""
    return "–" if not ms else _moment(ms).strftime("%Y-%m-%d %H:%M:%S")


def show_iso(ms: int | None) -> str:
    """Return a time as machines read it."""
    return "" if not ms else _moment(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def show_span(ms: int | None) -> str:
    """Return a duration in the unit that fits it."""
    if ms is None:
        return "–"
    if abs(ms) < 1_000:
        return f"{ms} ms"
    if abs(ms) < 120_000:
        return f"{ms / 1_000:.1f} s"
    if abs(ms) < 7_200_000:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / 3_600_000:.1f} h"


def show_q16(value: int | None) -> str:
    """Return a number counted in 1/65,536 with two decimals."""
    return "–" if value is None else f"{value / _ONE_Q16:.2f}".replace("-", "−")


def show_count(value: int | None) -> str:
    """Return a whole number with separators."""
    return "–" if value is None else f"{value:,}"


def show_share(part: int, whole: int) -> str:
    """Return a share in percent, a dash of nothing."""
    return "–" if not whole else f"{100 * part / whole:.1f} %"


def show_hex(data: bytes | str | None, digits: int = 12) -> str:
    """Return the first digits of a digest."""
    if data is None:
        return "–"
    text = data.hex() if isinstance(data, bytes) else data
    return f"{text[:digits]}…" if len(text) > digits else text


def show_account(account: str | None, names: Mapping[str, str]) -> str:
    """Return somebody's name where it is known, else the two ends of the key."""
    if not account:
        return "nobody"
    if account in names:
        return names[account]
    return f"{account[:6]}…{account[-4:]}" if len(account) > _SHORT_FROM else account


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1_000, tz=UTC)


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "units": show_units,
    "clock": show_time,
    "date": show_date,
    "iso": show_iso,
    "span": show_span,
    "q16": show_q16,
    "count": show_count,
    "hex": show_hex,
}
