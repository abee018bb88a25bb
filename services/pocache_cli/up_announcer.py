"""What ``pocache up`` says: progress, then where the network is and how to use it, for people or as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pocache_cli.up_plan import DIRECTORY_DEFAULT, NETWORK_FOLDER, WITNESS_PREFIX, Options

if TYPE_CHECKING:
    from pocache_cli.local_network import LocalNetwork

_UP_LABEL: Final = "pocache up"


class Announcer:
    """What the command says: progress on standard error and the rest on standard output, or JSON lines."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.was_ready = False

    def say(self, text: str) -> None:
        """Say what is going on."""
        if self._options.as_json:
            self._write("progress", text=text)
        else:
            click.echo(text, err=True)

    def announce(self, network: LocalNetwork) -> None:
        """Say that the network is ready, where it is, and how to use it."""
        from pocache_cli.bootstrap import read_roles

        self.was_ready = True
        path = network.directory.path
        users = [
            name
            for name, role in read_roles(network.directory).items()
            if role.value == "user" and not name.startswith(WITNESS_PREFIX)
        ]
        models = {model_id.hex(): one.entry.name for model_id, one in network.directory.load_models().items()}
        hints = self._make_hints(path, users)
        gateway = self._make_gateway(network, users[0])
        if self._options.as_json:
            self._write(
                "ready",
                url=network.server.url,
                network_dir=str(path),
                network_id=network.directory.genesis.network_id.hex(),
                users=users,
                models=models,
                submit=hints[0],
                pids={name: child.pid for name, child in network.children.items()},
                **({} if gateway is None else {"gateway": gateway}),
            )
            return
        click.echo(f"ready at {network.server.url}")
        click.echo(f"  network  {path}")
        click.echo(f"  users    {', '.join(users)}")
        for hint in hints:
            click.echo(f"  {hint}")
        if gateway is not None:
            click.echo(f"  gateway  {gateway['url']}  (OpenAI's clients: base_url={gateway['url']}/v1)")
            click.echo(f"  explorer {gateway['explorer']}")
            click.echo(f"  key      {gateway['key']}  (of {users[0]}; more by `pocache api-keys issue`)")
        click.echo("  Ctrl-C stops it; the same command starts it again")

    def _make_gateway(self, network: LocalNetwork, account: str) -> dict[str, str] | None:
        """Return where the gateway is, with a key of the first user's; None when there is none."""
        if self._options.gateway_port is None:
            return None
        from pocache.storage.api_keys import open_api_keys

        state = network.directory.path / "state"
        state.mkdir(parents=True, exist_ok=True)
        with open_api_keys(f"sqlite:///{state / 'gateway.sqlite'}") as store:
            for one in store.list():
                if one.label == _UP_LABEL:
                    store.revoke(one.key_id)  # of the start before: nobody can show it again
            secret, _ = store.issue(account, label=_UP_LABEL)
        url = f"http://127.0.0.1:{self._options.gateway_port}"
        return {"url": url, "key": secret, "explorer": f"{url}/explorer"}

    def _make_hints(self, path: Path, users: Sequence[str]) -> tuple[str, ...]:
        is_default = path == (DIRECTORY_DEFAULT / NETWORK_FOLDER).absolute()
        where = "" if is_default else f" --network-dir {path}"
        is_fake = (self._options.model or "").startswith("fake:")
        what = "--tokens 1,2,3" if is_fake else '"Once upon a time"'
        return (
            f"pocache submit {what} --as {users[0]}{where}",
            f"pocache balance {users[0]}{where}",
        )

    @staticmethod
    def _write(event: str, **fields: Any) -> None:
        click.echo(json.dumps({"event": event, **fields}))
        sys.stdout.flush()
