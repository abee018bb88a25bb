"""``python -m fuzz``: feed every decoder that faces outside changed bytes; exits 1 at the first crash, hang or leak.

With atheris installed each target runs in a process of its own under libFuzzer, guided by the branches that an input
reaches; without it the changes are drawn from a seed. What crashes is written to a file, and ``--input`` feeds it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fuzz.mutate import mutate
from fuzz.targets import TARGETS, Target
from pocache.runtime.telemetry import configure_logging

INPUT_S_MAX: Final = 10.0
MEMORY_MB_MAX: Final = 1_024
GROWTH_KB_MAX: Final = 200 * 1_024


def main() -> int:
    """Run as told by the arguments."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=[one.name for one in TARGETS], help="default: all"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="drawn changes, even where atheris is installed")
    parser.add_argument("--guided", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help="feed this file to the one target")
    options = parser.parse_args()
    configure_logging("error")
    chosen = [one for one in TARGETS if not options.target or one.name in options.target]
    if options.input is not None:
        sys.stdout.write(f"understood: {chosen[0].feed(options.input.read_bytes())}\n")
        return 0
    if options.guided:
        return _run_guided(chosen[0], options.seconds, options.seed)
    is_guided = not options.plain and importlib.util.find_spec("atheris") is not None
    is_whole = True
    for target in chosen:
        if is_guided:
            report = _start_guided(target, options.seconds, options.seed)
        else:
            report = run_plain(target, seed=options.seed, seconds=options.seconds)
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
        is_whole = is_whole and not report["crash"]
    return 0 if is_whole else 1


def run_plain(target: Target, *, seed: int, seconds: float = 0.0, count: int = 0) -> dict[str, Any]:
    """Feed a target drawn changes for so long, or so many; report how many, how slow, and the first crash."""
    corpus = list(target.make_corpus())
    for data in corpus:
        target.feed(data)
    draw = random.Random(f"pocache fuzz {target.name} {seed}")
    started_s, memory_kb = time.monotonic(), _read_memory_kb()
    inputs = understood = 0
    slowest_s = 0.0
    crash = ""
    while not crash and (inputs < count or time.monotonic() - started_s < seconds):
        data = mutate(draw, corpus, target.bytes_max)
        before_s = time.thread_time()
        try:
            understood += target.feed(data)
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            crash = _keep(target, data, repr(error))
        slowest_s = max(slowest_s, time.thread_time() - before_s)
        if slowest_s > INPUT_S_MAX and not crash:
            crash = _keep(target, data, f"{slowest_s:.1f} s for one input")
        inputs += 1
    grown_kb = _read_memory_kb() - memory_kb
    if grown_kb > GROWTH_KB_MAX and not crash:
        crash = f"memory grew by {grown_kb} kB"
    return {
        "target": target.name,
        "engine": "seeded",
        "inputs": inputs,
        "understood": understood,
        "seconds": round(time.monotonic() - started_s, 1),
        "slowest_ms": round(slowest_s * 1_000, 1),
        "grown_kb": grown_kb,
        "crash": crash,
    }


def _start_guided(target: Target, seconds: float, seed: int) -> dict[str, Any]:
    """Run libFuzzer in a process of its own: it ends its process at the first crash."""
    with tempfile.TemporaryDirectory(prefix="pocache-fuzz-") as folder:
        started_s = time.monotonic()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "fuzz",
                "--guided",
                f"--target={target.name}",
                f"--seconds={seconds}",
                f"--seed={seed}",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(one).resolve()) for one in sys.path)},
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        tail = done.stderr[-4_000:]
        crash = ""
        if done.returncode != 0 or not any(" cov: " in line for line in done.stderr.splitlines()):
            kept = [
                _keep(target, file.read_bytes(), tail) for file in Path(folder).glob("*-*") if file.is_file()
            ]
            crash = "; ".join(kept) or f"exit code {done.returncode}: {tail}"
    told = [line for line in done.stderr.splitlines() if line.startswith("#") and " cov: " in line]
    return {
        "target": target.name,
        "engine": "libFuzzer",
        "inputs": _read_number(told, "#"),
        "branches": _read_number(told, " cov: "),
        "peak_mb": _read_number(told, " rss: "),
        "seconds": round(time.monotonic() - started_s, 1),
        "crash": crash,
    }


def _read_number(told: Sequence[str], name: str) -> int:
    """Return the number behind a name in libFuzzer's last line."""
    found = re.search(re.escape(name) + r"(\d+)", told[-1]) if told else None
    return int(found.group(1)) if found else 0


def _run_guided(target: Target, seconds: float, seed: int) -> int:
    """Hand the process to libFuzzer."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with tempfile.TemporaryDirectory(prefix="pocache-corpus-") as folder:
        for number, data in enumerate(target.make_corpus()):
            (Path(folder) / f"{number:04}").write_bytes(data)
        _instrument(atheris)
        arguments = [
            "fuzz",
            f"-seed={seed}",
            f"-max_total_time={max(1, round(seconds))}",
            f"-timeout={INPUT_S_MAX:.0f}",
            f"-rss_limit_mb={MEMORY_MB_MAX}",
            f"-max_len={target.bytes_max}",
            "-print_final_stats=1",
            folder,
        ]

        def feed(data: bytes) -> None:
            target.feed(data)

        atheris.Setup(arguments, feed)
        atheris.Fuzz()
    return 0


def _instrument(atheris: Any) -> None:
    """Have the decoders' branches counted."""
    import pocache.protocol
    import pocache.receipt
    import pocache.wire

    prefixes = tuple(f"{one.__name__}." for one in (pocache.protocol, pocache.receipt, pocache.wire))
    outside = ("pocache_beacon.drand", "pocache_gateway.")
    names = [name for name in sys.modules if name.startswith((*prefixes, *outside))]
    for name in names:
        module = sys.modules[name]
        for attribute, value in list(vars(module).items()):
            if getattr(value, "__module__", None) == name and callable(value) and hasattr(value, "__code__"):
                atheris.instrument_func(value)
    assert names


def _keep(target: Target, data: bytes, what: str) -> str:
    """Write a crashing input down and say how to feed it again."""
    file = Path(tempfile.gettempdir()) / f"pocache-fuzz-{target.name}-{abs(hash(data)):x}"
    file.write_bytes(data)
    return f"{what}; again: python -m fuzz --target {target.name} --input {file}"


def _read_memory_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
