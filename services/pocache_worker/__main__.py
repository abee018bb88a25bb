"""``python -m pocache_worker``."""

from __future__ import annotations

from pocache.service.entry import run_process
from pocache_worker.process import serve


def main() -> None:
    """Run the worker until it is told to stop."""
    run_process("worker-1", serve)


if __name__ == "__main__":
    main()
