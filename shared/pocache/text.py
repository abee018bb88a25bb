"""Text around tokens: a model's tokenizer and chat template, text out of a stream of tokens, and stop strings.

Owns what turns text into tokens and tokens into text; torch is never loaded for it. What comes out of a stream is never
half a character. A chat template is the model's own, run in a sandbox as its makers' library does; a model without one
gets the plain form that is written down here. Refuses messages that a template refuses.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pocache.engine.reference import REFERENCE_NAME, get_reference_dir
from pocache.protocol.errors import ConfigError, PromptError

FAKE_PREFIX: Final = "fake:"
TEMPLATE_TEXT_BYTES_MAX: Final = 4_000_000
"""A rendered conversation beyond this is refused before it is tokenised."""
_TOKENIZER_FILE: Final = "tokenizer.json"
_UNFINISHED: Final = "\ufffd"
"""What a decoder shows for bytes of a character whose last byte has not come."""
_HELD_TOKENS_MAX: Final = 64
"""So many tokens that never make a character are no beginning of one."""
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_MARK: Final = "\u2581"
"""What stands for a space in tokenizers that fall back to bytes."""
_PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Codec:
    """A model's tokenizer."""

    encode: Callable[[str], Sequence[int]]
    """Text as a prompt, with the special tokens that the tokenizer itself adds."""
    encode_plain: Callable[[str], Sequence[int]]
    """Text in which the special tokens are written out, as a rendered chat has them."""
    decode: Callable[[Sequence[int]], str]
    template: str | None = None
    """The model's own chat template; None: the plain form."""
    specials: Mapping[str, str] = field(default_factory=dict)
    """What templates may ask for: ``bos_token``, ``eos_token`` and the like."""
    get_bytes: Callable[[int], bytes | None] = lambda _token: None
    """A token's own bytes within a text: none for a special one, which is no text; None where that cannot be said."""

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation as the model's template writes it, up to where the assistant begins.

        Raises PromptError when the template refuses it.
        """
        return _render(self.template or _PLAIN_TEMPLATE, messages, self.specials)


class Detokenizer:
    """Text out of tokens that come in pieces: each piece of it once, never half a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        """The last tokens whose text was complete, as context for what follows, and what came since."""
        self._fresh = 0
        self._shown = ""

    def feed(self, tokens: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        self._window.extend(tokens)
        self._fresh += len(tokens)
        text = self._decode(self._window)
        stable = text.rstrip(_UNFINISHED)
        is_stuck = self._fresh > _HELD_TOKENS_MAX
        if is_stuck and text != stable:
            stable = text[:-1]
        if not stable.startswith(self._shown):
            return ""  # the decoder took something back: wait for it to settle
        added, self._shown = stable[len(self._shown) :], stable
        if stable == text and self._fresh:
            self._keep(self._fresh)
        elif is_stuck:
            self._keep(1)
            self._shown = ""
        return added

    def end(self) -> str:
        """Return what is left, half characters as the decoder shows them."""
        text = self._decode(self._window)
        return text[len(self._shown) :] if text.startswith(self._shown) else ""

    def _keep(self, count: int) -> None:
        self._window = self._window[-count:]
        self._fresh = 0
        self._shown = self._decode(self._window)


class StopFilter:
    """Lets text through up to the first stop string in it; what may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """Return what may be shown."""
        if self.is_stopped:
            return ""
        self._held += text
        found = [index for index in (self._held.find(stop) for stop in self._stops) if index >= 0]
        if found:
            self.is_stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        kept = self._count_kept()
        cut = len(self._held) - kept
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def end(self) -> str:
        """Return what waited: nothing follows that could complete a stop string."""
        shown, self._held = self._held, ""
        return shown

    def _count_kept(self) -> int:
        longest = min(len(self._held), max((len(stop) for stop in self._stops), default=0))
        for count in range(longest, 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0


def get_model_dir(source: str) -> Path | None:
    """Return the directory in which a model's files lie, None for one that is no directory here."""
    directory = get_reference_dir() if source == REFERENCE_NAME else Path(source)
    return directory if not source.startswith(FAKE_PREFIX) and directory.is_dir() else None


def find_tokenizer(source: str) -> Path | None:
    """Return the tokenizer's file of a model: the shipped one by its name, a directory, or a hub id that lies in the cache."""
    if source.startswith(FAKE_PREFIX):
        return None
    directory = get_model_dir(source)
    if directory is not None:
        file = directory / _TOKENIZER_FILE
        return file if file.is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(source, _TOKENIZER_FILE)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def load_codec(source: str) -> Codec | None:
    """Return the tokenizer of a model (:func:`find_tokenizer`), or of ``fake:NAME`` (its tokens are bytes); None where there is none.

    Raises ConfigError for files that are not what they should be, or when the package ``tokenizers`` is missing.
    """
    if source.startswith(FAKE_PREFIX):
        return _make_byte_codec()
    file = find_tokenizer(source)
    if file is None:
        return None
    folder = file.parent
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(
            "reading a tokenizer needs the package tokenizers: pip install 'proof-of-cache[gateway]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
        settings = _read_json(folder / "tokenizer_config.json")
        template = _read_template(folder, settings)
    except ConfigError:
        raise
    except Exception as error:
        # The library raises plain Exception for a file that it cannot read.
        raise ConfigError(f"{file} is no tokenizer: {error}") from error
    return Codec(
        encode=lambda text: tokenizer.encode(text).ids,
        encode_plain=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=lambda tokens: str(tokenizer.decode(list(tokens))),
        get_bytes=_make_byte_reader(tokenizer),
        template=template,
        specials=_read_specials(settings),
    )


def _make_byte_reader(tokenizer: Any) -> Callable[[int], bytes | None]:
    """Return what tells a token's bytes, of the two kinds of tokenizers whose tokens have bytes of their own."""
    added = tokenizer.get_added_tokens_decoder()
    kinds = _list_decoders(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder else frozenset()
    table = {character: byte for byte, character in enumerate(list_byte_characters())}

    def read(token: int) -> bytes | None:
        if token in added:
            return b"" if added[token].special else str(added[token].content).encode()
        name = tokenizer.id_to_token(token)
        if name is None:
            return b""  # no token of this tokenizer, and no text
        if "ByteLevel" in kinds:
            return bytes(table[one] for one in name) if all(one in table for one in name) else None
        if "ByteFallback" in kinds:
            found = _BYTE_TOKEN.fullmatch(name)
            return bytes((int(found[1], 16),)) if found else name.replace(_WORD_MARK, " ").encode()
        return None

    return read


def list_byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in byte-level tokenizers (GPT-2's table)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _list_decoders(state: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of decoders of a tokenizer, those in a sequence too."""
    inner = [_list_decoders(one) for one in state.get("decoders", ())]
    return frozenset({str(state.get("type"))}).union(*inner)


def _make_byte_codec() -> Codec:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    return Codec(
        encode=encode,
        encode_plain=encode,
        decode=lambda tokens: bytes(one for one in tokens if one < 256).decode(errors="replace"),
        get_bytes=lambda token: bytes((token,)) if token < 256 else b"",
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _read_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _read_specials(settings: Mapping[str, Any]) -> dict[str, str]:
    specials = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            specials[name] = text
    return specials


def _render(template: str, messages: Sequence[Mapping[str, str]], specials: Mapping[str, str]) -> str:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError(
            "a chat template needs the package jinja2: pip install 'proof-of-cache[gateway]'"
        ) from None

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(  # what is rendered is a prompt, never a page
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: time.strftime(form, time.gmtime())
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        text = environment.from_string(template).render(
            messages=[dict(one) for one in messages], add_generation_prompt=True, **specials
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise PromptError(f"the model's chat template refuses these messages: {error}") from error
    if len(text.encode(errors="replace")) > TEMPLATE_TEXT_BYTES_MAX:
        raise PromptError("the conversation is too long")
    return text
