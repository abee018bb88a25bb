"""``python -m pocache.engine.reference.train WORK``: train the model that ships with the project, from nothing.

Owns the model's shape, the schedule and the checkpoints in the folder WORK. What a step learns from is a function of the
seed and the step, so a run that was interrupted and started again ends where an uninterrupted one does. Refuses to
continue a checkpoint of another corpus, shape or seed. Needs the extra ``engine``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pocache.engine.reference.corpus import (
    BEGIN,
    END,
    PAD,
    Corpus,
    encode_documents,
    read_corpus,
    train_tokenizer,
    write_tokenizer,
)
from pocache.protocol.errors import EngineError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

POSITIONS_MAX: Final = 2_048
CHECKPOINT_NAME: Final = "checkpoint.pt"
TEXT_NAME: Final = "corpus.pt"
CURVE_NAME: Final = "curve.csv"
WARMUP_STEPS: Final = 60
DECAY_SHARE: Final = 0.3
EMBEDDING_STD: Final = 0.05
OUTPUT_GAIN: Final = 0.03
SHARES_PER_STEP: Final = 2
"""A step's sequences are computed in so many shares, one after the other or each in its thread: the sums are the same."""

GRADIENT_NORM_MAX: Final = 1.0
HELD_OUT_BATCHES: Final = 6


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the weights are a function of, besides the corpus, the number of steps and the arithmetic's dtype."""

    seed: int = 0
    vocab_size: int = 4_096
    hidden_size: int = 128
    intermediate_size: int = 512
    layer_count: int = 6
    head_count: int = 4
    kv_head_count: int = 2
    context_tokens: int = 512
    sequences_per_step: int = 6
    matrix_rate: float = 0.01
    other_rate: float = 0.004


@dataclass(slots=True)
class Progress:
    """How far a run is: what a checkpoint holds besides weights and optimizer state."""

    step: int = 0
    tokens: int = 0
    train_s: float = 0.0
    recent_nats: float = math.nan
    """Training loss, exponentially averaged."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or continue to train, and write the finished model into WORK/model."""
    parser = argparse.ArgumentParser(description="train the reference model; run it again to continue")
    parser.add_argument(
        "work", type=Path, help="folder for the tokenizer, the checkpoint and the finished model"
    )
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, choices=(1, 2), help="shares of a step at once")
    parser.add_argument("--checkpoint-every-s", type=float, default=180.0)
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    run = Training(given.work, replace(Recipe(), seed=given.seed), given.steps, threads=given.threads)
    run.train(checkpoint_every_s=given.checkpoint_every_s)
    sys.stdout.write(f"written to {run.export()}\n")


@dataclass(frozen=True, slots=True)
class Text:
    """The corpus as tokens, with the tokenizer that made them."""

    tokenizer: Any
    training: torch.Tensor
    held_out: torch.Tensor
    digest: str
    """The corpus's."""


class Training:
    """One run: made new, or read from the checkpoint that lies in its folder."""

    def __init__(
        self, work: Path, recipe: Recipe, steps: int, *, threads: int = 1, corpus: Corpus | None = None
    ) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.recipe = recipe
        self.steps = steps
        self.progress = Progress()
        self._work = work
        self._text = _load_text(work, recipe, corpus)
        self.model = _build_model(recipe, self._text.tokenizer)
        self._parameters = list(self.model.parameters())
        self._pool = ThreadPoolExecutor(threads)
        self._optimizers = _build_optimizers(self.model, recipe)
        self._resume()

    def train(self, *, checkpoint_every_s: float, until: int | None = None) -> None:
        """Take the steps that are left, or those before ``until``; keep a checkpoint every so many seconds and at the end."""
        last = self.steps if until is None else min(until, self.steps)
        _say(
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters, {len(self._text.training):,} tokens to learn "
            f"from, {len(self._text.held_out):,} held out; step {self.progress.step} of {self.steps}"
        )
        saved = began = time.monotonic()
        before_s = self.progress.train_s
        while self.progress.step < last:
            self._take_step()
            self.progress.train_s = before_s + time.monotonic() - began
            is_last = self.progress.step == last
            if self.progress.step % 20 == 0 or is_last:
                _say(self._describe())
            if is_last or time.monotonic() - saved >= checkpoint_every_s:
                self._record_curve()
                self._save()
                saved = time.monotonic()

    def compute_held_out_nats(self) -> float:
        """Return the mean loss per token on documents that were not trained on."""
        import torch

        length, rows = self.recipe.context_tokens, self.recipe.sequences_per_step
        count = min(HELD_OUT_BATCHES * rows, (len(self._text.held_out) - 1) // length)
        losses = []
        with torch.no_grad():
            for first in range(0, count, rows):
                starts = [index * length for index in range(first, min(first + rows, count))]
                losses.append((len(starts), self._compute_loss(self._text.held_out, starts).item()))
        return sum(size * loss for size, loss in losses) / count

    def export(self) -> Path:
        """Write the model as bfloat16 safetensors with its configuration and tokenizer; return the folder."""
        from transformers import LlamaForCausalLM

        from pocache.engine.demo_model import hide_progress_bars

        target = self._work / "model"
        finished = LlamaForCausalLM(self.model.config).bfloat16()
        finished.load_state_dict(self.model.state_dict())
        with hide_progress_bars():
            finished.save_pretrained(target)
        write_tokenizer(self._text.tokenizer, target, POSITIONS_MAX)
        return target

    def _take_step(self) -> None:
        import torch

        step, recipe = self.progress.step, self.recipe
        generator = torch.Generator().manual_seed((recipe.seed << 32) + step)
        last_start = len(self._text.training) - recipe.context_tokens - 1
        starts = torch.randint(last_start, (recipe.sequences_per_step,), generator=generator).tolist()
        shares = [starts[first::SHARES_PER_STEP] for first in range(SHARES_PER_STEP)]
        found = list(self._pool.map(self._compute_gradients, shares))
        for index, parameter in enumerate(self._parameters):
            parameter.grad = torch.stack([gradients[index] for _, gradients in found]).mean(dim=0)
        torch.nn.utils.clip_grad_norm_(self._parameters, GRADIENT_NORM_MAX)
        share = compute_rate_share(step, self.steps)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_rate"] * share
            optimizer.step()
        progress, nats = self.progress, sum(loss for loss, _ in found) / len(found)
        if not math.isfinite(nats):
            raise EngineError(f"the loss is {nats} at step {step}: lower the rates")
        progress.recent_nats = nats if step == 0 else 0.95 * progress.recent_nats + 0.05 * nats
        progress.step += 1
        progress.tokens += recipe.sequences_per_step * recipe.context_tokens

    def _compute_gradients(self, starts: Sequence[int]) -> tuple[float, tuple[torch.Tensor, ...]]:
        """Return the loss and its gradients over some sequences; several threads may do so at once."""
        import torch

        loss = self._compute_loss(self._text.training, starts)
        return loss.item(), torch.autograd.grad(loss, self._parameters)

    def _compute_loss(self, stream: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
        import torch

        length = self.recipe.context_tokens
        tokens = torch.stack([stream[start : start + length + 1] for start in starts])
        # The cache of cast weights is shared between threads, and none is used twice in a pass.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def _describe(self) -> str:
        progress = self.progress
        return (
            f"step {progress.step:5d}/{self.steps}  {progress.recent_nats:.3f} nats  {progress.tokens / 1e6:6.2f} M tokens  "
            f"{progress.train_s / 60:5.1f} min"
        )

    def _record_curve(self) -> None:
        held_out = self.compute_held_out_nats()
        file = self._work / CURVE_NAME
        if not file.exists():
            file.write_text("step,tokens,minutes,train_nats,held_out_nats\n", encoding="ascii")
        progress = self.progress
        with file.open("a", encoding="ascii") as stream:
            stream.write(
                f"{progress.step},{progress.tokens},{progress.train_s / 60:.1f},"
                f"{progress.recent_nats:.4f},{held_out:.4f}\n"
            )
        _say(f"held out: {held_out:.3f} nats")

    def _save(self) -> None:
        import torch

        partial = self._work / (CHECKPOINT_NAME + ".partial")
        torch.save(
            {
                "name": self._name(),
                "progress": asdict(self.progress),
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            },
            partial,
        )
        partial.replace(self._work / CHECKPOINT_NAME)

    def _resume(self) -> None:
        import torch

        file = self._work / CHECKPOINT_NAME
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        if state["name"] != self._name():
            raise EngineError(f"{file} belongs to another corpus, shape or seed: train in another folder")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])

    def _name(self) -> str:
        return json.dumps({"corpus": self._text.digest, **asdict(self.recipe)}, sort_keys=True)


def compute_rate_share(step: int, steps: int) -> float:
    """Return the share of the peak rate at ``step``: a short rise, a plateau, a straight fall over the last 30 %."""
    rise = (step + 1) / WARMUP_STEPS
    fall = (steps - step) / (DECAY_SHARE * steps)
    return min(1.0, rise, fall)


def _load_text(work: Path, recipe: Recipe, corpus: Corpus | None) -> Text:
    """Return the corpus as tokens: read where a run has left it, else made and left there."""
    import torch
    from tokenizers import Tokenizer

    file = work / TEXT_NAME
    if not file.exists():
        corpus = corpus or read_corpus(recipe.seed)
        tokenizer = train_tokenizer(corpus.training, recipe.vocab_size)
        state = {
            "made_by": [recipe.seed, recipe.vocab_size],
            "digest": corpus.digest,
            "tokenizer": tokenizer.to_str(),
            "training": torch.tensor(encode_documents(tokenizer, corpus.training)),
            "held_out": torch.tensor(encode_documents(tokenizer, corpus.held_out)),
        }
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(file)
    state = torch.load(file, weights_only=True)
    if state["made_by"] != [recipe.seed, recipe.vocab_size] or (
        corpus is not None and corpus.digest != state["digest"]
    ):
        raise EngineError(f"{file} was made with another corpus, seed or vocabulary: train in another folder")
    tokenizer = Tokenizer.from_str(state["tokenizer"])
    return Text(tokenizer, state["training"], state["held_out"], state["digest"])


def _build_model(recipe: Recipe, tokenizer: Any) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layer_count,
        num_attention_heads=recipe.head_count,
        num_key_value_heads=recipe.kv_head_count,
        max_position_embeddings=POSITIONS_MAX,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(recipe.seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            elif name.endswith("embed_tokens.weight"):
                parameter.normal_(std=EMBEDDING_STD)
            else:
                # What layers add starts small beside the embedding, or the token would drown in noise.
                gain = OUTPUT_GAIN if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                parameter.normal_(std=gain / math.sqrt(parameter.shape[1]))
    return model


def _build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [{"params": matrices, "peak_rate": recipe.matrix_rate}],
            lr=recipe.matrix_rate,
            weight_decay=0.1,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": others, "peak_rate": recipe.other_rate}],
            lr=recipe.other_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]
    return optimizers


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
