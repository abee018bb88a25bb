"""``python -m chaos``: a network under drawn faults; exits 1 when an invariant broke, and says how to see it again."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path

import structlog

from chaos.faults import ALL_KINDS, Fault, Kind, draw_schedule
from chaos.harness import Plan
from chaos.run import Report, run_chaos
from pocache.runtime.telemetry import configure_logging

CLUSTER_LEAVES_OUT = frozenset({Kind.BUS_DISK})
"""One disk for all nodes fails all of them, which is the single server's case."""


def main() -> int:
    """Run as told by the arguments."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--waves", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=40, help="jobs a wave")
    parser.add_argument("--faults", type=int, default=4, help="faults a wave")
    parser.add_argument("--wave-s", type=float, default=6.0, help="how long a wave submits, seconds")
    parser.add_argument("--kinds", default="", help=f"only these, of {','.join(ALL_KINDS)}")
    parser.add_argument(
        "--cluster", action="store_true", help="three nats-servers, each stream on all of them"
    )
    parser.add_argument("--dir", type=Path, help="where the network and its logs are kept (default: nowhere)")
    parser.add_argument("--schedule", action="store_true", help="print the schedule and end")
    options = parser.parse_args()
    kinds = [Kind(name) for name in options.kinds.split(",") if name] or list(ALL_KINDS)
    if options.cluster:
        kinds = [kind for kind in kinds if kind not in CLUSTER_LEAVES_OUT]
    faults = (
        draw_schedule(options.seed, waves=options.waves, faults_per_wave=options.faults, kinds=kinds)
        if options.faults
        else []
    )
    if options.schedule:
        _print_schedule(faults)
        return 0
    plan = Plan(
        options.seed, faults, options.waves, options.jobs, wave_s=options.wave_s, is_cluster=options.cluster
    )
    configure_logging("error")
    structlog.contextvars.bind_contextvars(process="chaos")
    if options.dir is not None:
        report = _run(options.dir, plan)
    else:
        with tempfile.TemporaryDirectory(prefix="pocache-chaos-") as folder:
            report = _run(Path(folder), plan)
    sys.stdout.write(json.dumps(report.to_dict(), indent=1) + "\n")
    if report.broken:
        sys.stderr.write(f"BROKEN: {report.broken}\nagain: python -m chaos {' '.join(sys.argv[1:])}\n")
    return 1 if report.broken else 0


def _run(folder: Path, plan: Plan) -> Report:
    # Ended from outside, it still stops its processes and takes its disks away.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return asyncio.run(run_chaos(folder, plan, say=_say))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _print_schedule(faults: list[Fault]) -> None:
    for fault in faults:
        sys.stdout.write(json.dumps(fault.describe()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
