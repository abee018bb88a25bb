"""What the services say about one job, from admission to outcome, as a ledger or a verifier pool hears it.

The amounts are those that the rules ask for; tests change single fields with ``model_copy``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kit.network import GENESIS_S, STACK, Network, make_key
from pocache.protocol.commitment import compute_leaf_count
from pocache.protocol.encoding import pack_tokens
from pocache.protocol.keys import SigningKey
from pocache.protocol.payoff import Products, UnifiedPool
from pocache.wire import messages as m


@dataclass(frozen=True)
class Job:
    """A job by name: its parties, its tokens, and the messages about it."""

    network: Network
    name: str = "job"
    user_name: str = "user"
    generator_name: str = "worker"
    prompt_count: int = 5
    token_count_max: int = 8
    output_count: int = 6
    attempt: int = 1

    @property
    def user(self) -> SigningKey:
        """The user's key."""
        return make_key(self.user_name)

    @property
    def generator(self) -> SigningKey:
        """The generator's key."""
        return make_key(self.generator_name)

    @cached_property
    def submission(self) -> bytes:
        """The user's sealed submission."""
        return self.network.seal(
            self.user,
            m.SubmissionV1(
                model_id=self.network.model.model_id,
                prompt=pack_tokens(range(3, 3 + self.prompt_count)),
                token_count_max=self.token_count_max,
                sampling=m.SamplingV1(),
                salt=hashlib.sha256(self.name.encode()).digest()[:16],
                created_ms=GENESIS_S * 1_000,
                expires_ms=GENESIS_S * 1_000 + 600_000,
            ),
        )

    @cached_property
    def job_id(self) -> bytes:
        """The job's id: that of the submission's envelope."""
        return self.network.envelope_id(self.submission)

    @property
    def leaf_count(self) -> int:
        """N of the commitment."""
        return compute_leaf_count(self.prompt_count, self.output_count)

    def generation_cost(self, output_count: int | None = None) -> int:
        """Cg for so many output tokens: those of the commitment unless given."""
        count = self.output_count if output_count is None else output_count
        return self.network.model.prices.compute_generation_cost(self.prompt_count, count)

    def verification_cost(self, layer_max: int | None = None, position_max: int | None = None) -> int:
        """Cv of a corner: the whole commitment unless given."""
        layer_count = self.network.model.schema.layer_count
        return self.network.model.prices.compute_verification_cost(
            layer_max=layer_count - 1 if layer_max is None else layer_max,
            position_max=self.leaf_count - 1 if position_max is None else position_max,
            layer_count=layer_count,
        )

    @property
    def generation_max(self) -> int:
        """Cg for as many tokens as the user allows."""
        return self.generation_cost(self.token_count_max)

    @property
    def verification_max(self) -> int:
        """Cv at full depth for as many tokens as the user allows."""
        return self.verification_cost(position_max=self.prompt_count + self.token_count_max - 2)

    @property
    def products_max(self) -> Products:
        """What the rules ask for before the commitment."""
        return self._rules.compute_products(self.generation_max, self.verification_max)

    @property
    def products(self) -> Products:
        """What the rules ask for once the commitment is recorded."""
        return self._rules.compute_products(self.generation_cost(), self.verification_cost())

    @property
    def _rules(self) -> UnifiedPool:
        """The paper's rules, whose amounts these are."""
        rules = self.network.genesis.rule_set
        assert isinstance(rules, UnifiedPool), rules
        return rules

    def admitted(self) -> m.JobAdmittedV1:
        """The router took it."""
        return m.JobAdmittedV1(
            job_id=self.job_id,
            user=self.user.participant_id,
            submission=self.submission,
            generation_max_micro=self.generation_max,
            verification_max_micro=self.verification_max,
        )

    def escrow(self) -> m.HoldRequestV1:
        """Lock the user's deposit."""
        return self._hold("escrow", 1, 0, self.user, self.products_max.deposit)

    def generator_stake(self) -> m.HoldRequestV1:
        """Lock the generator's stake."""
        return self._hold(
            "generator_stake", self.attempt, 0, self.generator, self.products_max.generator_stake
        )

    def verifier_stake(self, stage: int, verifier: SigningKey) -> m.HoldRequestV1:
        """Lock the stake of a stage's verifier."""
        return self._hold("verifier_stake", self.attempt, stage, verifier, self.products.verifier_stake)

    def result(self, root: bytes = b"\x01" * 32) -> bytes:
        """The generator's sealed result."""
        return self.network.seal(
            self.generator,
            m.ResultV1(
                job_id=self.job_id,
                attempt=self.attempt,
                lease=b"",
                output=pack_tokens(range(3, 3 + self.output_count)),
                finish_reason="length",
                leaf_count=self.leaf_count,
                root=root,
                binding=b"\x02" * 32,
                stack=STACK,
                latest_round=1,
            ),
        )

    def committed(self) -> m.CommitmentRecordedV1:
        """The commitment store recorded the result."""
        now_ms = GENESIS_S * 1_000 + 1_000
        return m.CommitmentRecordedV1(
            job_id=self.job_id,
            attempt=self.attempt,
            generator=self.generator.participant_id,
            result=self.result(),
            log_index=0,
            received_ms=now_ms,
            recorded_ms=now_ms,
            audit_round=3,
            window_close_round=43,
        )

    def charged(self) -> m.AttemptChargedV1:
        """The attempt ended without a commitment."""
        return m.AttemptChargedV1(
            job_id=self.job_id, attempt=self.attempt, generator=self.generator.participant_id
        )

    def abandoned(self) -> m.JobAbandonedV1:
        """The router gave it up."""
        return m.JobAbandonedV1(job_id=self.job_id, reason="no worker")

    def window_closed(self) -> m.WindowClosedV1:
        """Nobody asked, and the lottery passed it by."""
        return m.WindowClosedV1(job_id=self.job_id, attempt=self.attempt)

    def corner(self, layer_max: int | None = None, position_max: int | None = None) -> m.CornerV1:
        """Return a corner: the whole commitment unless given."""
        last = self.network.model.schema.layer_count - 1
        return m.CornerV1(
            layer_max=last if layer_max is None else layer_max,
            position_max=self.leaf_count - 1 if position_max is None else position_max,
            full_depth=layer_max is None and position_max is None,
        )

    def outcome(
        self,
        case: Literal["agree", "confirm_generator", "confirm_prior", "void", "no_opening", "equivocation"],
        verifiers: tuple[SigningKey, ...] = (),
        *,
        silent: tuple[SigningKey, ...] = (),
        prior: SigningKey | None = None,
        corner: m.CornerV1 | None = None,
    ) -> m.OutcomeV1:
        """How the dispute ended: ``verifiers`` by stage, the last one decides where somebody does."""
        decided = case in ("agree", "confirm_generator", "confirm_prior")
        return m.OutcomeV1(
            job_id=self.job_id,
            attempt=self.attempt,
            case=case,
            stage=len(verifiers),
            corner=corner or self.corner(),
            verifiers=tuple(
                m.VerifierStandingV1(
                    participant=key.participant_id, stage=stage, opened=key not in silent, upheld=False
                )
                for stage, key in enumerate(verifiers, 1)
            ),
            deciding=verifiers[-1].participant_id if decided else None,
            prior=None if prior is None else prior.participant_id,
            is_challenged=False,
            claims=(),
            comparisons=(),
            reason="as the test has it",
        )

    def _hold(
        self,
        purpose: Literal["escrow", "generator_stake", "verifier_stake"],
        attempt: int,
        stage: int,
        party: SigningKey,
        amount_micro: int,
    ) -> m.HoldRequestV1:
        return m.HoldRequestV1(
            purpose=purpose,
            job_id=self.job_id,
            attempt=attempt,
            stage=stage,
            party=party.participant_id,
            amount_micro=amount_micro,
        )
