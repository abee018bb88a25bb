"""``python -m pocache_cli.prepare MODEL OUT``: write a model's description, its calibration among it.

The reference model ships with calibrations of many jobs for some stacks. For any other, and any other model, a few jobs are
measured here: too few for fitted tails (docs/protocol.md 7.6.3), and it says so. Prints a line of progress at a time; the demo
runs it beside itself, because it imports torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.port import Engine
from pocache.engine.reference import find_shipped_description
from pocache.numerics.calibration import FIT_JOBS_MIN
from pocache_cli.calibrate import RUNS_DEFAULT, TOKENS_DEFAULT, build_engine, describe


def main(model: str, out: Path) -> None:
    """Write the description of ``model`` to ``out``."""
    engine = build_engine(model, encoding="sketch", device="cpu", threads=1)
    description = find_shipped_description(engine.capabilities())
    if description is None:
        description = _calibrate(engine, Path(model).name)
    else:
        _say(f"calibrated on {description['profile']['about']['job_count']} honest jobs, as it ships")
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(description, indent=1, sort_keys=True), encoding="ascii")
    partial.rename(out)


def _calibrate(engine: Engine, name: str) -> dict[str, Any]:
    def report(done: int, total: int) -> None:
        _say(f"calibrating: honest job {done} of {total}")

    prompts = draw_prompts(engine.capabilities(), count=RUNS_DEFAULT)
    profile = run_calibration(engine, engine, prompts, max_tokens=TOKENS_DEFAULT, progress=report)
    if not profile.limits.means:
        _say(
            f"limits of {RUNS_DEFAULT} jobs are wide: for fitted ones run `pocache calibrate` with --runs {FIT_JOBS_MIN} or more"
        )
    return describe(engine.capabilities(), profile, name)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
