"""What a client may ask: the two request bodies, read strictly, with everything else refused by name.

Numbers are read as decimals and turned into the integers that are signed, so no float takes part. An option that
exists at OpenAI and not here is refused unless it has the value that it would have anyway.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any, Final, NoReturn

from pocache.protocol.commitment import Sampling
from pocache.protocol.limits import OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX, TOP_K_MAX
from pocache_gateway.errors import ApiError, invalid, unsupported

MICRO: Final = 1_000_000
TEMPERATURE_MAX: Final = 2
STOPS_MAX: Final = 4
TOP_LOGPROBS_MAX: Final = 20
"""OpenAI's bound; beyond it the number is wrong, and within it not supported."""
STOP_CHARS_MAX: Final = 256
MESSAGES_MAX: Final = 4_096
DEPTH_MAX: Final = 32
SEED_BYTES: Final = 32
CHAT_TOKENS_DEFAULT: Final = 512
COMPLETION_TOKENS_DEFAULT: Final = 16
ROLES: Final = ("system", "developer", "user", "assistant")

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "top_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "metadata": ({},),
    "web_search_options": (),
    "moderation": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "safety_identifier": (),
}
"""OpenAI's options that are not supported, and the values by which each asks for nothing; null always does."""
_WHY_CHOSEN: Final = "the engine keeps the score of the token that it delivers, and of no other"
_WHY: Final[Mapping[str, str]] = {
    "n": "one job has one answer",
    "logprobs": _WHY_CHOSEN,
    "top_logprobs": _WHY_CHOSEN,
}
_COMMON: Final = frozenset(
    {
        "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos", "user",
        "logprobs",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read."""

    model: str
    messages: tuple[Mapping[str, str], ...] | None
    """The conversation; None for a plain completion."""
    prompt: str | tuple[int, ...]
    max_tokens: int | None
    sampling: Sampling
    seed: bytes | None
    stops: tuple[str, ...]
    eos_stop: bool
    is_streamed: bool
    includes_usage: bool
    logprobs: int | None
    """None: no log-probabilities; else how many of the best tokens are named beside each: 0, or 1 in a plain completion."""

    @property
    def is_chat(self) -> bool:
        """Whether it is a conversation."""
        return self.messages is not None


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the object in a body. Raises ApiError 400."""
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text,
            parse_float=_read_decimal,
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repeats,
        )
        if "\\u" in text:  # half of a surrogate pair is no character, and nothing could be made of it
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except (ValueError, RecursionError) as error:
        is_told = isinstance(error, (json.JSONDecodeError, _NotJsonError))
        detail = str(error) if is_told else type(error).__name__
        raise invalid(f"the body is not valid JSON: {detail}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object", code="invalid_json")
    return value


def parse_chat(value: Mapping[str, Any]) -> Asked:
    """Read a request for a chat completion. Raises ApiError 400 that names the field."""
    _verify_names(value, _COMMON | {"messages", "max_completion_tokens", "top_logprobs"})
    messages = _read_messages(value.get("messages"))
    return _parse_common(value, messages=messages, prompt="", logprobs=_read_chat_logprobs(value))


def parse_completion(value: Mapping[str, Any]) -> Asked:
    """Read a request for a completion. Raises ApiError 400 that names the field."""
    _verify_names(value, _COMMON | {"prompt"})
    prompt = _read_prompt(value.get("prompt"))
    return _parse_common(value, messages=None, prompt=prompt, logprobs=_read_logprobs(value.get("logprobs")))


def _parse_common(
    value: Mapping[str, Any],
    *,
    messages: tuple[Mapping[str, str], ...] | None,
    prompt: str | tuple[int, ...],
    logprobs: int | None,
) -> Asked:
    is_streamed = _read_bool(value, "stream")
    return Asked(
        model=_read_text(value.get("model"), "model"),
        messages=messages,
        prompt=prompt,
        max_tokens=_read_max_tokens(value),
        sampling=_read_sampling(value),
        seed=_read_seed(value.get("seed")),
        stops=_read_stops(value.get("stop")),
        eos_stop=not _read_bool(value, "ignore_eos"),
        is_streamed=is_streamed,
        includes_usage=_read_stream_options(value.get("stream_options"), is_streamed=is_streamed),
        logprobs=logprobs,
    )


def _verify_names(value: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, given in value.items():
        if name in known:
            continue
        if name not in _NEUTRAL:
            raise invalid(f"unknown parameter: {name[:64]!r}", name, code="unknown_parameter")
        if given is None or any(given == one and type(given) is type(one) for one in _NEUTRAL[name]):
            continue
        if isinstance(given, Decimal) and any(given == one for one in _NEUTRAL[name] if isinstance(one, int)):
            continue
        raise unsupported(name, _WHY.get(name, ""))


def _read_messages(given: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(given, list) or not 1 <= len(given) <= MESSAGES_MAX:
        raise invalid(f"messages must be a list of 1 to {MESSAGES_MAX} messages", "messages")
    return tuple(_read_message(one, f"messages[{index}]") for index, one in enumerate(given))


def _read_message(given: object, where: str) -> Mapping[str, str]:
    if not isinstance(given, dict):
        raise invalid(f"{where} must be an object", where)
    for name in given:
        if name not in ("role", "content", "name") and given[name] is not None:
            raise unsupported(f"{where}.{name[:32]}")
    role = given.get("role")
    if role not in ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    message = {"role": "system" if role == "developer" else str(role)}
    message["content"] = _read_content(given.get("content"), f"{where}.content")
    if given.get("name") is not None:
        message["name"] = _read_text(given["name"], f"{where}.name")
    return message


def _read_content(given: object, where: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise invalid(f"{where} must be a text, or a list of text parts", where)
    texts = []
    for index, part in enumerate(given):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise unsupported(f"{where}[{index}]", "parts other than text")
        if not isinstance(part.get("text"), str):
            raise invalid(f"{where}[{index}].text must be a text", f"{where}[{index}].text")
        texts.append(part["text"])
    return "".join(texts)


def _read_prompt(given: object) -> str | tuple[int, ...]:
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], (str, list)):
        given = given[0]
    if isinstance(given, str):
        return given
    if isinstance(given, list) and any(isinstance(one, (str, list)) for one in given):
        raise unsupported("prompt", "one job has one prompt: send one request for each")
    if not isinstance(given, list) or not 1 <= len(given) <= PROMPT_TOKENS_MAX:
        raise invalid(f"prompt must be a text, or a list of 1 to {PROMPT_TOKENS_MAX} token ids", "prompt")
    if not all(type(one) is int and 0 <= one < 2**32 for one in given):
        raise invalid("token ids are whole numbers from 0", "prompt")
    return tuple(given)


def _read_max_tokens(value: Mapping[str, Any]) -> int | None:
    found = {
        name: _read_int(value[name], name, 1, OUTPUT_TOKENS_MAX)
        for name in ("max_tokens", "max_completion_tokens")
        if value.get(name) is not None
    }
    if len(set(found.values())) > 1:
        raise invalid(
            "max_tokens and max_completion_tokens differ: send one of them", "max_completion_tokens"
        )
    return next(iter(found.values()), None)


def _read_sampling(value: Mapping[str, Any]) -> Sampling:
    temperature = _read_micro(value.get("temperature"), "temperature", 0, TEMPERATURE_MAX, default=MICRO)
    top_p = _read_micro(value.get("top_p"), "top_p", 0, 1, default=MICRO)
    if top_p == 0:
        raise invalid("top_p must be above 0", "top_p")
    given = value.get("top_k")
    top_k = 0 if given is None else _read_int(given, "top_k", 0, TOP_K_MAX)
    return Sampling(temperature_micro=temperature, top_k=top_k, top_p_micro=top_p)


def _read_seed(given: object) -> bytes | None:
    if given is None:
        return None
    number = _read_int(given, "seed", -(2**63), 2**63 - 1)
    return (number % (1 << 8 * SEED_BYTES)).to_bytes(SEED_BYTES, "big")


def _read_stops(given: object) -> tuple[str, ...]:
    if given is None:
        return ()
    stops = [given] if isinstance(given, str) else given
    is_good = (
        isinstance(stops, list)
        and len(stops) <= STOPS_MAX
        and all(isinstance(one, str) and 1 <= len(one) <= STOP_CHARS_MAX for one in stops)
    )
    if not is_good:
        raise invalid(
            f"stop must be a text, or up to {STOPS_MAX} of them, of 1 to {STOP_CHARS_MAX} characters", "stop"
        )
    assert isinstance(stops, list)
    return tuple(stops)


def _read_stream_options(given: object, *, is_streamed: bool) -> bool:
    if given is None:
        return False
    if not isinstance(given, dict):
        raise invalid("stream_options must be an object", "stream_options")
    if not is_streamed:
        raise invalid("stream_options may be given only with stream: true", "stream_options")
    for name, one in given.items():
        if name != "include_usage" and not (name == "include_obfuscation" and one in (None, False)):
            raise unsupported(f"stream_options.{name[:32]}")
    return _read_bool(given, "include_usage")


def _read_chat_logprobs(value: Mapping[str, Any]) -> int | None:
    top = value.get("top_logprobs")
    if top is not None and _read_int(top, "top_logprobs", 0, TOP_LOGPROBS_MAX):
        raise unsupported("top_logprobs", _WHY_CHOSEN)
    return 0 if _read_bool(value, "logprobs") else None


def _read_logprobs(given: object) -> int | None:
    """Read how many of the best tokens are to be named beside each token of a plain completion."""
    if given is None or given is False:
        return None
    count = _read_int(given, "logprobs", 0, TOP_LOGPROBS_MAX)
    if count > 1:
        raise unsupported("logprobs", _WHY_CHOSEN)
    return count


def _read_bool(value: Mapping[str, Any], name: str) -> bool:
    given = value.get(name)
    if given is None:
        return False
    if not isinstance(given, bool):
        raise invalid(f"{name} must be true or false", name)
    return given


def _read_text(given: object, name: str) -> str:
    if not isinstance(given, str) or not given:
        raise invalid(f"{name} must be a text", name)
    return given


def _read_int(given: object, name: str, least: int, most: int) -> int:
    if isinstance(given, Decimal) and given.is_finite() and least <= given <= most and given == int(given):
        given = int(given)
    if type(given) is not int or not least <= given <= most:
        raise invalid(f"{name} must be a whole number from {least} to {most}", name)
    return given


def _read_micro(given: object, name: str, least: int, most: int, *, default: int) -> int:
    """Read a decimal as a whole number of millionths, rounded half to even."""
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (int, Decimal)) or not least <= given <= most:
        raise invalid(f"{name} must be a number from {least} to {most}", name)
    return int((Decimal(given) * MICRO).to_integral_value(ROUND_HALF_EVEN))


class _NotJsonError(ValueError):
    """What Python would read, and JSON does not have, or does not say one thing by."""


def _read_decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise _NotJsonError("a number's exponent is larger than any number's here") from None


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJsonError(f"{name} is no number")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is given twice: whoever looked at the body on its way may have taken the other one."""
    value = dict(pairs)
    if len(value) != len(pairs):
        names = Counter(name for name, _ in pairs)
        raise _NotJsonError(f"{names.most_common(1)[0][0][:64]!r} is given twice")
    return value


def verify_known(names: Sequence[str], value: Mapping[str, Any]) -> None:
    """Refuse fields other than these. Raises ApiError 400."""
    for name in value:
        if name not in names:
            raise ApiError(400, f"unknown parameter: {name[:64]!r}", code="unknown_parameter", param=name)
