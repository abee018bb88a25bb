"""What the engine without a model will say: the gateway's answers are held against it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kit.engines import build_request
from pocache.engine.fake import FakeEngine
from pocache.protocol.commitment import Sampling
from pocache.text import load_codec


@dataclass(frozen=True)
class Said:
    """One greedy answer."""

    text: str
    finish_reason: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def count(self) -> int:
        """Its tokens."""
        return len(self.tokens)


@cache
def say(prompt: str, token_count_max: int, *, eos_stop: bool = True) -> Said:
    """Return what the model ``fake:kit`` answers at temperature 0."""
    request = build_request(
        prompt=tuple(prompt.encode()), max_tokens=token_count_max, sampling=Sampling(), eos_stop=eos_stop
    )
    session = FakeEngine("kit").open_session(slot_count=1)
    logprobs: list[float] = []
    handle = session.submit(request, lambda _tokens: None, lambda: False, logprobs.extend)
    while not handle.is_done:
        session.step()
    capture = handle.result()
    codec = load_codec("fake:kit")
    assert codec is not None
    return Said(codec.decode(capture.output), str(capture.finish_reason), capture.output, tuple(logprobs))
