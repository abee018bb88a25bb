"""What attacks gain under both rule sets: exactly, and over so many simulated jobs (docs/economics.md 7).

Owns the table of attacks and what each is compared with: the same parties, honest. A gain is money per job over that,
in units of Cg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Final

from pocache.protocol.payoff import FIXED_FEE_COMMITTEE, UnifiedPool
from pocache_cli.economics_chance import compute_mean, draw_sample, enumerate_branches
from pocache_cli.economics_play import Rows, Setting, Strategy, play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pocache.protocol.committee import FixedFeeCommittee
    from pocache.protocol.incentives import DetectionTable

RING_SHARES: Final = (Fraction(1, 20), Fraction(1, 10), Fraction(1, 5), Fraction(1, 3), Fraction(1, 2))
"""Shares of the stake that a ring may have."""

SHARE_MAX: Final = Fraction(1, 3)
"""Up to this share nothing may gain under `fixed-fee-committee`."""

MODEL_ATTACK: Final = "another-model"
SPOOF_ATTACK: Final = "spoof"

_ALWAYS: Final = Fraction(1)
_NEVER: Final = Fraction(0)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: an attack, by which share of the stake, under which rules."""

    rules: UnifiedPool | FixedFeeCommittee
    attack: str
    strategy: Strategy
    honest: Strategy


@dataclass(frozen=True, slots=True)
class Result:
    """What an attack gains per job over honesty, in Cg."""

    rules: str
    attack: str
    share: Fraction
    exact_gain: Fraction
    simulated_gain: float
    standard_error: float

    @property
    def is_gain(self) -> bool:
        """Whether the attack pays, exactly."""
        return self.exact_gain > 0


def build_cases(
    unified: UnifiedPool, committee: FixedFeeCommittee, setting: Setting, table: DetectionTable
) -> tuple[Case, ...]:
    """Return every attack under both rule sets, unified-pool first."""
    return tuple(case for rules in (unified, committee) for case in _build_rows(rules, setting, table))


def _build_rows(
    rules: UnifiedPool | FixedFeeCommittee, setting: Setting, table: DetectionTable
) -> Iterator[Case]:
    """Yield the rows of one rule set.

    Users challenge at their share under `unified-pool`, where nothing else is looked at, and never under
    `fixed-fee-committee`, where the lottery alone has to do. Verifiers see the generator's values before they answer in
    the paper's rules; they seal first in ours, so that a lazy one has nothing to seal but noise.
    """
    is_unified = isinstance(rules, UnifiedPool)
    attacks = {attack.name: attack for attack in table.attacks}
    model, spoof = attacks[MODEL_ATTACK], attacks[SPOOF_ATTACK]
    challenge = setting.challenge_share if is_unified else _NEVER
    generator = Strategy(is_generator=True, challenge_share=challenge)
    verifiers = Strategy(is_verifiers=True, challenge_share=challenge)
    lazy = Rows.COPIED if is_unified else Rows.NOISE

    def build(attack: str, strategy: Strategy) -> Case:
        return Case(rules, attack, strategy, _get_honest(strategy, challenge))

    yield build(
        "cheating generator, never challenged", replace(generator, cheat=model, challenge_share=_NEVER)
    )
    yield build("cheating generator", replace(generator, cheat=model))
    third = replace(generator, share=SHARE_MAX, look=Rows.COPIED, vote=Rows.COPIED, votes_blindly=True)
    yield build("cheating generator, lazy verifiers", replace(third, cheat=model))
    yield build("spoofing generator", replace(generator, cheat=spoof))
    yield build("silent generator", replace(generator, cheat=model, opens=False))
    yield build(
        "lazy verifier, per assignment",
        replace(verifiers, is_assigned=True, look=lazy, challenge_share=_NEVER),
    )
    yield build("griefing user", Strategy(is_user=True, challenge_share=_ALWAYS))
    for share in RING_SHARES:
        forging = replace(verifiers, share=share, look=Rows.FORGED, vote=Rows.FORGED)
        yield build("ring convicts the honest", forging)
        yield build(
            "ring and user convict the honest", replace(forging, is_user=True, challenge_share=_ALWAYS)
        )
        loyal = replace(generator, is_verifiers=True, share=share, look=Rows.COPIED, vote=Rows.COPIED)
        yield build("cheating generator and ring", replace(loyal, cheat=model))
        yield build("spoofing generator and ring", replace(loyal, cheat=spoof))


def _get_honest(strategy: Strategy, challenge: Fraction) -> Strategy:
    """Return the same parties, honest; an honest user who has nothing to complain of does not challenge."""
    return replace(
        strategy,
        cheat=None,
        opens=True,
        look=Rows.HONEST,
        vote=Rows.HONEST,
        votes_blindly=False,
        challenge_share=_NEVER if strategy.is_user or strategy.challenge_share == _NEVER else challenge,
    )


def compute_honest_profits(
    rules: UnifiedPool | FixedFeeCommittee, setting: Setting
) -> tuple[Fraction, Fraction, Fraction]:
    """Return what honest parties net, in Cg: a generator per job, a verifier per assignment, a user per job."""
    challenge = setting.challenge_share if isinstance(rules, UnifiedPool) else _NEVER
    strategies = (
        Strategy(is_generator=True, challenge_share=challenge),
        Strategy(is_verifiers=True, is_assigned=True),
        Strategy(is_user=True, challenge_share=challenge),
    )
    return tuple(  # type: ignore[return-value]
        compute_mean(enumerate_branches(partial(play, rules, setting, strategy))) / setting.cg
        for strategy in strategies
    )


def simulate(case: Case, setting: Setting, *, jobs: int, seed: int) -> Result:
    """Return what one attack gains; every way a job can go is played once, then `jobs` of them are drawn."""
    honest = compute_mean(enumerate_branches(partial(play, case.rules, setting, case.honest)))
    branches = tuple(
        replace(branch, value=(branch.value - honest) / setting.cg)
        for branch in enumerate_branches(partial(play, case.rules, setting, case.strategy))
    )
    share = case.strategy.share
    sample = draw_sample(
        branches, count=jobs, seed=f"pocache/economics {seed} {case.rules.name} {case.attack} {share}"
    )
    return Result(
        rules=case.rules.name,
        attack=case.attack,
        share=share,
        exact_gain=compute_mean(branches),
        simulated_gain=sample.mean,
        standard_error=sample.standard_error,
    )


def get_failures(results: Sequence[Result]) -> tuple[Result, ...]:
    """Return the attacks that gain although `fixed-fee-committee` promises that they do not."""
    return tuple(
        result
        for result in results
        if result.rules == FIXED_FEE_COMMITTEE and result.share <= SHARE_MAX and result.is_gain
    )
