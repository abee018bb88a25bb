"""``make bench``, ``pocache bench``: run the benchmarks named (all by default) and print a table for each.

With ``--json`` one object a line: the machine, then every row when its benchmark ends. What a benchmark says beside its rows
goes to standard error then.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import TextIO

from bench.measure import Row

BENCHMARKS = ("beacon", "protocol", "receipt", "ledger", "engine", "gateway", "explorer", "pipeline")


def main() -> None:
    """Print the machine, then the rows of each benchmark."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object a line")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    write = _write_lines if given.as_json else _write_table
    out = sys.stdout
    _write_machine(out, as_json=given.as_json)
    for name in given.names or BENCHMARKS:
        with contextlib.redirect_stdout(sys.stderr) if given.as_json else contextlib.nullcontext():
            rows = importlib.import_module(f"bench.{name}").run()
        write(out, name, rows)


def _write_machine(out: TextIO, *, as_json: bool) -> None:
    machine, cores, python = platform.machine(), os.cpu_count(), platform.python_version()
    if as_json:
        told = {"machine": machine, "cores": cores, "python": python, "platform": sys.platform}
        print(json.dumps(told), file=out, flush=True)
    else:
        print(f"{machine}, {cores} cores, Python {python}, {sys.platform}\n", file=out, flush=True)


def _write_table(out: TextIO, name: str, rows: Sequence[Row]) -> None:
    lines = [
        f"## {name}\n",
        "| what | median ms | ± | baseline | median ms | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.median_ms:.3f} | {row.spread_ms:.3f} | {row.baseline} "
        f"| {row.baseline_ms:.3f} | {row.ratio:.2f} |"
        for row in rows
    ]
    print("\n".join([*lines, "", *(row.note for row in rows if row.note), ""]), file=out, flush=True)


def _write_lines(out: TextIO, name: str, rows: Sequence[Row]) -> None:
    for row in rows:
        told = {
            "benchmark": name,
            "what": row.name,
            "median_ms": row.median_ms,
            "spread_ms": row.spread_ms,
            "baseline": row.baseline,
            "baseline_ms": row.baseline_ms,
            "ratio": row.ratio,
            "note": row.note,
        }
        print(json.dumps(told, ensure_ascii=False), file=out, flush=True)


if __name__ == "__main__":
    main()
