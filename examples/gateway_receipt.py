"""Stream over HTTP, challenge, judge the receipt. Usage: gateway_receipt.py URL KEY MODEL PROMPT TRUST_FILE."""

from __future__ import annotations

import sys
from pathlib import Path

from pocache.client.http import GatewayClient
from pocache.receipt.trust import load_trust


def main(url: str, key: str, model: str, prompt: str, trust_file: str) -> None:
    """Print the text, then how the job ended, as far as it can be judged without trusting the gateway."""
    trust = load_trust(Path(trust_file))
    with GatewayClient(url, key) as client:
        with client.stream(model, [{"role": "user", "content": prompt}], max_tokens=16) as stream:
            for text in stream:
                print(text, end="", flush=True)
        job = stream.completion.job_id
        client.challenge(job)
        report = client.verify_receipt(job, trust)
    print(f"\njob {job}: {report.case}, receipt valid in {len(report.steps)} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
