"""Whether the network takes a submission: the model, the prompt, the sampling, the times, the room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pocache.protocol.commitment import compute_leaf_count
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.errors import (
    BackpressureError,
    ExpiredError,
    PromptError,
    SamplingError,
    UnknownModelError,
)
from pocache.protocol.ids import ModelId
from pocache.runtime.network import Genesis, Model
from pocache.wire.messages import SubmissionV1

CLOCK_SKEW_MS_MAX: Final = 60_000
"""How far in the future a submission may claim to have been made."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What a job costs at most: Cg for all the tokens asked for, Cv for all of them at full depth."""

    generation_max_micro: int
    verification_max_micro: int
    deposit_micro: int
    generator_stake_micro: int


def admit(
    submission: SubmissionV1,
    *,
    genesis: Genesis,
    models: Mapping[ModelId, Model],
    now_ms: int,
    open_jobs: int,
) -> Quote:
    """Return the quote of an acceptable submission.

    Raises UnknownModelError, PromptError, SamplingError, ExpiredError, BackpressureError, PayoffError.
    """
    model = models.get(ModelId(submission.model_id))
    if model is None:
        names = ", ".join(f"{one.entry.name} ({model_id.hex()[:12]}…)" for model_id, one in models.items())
        raise UnknownModelError(f"model {submission.model_id.hex()} is not served here; served are: {names}")
    prompt_count = _verify_prompt(submission, model)
    _verify_sampling(submission, model)
    _verify_times(submission, genesis, now_ms)
    if open_jobs >= genesis.bounds.open_jobs_max:
        raise BackpressureError(f"{open_jobs} jobs are open, as many as this network takes; try again later")
    return compute_quote(genesis, model, prompt_count, submission.token_count_max)


def compute_quote(genesis: Genesis, model: Model, prompt_count: int, output_count: int) -> Quote:
    """Return the costs, deposit and stake of a job with this many tokens, verified at full depth."""
    leaf_count = compute_leaf_count(prompt_count, output_count)
    cg = model.prices.compute_generation_cost(prompt_count, output_count)
    cv = model.prices.compute_verification_cost(
        layer_max=model.entry.layer_count - 1,
        position_max=leaf_count - 1,
        layer_count=model.entry.layer_count,
    )
    genesis.rule_set.validate_costs(cg, cv)
    products = genesis.rule_set.compute_products(cg, cv)
    return Quote(cg, cv, products.deposit, products.generator_stake)


def _verify_prompt(submission: SubmissionV1, model: Model) -> int:
    tokens = unpack_tokens(submission.prompt)
    if not tokens:
        raise PromptError("the prompt is empty: send at least one token")
    if max(tokens) >= model.entry.vocab_size:
        raise PromptError(f"token {max(tokens)} lies outside the vocabulary of {model.entry.vocab_size}")
    total = len(tokens) + submission.token_count_max
    if total > model.entry.context_tokens_max:
        raise PromptError(
            f"prompt and token_count_max make {total} tokens; this model's context is "
            f"{model.entry.context_tokens_max}"
        )
    return len(tokens)


def _verify_sampling(submission: SubmissionV1, model: Model) -> None:
    """Refuse what makes no sense for this model; what makes none for any is refused by the codec (E101)."""
    top_k = submission.sampling.top_k
    if top_k > model.entry.vocab_size:
        raise SamplingError(
            f"top_k is {top_k}, the vocabulary has {model.entry.vocab_size} tokens: 0 is how to turn it off"
        )


def _verify_times(submission: SubmissionV1, genesis: Genesis, now_ms: int) -> None:
    if submission.expires_ms <= now_ms:
        raise ExpiredError("the submission's expires_ms has passed")
    if submission.created_ms > now_ms + CLOCK_SKEW_MS_MAX:
        raise ExpiredError("the submission's created_ms lies in the future: check this machine's clock")
    if submission.created_ms < now_ms - genesis.bounds.submission_age_ms_max:
        raise ExpiredError("the submission is too old: sign a new one")
