"""A job in plain words: why it was challenged or not, what matched, who was paid and slashed, and by which step.

Owns sentences only. Everything that they say is computed from the receipt or stands in it; whether the receipt holds is
verify.py's to say, and whoever shows these sentences should say that first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pocache.protocol.challenge import Tag
from pocache.protocol.committee_terms import Part, SeatPlan
from pocache.protocol.encoding import unpack_tokens
from pocache.protocol.procedure import CommitteeProcedure
from pocache.receipt.case import Case
from pocache.receipt.draws import draw_recheck
from pocache.receipt.payment import REFUNDED
from pocache.receipt.report import Step
from pocache.wire import messages as m
from pocache.wire import topics as t

_ONE_Q16: Final = 65_536
_ENDINGS: Final[Mapping[str, str]] = {
    "no_challenge": "Nobody challenged it and the lottery passed it by, so it was paid without an audit.",
    "agree": "The verifier's rows are the generator's: the job was done as it was committed to.",
    "confirm_generator": "A later verifier's rows are the generator's: the generator was right, the verifiers before it were not.",
    "confirm_prior": "Two verifiers agree with each other and not with the generator: the generator is convicted.",
    "acquittal": "A committee was called and finds for the generator: whoever called it pays for it.",
    "conviction": "A committee finds against the generator: its members agree with each other and not with it.",
    "void": "Nothing was decided in any stage: nobody is convicted, everything goes back.",
    "no_opening": "The generator did not open what it had committed to: that counts as a conviction.",
    "equivocation": "The generator signed two results that contradict each other: that convicts it without a verifier.",
    REFUNDED: "Nobody did the job: everything goes back to where it came from.",
    "refused": "The user's deposit could not be held, so the job never began.",
}
_AUDIT_ENDINGS: Final = frozenset(
    {"agree", "confirm_generator", "confirm_prior", "acquittal", "conviction", "void", "no_opening"}
)


def explain_job(case: Case, ending: str, names: Mapping[str, str] | None = None) -> list[str]:
    """Return sentences about a job, in the order in which it went; ``names`` are for those that one knows."""
    teller = _Teller(case, names or {})
    lines = teller.tell_request()
    if case.is_committed:
        lines += teller.tell_commitment()
        lines += teller.tell_audit()
        lines += teller.tell_stages()
    lines += teller.tell_end(ending)
    return lines


class _Teller:
    def __init__(self, case: Case, names: Mapping[str, str]) -> None:
        self._case, self._names = case, names

    def name(self, participant: str | None) -> str:
        """Return somebody's name, or the beginning of its key."""
        if participant is None:
            return "nobody"
        return self._names.get(participant, participant if len(participant) < 12 else f"{participant[:12]}…")

    def tell_request(self) -> list[str]:
        case = self._case
        body = case.submission.body
        lines = [
            f"Job {case.job_id.hex()} on network “{case.genesis.name}”.",
            (
                f"{self.name(case.user)} asked {case.model.entry.name} for at most {body.token_count_max} tokens after a prompt of"
                f" {len(case.prompt)} ({Step.SUBMISSION})."
            ),
        ]
        held = case.dossier.find(t.HOLD_PLACED, purpose="escrow")
        if held is not None:
            lines.append(
                f"A deposit of {held.amount_micro:,} micro-units was locked for it ({Step.SUBMISSION})."
            )
        return lines

    def tell_commitment(self) -> list[str]:
        case = self._case
        recorded = case.recorded
        is_cancelled = case.result.body.cancellation is not None
        cancelled = [f"{self.name(case.user)} cancelled it there, and pays for no more ({Step.COMMITMENT})."]
        return [
            (
                f"{self.name(case.generator)} leased attempt {recorded.attempt} ({Step.LEASE}), delivered {len(case.output)} tokens and"
                f" committed to {case.leaf_count} leaves under root {case.root.hex()[:16]}… ({Step.COMMITMENT})."
            ),
            *(cancelled if is_cancelled else []),
            (
                f"It is entry {recorded.log_index} of the log ({Step.LOG}). Round {case.dossier.get_audit_round()}, which nobody could"
                " know then, was to decide whether it is audited."
            ),
        ]

    def tell_audit(self) -> list[str]:
        case, audit = self._case, self._case.audit
        lines: list[str] = []
        share = case.genesis.audit.lottery_share
        if case.dossier.find(t.WINDOW_CLOSED) is not None or (
            audit is not None and audit.reason == "lottery"
        ):
            number = case.dossier.get_audit_round()
            assert number is not None, "a commitment has an audit round"
            numerator, denominator = case.genesis.share(share)
            drawn = case.open_stream(Tag.AUDIT, number, 0).below(denominator)
            taken = "it was audited" if drawn < numerator else "it was not audited"
            lines.append(
                f"The lottery takes {share} of all jobs: round {number} drew {drawn} of 0 … {denominator - 1}, and whatever is"
                f" below {numerator} is taken, so {taken} ({Step.AUDIT})."
            )
        if audit is not None and audit.reason == "challenge":
            lines.append(
                f"Its user challenged it, so it was audited in full; no lottery decides then ({Step.AUDIT})."
            )
        if case.dossier.find(t.AUDIT_DEEPENED) is not None:
            lines.append(
                f"Its user challenged it during the audit, so nothing short of the whole job acquits ({Step.AUDIT})."
            )
        equivocation = case.dossier.find(t.EQUIVOCATION)
        if equivocation is not None:
            lines.append(
                f"{self.name(case.generator)} signed two results of one attempt, {equivocation.first_envelope_id.hex()[:16]}… and"
                f" {equivocation.second_envelope_id.hex()[:16]}… ({Step.AUDIT})."
            )
        if audit is not None:
            corner = audit.corner
            depth = (
                "all layers, the final state and the scores"
                if corner.full_depth
                else f"layers 0 … {corner.layer_max}"
            )
            lines.append(f"The audit covers {depth} of positions 0 … {corner.position_max} ({Step.CORNER}).")
        return lines

    def tell_stages(self) -> list[str]:
        case = self._case
        lines: list[str] = []
        for drawn in case.dossier.all(t.VERIFIER_DRAWN):
            refused = case.dossier.find(
                t.HOLD_REFUSED, purpose="verifier_stake", stage=drawn.stage, party=drawn.participant
            )
            what = " Its stake could not be locked." if refused is not None else ""
            lines.append(
                f"{self._name_seat(drawn.stage)}: round {drawn.round_number} drew {self.name(drawn.participant)} by stake, from snapshot"
                f" {drawn.snapshot} ({Step.SORTITION}).{what}"
            )
        lines += self._tell_recheck()
        for closed in case.dossier.all(t.OPENINGS_CLOSED):
            positions = ", ".join(map(str, unpack_tokens(closed.positions)))
            lines.append(
                f"Stage {closed.stage}, look {closed.retry + 1}: with all claims sealed, round {closed.round_number} asked for"
                f" positions {positions} ({Step.CLAIMS}, {Step.POSITIONS})."
            )
            lines += [f"{self.name(one)} did not open them ({Step.OPENINGS})." for one in closed.missing]
        outcome = case.outcome
        lines += [self._tell_comparison(one) for one in (() if outcome is None else outcome.comparisons)]
        return lines

    def _name_seat(self, seat: int) -> str:
        """Return what a seat is for, under rules whose seats are for something."""
        plan = self._plan
        if plan is None:
            return f"Stage {seat}"
        part = plan.get_part(seat)
        if part is not Part.COMMITTEE:
            return f"Seat {seat}, for the {part.value}"
        return f"Seat {seat}, in the committee of stage {plan.get_stage(seat)}"

    @property
    def _plan(self) -> SeatPlan | None:
        procedure = self._case.genesis.procedure
        return procedure.plan if isinstance(procedure, CommitteeProcedure) else None

    def _tell_recheck(self) -> list[str]:
        """Say what the round after an agreement decided, where there was one."""
        case = self._case
        bound = next(
            (one for one in case.dossier.all(t.STAGE_BOUND) if case.genesis.procedure.is_recheck(one.stage)),
            None,
        )
        if bound is None or bound.round_number not in case.dossier.get_needed_rounds():
            return []
        is_drawn, _ = draw_recheck(case, bound.stage)
        what = "was to be looked at again" if is_drawn else "was left as it was"
        return [
            (
                f"The audit's verifier agreed; round {bound.round_number} decided by lottery that the agreement {what}"
                f" ({Step.SORTITION})."
            )
        ]

    def _tell_standings(self) -> list[str]:
        """Say whose claims the outcome bears out, under rules that ask for it."""
        outcome = self._case.outcome
        if outcome is None or self._plan is None:
            return []
        lines = []
        for one in outcome.verifiers:
            found = "was silent" if not one.opened else "is borne out" if one.upheld else "is not borne out"
            lines.append(
                f"{self._name_seat(one.stage)}: {self.name(one.participant)} {found} ({Step.OUTCOME})."
            )
        return lines

    def _tell_comparison(self, one: m.ComparisonV1) -> str:
        def number(value_q16: int) -> str:
            return f"{value_q16 / _ONE_Q16:+.2f}"

        return (
            f"Stage {one.stage}, look {one.retry + 1}: {self.name(one.left)} against {self.name(one.right)}, {one.row_count} rows:"
            f" {one.verdict}. Doublings above the honest centre: mean {number(one.mean_q16)} (match up to"
            f" {number(one.mean_match_max_q16)}, mismatch above {number(one.mean_mismatch_min_q16)}), worst row"
            f" {number(one.peak_q16)} (match up to {number(one.peak_match_max_q16)}, mismatch above"
            f" {number(one.peak_mismatch_min_q16)}) ({Step.COMPARISONS}).{_tell_tokens(one.tokens)}"
        )

    def tell_end(self, ending: str) -> list[str]:
        case = self._case
        step = Step.OUTCOME if ending in _AUDIT_ENDINGS else Step.PAYOFF
        lines = [f"{_ENDINGS.get(ending, 'It is not settled yet.')} ({step})", *self._tell_standings()]
        refused = case.dossier.find(t.HOLD_REFUSED, purpose="escrow")
        if refused is not None:
            lines.append(f"The ledger said: {refused.code}: {refused.reason} ({Step.SUBMISSION}).")
        abandoned = case.dossier.find(t.JOB_ABANDONED)
        if abandoned is not None:
            lines.append(f"The router gave it up: {abandoned.reason} ({Step.PAYOFF}).")
        payout = case.dossier.find(t.PAYOUT_SETTLED)
        if payout is None:
            return lines
        for line in payout.lines:
            net = line.amount_micro - line.held_micro
            word = "gained" if net > 0 else "lost" if net < 0 else "came out even with"
            lost_all = " and was slashed" if line.account in payout.slashed else ""
            lines.append(
                f"{self.name(line.account)} put in {line.held_micro:,}, got {line.amount_micro:,}: it {word}"
                f" {abs(net):,} micro-units{lost_all} ({Step.PAYOUT})."
            )
        lines.append(f"The pool held {payout.pool_micro:,} micro-units and is empty ({Step.PAYOUT}).")
        return lines


def _tell_tokens(check: m.TokenCheckV1 | None) -> str:
    if check is None:
        return ""
    return (
        f" Of {check.token_count} output tokens {check.mismatch_count} were not the verifier's best (match up to"
        f" {check.mismatch_match_max}, mismatch above {check.mismatch_mismatch_min}); the largest margin was"
        f" {check.margin_peak_q16 / _ONE_Q16:.3f} (match up to {check.margin_peak_match_max_q16 / _ONE_Q16:.3f}, mismatch"
        f" above {check.margin_peak_mismatch_min_q16 / _ONE_Q16:.3f})."
    )
