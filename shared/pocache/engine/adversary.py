"""Dishonest engines for demonstrations, tests and evaluation: each claims the honest model.

Owns the registry: which cheats there are, what each is called, and how it is built. Torch-free; what tampers with
weights and caches lives in ``tamper`` and is imported when such a kind is built, what changes requests and captures in
``adversary_engines``. An adversary keeps to the port: well-formed leaves, the right counts, the honest capabilities.
Nothing here is a defence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pocache.engine import adversary_engines as wrap
from pocache.engine.fake import FakeEngine
from pocache.engine.forgery import NullForgery
from pocache.engine.port import Engine
from pocache.protocol.errors import EngineError

TEMPERATURE_STEP_MICRO: Final = 100_000
"""A tenth: the smallest change of temperature that is asked about."""

_SKIP_LAYER: Final = re.compile(r"skip-layer-([0-9]{1,4})")


class AdversaryKind(StrEnum):
    """What a dishonest engine does."""

    INT4 = "int4"
    """Weights in 4 bits, groups of 64."""
    INT8 = "int8"
    """Weights in 8 bits, one scale per output channel."""
    INT8_MLP = "int8-mlp"
    """The same in the MLPs alone."""
    FP8 = "fp8"
    """Weights as 8-bit floats (e4m3), one scale per output channel."""
    NOISE_1_PERCENT = "noise-1-percent"
    """Gaussian noise of 1 % of each matrix's own spread on its weights."""
    NOISE_PER_MILLE = "noise-0.1-percent"
    FINE_TUNED = "fine-tuned"
    """Fifteen small steps of training away from the model."""
    KV_FP8 = "kv-fp8"
    """Keys and values stored as 8-bit floats."""
    KV_INT8 = "kv-int8"
    """Keys and values stored in 8 bits, one scale per head and token."""
    KV_INT4 = "kv-int4"
    KV_EVICTED = "kv-evicted"
    """Decoding attends to the first tokens and the latest ones, as with an evicted cache."""
    SKIP_FIRST_LAYER = "skip-first-layer"
    SKIP_MIDDLE_LAYER = "skip-middle-layer"
    SKIP_LAST_LAYER = "skip-last-layer"
    """The last layer writes its cache and is then left out."""
    EARLY_EXIT = "early-exit"
    """Every layer of the upper half passes on what it was given."""
    ANOTHER_MODEL = "another-model"
    """The same architecture with other weights."""
    SWAPPED_PROMPT = "swapped-prompt"
    """A prompt of the same length with other tokens."""
    TRUNCATED_PROMPT = "truncated-prompt"
    """The first half of the prompt is prefilled by itself; the rest never sees it."""
    EARLY_TOKEN = "token-changed-early"  # noqa: S105 - a token of a prompt
    """One token changed near the prompt's beginning."""
    LATE_TOKEN = "token-changed-late"  # noqa: S105 - a token of a prompt
    """The prompt's last token changed."""
    SPOOF = "spoof"
    """Another model writes the tokens; the right one prefills them, and the score rows are dressed up."""
    SPOOF_TRUE_SCORES = "spoof-true-scores"
    """The same with the score rows as they are: every row is right, the tokens are not the model's."""
    SPOOF_INT4 = "spoof-int4"
    """The same, written by the right model in 4 bits: a good draft."""
    HOTTER = "temperature-high"
    """Drawn at a temperature a tenth too high, committed with the scores that the asked one gives."""
    COLDER = "temperature-low"
    WRONG_SEED = "wrong-seed"
    """Drawn with another seed, as by one who tries several and delivers what suits."""
    EDITED_OUTPUT = "edited-output"
    """One output token in eight replaced afterwards, all prefilled with the right model."""
    TRUNCATED_OUTPUT = "truncated-output"
    """Half of the output, ended by an EOS that the model did not draw."""
    NULL_ZEROS = "null-zeros"
    NULL_CONSTANT = "null-constant"
    NULL_NEGATED = "null-negated"
    NULL_PERMUTED = "null-permuted"
    NULL_OTHER_JOB = "null-other-job"
    GARBAGE = "garbage"
    """A verifier that seals noise instead of computing; it generates honestly."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One cheat of the registry: its name for ``build_adversary``, its family, and what it does in words."""

    name: str
    family: str
    title: str
    is_small: bool = False
    """Too small for one job by design: several jobs decide."""
    needs_sampling: bool = False
    """It changes how tokens are drawn, so a greedy job does not show it."""


_ATTACKS: Final = (
    Attack("another-model", "model", "another model of the same shape"),
    Attack("fine-tuned", "model", "fifteen steps of fine-tuning", is_small=True),
    Attack("noise-1-percent", "model", "1 % noise on the weights"),
    Attack("noise-0.1-percent", "model", "0.1 % noise on the weights", is_small=True),
    Attack("int8", "weights", "weights in int8", is_small=True),
    Attack("int8-mlp", "weights", "MLPs in int8", is_small=True),
    Attack("int4", "weights", "weights in int4, groups of 64"),
    Attack("fp8", "weights", "weights in fp8"),
    Attack("kv-fp8", "cache", "KV cache in fp8"),
    Attack("kv-int8", "cache", "KV cache in int8", is_small=True),
    Attack("kv-int4", "cache", "KV cache in int4"),
    Attack("kv-evicted", "cache", "KV cache evicted but for its ends"),
    Attack("early-exit", "depth", "the upper half of the layers left out"),
    Attack("swapped-prompt", "prompt", "another prompt"),
    Attack("truncated-prompt", "prompt", "prompt cut in half"),
    Attack("token-changed-early", "prompt", "one early prompt token changed"),
    Attack("token-changed-late", "prompt", "the last prompt token changed", is_small=True),
    Attack("spoof", "tokens", "cheap model writes, right one prefills, gaps hidden"),
    Attack("spoof-true-scores", "tokens", "cheap model writes, right one prefills"),
    Attack("spoof-int4", "tokens", "int4 writes, right weights prefill", is_small=True),
    Attack("temperature-high", "tokens", "temperature + 0.1", is_small=True, needs_sampling=True),
    Attack("temperature-low", "tokens", "temperature − 0.1", is_small=True, needs_sampling=True),
    Attack("wrong-seed", "tokens", "another sampling seed", needs_sampling=True),
    Attack("edited-output", "tokens", "one output token in eight edited", is_small=True),
    Attack("truncated-output", "tokens", "output cut, a false EOS at its end"),
    Attack("null-zeros", "null", "zeros"),
    Attack("null-constant", "null", "a constant"),
    Attack("null-negated", "null", "signs flipped"),
    Attack("null-permuted", "null", "positions permuted"),
    Attack("null-other-job", "null", "another job's openings"),
)


def list_attacks(layer_count: int) -> tuple[Attack, ...]:
    """Return every cheat that a comparison can decide about, with one skipped layer for each depth."""
    skipped = tuple(
        Attack(f"skip-layer-{layer}", "depth", f"layer {layer} skipped", is_small=0 < layer < layer_count - 1)
        for layer in range(layer_count)
    )
    return (*_ATTACKS, *skipped)


FAKE_KINDS: Final = frozenset(
    {
        AdversaryKind.ANOTHER_MODEL,
        AdversaryKind.SWAPPED_PROMPT,
        AdversaryKind.TRUNCATED_PROMPT,
        AdversaryKind.EARLY_TOKEN,
        AdversaryKind.LATE_TOKEN,
        AdversaryKind.SPOOF,
        AdversaryKind.SPOOF_TRUE_SCORES,
        AdversaryKind.WRONG_SEED,
        AdversaryKind.EDITED_OUTPUT,
        AdversaryKind.TRUNCATED_OUTPUT,
        AdversaryKind.NULL_ZEROS,
        AdversaryKind.NULL_CONSTANT,
        AdversaryKind.NULL_NEGATED,
        AdversaryKind.NULL_PERMUTED,
        AdversaryKind.NULL_OTHER_JOB,
        AdversaryKind.GARBAGE,
    }
)
"""What can be built over a FakeEngine."""

_FORGERIES: Final = {
    AdversaryKind.NULL_ZEROS: NullForgery.ZEROS,
    AdversaryKind.NULL_CONSTANT: NullForgery.CONSTANT,
    AdversaryKind.NULL_NEGATED: NullForgery.NEGATED,
    AdversaryKind.NULL_PERMUTED: NullForgery.PERMUTED,
    AdversaryKind.NULL_OTHER_JOB: NullForgery.OTHER_JOB,
}

_WRAPPERS: Final[dict[AdversaryKind, Callable[[Engine], Engine]]] = {
    AdversaryKind.SWAPPED_PROMPT: wrap.swap_prompts,
    AdversaryKind.TRUNCATED_PROMPT: wrap.truncate_prompts,
    AdversaryKind.EARLY_TOKEN: lambda engine: wrap.change_prompt_token(engine, is_early=True),
    AdversaryKind.LATE_TOKEN: lambda engine: wrap.change_prompt_token(engine, is_early=False),
    AdversaryKind.HOTTER: lambda engine: wrap.shift_temperature(engine, TEMPERATURE_STEP_MICRO),
    AdversaryKind.COLDER: lambda engine: wrap.shift_temperature(engine, -TEMPERATURE_STEP_MICRO),
    AdversaryKind.WRONG_SEED: wrap.change_seed,
    AdversaryKind.EDITED_OUTPUT: wrap.edit_outputs,
    AdversaryKind.TRUNCATED_OUTPUT: wrap.truncate_outputs,
    AdversaryKind.GARBAGE: wrap.GarbageEngine,
    **{
        kind: lambda engine, forgery=forgery: wrap.forge_captures(engine, forgery)  # type: ignore[misc]
        for kind, forgery in _FORGERIES.items()
    },
}

WRAPPER_KINDS: Final = frozenset(_WRAPPERS)
"""Cheats that leave the weights alone, and so can share an honest engine's."""

_DRAFTS: Final = {
    AdversaryKind.SPOOF: AdversaryKind.ANOTHER_MODEL,
    AdversaryKind.SPOOF_TRUE_SCORES: AdversaryKind.ANOTHER_MODEL,
    AdversaryKind.SPOOF_INT4: AdversaryKind.INT4,
}
"""Who writes the tokens that the right model then prefills."""


def build_adversary(kind: str, engine_factory: Callable[[], Engine]) -> Engine:
    """Return a dishonest engine over fresh honest ones; EngineError for a kind that is not possible there.

    ``kind`` is one of AdversaryKind or ``skip-layer-N``. ``engine_factory`` must build a new engine at each call:
    weights are changed in place.
    """
    if skipped := _SKIP_LAYER.fullmatch(kind):
        return _tamper(kind, engine_factory(), layer=int(skipped[1]))
    try:
        known = AdversaryKind(kind)
    except ValueError:
        raise EngineError(
            f"no adversary {kind!r}; there are {', '.join(AdversaryKind)}, skip-layer-N"
        ) from None
    engine = engine_factory()
    if isinstance(engine, FakeEngine) and known not in FAKE_KINDS:
        raise EngineError(f"a fake engine cannot do {kind!r}: it has no weights and no cache")
    if known in _WRAPPERS:
        return _WRAPPERS[known](engine)
    if known in _DRAFTS:
        draft = build_adversary(_DRAFTS[known], engine_factory)
        return wrap.spoof(engine, draft, hides_gaps=known is AdversaryKind.SPOOF)
    if isinstance(engine, FakeEngine):
        engine.replace_weights(known)
        return engine
    return _tamper(known, engine)


def _tamper(kind: str, engine: Engine, *, layer: int | None = None) -> Engine:
    from pocache.engine.tamper import skip_layer, tamper_engine

    return tamper_engine(kind, engine) if layer is None else skip_layer(engine, layer)
