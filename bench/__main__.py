"""``make bench``: run the benchmarks named (all by default) and print a table for each."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys

BENCHMARKS = ("beacon", "protocol", "receipt", "ledger", "engine", "gateway", "explorer", "pipeline")


def main() -> None:
    """Print the machine, then a table per benchmark."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which benchmarks (default: all)")
    names = parser.parse_args().names or BENCHMARKS
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {sys.platform}\n"
    )
    for name in names:
        print(f"## {name}\n")
        print("| what | median ms | ± | baseline | median ms | ratio |")
        print("|---|---|---|---|---|---|")
        rows = importlib.import_module(f"bench.{name}").run()
        for row in rows:
            print(
                f"| {row.name} | {row.median_ms:.3f} | {row.spread_ms:.3f} | {row.baseline} "
                f"| {row.baseline_ms:.3f} | {row.ratio:.2f} |"
            )
        print("\n".join(["", *(row.note for row in rows if row.note), ""]))


if __name__ == "__main__":
    main()
