"""The models that a gateway serves: their names, their tokenizers, and prompts made of requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from pocache.protocol.errors import ConfigError, PromptError
from pocache.protocol.ids import ModelId
from pocache.protocol.limits import PROMPT_TOKENS_MAX
from pocache.runtime.network import Model, NetworkDirectory
from pocache.text import Codec, load_codec
from pocache_gateway.errors import ApiError, invalid
from pocache_gateway.requests import CHAT_TOKENS_DEFAULT, COMPLETION_TOKENS_DEFAULT, Asked

_OWNER: Final = "pocache"


@dataclass(frozen=True)
class ServedModel:
    """One model under the name by which clients ask for it."""

    name: str
    model: Model
    codec: Codec | None

    def describe(self, created_ms: int) -> dict[str, Any]:
        """Return it as ``/v1/models`` lists it."""
        template = None
        if self.codec is not None:
            template = "plain" if self.codec.template is None else "model"
        return {
            "id": self.name,
            "object": "model",
            "created": created_ms // 1_000,
            "owned_by": _OWNER,
            "pocache": {
                "model_id": self.model.model_id.hex(),
                "context_tokens_max": self.model.entry.context_tokens_max,
                "stack": self.model.entry.stack,
                "chat_template": template,
            },
        }

    def compute_prompt(self, asked: Asked) -> tuple[int, ...]:
        """Return the prompt's tokens. Raises ApiError 400, PromptError."""
        if isinstance(asked.prompt, tuple) and not asked.is_chat:
            return asked.prompt
        if self.codec is None:
            raise invalid(
                f"this gateway has no tokenizer for {self.name}: send token ids as `prompt` to /v1/completions",
                "messages" if asked.is_chat else "prompt",
                code="no_tokenizer",
            )
        if asked.messages is not None:
            tokens = self.codec.encode_plain(self.codec.render_chat(asked.messages))
        else:
            assert isinstance(asked.prompt, str)
            tokens = self.codec.encode(asked.prompt)
        if not tokens:
            raise PromptError("the prompt is empty")
        if len(tokens) > PROMPT_TOKENS_MAX:
            raise PromptError(f"the prompt has {len(tokens)} tokens, more than the context takes")
        return tuple(tokens)

    def compute_token_count_max(self, asked: Asked, prompt_count: int) -> int:
        """Return for how many tokens the deposit is taken. Raises PromptError when they do not fit the context."""
        context = self.model.entry.context_tokens_max
        room = context - prompt_count
        if asked.max_tokens is not None:
            if asked.max_tokens > room:
                raise PromptError(
                    f"the prompt has {prompt_count} tokens and {asked.max_tokens} were asked for: "
                    f"this model's context is {context} tokens"
                )
            return asked.max_tokens
        if room < 1:
            raise PromptError(
                f"the prompt has {prompt_count} tokens: this model's context is {context} tokens"
            )
        return min(room, CHAT_TOKENS_DEFAULT if asked.is_chat else COMPLETION_TOKENS_DEFAULT)


class Catalogue:
    """Every model of the network, by the names and ids by which it may be asked for."""

    def __init__(self, models: Mapping[ModelId, Model], codecs: Mapping[ModelId, Codec | None]) -> None:
        counts = Counter(model.entry.name for model in models.values())
        self.served = tuple(
            ServedModel(
                model.entry.name
                if counts[model.entry.name] == 1
                else f"{model.entry.name}@{model_id.hex()[:12]}",
                model,
                codecs.get(model_id),
            )
            for model_id, model in models.items()
        )
        self._by_name = {one.name: one for one in self.served}
        self._by_name.update({one.model.model_id.hex(): one for one in self.served})

    def get(self, name: str) -> ServedModel:
        """Return the model of a name or id. Raises ApiError 404."""
        found = self._by_name.get(name)
        if found is None:
            names = ", ".join(one.name for one in self.served) or "none"
            raise ApiError(
                404,
                f"The model {name[:128]!r} does not exist here; there are: {names}",
                code="model_not_found",
                param="model",
            )
        return found


def load_catalogue(
    directory: NetworkDirectory, models: Mapping[ModelId, Model], sources: Mapping[str, str]
) -> Catalogue:
    """Return the models with their tokenizers: from ``sources`` (name or id to directory), else where they came from.

    A model without a tokenizer is served by token ids alone. Raises ConfigError for a source of no model.
    """
    known = {model.entry.name for model in models.values()} | {model_id.hex() for model_id in models}
    unknown = sorted(set(sources) - known)
    if unknown:
        raise ConfigError(f"POCACHE_GATEWAY_TOKENIZERS names no model of this network: {', '.join(unknown)}")
    codecs: dict[ModelId, Codec | None] = {}
    for model_id, model in models.items():
        source = (
            sources.get(model_id.hex()) or sources.get(model.entry.name) or _read_source(directory, model_id)
        )
        codecs[model_id] = None if source is None else load_codec(source)
        if codecs[model_id] is None:
            structlog.get_logger().warning("no_tokenizer", model=model.entry.name, source=source)
    return Catalogue(models, codecs)


def _read_source(directory: NetworkDirectory, model_id: ModelId) -> str | None:
    """Return where a local network's model was loaded from."""
    file = directory.path / "models" / f"{model_id.hex()}.source"
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
