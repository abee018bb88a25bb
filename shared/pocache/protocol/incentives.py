"""Whether cheating pays: the least stake that deters, from what detection was measured (docs/economics.md 6).

Owns the table of attacks (what each saves, where it shows, how often it is found), the probability that one is convicted,
β_min, the lottery rate at which an attack breaks even, and the refusal of a smaller stake. All in exact fractions. Refuses
detection that is no probability. What the rules pay is ``payoff``; what each verifier is paid for the truth, ``truth``.

Not covered: attacks that are not in the table, and savings that differ from those it states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb
from typing import TYPE_CHECKING, Any, Final

from pocache.protocol.errors import PayoffError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pocache.protocol.committee import FixedFeeCommittee

_DETECTED_DENOMINATOR_MAX: Final = 10**6
"""A measured rate is a count over jobs: its decimal text is read as the nearest such fraction."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A way to cheat on the computation: what it saves, where it shows, how often it is found there."""

    name: str
    saving: Fraction
    """s_x: what a cheat saves, over Cg."""
    partial_reveal: Fraction
    """Which share of the audits that stop early reach what the cheat changes; those of full depth all do."""
    detection: tuple[tuple[int, Fraction], ...]
    """D_x: from this many output tokens on, the share of audits that reach it and say mismatch."""

    def __post_init__(self) -> None:
        """Refuse what is no share; PayoffError."""
        shares = (self.saving, self.partial_reveal, *(rate for _, rate in self.detection))
        if any(not 0 <= share <= 1 for share in shares):
            message = f"attack {self.name}: savings and detection are shares from 0 to 1"
            raise PayoffError(message)
        lengths = [length for length, _ in self.detection]
        if lengths != sorted(set(lengths)):
            message = f"attack {self.name}: output lengths must ascend, got {lengths}"
            raise PayoffError(message)

    def get_detection(self, output_count: int) -> Fraction:
        """Return D_x for an output of this length: 0 where nothing was measured."""
        rates = [rate for length, rate in self.detection if length <= output_count]
        return rates[-1] if rates else Fraction(0)


@dataclass(frozen=True, slots=True)
class DetectionTable:
    """Attacks and where their figures come from."""

    attacks: tuple[Attack, ...]
    source: str
    unpriced: tuple[str, ...] = ()
    """Attacks that were evaluated but whose saving nobody stated: β_min does not count them."""


def _attack(name: str, saving: str, partial_reveal: str, *detection: tuple[int, str]) -> Attack:
    rates = tuple((length, Fraction(rate)) for length, rate in detection)
    return Attack(name, Fraction(saving), Fraction(partial_reveal), rates)


DEFAULT_DETECTION: Final = DetectionTable(
    attacks=(
        _attack("another-model", "3/5", "1", (1, "99/100")),
        _attack("spoof", "27/50", "0", (1, "1/10"), (8, "1/2"), (128, "99/100")),
        _attack("early-exit", "2/5", "1/2", (1, "99/100")),
        _attack("int4", "2/5", "1", (1, "99/100")),
        _attack("fp8", "3/10", "1", (1, "99/100")),
        _attack("int8", "3/10", "1", (1, "9/10")),
        _attack("truncated-prompt", "1/5", "1", (1, "99/100")),
        _attack("kv-int4", "1/5", "1", (1, "99/100")),
        _attack("kv-fp8", "3/20", "1", (1, "99/100")),
        _attack("kv-int8", "1/10", "1", (1, "9/10")),
        _attack("skip-last-layer", "1/32", "0", (1, "1/10"), (16, "9/10"), (128, "99/100")),
    ),
    source=(
        "stated defaults: savings are assumptions; detection reads an AUC of 1 with a clear gap as 0.99 and one with a"
        " narrow gap as 0.9, from measurements on a 13 M parameter model in bfloat16 (docs/economics.md 6.2)"
    ),
)
"""What is assumed until an evaluation is given: no figure of it was measured on a network's own model."""


def parse_evaluation(record: Mapping[str, Any]) -> DetectionTable:
    """Return the table with the detection that `pocache evaluate` measured; PayoffError for another shape.

    The record has `attacks`, each with a `name` and `detected`, and may give `output_tokens`, `saving` and
    `partial_reveal`; a known attack's own figures stand where it does not. Attacks without a known saving are named in
    `unpriced`. Known attacks that were not evaluated keep their stated defaults, which the source then says.
    """
    known = {attack.name: attack for attack in DEFAULT_DETECTION.attacks}
    measured: dict[str, Attack] = {}
    unpriced: list[str] = []
    entries = record.get("attacks")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        message = "not an evaluation: it has no list of `attacks`"
        raise PayoffError(message)
    for entry in entries:
        name = entry.get("name")
        if not isinstance(name, str) or "detected" not in entry:
            message = f"not an evaluation: an attack without `name` and `detected`: {entry!r}"
            raise PayoffError(message)
        if name not in known and "saving" not in entry:
            unpriced.append(name)
            continue
        before = measured.get(name)
        rate = (_read_length(entry), _read_share(name, entry["detected"]))
        base = known.get(name, Attack(name, Fraction(0), Fraction(1), ()))
        measured[name] = Attack(
            name=name,
            saving=_read_share(name, entry["saving"]) if "saving" in entry else base.saving,
            partial_reveal=(
                _read_share(name, entry["partial_reveal"])
                if "partial_reveal" in entry
                else base.partial_reveal
            ),
            detection=tuple(sorted((*(before.detection if before else ()), rate))),
        )
    kept = [attack for attack in DEFAULT_DETECTION.attacks if attack.name not in measured]
    profile = record.get("profile", "no profile named")
    source = f"evaluation under profile {profile}"
    if kept:
        source += f"; not evaluated, stated defaults: {', '.join(attack.name for attack in kept)}"
    return DetectionTable((*measured.values(), *kept), source, tuple(unpriced))


def _read_length(entry: Mapping[str, Any]) -> int:
    length = entry.get("output_tokens", 1)
    if type(length) is not int or length < 1:
        message = f"not an evaluation: output_tokens = {length!r}"
        raise PayoffError(message)
    return length


def _read_share(name: str, value: object) -> Fraction:
    """Read a share that was written as a number or as a fraction's text; PayoffError."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError  # noqa: TRY004 - one message for all that is no number
        return Fraction(str(value)).limit_denominator(_DETECTED_DENOMINATOR_MAX)
    except (ValueError, ZeroDivisionError):
        message = f"attack {name}: not a share from 0 to 1: {value!r}"
        raise PayoffError(message) from None


@dataclass(frozen=True, slots=True)
class AuditTerms:
    """All that decides how likely a cheat is convicted, besides the cheat."""

    audit_share: Fraction
    """q_a: how often a job is audited; under `unified-pool` how often its user challenges."""
    recheck: Fraction
    """q_r."""
    full_depth_share: Fraction
    """Which share of audits goes through all layers."""
    output_count: int
    """Tokens of the output: the shortest for which the stake is to deter."""
    collusion: Fraction
    """a: the share of stake that sides with the generator."""
    capture: Fraction
    """P_M(a): how often the colluding have the say in a dispute."""

    def __post_init__(self) -> None:
        """Refuse what is no share; PayoffError."""
        names = ("audit_share", "recheck", "full_depth_share", "collusion", "capture")
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                message = f"0 ≤ {name} ≤ 1 is violated: {getattr(self, name)}"
                raise PayoffError(message)

    def compute_judgement(self) -> Fraction:
        """Return the share of revealed cheats that are convicted: (1−a)(1 + a·q_r)(1−P_M(a)).

        The first verifier is honest; or it sides with the cheat, a recheck is drawn, and that verifier is honest.
        """
        honest = 1 - self.collusion
        return honest * (1 + self.collusion * self.recheck) * (1 - self.capture)


def compute_capture(committee_size: int, share: Fraction) -> Fraction:
    """Return P_M(a) = Σ_{i > M/2} C(M, i) aⁱ (1−a)^{M−i}: a committee's majority is drawn from a share of the stake.

    As if members were drawn with replacement, which is the worst case of drawing them without: a share that is spread
    over many identities.
    """
    return sum(
        (
            comb(committee_size, count) * share**count * (1 - share) ** (committee_size - count)
            for count in range(committee_size // 2 + 1, committee_size + 1)
        ),
        Fraction(0),
    )


def build_committee_terms(
    rules: FixedFeeCommittee, *, full_depth_share: Fraction, output_count: int, collusion: Fraction
) -> AuditTerms:
    """Return the terms of `fixed-fee-committee`, counting the lottery alone: a cheat's user may never challenge."""
    return AuditTerms(
        audit_share=rules.lottery.value,
        recheck=rules.recheck.value,
        full_depth_share=full_depth_share,
        output_count=output_count,
        collusion=collusion,
        capture=compute_capture(rules.committee_size, collusion),
    )


def build_unified_terms(
    *, challenge_share: Fraction, full_depth_share: Fraction, output_count: int, collusion: Fraction
) -> AuditTerms:
    """Return the terms of `unified-pool`: users challenge, nobody looks again, the second verifier decides."""
    return AuditTerms(
        audit_share=challenge_share,
        recheck=Fraction(0),
        full_depth_share=full_depth_share,
        output_count=output_count,
        collusion=collusion,
        capture=collusion,
    )


def compute_conviction(attack: Attack, terms: AuditTerms) -> Fraction:
    """Return p_x = q_a · Pr[the corner reveals x] · D_x · (1−a)(1 + a·q_r)(1−P_M(a)) (docs/economics.md 6.1)."""
    full = terms.full_depth_share
    reveal = full + (1 - full) * attack.partial_reveal
    detected = attack.get_detection(terms.output_count)
    return terms.audit_share * reveal * detected * terms.compute_judgement()


def compute_gain(attack: Attack, *, alpha: Fraction, beta: Fraction, terms: AuditTerms) -> Fraction:
    """Return what a cheat gains per job over honesty, over Cg: s_x − p_x(α + β)."""
    return attack.saving - compute_conviction(attack, terms) * (alpha + beta)


@dataclass(frozen=True, slots=True)
class Deterrence:
    """What it takes to deter one attack; None where nothing does."""

    attack: str
    saving: Fraction
    conviction: Fraction
    """p_x."""
    beta_min: Fraction | None
    """The least β at which it does not gain: s_x/p_x − α, or 0."""
    lottery_min: Fraction | None
    """The break-even share of audits at the β there is: s_x / ((α+β) · p_x/q_a)."""


def compute_deterrence(
    table: DetectionTable, *, alpha: Fraction, beta: Fraction, terms: AuditTerms
) -> tuple[Deterrence, ...]:
    """Return what each attack takes, the one that takes the largest stake first."""
    rows = [_deter(attack, alpha, beta, terms) for attack in table.attacks]
    return tuple(sorted(rows, key=lambda row: (row.beta_min is not None, -(row.beta_min or 0))))


def _deter(attack: Attack, alpha: Fraction, beta: Fraction, terms: AuditTerms) -> Deterrence:
    conviction = compute_conviction(attack, terms)
    always = compute_conviction(attack, replace(terms, audit_share=Fraction(1)))
    beta_min = lottery_min = None
    if attack.saving == 0:
        beta_min = lottery_min = Fraction(0)
    if attack.saving > 0 and conviction > 0:
        beta_min = max(Fraction(0), attack.saving / conviction - alpha)
    if attack.saving > 0 and always > 0:
        needed = attack.saving / ((alpha + beta) * always)
        lottery_min = needed if needed <= 1 else None
    return Deterrence(attack.name, attack.saving, conviction, beta_min, lottery_min)


def get_beta_min(rows: Sequence[Deterrence]) -> Fraction | None:
    """Return β_min = max over attacks of s_x/p_x − α; None when some attack is never convicted."""
    betas = [row.beta_min for row in rows]
    if any(beta is None for beta in betas):
        return None
    return max((beta for beta in betas if beta is not None), default=Fraction(0))


def validate_generator_stake(rules: FixedFeeCommittee, table: DetectionTable, terms: AuditTerms) -> None:
    """Refuse a generator's stake below β_min; PayoffError names the attack that it does not deter."""
    beta = rules.beta_generator.value
    rows = compute_deterrence(table, alpha=rules.alpha.value, beta=beta, terms=terms)
    for row in rows:
        if row.beta_min is None or row.beta_min > beta:
            least = "no stake deters it" if row.beta_min is None else f"β_min = {float(row.beta_min):.3f}"
            message = (
                f"β_G ≥ s/p − α is violated for {row.attack}: s = {row.saving}, p = {float(row.conviction):.5f}, {least},"
                f" β_G = {rules.beta_generator} ({terms.output_count} output tokens, a = {terms.collusion})"
            )
            raise PayoffError(message)


def compute_verifier_stake_min(
    rules: FixedFeeCommittee, *, cg: int, cv: int, collusion: Fraction
) -> Fraction | None:
    """Return the least β_V at which a ring and its user do not gain by convicting the honest; None without Cv.

    With P = P_M(a), the ring wins escrow, bounty and bonus with P, and with 1−P loses βCv and a fee it would have had;
    its members' fees in the committee that it calls are counted in full:

        β_V ≥ [P·((α + bounty + bonus)·Cg + (α + λ)·Cv) + a·M·φ·Cv] / ((1−P)·Cv) − φ
    """
    capture = compute_capture(rules.committee_size, collusion)
    if cv == 0 or capture == 1:
        return None
    prize = (rules.alpha.value + rules.bounty.value + rules.bonus.value) * cg
    prize += (rules.alpha.value + rules.levy.value) * cv
    fees = collusion * rules.committee_size * rules.phi.value * cv
    return max(Fraction(0), (capture * prize + fees) / ((1 - capture) * cv) - rules.phi.value)


def validate_verifier_stake(rules: FixedFeeCommittee, *, cg: int, cv: int, collusion: Fraction) -> None:
    """Refuse a verifier's stake at which a ring gains by convicting the honest; PayoffError."""
    least = compute_verifier_stake_min(rules, cg=cg, cv=cv, collusion=collusion)
    if least is None or rules.beta_verifier.value < least:
        message = (
            f"(1−P)(β_V + φ)Cv ≥ P·(escrow + bounty + bonus) + aMφCv is violated: at Cg = {cg}, Cv = {cv}, a = {collusion}"
            f" it takes β_V ≥ {'∞' if least is None else f'{float(least):.3f}'}, β_V = {rules.beta_verifier}"
        )
        raise PayoffError(message)
