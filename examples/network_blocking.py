"""A job over the bus without asyncio. Usage: network_blocking.py NETWORK_DIR USER NATS_URL TRUST_FILE TOKEN…"""

from __future__ import annotations

import sys
from pathlib import Path

from pocache.client.blocking import open_blocking_client
from pocache.receipt.trust import load_trust
from pocache.runtime.network import NetworkDirectory


def main(network_dir: str, user: str, url: str, trust_file: str, *tokens: str) -> None:
    """Print tokens as they come, then what the receipt shows."""
    directory = NetworkDirectory(Path(network_dir))
    model_id = next(iter(directory.load_models()))
    with open_blocking_client(directory, user, url) as client:
        job = client.submit(model_id, [int(one) for one in tokens], token_count_max=8)
        for piece in client.stream(job):
            print(*piece.tokens, end=" ", flush=True)
        report = client.verify_receipt(job, load_trust(Path(trust_file)))
    print(f"\njob {job.job_id.hex()}: {report.case}, receipt valid")


if __name__ == "__main__":
    main(*sys.argv[1:])
