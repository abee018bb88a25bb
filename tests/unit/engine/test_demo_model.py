"""The demo model is one model per seed, and its tokens are bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kit.engines import build_small_model
from pocache.engine.demo_model import BEGIN_TOKEN, END_TOKEN, PAD_TOKEN, build_demo_model
from pocache.engine.manifest import compute_manifest
from pocache.protocol.errors import EngineError


def test_the_seed_is_the_model(model_dir: Path, tmp_path: Path) -> None:
    same, other = (build_small_model(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert compute_manifest(same) == compute_manifest(model_dir)
    assert compute_manifest(other).model_id != compute_manifest(model_dir).model_id


@pytest.mark.parametrize("text", ["Hello", "", " two  spaces\n", "né — 漢字 🙂", "\x00\x7f"])
def test_tokens_are_the_bytes_of_the_text(model_dir: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_special_tokens_follow_the_bytes(model_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    assert tokenizer.encode("<|begin|><|end|><|pad|>").ids == [BEGIN_TOKEN, END_TOKEN, PAD_TOKEN]
    assert tokenizer.decode([104, 105, END_TOKEN]) == "hi"


def test_transformers_reads_the_tokenizer(model_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert tokenizer("hi")["input_ids"] == [104, 105]
    assert tokenizer.eos_token_id == END_TOKEN


def test_heads_must_fit_the_hidden_size(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="multiple"):
        build_demo_model(tmp_path, hidden_size=100)
