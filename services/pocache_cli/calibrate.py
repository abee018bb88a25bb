"""``pocache calibrate MODEL``: honest runs on this machine, and the thresholds that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pocache.engine.port import Capabilities, Engine
    from pocache.protocol.matching import MatchingProfile

RUNS_DEFAULT = 12
TOKENS_DEFAULT = 48


@click.command()
@click.argument("model")
@click.option("--name", help="The name that the network will know the model by (default: the directory's).")
@click.option("--runs", default=RUNS_DEFAULT, show_default=True, type=click.IntRange(3, 100_000), help="Honest jobs.")
@click.option("--tokens", default=TOKENS_DEFAULT, show_default=True, type=click.IntRange(2, 4_096), help="Tokens a job.")
@click.option("--encoding", default="sketch", show_default=True, type=click.Choice(["sketch", "raw"]))
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--threads", type=click.IntRange(1, 1_024), help="Torch threads (default: torch's own).")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the description of the model here.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as JSON lines.")
def calibrate(
    model: str,
    name: str | None,
    runs: int,
    tokens: int,
    encoding: str,
    device: str,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what honest looks like for MODEL, a directory, a cached id, or fake:NAME.

    The result describes the model to a network: its id, its row schema, and the calibration profile, whose
    thresholds lie at least ten times above the largest honest distance that was seen.
    """
    from pocache.engine.calibrate import draw_prompts, run_calibration

    def report(done: int, total: int) -> None:
        if as_json:
            click.echo(json.dumps({"event": "calibrating", "done": done, "total": total}))
        else:
            click.echo(f"\rcalibrating: honest job {done} of {total}", nl=done == total, err=True)

    engine = build_engine(model, encoding=encoding, device=device, threads=threads)
    capabilities = engine.capabilities()
    prompts = draw_prompts(capabilities, count=runs)
    profile = run_calibration(engine, engine, prompts, max_tokens=tokens, progress=report)
    description = describe(capabilities, profile, name or model.removeprefix("fake:").rstrip("/").rsplit("/", 1)[-1])
    if out is not None:
        out.write_text(json.dumps(description, indent=1, sort_keys=True), encoding="ascii")
    if as_json:
        click.echo(json.dumps({"event": "calibrated", **description}, sort_keys=True))
    else:
        _print_summary(description, out)


def build_engine(model: str, *, encoding: str, device: str, threads: int | None) -> Engine:
    """Return the engine of a model; float32 on CPU, bfloat16 on CUDA."""
    if model.startswith("fake:"):
        from pocache.engine.fake import FakeEngine

        return FakeEngine(model.removeprefix("fake:"))
    from pocache.engine.transformers import TransformersEngine

    return TransformersEngine(
        model,
        dtype="bfloat16" if device == "cuda" else "float32",
        device=device,
        encoding="raw" if encoding == "raw" else "sketch",
        threads=threads,
    )


def describe(capabilities: Capabilities, profile: MatchingProfile, name: str) -> dict[str, Any]:
    """Return what a network must know of a model, JSON-safe."""
    return {
        "model_id": capabilities.model_id.hex(),
        "name": name,
        "vocab_size": capabilities.vocab_size,
        "context_tokens_max": capabilities.context_tokens_max,
        "eos_tokens": list(capabilities.eos_tokens),
        "layer_count": capabilities.layer_count,
        "stack": capabilities.stack,
        "row_schema": capabilities.schema.to_dict(),
        "profile": profile.to_dict(),
    }


def _print_summary(description: dict[str, Any], out: Path | None) -> None:
    click.echo(f"model      {description['name']}  {description['model_id']}")
    click.echo(f"stack      {description['stack']}")
    for key, value in sorted(description["profile"]["about"].items()):
        click.echo(f"{key:34} {value}")
    if out is not None:
        click.echo(f"written to {out}")
