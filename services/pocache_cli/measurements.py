"""The raw distances of a calibration in a file, batch by batch: what makes it resumable, and what anyone can fit again.

One JSON line for each batch, behind a first line that names the plan. Refuses a file of another plan: distances of
another model, stack or set of jobs would make a profile of nothing. A last line that was cut off is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pocache.engine.calibrate import CalibrationPlan, Forged
from pocache.engine.forgery import NullForgery
from pocache.numerics.calibration import HonestRun
from pocache.protocol.encoding import RowKind
from pocache.protocol.errors import ConfigError
from pocache.protocol.matching import MatchingProfile


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
                _append(state, {"batch": number, **_pack(more, faked)})
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
    head = {"plan": compute_plan_digest(plan)}
    if not state.exists() or not state.read_bytes():
        _append(state, head)
        return {}
    text = state.read_text(encoding="ascii")
    lines = text.splitlines()
    whole = lines if text.endswith("\n") else lines[:-1]
    try:
        if not whole or json.loads(whole[0]) != head:
            raise ConfigError(
                f"{state} has the measurements of another model, stack or set of jobs: name another file, or delete it"
            )
        if len(whole) < len(lines):
            state.write_text("".join(f"{line}\n" for line in whole), encoding="ascii")
        batches = [json.loads(line) for line in whole[1:]]
        return {one["batch"]: _unpack(one) for one in batches}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{state} is damaged ({error}): delete it and calibrate again") from error


def _append(state: Path, line: dict[str, Any]) -> None:
    with state.open("a", encoding="ascii") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _pack(runs: list[HonestRun], forged: list[Forged]) -> dict[str, Any]:
    return {
        "runs": [_pack_run(run) for run in runs],
        "forged": [{forgery.value: _pack_run(run) for forgery, run in one.runs.items()} for one in forged],
    }


def _unpack(line: dict[str, Any]) -> tuple[list[HonestRun], list[Forged]]:
    forged = [
        Forged({NullForgery(name): _unpack_run(run) for name, run in one.items()}) for one in line["forged"]
    ]
    return [_unpack_run(run) for run in line["runs"]], forged


def _pack_run(run: HonestRun) -> dict[str, Any]:
    leaves = [[[kind, layer, value] for (kind, layer), value in leaf.items()] for leaf in run.distances]
    return {"prompt": run.prompt_count, "margins": list(run.margins), "leaves": leaves}


def _unpack_run(data: dict[str, Any]) -> HonestRun:
    leaves = tuple({(RowKind(kind), layer): value for kind, layer, value in leaf} for leaf in data["leaves"])
    return HonestRun(leaves, data["prompt"], tuple(data["margins"]))
