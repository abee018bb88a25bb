"""``pocache``: every verb of a user, an operator and an auditor.

Commands are imported when they are called, so that help is instant and a receipt is verified without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final

import click

COMMANDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "demo": (
        "pocache_cli.demo",
        "demo",
        "Run the whole network here, with honest and cheating workers, and see who is paid.",
    ),
    "up": ("pocache_cli.up", "up", "Run a network here until stopped."),
    "serve": ("pocache_cli.serve", "serve", "Run one service."),
    "submit": ("pocache_cli.submit", "submit", "Send a prompt; stream the text, then the verdict."),
    "jobs": ("pocache_cli.jobs", "jobs", "Show jobs and where they stand, or the way that one went."),
    "receipt": ("pocache_cli.receipts", "receipt", "Fetch the receipt of a job."),
    "verify": ("pocache_cli.receipts", "verify", "Judge a receipt step by step, without a network."),
    "explain": ("pocache_cli.receipts", "explain", "Say in plain words what became of a job."),
    "audit": ("pocache_cli.audit", "audit", "Replay the whole record and check all that can be computed."),
    "witness": ("pocache_cli.witness", "witness", "Cosign the commitment log as long as it only grows."),
    "workers": (
        "pocache_cli.workers",
        "workers",
        "Show who generates and verifies, and who was slashed for what.",
    ),
    "top": ("pocache_cli.top", "top", "Watch the network: jobs by state, workers, rounds, rates."),
    "doctor": (
        "pocache_cli.doctor",
        "doctor",
        "Check all that has to be right before jobs are: clock, keys, streams, model.",
    ),
    "balance": ("pocache_cli.balance", "balance", "Show what a participant has, has staked, and has locked."),
    "statement": ("pocache_cli.money", "statement", "Show every movement of a participant's money."),
    "withdraw": ("pocache_cli.money", "withdraw", "Ask for a participant's money or stake back."),
    "deposit": ("pocache_cli.deposit", "deposit", "Credit a participant, as the operator."),
    "owner": ("pocache_cli.owner", "owner", "Attest whose a participant is, as the operator."),
    "keys": ("pocache_cli.keys", "keys", "Make a network's keys, and divide them for a deployment."),
    "api-keys": ("pocache_cli.api_keys", "api_keys", "Issue, list and revoke the gateway's API keys."),
    "provision": ("pocache_cli.provision", "provision", "Create a network's streams and consumers."),
    "calibrate": (
        "pocache_cli.calibrate",
        "calibrate",
        "Measure what honest looks like for a model on this machine.",
    ),
    "open": (
        "pocache_cli.open_mode",
        "open_mode",
        "Check vectors of a job with one verifier, by the paper's open mode.",
    ),
    "evaluate": (
        "pocache_cli.evaluate",
        "evaluate",
        "Measure which cheats are found, and that honest work is not rejected.",
    ),
    "economics": ("pocache_cli.economics", "economics", "Show the payment rules with numbers."),
    "beacon": ("pocache_cli.beacon_verify", "beacon", "Check rounds of a randomness beacon."),
    "bench": ("pocache_cli.bench", "bench", "Run the benchmarks, where this runs from its source."),
    "completion": ("pocache_cli.completion", "completion", "Print a shell's completion script."),
}
"""Name: module, object, one line of help."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, name, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="proof-of-cache", prog_name="pocache")
def main() -> None:
    """Proof of Cache: verified LLM inference as a service.

    A generator commits to its KV cache, randomness that nobody could foresee asks for a few samples, verifiers re-run
    the known tokens as one prefill and compare, and a stake pool pays the honest and slashes the rest.

    Every command takes --json, and exits 0 for yes, 1 for no, 2 for wrong usage.
    """


if __name__ == "__main__":
    main()
