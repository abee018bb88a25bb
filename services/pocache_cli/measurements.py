"""The raw distances of a calibration in a file, batch by batch: what makes it resumable, and what anyone can fit again.

One JSON line for each batch, behind a first line that names the plan. Refuses a file of another plan: distances of
another model, stack or set of jobs would make a profile of nothing. A last line that was cut off is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pocache.engine.calibrate import CalibrationPlan, Forged
from pocache.engine.forgery import NullForgery
from pocache.numerics.calibration import HonestRun
from pocache.protocol.encoding import RowKind
from pocache.protocol.errors import ConfigError
from pocache.protocol.matching import MatchingProfile

Measured = TypeVar("Measured")


def run_plan(
    plan: CalibrationPlan, state: Path | None, report: Callable[[int, int], None]
) -> MatchingProfile:
    """Measure what the file does not have yet, keep it there, and return the profile. ConfigError, MatchingError."""
    known = {} if state is None else _read(plan, state)
    runs: list[HonestRun] = []
    forged: list[Forged] = []
    for number, batch in enumerate(plan.batches):
        if number in known:
            more, faked = known[number]
        else:
            more, faked = plan.measure(number)
            if state is not None:
                append_line(state, {"batch": number, **_pack(more, faked)})
        runs += more
        forged += faked
        report(batch.stop, len(plan.prompts))
    return plan.finish(runs, forged)


def compute_plan_digest(plan: CalibrationPlan) -> str:
    """Return what makes two calibrations the same: both stacks, the model, the schema, and every job."""
    claims, others = plan.generator.capabilities(), plan.verifier.capabilities()
    parts = [claims.model_id.hex(), claims.schema.digest().hex(), claims.stack, others.stack]
    parts += [str(plan.max_tokens), plan.network.hex(), json.dumps([list(one) for one in plan.prompts])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(plan: CalibrationPlan, state: Path) -> dict[int, tuple[list[HonestRun], list[Forged]]]:
    return read_batches(state, {"plan": compute_plan_digest(plan)}, _unpack)


def read_batches(
    state: Path, head: dict[str, Any], unpack: Callable[[dict[str, Any]], Measured]
) -> dict[int, Measured]:
    """Return what the file has, by batch; a new file begins with ``head``. ConfigError for another one's, or a damaged one."""
    if not state.exists() or not state.stat().st_size:
        append_line(state, head)
        return {}
    found: dict[int, Measured] = {}
    kept = 0
    try:
        with state.open(encoding="ascii") as file:
            for number, line in enumerate(file):
                if not line.endswith("\n"):  # cut off in the middle: measured again
                    break
                kept += len(line)
                data = json.loads(line)
                if number == 0 and data != head:
                    raise ConfigError(
                        f"{state} has the measurements of another model, stack or set of jobs: name another file, or delete it"
                    )
                if number:
                    found[data["batch"]] = unpack(data)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{state} is damaged ({error}): delete it and measure again") from error
    if kept < state.stat().st_size:
        os.truncate(state, kept)
    if not kept:
        append_line(state, head)
    return found


def append_line(state: Path, line: dict[str, Any]) -> None:
    """Add one line of JSON to a file of measurements."""
    with state.open("a", encoding="ascii") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _pack(runs: list[HonestRun], forged: list[Forged]) -> dict[str, Any]:
    return {
        "runs": [pack_run(run) for run in runs],
        "forged": [{forgery.value: pack_run(run) for forgery, run in one.runs.items()} for one in forged],
    }


def _unpack(line: dict[str, Any]) -> tuple[list[HonestRun], list[Forged]]:
    forged = [
        Forged({NullForgery(name): unpack_run(run) for name, run in one.items()}) for one in line["forged"]
    ]
    return [unpack_run(run) for run in line["runs"]], forged


def pack_run(run: HonestRun) -> dict[str, Any]:
    """Return one verification's raw distances and margins, JSON-safe."""
    leaves = [[[kind, layer, value] for (kind, layer), value in leaf.items()] for leaf in run.distances]
    return {"prompt": run.prompt_count, "margins": list(run.margins), "leaves": leaves}


def unpack_run(data: dict[str, Any]) -> HonestRun:
    """Return what ``pack_run`` wrote."""
    leaves = tuple({(RowKind(kind), layer): value for kind, layer, value in leaf} for leaf in data["leaves"])
    return HonestRun(leaves, data["prompt"], tuple(data["margins"]))
