"""The worker: generates, commits, opens and verifies, for one or more identities on one engine."""
