"""`pocache beacon verify`: the public rounds, exit codes, and output that scripts can read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from pocache.protocol.beacon import Scheme
from pocache_cli.beacon_verify import SCHEME_CHAINED, SCHEMES, beacon, verify_beacon_command

QUICKNET = {
    "--scheme": "bls-unchained-g1-rfc9380",
    "--public-key": (
        "83cf0f2896adee7eb8b5f01fcad3912212c437e0073e911fb90022d3e760183c8c4b450b6a0a6c3ac6a5776a2d106451"
        "0d1fec758c921cc22b0e17e63aaf4bcb5ed66304de9cf809bd274ca73bab4af5a6e9c76a4bc09e76eae8991ef5ece45a"
    ),
    "--round": "123",
    "--signature": (
        "b75c69d0b72a5d906e854e808ba7e2accb1542ac355ae486d591aa9d43765482e26cd02df835d3546d23c4b13e0dfc92"
    ),
}
QUICKNET_RANDOMNESS = "fb8f7bc29bf24db51871ec8c79f3a1e4bd0557bc0dfcee9ed1d924e69d1c60dc"
MAINNET = {
    "--scheme": "pedersen-bls-chained",
    "--public-key": (
        "868f005eb8e6e4ca0a47c8a77ceaa5309a47978a7c71bc5cce96366b5d7a569937c529eeda66c7293784a9402801af31"
    ),
    "--round": "1",
    "--signature": (
        "8d61d9100567de44682506aea1a7a6fa6e5491cd27a0a0ed349ef6910ac5ac20ff7bc3e09d7c046566c9f7f3c6f3b101"
        "04990e7cb424998203d8f7de586fb7fa5f60045417a432684f85093b06ca91c769f0e7ca19268375e659c2a2352b4655"
    ),
    "--previous-signature": "176f93498eac9ca337150b46d21dd58673ea4e3581185f869672e59fa4cb390a",
}
MAINNET_RANDOMNESS = "101297f1ca7dc44ef6088d94ad5fb7ba03455dc33d53ddb412bbc4564ed986ec"


def invoke(options: dict[str, str], *flags: str) -> Result:
    arguments = [part for pair in options.items() for part in pair]
    return CliRunner().invoke(beacon, ["verify", *arguments, *flags])


@pytest.mark.parametrize(
    ("options", "randomness"), [(QUICKNET, QUICKNET_RANDOMNESS), (MAINNET, MAINNET_RANDOMNESS)]
)
def test_a_public_round_is_valid(options: dict[str, str], randomness: str) -> None:
    """Exit 0, the published randomness, in JSON and in words."""
    result = invoke(options, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"valid": True, "randomness": randomness}
    words = invoke(options)
    assert words.exit_code == 0
    assert words.stdout.startswith("valid: ")
    assert randomness in words.stdout


@pytest.mark.parametrize(
    "change",
    [
        {"--round": "124"},
        {"--round": str(2**64)},
        {"--signature": QUICKNET["--signature"][:-1] + "3"},
        {"--signature": "c0" + "00" * 47},
        {"--signature": ""},
        {"--public-key": "c0" + "00" * 95},
        {"--public-key": MAINNET["--public-key"]},
        {"--scheme": "bls-unchained-on-g1"},
        {"--scheme": "pedersen-bls-unchained"},
    ],
    ids=str,
)
def test_a_forged_round_is_invalid(change: dict[str, str]) -> None:
    """Exit 1 and no randomness, in JSON and in words."""
    result = invoke({**QUICKNET, **change}, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"valid": False, "randomness": None}
    words = invoke({**QUICKNET, **change})
    assert words.exit_code == 1
    assert words.stdout.startswith("invalid: ")
    assert "randomness" not in words.stdout


def test_another_previous_signature_is_invalid() -> None:
    """A chained round signs exactly what came before it."""
    assert invoke({**MAINNET, "--previous-signature": "00" * 32}).exit_code == 1


@pytest.mark.parametrize(
    "options",
    [
        {**QUICKNET, "--signature": "xyz"},
        {**QUICKNET, "--public-key": "0x83"},
        {**MAINNET, "--previous-signature": "abc"},
        {**QUICKNET, "--scheme": "bls-bn254-unchained-on-g1"},
        {**QUICKNET, "--round": "0"},
        {**QUICKNET, "--round": "one"},
        {**QUICKNET, "--previous-signature": "00" * 32},
        {name: value for name, value in MAINNET.items() if name != "--previous-signature"},
        {name: value for name, value in QUICKNET.items() if name != "--signature"},
    ],
    ids=[
        "signature not hex",
        "key not hex",
        "previous not hex",
        "unknown scheme",
        "round zero",
        "round a word",
        "previous out of place",
        "previous missing",
        "signature missing",
    ],
)
def test_a_malformed_question_is_a_usage_error(options: dict[str, str]) -> None:
    """Exit 2, nothing on standard output, the reason on standard error."""
    result = invoke(options, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_the_function_refuses_an_unknown_scheme() -> None:
    """Also where no command line stands before it."""
    with pytest.raises(ValueError, match="unknown scheme"):
        verify_beacon_command("ed25519", QUICKNET["--public-key"], 123, QUICKNET["--signature"], None)


def test_the_schemes_are_the_protocols() -> None:
    """The names written out for the help are the protocol's own."""
    assert set(SCHEMES) == {scheme.value for scheme in Scheme}
    assert [scheme.value for scheme in Scheme if scheme.is_chained] == [SCHEME_CHAINED]


def test_importing_the_command_loads_no_cryptography() -> None:
    """The help answers at once."""
    code = "import sys, pocache_cli.beacon_verify; sys.exit('py_arkworks_bls12381' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
