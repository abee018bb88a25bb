"""The demo model: a small Llama-style causal LM with seeded random weights and a byte tokenizer.

Written into a directory. It speaks noise, not language; what matters is that it is a real transformer whose rows
and logits depend on every token, and that the same seed gives the same bytes. Needs torch and transformers, and
imports them when called.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pocache.protocol.errors import EngineError
from pocache.text import list_byte_characters

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

BYTE_COUNT = 256
BEGIN_TOKEN, END_TOKEN, PAD_TOKEN = 256, 257, 258
SPECIAL_TOKENS = {BEGIN_TOKEN: "<|begin|>", END_TOKEN: "<|end|>", PAD_TOKEN: "<|pad|>"}
VOCAB_SIZE = BYTE_COUNT + len(SPECIAL_TOKENS)
LOGIT_SPREAD = 2.5
"""Standard deviation of the logits: far from uniform, far from certain."""

HEAD_WIDTH = 32
CONTEXT_TOKENS_MAX = 2_048


def build_demo_model(
    directory: Path | str,
    *,
    seed: int = 0,
    layer_count: int = 4,
    hidden_size: int = 128,
    kv_head_count: int = 2,
) -> Path:
    """Write the model of this seed and its tokenizer into ``directory``; same seed, same bytes."""
    target = Path(directory)
    if hidden_size % (HEAD_WIDTH * kv_head_count) != 0:
        raise EngineError(f"hidden_size must be a multiple of {HEAD_WIDTH * kv_head_count}")
    target.mkdir(parents=True, exist_ok=True)
    model = _build_model(seed, layer_count, hidden_size, kv_head_count)
    with hide_progress_bars():
        model.save_pretrained(target)
    _write_tokenizer(target)
    return target


@contextmanager
def hide_progress_bars() -> Generator[None, None, None]:
    """Keep transformers from drawing on a terminal that is not its own; put its setting back afterwards."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _build_model(seed: int, layer_count: int, hidden_size: int, kv_head_count: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=layer_count,
        num_attention_heads=hidden_size // HEAD_WIDTH,
        num_key_value_heads=kv_head_count,
        max_position_embeddings=CONTEXT_TOKENS_MAX,
        tie_word_embeddings=False,
        bos_token_id=BEGIN_TOKEN,
        eos_token_id=END_TOKEN,
        pad_token_id=PAD_TOKEN,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            elif name.endswith("embed_tokens.weight"):
                parameter.normal_(std=1.0)
            else:
                gain = LOGIT_SPREAD if name == "lm_head.weight" else 1.0
                parameter.normal_(std=gain / math.sqrt(parameter.shape[1]))
    return model


def _write_tokenizer(target: Path) -> None:
    """Write a tokenizer whose token ids are the bytes of the UTF-8 text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {character: byte for byte, character in enumerate(list_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS.values()])
    assert all(tokenizer.token_to_id(text) == token for token, text in SPECIAL_TOKENS.items())
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BEGIN_TOKEN],
        "eos_token": SPECIAL_TOKENS[END_TOKEN],
        "pad_token": SPECIAL_TOKENS[PAD_TOKEN],
        "model_max_length": CONTEXT_TOKENS_MAX,
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
