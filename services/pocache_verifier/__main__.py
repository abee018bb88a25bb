"""``python -m pocache_verifier``."""

from __future__ import annotations

from pocache.service.entry import run_service
from pocache.wire.topics import Role
from pocache_verifier.service import VerifierService


def main() -> None:
    """Run the verifier pool until it is told to stop."""
    run_service(Role.VERIFIER, lambda context: VerifierService(context.genesis, context.models))


if __name__ == "__main__":
    main()
