"""How a command fails: one line that says what is wrong and with which code, and the exit code that scripts read.

0 is yes, 1 is no, 2 is wrong usage or configuration.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from pocache.protocol.errors import ConfigError, PocacheError


@contextmanager
def exit_on_error(command: str, *, as_json: bool) -> Iterator[None]:
    """End the process with its code when the block raises one of the project's own errors."""
    try:
        yield
    except PocacheError as error:
        code = getattr(error, "refusal_code", error.code)
        reason = getattr(error, "reason", str(error))
        if as_json:
            click.echo(json.dumps({"event": "error", "code": code, "reason": reason}))
        click.echo(f"pocache {command}: {code}: {reason}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
