"""The reference model's text and tokens: Python's standard library and its documentation, from the running interpreter.

Owns which files are read, how documentation strings become documents of their own, the split into training and held-out
documents and the tokenizer. Nothing is fetched. Refuses an interpreter that was installed without its sources.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pocache.protocol.errors import EngineError

LEFT_OUT: Final = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "ensurepip"}
)
"""Folders of the library that are not read: other people's packages and licences, and the tests."""

HELD_OUT_SHARE: Final = 0.02
FILE_BYTES_MAX: Final = 400_000
DOCSTRING_CHARACTERS_MIN: Final = 60
CORPUS_BYTES_MIN: Final = 2_000_000

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SPECIAL: Final = (BEGIN, END, PAD)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents to learn from and documents to be measured by; ``digest`` names both."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    digest: str


def read_corpus(seed: int) -> Corpus:
    """Read the standard library's sources, docstrings and help topics; same interpreter and seed, same corpus."""
    documents = [*_read_sources(), *_read_topics()]
    size_bytes = sum(len(document) for document in documents)
    if size_bytes < CORPUS_BYTES_MIN:
        raise EngineError(
            f"this interpreter has only {size_bytes} bytes of library source: nothing to learn from"
        )
    random.Random(seed).shuffle(documents)  # noqa: S311 - an order, not a secret
    held_out = max(1, round(HELD_OUT_SHARE * len(documents)))
    state = hashlib.sha256()
    for document in documents:
        state.update(hashlib.sha256(document.encode()).digest())
    return Corpus(tuple(documents[held_out:]), tuple(documents[:held_out]), state.hexdigest())


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer with ``vocab_size`` entries; its first three are BEGIN, END and PAD."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Any, directory: Path, context_tokens: int) -> None:
    """Write the files by which transformers and tokenizers load it."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": context_tokens,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="ascii")


def encode_documents(tokenizer: Any, documents: Sequence[str]) -> list[int]:
    """Return one stream of tokens: BEGIN, a document, END, and so on."""
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    stream: list[int] = []
    for encoded in tokenizer.encode_batch(list(documents)):
        stream += [begin, *encoded.ids, end]
    return stream


def _read_sources() -> Iterator[str]:
    """Yield each source file, and after it what its docstrings say about its public names."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if (
            LEFT_OUT & set(inside.parts)
            or inside.parts[0] == "pydoc_data"
            or path.stat().st_size > FILE_BYTES_MAX
        ):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):
            continue
        yield text
        module = ".".join(part for part in inside.with_suffix("").parts if part != "__init__")
        described = "\n\n".join(_describe(tree, module))
        if described:
            yield described


def _describe(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        words = ast.get_docstring(node)
        if words is None or len(words) < DOCSTRING_CHARACTERS_MIN:
            continue
        heading = name if isinstance(node, ast.Module) else f"{name}.{node.name}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            heading += f"({ast.unparse(node.args)})"
        yield f"{heading}\n\n{inspect.cleandoc(words)}"


def _read_topics() -> Iterator[str]:
    """Yield the language reference as ``help()`` prints it."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield f"{name}\n\n{inspect.cleandoc(topics[name])}"
