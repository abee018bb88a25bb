"""``python -m pocache_router``."""

from __future__ import annotations

from pocache.service.entry import run_service
from pocache.wire.topics import Role
from pocache_router.service import RouterService


def main() -> None:
    """Run the router until it is told to stop."""
    run_service(Role.ROUTER, lambda context: RouterService(context.genesis, context.models))


if __name__ == "__main__":
    main()
