"""The measured runs of an evaluation in a folder, a file for the honest jobs and one for each cheat: what makes it resumable.

Each file is as a calibration's (``measurements``): a first line that names what was measured, one line for each batch. They
hold raw distances, so that they can be judged again under another profile or sample. Refuses files of another model,
stack, prompt or length. Without a folder everything is measured, and nothing kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pocache.engine.evaluate import Evaluation
from pocache.numerics.calibration import HonestRun
from pocache_cli.measurements import append_line, pack_run, read_batches, unpack_run


class MeasuredRuns:
    """The runs of one evaluation, measured or read."""

    def __init__(self, evaluation: Evaluation, folder: Path | None) -> None:
        """``folder`` exists, or is None where nothing is to be kept."""
        self._folder = folder
        sides = (evaluation.generator.capabilities(), evaluation.verifier.capabilities())
        self._head: dict[str, Any] = {
            "evaluation": "v1",
            "model_id": sides[0].model_id.hex(),
            "schema": sides[0].schema.digest().hex(),
            "stacks": [one.stack for one in sides],
            "tokens": evaluation.max_tokens,
            **({"prompts": "written"} if evaluation.is_written else {}),
        }

    def collect(
        self,
        name: str,
        batches: list[range],
        measure: Callable[[int, range], list[HonestRun]],
        report: Callable[[int], None],
    ) -> Iterator[HonestRun]:
        """Yield the runs of all batches in order; measure what the file does not have, and keep it. ConfigError."""
        state = None if self._folder is None else self._folder / f"{name}.jsonl"
        known = {} if state is None else read_batches(state, {**self._head, "runs": name}, _unpack)
        for number, batch in enumerate(batches):
            runs = known.pop(number, [])
            if len(runs) != len(batch):
                runs = measure(number, batch)
                if state is not None:
                    append_line(state, {"batch": number, "runs": [pack_run(run) for run in runs]})
            yield from runs
            report(batch.stop)


def _unpack(line: dict[str, Any]) -> list[HonestRun]:
    return [unpack_run(run) for run in line["runs"]]
