"""``pocache completion``: the script that teaches a shell the names of commands and options."""

from __future__ import annotations

import json

import click

VARIABLE = "_POCACHE_COMPLETE"


@click.command(
    epilog="""Examples:

\b
  pocache completion bash >> ~/.bashrc
  pocache completion zsh > "${fpath[1]}/_pocache"
  pocache completion fish > ~/.config/fish/completions/pocache.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def completion(*, shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL: commands, options and their values by the Tab key."""
    from click.shell_completion import get_completion_class

    from pocache_cli.main import main

    found = get_completion_class(shell)
    assert found is not None, "click knows the shells that the argument allows"
    maker = found(main, {}, "pocache", VARIABLE)
    script = maker.source_template % maker.source_vars()
    click.echo(json.dumps({"shell": shell, "script": script}) if as_json else script)
