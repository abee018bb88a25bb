"""Every `pocache` command in the documents exists, with the options that it is given there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pocache_cli.main import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
)
COMMAND = re.compile(r"(?<![\w.-])(?<!-n )(?<!-c )pocache (?P<rest>[a-z-][^`\n#|&;)>]*)")


def read_commands(file: Path) -> list[str]:
    """Return what follows `pocache` in code blocks and between backquotes."""
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = []
    for piece in (*blocks, *(one for one in inline if one.startswith(("pocache ", ".venv/bin/pocache ")))):
        found += [match["rest"].strip() for match in COMMAND.finditer(piece)]
    return found


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words name, and what is left of them."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words:
        inner = command.get_command(context, words[0])
        if inner is None:
            break
        command, words = inner, words[1:]
    return command, words


CASES = sorted({(file.name, rest) for file in DOCUMENTS for rest in read_commands(file)})


@pytest.mark.parametrize(("file", "rest"), CASES)
def test_a_command_and_its_options_exist(file: str, rest: str) -> None:
    del file
    command, left = find(shlex.split(rest.replace("...", ""), posix=True))
    assert command is not main, rest
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    used = {word.split("=")[0] for word in left if re.fullmatch(r"--?[a-z][a-z-]*(?:=.*)?", word)}
    assert used <= known, rest


def test_there_are_commands_to_look_at() -> None:
    assert len(CASES) > 50
    assert {find(shlex.split(rest))[0].name for _, rest in CASES} >= {
        "up",
        "submit",
        "receipt",
        "audit",
        "create",
    }
