"""``pocache calibrate MODEL``: honest runs on this machine, and the thresholds that follow from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.engine.port import Capabilities, Engine
    from pocache.protocol.encoding import FloatFormat
    from pocache.protocol.matching import MatchingProfile

RUNS_DEFAULT = 12
TOKENS_DEFAULT = 48
DTYPES = ("float32", "bfloat16")


@click.command()
@click.argument("model")
@click.option("--name", help="The name that the network will know the model by (default: the directory's).")
@click.option(
    "--runs", default=RUNS_DEFAULT, show_default=True, type=click.IntRange(3, 100_000), help="Honest jobs."
)
@click.option(
    "--tokens", default=TOKENS_DEFAULT, show_default=True, type=click.IntRange(2, 4_096), help="Tokens a job."
)
@click.option("--encoding", default="sketch", show_default=True, type=click.Choice(["sketch", "raw"]))
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Of the generator (default: float32 on CPU, bfloat16 on CUDA)."
)
@click.option("--attention", default="sdpa", show_default=True, help="The generator's attention kernel.")
@click.option(
    "--verifier-dtype", type=click.Choice(DTYPES), help="Of the verifier (default: the generator's)."
)
@click.option("--verifier-attention", help="The verifier's attention kernel (default: the generator's).")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1, 1_024),
    help="Torch threads; repeat to change between batches.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep raw distances here, and go on from them.",
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Sign the profile with the seed in this file.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the description of the model here."
)
@click.option("--json", "as_json", is_flag=True, help="Progress and result as JSON lines.")
def calibrate(
    model: str,
    name: str | None,
    runs: int,
    tokens: int,
    encoding: str,
    device: str,
    dtype: str | None,
    attention: str,
    verifier_dtype: str | None,
    verifier_attention: str | None,
    threads: tuple[int, ...],
    state: Path | None,
    sign: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what honest looks like for MODEL, a directory, a cached id, or fake:NAME.

    The result describes the model to a network: its id, its row schema, and the calibration profile of this pair of
    stacks. From 60 jobs on its limits are fitted tails at a stated false-reject rate; with fewer they lie at least ten
    times above the largest honest distance that was seen. With --state an interrupted calibration goes on where it
    stopped.
    """
    with exit_on_error("calibrate", as_json=as_json):
        from pocache.engine.calibrate import CalibrationPlan, draw_prompts
        from pocache_cli.measurements import run_plan
        from pocache_cli.signing import sign_description

        def report(done: int, total: int) -> None:
            if as_json:
                click.echo(json.dumps({"event": "calibrating", "done": done, "total": total}))
            else:
                click.echo(f"\rcalibrating: honest job {done} of {total}", nl=done == total, err=True)

        pair = build_pair(
            model,
            encoding=encoding,
            device=device,
            threads=threads[0] if threads else None,
            stacks=((dtype, attention), (verifier_dtype or dtype, verifier_attention or attention)),
        )
        plan = CalibrationPlan(
            *pair,
            draw_prompts(pair[0].capabilities(), count=runs),
            tokens,
            is_routed=getattr(pair[0], "is_routed", False),
            about={"threads": ",".join(map(str, threads)) or "as torch chose"},
            prepare=make_thread_changer(threads),
        )
        profile = run_plan(plan, state, report)
        title = name or model.removeprefix("fake:").rstrip("/").rsplit("/", 1)[-1]
        description = describe(pair[0].capabilities(), profile, title)
        if sign is not None:
            description |= sign_description(description, sign)
        if out is not None:
            out.write_text(json.dumps(description, indent=1, sort_keys=True), encoding="ascii")
        if as_json:
            click.echo(json.dumps({"event": "calibrated", **description}, sort_keys=True))
        else:
            _print_summary(description, out)


def build_pair(
    model: str,
    *,
    encoding: str,
    device: str,
    threads: int | None,
    stacks: tuple[tuple[str | None, str], tuple[str | None, str]],
) -> tuple[Engine, Engine]:
    """Return generator and verifier of (dtype, attention) each: one engine where both are the same.

    A mixed pair has rows in the format of the coarser dtype. EngineError.
    """
    from pocache.protocol.encoding import FloatFormat

    chosen = [(dtype or _get_dtype(device), attention) for dtype, attention in stacks]
    is_coarse = any(dtype == "bfloat16" for dtype, _ in chosen)
    engines = [
        build_engine(
            model,
            encoding=encoding,
            device=device,
            threads=threads,
            dtype=dtype,
            attention=attention,
            float_format=FloatFormat.F16 if is_coarse else FloatFormat.F32,
        )
        for dtype, attention in dict.fromkeys(chosen)
    ]
    return engines[0], engines[-1]


def make_thread_changer(threads: Sequence[int]) -> Callable[[int], None]:
    """Return what sets the thread count of a batch: each of ``threads`` in turn; nothing for one or none."""

    def change(number: int) -> None:
        if len(threads) > 1:
            import torch

            torch.set_num_threads(threads[number % len(threads)])

    return change


def build_engine(
    model: str,
    *,
    encoding: str,
    device: str,
    threads: int | None,
    dtype: str | None = None,
    attention: str = "sdpa",
    float_format: FloatFormat | None = None,
) -> Engine:
    """Return the engine of a model; float32 on CPU and bfloat16 on CUDA unless told otherwise."""
    if model.startswith("fake:"):
        from pocache.engine.fake import FakeEngine

        return FakeEngine(model.removeprefix("fake:"))
    from pocache.engine.transformers import TransformersEngine

    return TransformersEngine(
        model,
        dtype="bfloat16" if (dtype or _get_dtype(device)) == "bfloat16" else "float32",
        device=device,
        attention=attention,
        float_format=float_format,
        encoding="raw" if encoding == "raw" else "sketch",
        threads=threads,
    )


def _get_dtype(device: str) -> str:
    return "bfloat16" if device == "cuda" else "float32"


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
        "profile_digest": profile.digest().hex(),
    }


def _print_summary(description: dict[str, Any], out: Path | None) -> None:
    click.echo(f"model      {description['name']}  {description['model_id']}")
    click.echo(f"stack      {description['stack']}")
    for key, value in sorted(description["profile"]["about"].items()):
        click.echo(f"{key:34} {value}")
    if out is not None:
        click.echo(f"written to {out}")
