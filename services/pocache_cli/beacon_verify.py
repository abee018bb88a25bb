"""`pocache beacon verify`: checks one drand or local round, given scheme, key, round and signature.

Owns the command's arguments, output and exit codes: 0 the round is the key's, 1 it is not, 2 the question is not one
(not hexadecimal, unknown scheme, a previous signature missing or out of place). Asks no network: a key is
trusted because the caller typed it.
"""

from __future__ import annotations

import json
import sys
from typing import Final, TypedDict

import click

# Written out so that `--help` loads no cryptography; a test holds them against the protocol's.
SCHEMES: Final = (
    "pedersen-bls-chained",
    "pedersen-bls-unchained",
    "bls-unchained-on-g1",
    "bls-unchained-g1-rfc9380",
)
SCHEME_CHAINED: Final = "pedersen-bls-chained"

EXIT_VALID: Final = 0
EXIT_INVALID: Final = 1


class BeaconVerdict(TypedDict):
    """What the command answers."""

    valid: bool
    randomness: str | None


@click.group()
def beacon() -> None:
    """Public randomness: the rounds that decide every draw."""


@beacon.command()
@click.option(
    "--scheme", required=True, type=click.Choice(SCHEMES), help="How the chain signs, by drand's name."
)
@click.option("--public-key", required=True, metavar="HEX", help="The chain's public key, compressed.")
@click.option(
    "--round", "round_number", required=True, type=click.IntRange(min=1), help="Number of the round."
)
@click.option("--signature", required=True, metavar="HEX", help="The round's signature, compressed.")
@click.option(
    "--previous-signature",
    metavar="HEX",
    help="Chained scheme only: the signature of the round before; for round 1 the genesis seed (groupHash).",
)
@click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")
def verify(
    *,
    scheme: str,
    public_key: str,
    round_number: int,
    signature: str,
    previous_signature: str | None,
    as_json: bool,
) -> None:
    """Check that a key signed a round, and print the round's randomness.

    Exits 0 when it did, 1 when it did not, 2 when the arguments are no round at all.
    """
    try:
        verdict = verify_beacon_command(scheme, public_key, round_number, signature, previous_signature)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(json.dumps(verdict))
    elif verdict["valid"]:
        click.echo(f"valid: round {round_number} was signed by this key\nrandomness: {verdict['randomness']}")
    else:
        click.echo(f"invalid: round {round_number} was not signed by this key")
    sys.exit(EXIT_VALID if verdict["valid"] else EXIT_INVALID)


def verify_beacon_command(
    scheme: str,
    public_key_hex: str,
    round: int,  # noqa: A002 - the option's own name
    signature_hex: str,
    previous_signature_hex: str | None = None,
) -> BeaconVerdict:
    """Return whether the key signed the round, and the randomness in hexadecimal, or None where it did not.

    ValueError when the question itself is malformed: another scheme than drand's, a text that is not hexadecimal,
    a previous signature that the scheme needs or does not have.
    """
    # Loaded here: the command line's help answers without the pairing library.
    from pocache.protocol.beacon import Scheme, verify_round_signature
    from pocache.protocol.errors import BeaconError

    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}; one of {', '.join(SCHEMES)}")
    if scheme == SCHEME_CHAINED and previous_signature_hex is None:
        raise ValueError(f"{scheme} signs the round before: give its signature with --previous-signature")
    if scheme != SCHEME_CHAINED and previous_signature_hex is not None:
        raise ValueError(f"{scheme} does not sign the round before: leave --previous-signature out")
    public_key = _decode_hex("public key", public_key_hex)
    signature = _decode_hex("signature", signature_hex)
    previous = (
        None if previous_signature_hex is None else _decode_hex("previous signature", previous_signature_hex)
    )
    try:
        randomness = verify_round_signature(Scheme(scheme), public_key, round, signature, previous)
    except BeaconError:
        return {"valid": False, "randomness": None}
    return {"valid": True, "randomness": randomness.hex()}


def _decode_hex(name: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ValueError(f"the {name} is not hexadecimal") from error
