"""The command's table of verbs: help is instant because nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pocache_cli.children import pick_python_environment
from pocache_cli.main import COMMANDS, main

HEAVY = ("torch", "transformers", "pydantic", "nats", "sqlalchemy", "numpy", "asyncio", "rich", "msgpack")


def imported_by(*arguments: str) -> set[str]:
    """Run the command in a process of its own and return the heavy packages that it imported."""
    code = (
        "import json, sys\n"
        "from pocache_cli.main import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"finally: print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **pick_python_environment()},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Usage:" in done.stdout
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help") == set()


@pytest.mark.parametrize("command", ["up", "submit", "balance", "serve", "demo", "calibrate"])
def test_a_commands_help_imports_no_engine_and_no_bus(command: str) -> None:
    assert (
        imported_by(command, "--help") & {"torch", "transformers", "pydantic", "nats", "sqlalchemy"} == set()
    )


def test_the_table_lists_every_command_that_exists() -> None:
    """Each name leads to a command of that name with a help of its own and ``--json``."""
    context = click.Context(main)
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.output
        command = main.get_command(context, name)
        assert command is not None
        assert command.help
        if not isinstance(command, click.Group):
            assert "--json" in {option for one in command.params for option in one.opts}


@pytest.mark.parametrize("arguments", [["nonsense"], ["submit", "--nonsense"], ["up", "--users"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2
