"""The test kit: a network that exists only in memory, and a harness that drives one service of it."""

from __future__ import annotations

from kit.network import Emission, Harness, Network, make_key, make_network

__all__ = ["Emission", "Harness", "Network", "make_key", "make_network"]
