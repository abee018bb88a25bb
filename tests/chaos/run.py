"""One run from its first wave to its report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chaos.harness import Plan, run_chaos_network
from chaos.invariants import (
    BrokenInvariantError,
    Ledgerbook,
    find_grown,
    is_refused,
    read_rss_kb,
    run_audit,
    verify_invariants,
)
from pocache.client import Job
from pocache.protocol.errors import PocacheError

AUDIT_EVERY_WAVES: Final = 10


@dataclass
class Report:
    """What happened."""

    seed: int
    is_cluster: bool
    jobs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    repeated_deliveries: int = 0
    late_deliveries: int = 0
    leases_lapsed: int = 0
    audits: int = 0
    audited_messages: int = 0
    seconds: float = 0.0
    wave_seconds: list[float] = field(default_factory=list)
    rss_kb: list[dict[str, int]] = field(default_factory=list)
    broken: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "seed": self.seed,
            "cluster": self.is_cluster,
            "jobs": self.jobs,
            "faults": sum(self.faults.values()),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "payouts_by_case": dict(sorted(self.cases.items())),
            "repeated_deliveries": self.repeated_deliveries,
            "late_deliveries": self.late_deliveries,
            "leases_lapsed": self.leases_lapsed,
            "audits_passed": self.audits,
            "audited_messages": self.audited_messages,
            "seconds": round(self.seconds, 1),
            "rss_kb_first": self.rss_kb[0] if self.rss_kb else {},
            "rss_kb_last": self.rss_kb[-1] if self.rss_kb else {},
            "broken": self.broken,
        }


async def run_chaos(folder: Path, plan: Plan, *, say: Callable[[str], None]) -> Report:
    """Play every wave; the report says in ``broken`` what did not hold, and the run ends there."""
    report = Report(plan.seed, plan.is_cluster)
    started_s = time.monotonic()
    async with run_chaos_network(folder, plan, say=say) as chaos:
        book = Ledgerbook(chaos.network)
        jobs: list[Job] = []
        try:
            for number in range(plan.waves):
                wave_s = time.monotonic()
                names = [f"{one.kind.value}:{one.target}" for one in plan.faults if one.wave == number]
                say(f"wave {number + 1} of {plan.waves}: {', '.join(names) or 'no faults'}")
                done = await chaos.run_wave(number)
                jobs += done
                await verify_invariants(book, done)
                report.rss_kb.append(read_rss_kb(chaos.get_pids()))
                report.wave_seconds.append(round(time.monotonic() - wave_s, 1))
                memory = ", ".join(
                    f"{name} {kb / 1_024:.1f}" for name, kb in sorted(report.rss_kb[-1].items())
                )
                say(f"  {len(jobs)} jobs over, {report.wave_seconds[-1]:g} s; memory (MB): {memory}")
                if (number + 1) % AUDIT_EVERY_WAVES == 0 or number + 1 == plan.waves:
                    audited = await run_audit(chaos.network.directory.path)
                    report.audits += 1
                    report.audited_messages = int(audited["messages"])
            await verify_invariants(book, jobs)
            grown = find_grown(report.rss_kb)
            if grown:
                raise BrokenInvariantError(f"memory did not come back (kB): {grown}")
        except (BrokenInvariantError, PocacheError, TimeoutError, ExceptionGroup) as error:
            report.broken = f"wave {len(report.wave_seconds) + 1}: {error}"
            if isinstance(error, ExceptionGroup):
                report.broken += f" {error.exceptions!r}"
        report.jobs = len(jobs)
        report.faults.update(fault.kind.value for fault in chaos.injected)
        report.cases.update(
            "refused" if is_refused(job) else book.cases.get(job.job_id, "none") for job in jobs
        )
        report.leases_lapsed = book.charged_count
        report.repeated_deliveries = sum(proxy.repeated_count for proxy in chaos.proxies.values())
        report.late_deliveries = sum(proxy.reordered_count for proxy in chaos.proxies.values())
    report.seconds = time.monotonic() - started_s
    return report
