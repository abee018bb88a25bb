"""Stream an answer with OpenAI's own client. Usage: openai_stream.py URL KEY MODEL PROMPT."""

from __future__ import annotations

import sys

from openai import OpenAI


def main(url: str, key: str, model: str, prompt: str) -> None:
    """Print the text as it comes, then the job behind it."""
    with OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=16, stream=True
        )
        note = {}
        for chunk in stream:
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
            note = (chunk.model_extra or {}).get("pocache") or note
    print(f"\njob {note['job_id']} is {note['status']}; its receipt: {note['receipt_url']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
