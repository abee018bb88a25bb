"""What a process counts, for Prometheus: served as text on the health port's ``/metrics``.

One :class:`Metrics` per process, on a registry of its own: importing this counts nothing. What the network does is counted
from the messages that a service says once its transaction is durable, so that a refused or repeated message counts
nothing. Labels have few values that the code lists; no label is a job, a participant or a subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pocache.wire import messages as m
from pocache.wire.model import WireModel

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_Q16: Final = 1 << 16
_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DEVIATIONS: Final = (-8, -4, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Of a distance from its honest centre, in powers of two: what the thresholds are in as well."""


class Metrics:
    """The metrics of one process. Thread-safe, as the library's are."""

    def __init__(self, service: str) -> None:
        self.registry = registry = CollectorRegistry()
        info = Gauge(
            "pocache_info", "Which service and release this is.", ["service", "version"], registry=registry
        )
        info.labels(service, version("proof-of-cache")).set(1)
        self.is_ready = Gauge("pocache_ready", "1 while the process is ready.", registry=registry)
        self._define_flow(registry)
        self._define_network(registry)
        self._define_worker(registry)
        self._define_gateway(registry)

    def _define_flow(self, registry: CollectorRegistry) -> None:
        self.messages = Counter(
            "pocache_messages",
            "Messages taken, by stream and what became of them.",
            ["stream", "action"],
            registry=registry,
        )
        self.refusals = Counter(
            "pocache_refusals", "Messages refused, by the code of the refusal.", ["code"], registry=registry
        )
        self.message_age_s = Histogram(
            "pocache_message_age_seconds",
            "How long a message had waited in its stream when it was taken.",
            ["stream"],
            buckets=_LONG_S,
            registry=registry,
        )
        self.batch_messages = Histogram(
            "pocache_batch_messages",
            "Messages applied in one transaction.",
            buckets=_SIZES,
            registry=registry,
        )
        self.apply_s = Histogram(
            "pocache_apply_seconds", "How long one transaction took.", buckets=_SHORT_S, registry=registry
        )
        self.said = Counter(
            "pocache_said", "Messages said, by kind, once they are durable.", ["kind"], registry=registry
        )
        self.outbox_rows = Gauge(
            "pocache_outbox_rows", "Messages read from the outbox in its last pass.", registry=registry
        )
        self.publish_delays = Counter(
            "pocache_publish_delays",
            "Publishes that the bus did not take, to be tried again.",
            registry=registry,
        )

    def _define_network(self, registry: CollectorRegistry) -> None:
        self.round = Gauge(
            "pocache_beacon_round", "The latest round that was verified here.", registry=registry
        )
        self.round_age_s = Histogram(
            "pocache_beacon_round_age_seconds",
            "How late a round was, against its own time.",
            buckets=_LONG_S,
            registry=registry,
        )
        self.jobs = Counter("pocache_jobs", "Jobs that reached a phase.", ["phase"], registry=registry)
        self.outcomes = Counter("pocache_outcomes", "Disputes decided, by case.", ["case"], registry=registry)
        self.comparisons = Counter(
            "pocache_comparisons", "Comparisons of two parties' rows.", ["verdict"], registry=registry
        )
        self.distance_mean = Histogram(
            "pocache_distance_mean",
            "Mean distance of compared rows from the honest centre, in powers of two.",
            ["verdict"],
            buckets=_DEVIATIONS,
            registry=registry,
        )
        self.distance_peak = Histogram(
            "pocache_distance_peak",
            "Largest distance of compared rows from the honest centre, in powers of two.",
            ["verdict"],
            buckets=_DEVIATIONS,
            registry=registry,
        )
        self.payouts = Counter("pocache_payouts", "Jobs paid out, by case.", ["case"], registry=registry)
        self.money_moved_micro = Counter(
            "pocache_money_moved_micro",
            "Micro-units paid out of jobs' pools, by case.",
            ["case"],
            registry=registry,
        )
        self.slashed = Counter("pocache_slashed", "Parties slashed, by case.", ["case"], registry=registry)
        self.ejections = Counter(
            "pocache_ejections",
            "Workers ejected from a model, by the test that crossed.",
            ["test"],
            registry=registry,
        )
        self.residue_micro = Gauge(
            "pocache_conservation_residue_micro",
            "What was deposited less what all accounts hold: 0, or money was made or lost.",
            registry=registry,
        )
        self.held_micro = Gauge("pocache_money_held_micro", "What all accounts hold.", registry=registry)
        self.open_pools = Gauge("pocache_open_pools", "Jobs whose pool is not paid out.", registry=registry)

    def _define_worker(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter(
            "pocache_tokens", "Tokens generated, and tokens prefilled to verify.", ["work"], registry=registry
        )
        self.engine_jobs = Histogram(
            "pocache_engine_batch_jobs",
            "Jobs in one step of the engine.",
            ["work"],
            buckets=_SIZES,
            registry=registry,
        )
        self.engine_s = Histogram(
            "pocache_engine_seconds",
            "How long a generation or a verification took in the engine.",
            ["work"],
            buckets=_LONG_S,
            registry=registry,
        )
        self.commit_s = Histogram(
            "pocache_commit_seconds",
            "How long it took to make a generation's leaves durable.",
            buckets=_SHORT_S,
            registry=registry,
        )

    def _define_gateway(self, registry: CollectorRegistry) -> None:
        self.gateway_requests = Counter(
            "pocache_gateway_requests",
            "HTTP requests answered, by route and status; a stream counts when it has ended.",
            ["route", "status"],
            registry=registry,
        )
        self.gateway_refusals = Counter(
            "pocache_gateway_refusals",
            "Requests and streams that ended with an error, by the error's code.",
            ["reason"],
            registry=registry,
        )
        self.gateway_jobs = Gauge(
            "pocache_gateway_jobs", "Jobs in hand: submitted, and their text not complete.", registry=registry
        )
        self.gateway_streams = Gauge("pocache_gateway_streams", "Answers that stream now.", registry=registry)
        self.gateway_first_token_s = Histogram(
            "pocache_gateway_first_token_seconds",
            "From a job's submission to its first tokens: queue, escrow, lease, prefill and the way here.",
            buckets=_LONG_S,
            registry=registry,
        )
        self.gateway_tokens = Counter(
            "pocache_gateway_tokens", "Tokens that came for jobs in hand.", registry=registry
        )

    def observe_said(self, bodies: Sequence[WireModel]) -> None:
        """Count what a service has said; call it once the transaction of these messages is durable."""
        for body in bodies:
            self.said.labels(type(body).kind).inc()
            if isinstance(body, m.JobEventV1):
                self.jobs.labels(body.phase).inc()
            elif isinstance(body, m.OutcomeV1):
                self._observe_outcome(body)
            elif isinstance(body, m.EjectionV1):
                self.ejections.labels(body.test).inc()
            elif isinstance(body, m.PayoutSettledV1):
                self.payouts.labels(body.case).inc()
                self.money_moved_micro.labels(body.case).inc(sum(line.amount_micro for line in body.lines))
                self.slashed.labels(body.case).inc(len(body.slashed))

    def observe_totals(self, *, deposited_micro: int, held_micro: int, open_pools: int) -> None:
        """Set what the ledger's accounts add up to."""
        self.residue_micro.set(deposited_micro - held_micro)
        self.held_micro.set(held_micro)
        self.open_pools.set(open_pools)

    def render(self) -> str:
        """Return everything in Prometheus' text form."""
        return generate_latest(self.registry).decode()

    def _observe_outcome(self, body: m.OutcomeV1) -> None:
        self.outcomes.labels(body.case).inc()
        for one in body.comparisons:
            self.comparisons.labels(one.verdict).inc()
            self.distance_mean.labels(one.verdict).observe(one.mean_q16 / _Q16)
            self.distance_peak.labels(one.verdict).observe(one.peak_q16 / _Q16)
