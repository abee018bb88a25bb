"""``--rules``: by which rule set a new network is paid."""

from __future__ import annotations

from typing import Final

import click

from pocache.protocol.payoff import FIXED_FEE_COMMITTEE, RULES_DEFAULT, UNIFIED_POOL

RULES: Final = (FIXED_FEE_COMMITTEE, UNIFIED_POOL)

rules_option: Final = click.option(
    "--rules",
    type=click.Choice(RULES),
    default=RULES_DEFAULT,
    show_default=True,
    help="The rules of payment: fixed fees with audits and committees, or the paper's Table 1.",
)
