"""The explorer: read-only pages that show the proof. ``make_explorer`` is its face."""

from __future__ import annotations

from pocache_gateway.explorer.app import Explorer, ExplorerSettings

__all__ = ["Explorer", "ExplorerSettings"]
