"""Which tokens a piece of text is made of, how likely each was, and how OpenAI's two answers write that.

The numbers are the worker's word (docs/gateway.md 2). A token is listed with the piece that completes its text; of one
that a stop string cuts the rest is left out, the token is not. Tokens that are no text (an end of sequence) are not listed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer's text."""

    text: str
    """What it adds to the text; nothing where it is a part of a character that a later one completes."""
    data: bytes | None
    """Its own bytes; None where the tokenizer does not say them."""
    logprob: float
    start: int
    """Where in the text it begins, characters."""

    @property
    def end(self) -> int:
        """Where its text ends."""
        return self.start + len(self.text)

    @property
    def octets(self) -> bytes | None:
        """Its bytes, which are those of its text where the tokenizer does not say."""
        if self.data is not None:
            return self.data
        return self.text.encode() if self.text else None

    def write(self, prefix: str = "") -> str:
        r"""Return it as text; what is no whole character behind a prefix, as ``\xe2\x80``."""
        if self.data is None:
            return self.text
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return prefix + "".join(f"\\x{one:02x}" for one in self.data)


class TokenListing:
    """The tokens of one text in the order in which they came; those whose text is not shown yet wait."""

    def __init__(self, get_bytes: Callable[[int], bytes | None]) -> None:
        """``get_bytes`` returns a token's own bytes: none for one that is no text, None where it cannot say."""
        self._get_bytes = get_bytes
        self._waiting: deque[ScoredToken] = deque()
        self._length = 0

    def add(self, token: int, logprob: float, text: str) -> None:
        """Take a token and the text that became complete with it."""
        data = self._get_bytes(token)
        if data != b"":
            self._waiting.append(ScoredToken(text, data, logprob, self._length))
        self._length += len(text)

    def take(self, shown: int, *, is_last: bool = False) -> tuple[ScoredToken, ...]:
        """Return the tokens that the first ``shown`` characters of the text complete; at its end, those it cuts as well."""
        taken: list[ScoredToken] = []
        while self._waiting:
            first = self._waiting[0]
            if first.start >= shown or (first.end > shown and not is_last):
                break
            taken.append(self._waiting.popleft())
        return tuple(taken)


def make_chat_logprobs(tokens: Iterable[ScoredToken]) -> dict[str, Any]:
    """Return ``logprobs`` of a choice of a conversation."""
    content = [
        {
            "token": one.write(),
            "logprob": one.logprob,
            "bytes": None if one.octets is None else list(one.octets),
            "top_logprobs": [],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def make_completion_logprobs(tokens: Iterable[ScoredToken], top_count: int) -> dict[str, Any]:
    """Return ``logprobs`` of a choice of a plain completion; with a ``top_count`` of 1 each token is named once more."""
    listed = tuple(tokens)
    names = [one.write("bytes:") for one in listed]
    logprobs = [one.logprob for one in listed]
    pairs = zip(names, logprobs, strict=True)
    return {
        "tokens": names,
        "token_logprobs": logprobs,
        "top_logprobs": [{name: logprob} for name, logprob in pairs] if top_count else None,
        "text_offset": [one.start for one in listed],
    }
