"""Chance, in two forms: every way that a play can go with its exact probability, or as many plays as asked for.

Owns the enumeration of a play's branches and the sampling from them. A play is a function that asks for its random
choices one after the other; it is run once for each sequence of answers, so that nothing is left to a sample that can
be known. Sampling draws whole branches by their probabilities.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from math import comb, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(slots=True)
class Chance:
    """The answers to a play's random choices: those of a script first, then the first possible one."""

    script: list[int]
    probability: Fraction = Fraction(1)
    taken: list[int] = field(default_factory=list)
    open: list[list[int]] = field(default_factory=list)
    """For each choice so far, the answers that come after the one taken."""

    def choose(self, weights: Sequence[Fraction]) -> int:
        """Return the index of an answer; those of weight 0 do not happen."""
        possible = [index for index, weight in enumerate(weights) if weight]
        position = len(self.taken)
        index = self.script[position] if position < len(self.script) else possible[0]
        self.taken.append(index)
        self.open.append([other for other in possible if other > index])
        self.probability *= weights[index]
        return index

    def happens(self, probability: Fraction) -> bool:
        """Return whether something of this probability happens."""
        return self.choose([1 - probability, probability]) == 1

    def count_of(self, trials: int, probability: Fraction) -> int:
        """Return how many of so many independent trials succeed."""
        return self.choose(
            [
                comb(trials, count) * probability**count * (1 - probability) ** (trials - count)
                for count in range(trials + 1)
            ]
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """One way that a play can go."""

    probability: Fraction
    value: Fraction


def enumerate_branches(play: Callable[[Chance], Fraction]) -> tuple[Branch, ...]:
    """Return every way that a play can go; their probabilities are 1 together."""
    branches = tuple(_run_all(play))
    assert sum(branch.probability for branch in branches) == 1, "a play has another way to go"
    return branches


def _run_all(play: Callable[[Chance], Fraction]) -> Iterator[Branch]:
    script: list[int] | None = []
    while script is not None:
        chance = Chance(script)
        value = play(chance)
        yield Branch(chance.probability, value)
        script = _get_next_script(chance)


def _get_next_script(chance: Chance) -> list[int] | None:
    """Return the answers that lead to the next branch: the last choice with another one takes it."""
    for position in reversed(range(len(chance.taken))):
        if chance.open[position]:
            return [*chance.taken[:position], chance.open[position][0]]
    return None


def compute_mean(branches: Sequence[Branch]) -> Fraction:
    """Return the exact expectation."""
    return sum((branch.probability * branch.value for branch in branches), Fraction(0))


@dataclass(frozen=True, slots=True)
class Sample:
    """What so many plays came to on average, and how far that is from certain."""

    mean: float
    standard_error: float


def draw_sample(branches: Sequence[Branch], *, count: int, seed: str) -> Sample:
    """Play `count` times, the same for the same seed."""
    values = [float(branch.value) for branch in branches]
    weights = list(accumulate(float(branch.probability) for branch in branches))
    # Not for keys or draws of the protocol: a simulation that anybody can repeat.
    drawn = random.Random(seed).choices(values, cum_weights=weights, k=count)  # noqa: S311
    mean = sum(drawn) / count
    variance = sum((value - mean) ** 2 for value in drawn) / max(1, count - 1)
    return Sample(mean, sqrt(variance / count))
