"""``python -m pocache_gateway``."""

from __future__ import annotations

from pocache.service.entry import run_process
from pocache_gateway.process import serve


def main() -> None:
    """Run the gateway until it is told to stop."""
    run_process("gateway", serve)


if __name__ == "__main__":
    main()
