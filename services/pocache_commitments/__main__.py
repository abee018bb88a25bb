"""``python -m pocache_commitments``."""

from __future__ import annotations

from pocache.service.entry import run_service
from pocache.wire.topics import Role
from pocache_commitments.service import CommitmentsService


def main() -> None:
    """Run the commitment store until it is told to stop."""
    run_service(Role.COMMITMENTS, lambda context: CommitmentsService(context.genesis, context.models))


if __name__ == "__main__":
    main()
