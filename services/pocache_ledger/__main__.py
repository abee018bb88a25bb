"""Runs the ledger as a process of its own."""

from __future__ import annotations

from pocache.service.entry import run_service
from pocache.wire.topics import Role
from pocache_ledger.migrations import prepare
from pocache_ledger.service import LedgerService


def main() -> None:
    """Run the ledger until signalled."""
    run_service(
        Role.LEDGER,
        lambda context: LedgerService(genesis=context.genesis, models=context.models),
        prepare=prepare,
    )


if __name__ == "__main__":
    main()
