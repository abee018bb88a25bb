"""``pocache bench``: the benchmarks of the source tree, which an installed package does not carry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from pocache.protocol.errors import ConfigError
from pocache_cli.children import pick_python_environment
from pocache_cli.failure import exit_on_error


@click.command(
    epilog="""Examples:

\b
  pocache bench beacon
  pocache bench ledger pipeline --json
"""
)
@click.argument("names", nargs=-1)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line: the machine, then each row."
)
def bench(*, names: tuple[str, ...], as_json: bool) -> None:
    """Run the benchmarks NAMES, all by default: times, and ratios against named baselines of the same run.

    They belong to the source: this runs where the package is installed from a checkout. All of them take about half an
    hour, and mean something on a machine that does nothing else. Recorded figures: bench/RESULTS.md.
    """
    with exit_on_error("bench", as_json=as_json):
        root = find_source()
        command = [sys.executable, "-m", "bench", *(["--json"] if as_json else []), "--", *names]
        paths = (str(root), str(root / "tests"), pick_python_environment()["PYTHONPATH"])
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    sys.exit(subprocess.run(command, env=environ, check=False).returncode)


def find_source() -> Path:
    """Return the checkout that this package runs from. Raises ConfigError when it was installed without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        raise ConfigError("the benchmarks come with the source: clone it, and run make bench there")
    return root
