"""A job over the bus, with one's own keys. Usage: network_stream.py NETWORK_DIR USER NATS_URL TRUST_FILE TOKEN…"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pocache.client import connect
from pocache.receipt.trust import load_trust
from pocache.runtime.network import NetworkDirectory


async def main(network_dir: str, user: str, url: str, trust_file: str, *tokens: str) -> None:
    """Print tokens as they come, stop after eight, and judge the receipt of what there is."""
    directory = NetworkDirectory(Path(network_dir))
    model_id = next(iter(directory.load_models()))
    async with connect(directory, user, url) as client:
        job = await client.submit(model_id, [int(one) for one in tokens], token_count_max=200, eos_stop=False)
        count = 0
        async for piece in client.stream(job):
            print(*piece.tokens, end=" ", flush=True)
            count += len(piece.tokens)
            if count >= 8:
                await client.cancel(job)
                break
        report = await client.verify_receipt(job, load_trust(Path(trust_file)))
    print(f"\njob {job.job_id.hex()}: {len(job.output)} tokens paid for, {report.case}, receipt valid")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
