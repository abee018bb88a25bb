"""Text out of tokens and stop strings: nothing twice, nothing lost, never half a character."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocache.protocol.errors import ConfigError, PromptError
from pocache.text import Codec, Detokenizer, StopFilter, load_codec


def decode(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def cut(items: list[int], sizes: list[int]) -> list[list[int]]:
    """Cut a list into pieces of these sizes, again and again."""
    pieces, start, index = [], 0, 0
    while start < len(items):
        size = sizes[index % len(sizes)] if sizes else 1
        pieces.append(items[start : start + size])
        start, index = start + size, index + 1
    return pieces


@given(st.text(), st.lists(st.integers(1, 5), max_size=5))
def test_a_text_comes_out_whole_and_never_by_halves(text: str, sizes: list[int]) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.feed(one) for one in cut(list(text.encode(errors="ignore")), sizes)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.end() == text.encode(errors="ignore").decode()


@given(st.lists(st.integers(0, 255), max_size=60), st.lists(st.integers(1, 5), max_size=5))
def test_bytes_that_are_no_text_come_out_as_the_decoder_shows_them(
    tokens: list[int], sizes: list[int]
) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.feed(one) for one in cut(tokens, sizes)]
    assert "".join(pieces) + detokenizer.end() == decode(tokens)


def test_an_endless_run_of_broken_bytes_is_not_kept_for_ever() -> None:
    """The window stays small, and what follows is still whole."""
    detokenizer = Detokenizer(decode)
    shown = "".join(detokenizer.feed([0xFF]) for _ in range(1_000))
    assert len(shown) >= 1_000 - 70
    rest = "".join(detokenizer.feed([one]) for one in "€".encode()) + detokenizer.end()
    assert (shown + rest).endswith("€")


@given(
    st.text(alphabet="ab", max_size=30),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), max_size=4),
)
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str], sizes: list[int]) -> None:
    """However it is cut into pieces."""
    stop_filter = StopFilter(stops)
    shown = "".join(stop_filter.feed("".join(map(chr, one))) for one in cut(list(map(ord, text)), sizes))
    shown += stop_filter.end()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (shown, stop_filter.is_stopped) == (text, False)
        return
    assert stop_filter.is_stopped
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)


def test_a_model_directory_brings_its_tokenizer_and_template(tmp_path: Path) -> None:
    """Special tokens in a rendered chat are tokens, in a plain prompt the tokenizer's own rule holds."""
    vocab = {"<s>": 0, "hi": 1, "you": 2, "[UNK]": 3}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 0,
                "content": "<s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    codec = load_codec(str(tmp_path))
    assert codec is not None
    rendered = codec.render_chat([{"role": "user", "content": "hi you"}])
    assert rendered == "<s>hi you"
    assert list(codec.encode_plain(rendered)) == [0, 1, 2]
    assert codec.decode([1, 2]) == "hi you"
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    again = load_codec(str(tmp_path))
    assert again is not None
    assert again.render_chat([{"role": "user", "content": "x"}]) == "1"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer"):
        load_codec(str(tmp_path))
    assert load_codec(str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[7].content }}",
        "{% for m in messages %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_refuses_or_reaches_out_is_a_refusal(template: str) -> None:
    """The sandbox is the library's; what it stops is a client's error, not ours."""
    plain = load_codec("fake:bytes")
    assert plain is not None
    codec = Codec(plain.encode, plain.encode_plain, plain.decode, template)
    with pytest.raises(PromptError, match="refuses these messages"):
        codec.render_chat([{"role": "user", "content": "x"}])
