"""A network's model as the command line sees it: prepared in a process of its own, and its tokenizer.

Owns where the description of a prepared model is kept, which directory or id a model came from, and turning text
into tokens and back. This process never holds torch. Refuses nothing itself: the engine says what it cannot run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pocache.engine.reference import REFERENCE_NAME
from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import ModelId
from pocache.runtime.network import NetworkDirectory
from pocache.text import FAKE_PREFIX, find_tokenizer
from pocache_cli.children import pick_python_environment

DEFAULT_MODEL: Final = REFERENCE_NAME
PREPARE_S_MAX: Final = 600.0
_UNFINISHED: Final = "\ufffd"
"""What a decoder shows for bytes of a character whose last byte has not come."""


@dataclass(frozen=True, slots=True)
class TextCodec:
    """A tokenizer: text to tokens and back."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


async def prepare_model(model: str, *, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Calibrate a model and return its description.

    A description that was written before is read again. Raises ConfigError with the preparing process's last words.
    """
    out = folder / f"model-{hashlib.sha256(model.encode()).hexdigest()[:16]}.json"
    known = _read_description(out)
    if known is not None:
        return known
    say("loading the reference model" if model == REFERENCE_NAME else f"loading {model}")
    await _run_preparation(model, out, say=say)
    described = _read_description(out)
    assert described is not None, "whoever prepares a model writes its description"
    return described


def record_source(directory: NetworkDirectory, model_id: bytes, source: str) -> None:
    """Remember which directory or id a registered model was loaded from."""
    _get_source_file(directory, model_id).write_text(source + "\n", encoding="utf-8")


def read_source(directory: NetworkDirectory, model_id: ModelId) -> str | None:
    """Return where a registered model was loaded from, None when that was not on this machine."""
    try:
        return _get_source_file(directory, model_id).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def resolve_source(model: str) -> str:
    """Return a model's name in a form that does not depend on the working directory."""
    is_directory = model != REFERENCE_NAME and not model.startswith(FAKE_PREFIX) and Path(model).is_dir()
    return str(Path(model).resolve()) if is_directory else model


def load_tokenizer(source: str) -> TextCodec | None:
    """Return the tokenizer that a model directory or cached id brings, None where there is none."""
    file = find_tokenizer(source)
    if file is None:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(
            "reading a tokenizer needs the package tokenizers: pip install 'proof-of-cache[engine]', "
            "or give token ids by --tokens"
        ) from None
    tokenizer = Tokenizer.from_file(str(file))
    return TextCodec(
        encode=lambda text: list(tokenizer.encode(text).ids),
        decode=lambda tokens: str(tokenizer.decode(list(tokens))),
    )


def make_encoder(source: str, vocab_size: int) -> Callable[[str], Sequence[int]]:
    """Return the model's own tokenizer, or bytes folded into the vocabulary where it brings none."""
    codec = load_tokenizer(source)
    return codec.encode if codec is not None else lambda text: [byte % vocab_size for byte in text.encode()]


class TextStream:
    """Text out of tokens that come in pieces: each piece of it once, never half a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = ""

    def feed(self, tokens: Sequence[int], *, is_last: bool = False) -> str:
        """Return the text that these tokens complete; at the end, all that is left."""
        self._tokens.extend(tokens)
        text = self._decode(self._tokens)
        if not is_last:
            text = text.rstrip(_UNFINISHED)
        if not text.startswith(self._shown):
            return ""  # the decoder took something back: wait for it to settle
        added, self._shown = text[len(self._shown) :], text
        return added


def _get_source_file(directory: NetworkDirectory, model_id: bytes) -> Path:
    return directory.path / "models" / f"{model_id.hex()}.source"


def _read_description(file: Path) -> dict[str, Any] | None:
    file.parent.mkdir(parents=True, exist_ok=True)
    return dict(json.loads(file.read_text(encoding="ascii"))) if file.exists() else None


async def _run_preparation(model: str, out: Path, *, say: Callable[[str], None]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pocache_cli.prepare",
        model,
        str(out),
        env={**os.environ, **pick_python_environment()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        async with asyncio.timeout(PREPARE_S_MAX):
            async for line in process.stdout:
                say(line.decode(errors="replace").strip())
            code = await process.wait()
    except TimeoutError:
        raise ConfigError(f"the model {model} was not prepared in {PREPARE_S_MAX:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        words = (await errors).decode(errors="replace").strip().splitlines()[-1:]
    if code:
        raise ConfigError(f"the model {model} could not be prepared: {' '.join(words)}")
