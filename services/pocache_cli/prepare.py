"""``python -m pocache_cli.prepare MODEL OUT``: calibrate a model and write its description.

Prints a line of progress at a time; the demo runs it beside itself, because it imports torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache_cli.calibrate import RUNS_DEFAULT, TOKENS_DEFAULT, build_engine, describe


def main(model: str, out: Path) -> None:
    """Write the description of ``model`` to ``out``."""
    engine = build_engine(model, encoding="sketch", device="cpu", threads=1)

    def report(done: int, total: int) -> None:
        sys.stdout.write(f"calibrating: honest job {done} of {total}\n")
        sys.stdout.flush()

    prompts = draw_prompts(engine.capabilities(), count=RUNS_DEFAULT)
    profile = run_calibration(engine, engine, prompts, max_tokens=TOKENS_DEFAULT, progress=report)
    description = describe(engine.capabilities(), profile, Path(model).name)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(description, indent=1, sort_keys=True), encoding="ascii")
    partial.rename(out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
