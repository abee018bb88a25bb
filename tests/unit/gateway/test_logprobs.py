"""Which tokens an answer lists, where each begins, what bytes they have, and OpenAI's two forms of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from pocache.text import Detokenizer, StopFilter, load_codec
from pocache_gateway.logprobs import (
    ScoredToken,
    TokenListing,
    make_chat_logprobs,
    make_completion_logprobs,
)

EOS = 257


# --- which tokens --------------------------------------------------------------------------------------------------


def list_tokens(tokens: list[int], *stops: str) -> tuple[str, list[ScoredToken]]:
    """Return the text of byte tokens, token by token as a gateway does it, and what is listed with it."""
    codec = load_codec("fake:bytes")
    assert codec is not None
    detokenizer, filter_, listing = (
        Detokenizer(codec.decode),
        StopFilter(stops),
        TokenListing(codec.get_bytes),
    )
    shown = ""
    listed: list[ScoredToken] = []
    for index, token in enumerate(tokens):
        text = detokenizer.feed((token,))
        listing.add(token, -float(index), text)
        shown += filter_.feed(text)
        listed += listing.take(len(shown), is_last=filter_.is_stopped)
        assert all(one.end <= len(shown) or filter_.is_stopped for one in listed), "not before its text"
        if filter_.is_stopped:
            return shown, listed
    shown += filter_.feed(detokenizer.end()) + filter_.end()
    listed += listing.take(len(shown), is_last=True)
    return shown, listed


@given(st.text(max_size=40))
def test_the_bytes_of_the_tokens_are_those_of_the_text(text: str) -> None:
    data = text.encode(errors="ignore")
    shown, listed = list_tokens([*data, EOS])
    assert shown == data.decode()
    assert b"".join(one.data or b"" for one in listed) == data
    assert [one.logprob for one in listed] == [-float(index) for index in range(len(data))]
    assert [one.start for one in listed] == [
        len(data[:index].decode(errors="ignore")) for index in range(len(data))
    ]


def test_an_end_of_sequence_is_no_part_of_the_text() -> None:
    _, listed = list_tokens([*b"ab", EOS])
    assert [one.write() for one in listed] == ["a", "b"]


def test_a_special_token_amid_the_text_shifts_nothing() -> None:
    shown, listed = list_tokens([*b"ab", EOS, *b"c"])
    assert shown == "abc"
    assert [(one.write(), one.start, one.logprob) for one in listed] == [
        ("a", 0, 0),
        ("b", 1, -1),
        ("c", 2, -3),
    ]


def test_what_a_stop_string_takes_away_is_not_listed() -> None:
    shown, listed = list_tokens(list(b"one END two"), "END")
    assert shown == "one "
    assert "".join(one.text for one in listed) == "one "


def test_what_only_began_like_a_stop_string_is_listed_in_the_end() -> None:
    shown, listed = list_tokens(list(b"one EN"), "END")
    assert shown == "".join(one.text for one in listed) == "one EN"


def test_a_character_before_a_stop_string_keeps_all_its_tokens_and_one_in_it_none() -> None:
    shown, listed = list_tokens(list("né€x".encode()), "€")
    assert shown == "né"
    assert [one.write() for one in listed] == ["n", "\\xc3", "\\xa9"]


def test_half_a_character_at_the_end_is_listed_as_it_is_shown() -> None:
    shown, listed = list_tokens(list(b"a\xe2\x82"))
    assert shown == "a\ufffd"
    assert [one.write("bytes:") for one in listed] == ["a", "bytes:\\xe2", "bytes:\\x82"]


def test_a_token_that_a_stop_string_cuts_is_listed_whole() -> None:
    """Its probability is that of the whole token; the text of the answer ends within it."""
    listing, stops = TokenListing(lambda _token: None), StopFilter(("lo",))
    shown = ""
    listed: list[ScoredToken] = []
    for index, text in enumerate(["he", "llo!"]):
        listing.add(index, -1.0, text)
        shown += stops.feed(text)
        listed += listing.take(len(shown), is_last=stops.is_stopped)
    assert shown == "hel"
    assert [(one.text, one.start) for one in listed] == [("he", 0), ("llo!", 2)]


def test_without_bytes_of_its_own_a_token_has_those_of_its_text() -> None:
    whole, part = ScoredToken("é", None, -1.0, 0), ScoredToken("", None, -1.0, 0)
    body = make_chat_logprobs([whole, part])
    assert [one["bytes"] for one in body["content"]] == [[0xC3, 0xA9], None]
    assert [one["token"] for one in body["content"]] == ["é", ""]


def test_the_form_of_a_plain_completion() -> None:
    tokens = [ScoredToken("a", b"a", -0.5, 0), ScoredToken("", b"\xc3", -1.0, 1)]
    assert make_completion_logprobs(tokens, 0) == {
        "tokens": ["a", "bytes:\\xc3"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }
    assert make_completion_logprobs(tokens, 1)["top_logprobs"] == [{"a": -0.5}, {"bytes:\\xc3": -1.0}]


# --- a tokenizer's bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "words"])
def test_a_tokenizer_says_its_tokens_bytes_where_they_have_some(tmp_path: Path, kind: str) -> None:
    vocab = {
        "byte-level": {"\u0120he": 0, "llo": 1, "\u00c3": 2, "\u00a9": 3},
        "byte-fallback": {"\u2581he": 0, "llo": 1, "<0xC3>": 2, "<0xA9>": 3},
        "words": {"he": 0, "llo": 1, "x": 2, "y": 3},
    }[kind]
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=next(iter(vocab))))
    if kind == "byte-level":
        tokenizer.decoder = decoders.ByteLevel()
    if kind == "byte-fallback":
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    tokenizer.add_tokens([AddedToken("caf\u00e9", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = load_codec(str(tmp_path))
    assert codec is not None
    own = {"words": [None] * 4}.get(kind, [b" he", b"llo", b"\xc3", b"\xa9"])
    assert [codec.get_bytes(token) for token in range(7)] == [*own, b"", "caf\u00e9".encode(), b""]
    if kind != "words":
        assert b"".join(codec.get_bytes(one) or b"" for one in (0, 1, 2, 3, 4)).decode() == codec.decode(
            [0, 1, 2, 3, 4]
        )
