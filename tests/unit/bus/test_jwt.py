"""NATS JWTs and credentials: what was signed reads back, and every changed byte or wrong issuer is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from pocache.bus.jwt import (
    Credentials,
    KeyKind,
    make_key_pair,
    parse_credentials,
    read_claims,
    read_public,
    sign_claims,
    verify_unexpired,
)
from pocache.protocol.errors import ConfigError
from pocache.runtime.network import CREDENTIALS_TEXT

OPERATOR = make_key_pair(KeyKind.OPERATOR, b"o" * 32)
ACCOUNT = make_key_pair(KeyKind.ACCOUNT, b"a" * 32)
USER = make_key_pair(KeyKind.USER, b"u" * 32)
OTHER = make_key_pair(KeyKind.USER, b"v" * 32)
ISSUED_S = 1_800_000_000


def make_token(signer: str = ACCOUNT.seed, kind: str = "user", **fields: Any) -> str:
    """Return a token about the user."""
    claims = {"sub": USER.public, "name": "ada", "nats": {"type": kind, "version": 2}, **fields}
    return sign_claims(signer, claims, issued_s=ISSUED_S)


def test_what_was_signed_reads_back() -> None:
    claims = read_claims(make_token(exp=ISSUED_S + 60))
    assert (claims.issuer, claims.subject, claims.name) == (ACCOUNT.public, USER.public, "ada")
    assert (claims.expires_s, claims.body["type"]) == (ISSUED_S + 60, "user")


def test_every_changed_character_is_refused() -> None:
    token = make_token()
    for index in range(0, len(token), 7):
        if token[index] != "." and index != len(token) - 1:  # the last one has bits that say nothing
            other = "A" if token[index] != "A" else "B"
            with pytest.raises(ConfigError):
                read_claims(token[:index] + other + token[index + 1 :])


@pytest.mark.parametrize(
    ("signer", "kind"),
    [(OPERATOR.seed, "user"), (USER.seed, "user"), (ACCOUNT.seed, "account"), (ACCOUNT.seed, "x")],
)
def test_an_issuer_of_the_wrong_kind_is_refused(signer: str, kind: str) -> None:
    with pytest.raises(ConfigError, match="is not what"):
        read_claims(make_token(signer, kind))


def test_another_algorithm_is_refused() -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()
    _, payload, signature = make_token().split(".")
    with pytest.raises(ConfigError, match="not signed by Ed25519"):
        read_claims(f"{header}.{payload}.{signature}")


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "....", "\u00e9.\u00e9.\u00e9", "A" * (2 << 20)])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_claims(text)


def test_credentials_are_a_seed_with_its_own_jwt() -> None:
    text = CREDENTIALS_TEXT.format(jwt=make_token(), seed=USER.seed)
    assert parse_credentials(text) == Credentials(USER.seed, make_token())
    assert parse_credentials(USER.seed + "\n") == Credentials(USER.seed)
    with pytest.raises(ConfigError, match="another key than the seed"):
        parse_credentials(CREDENTIALS_TEXT.format(jwt=make_token(), seed=OTHER.seed))


@pytest.mark.parametrize("seed", [OPERATOR.seed, ACCOUNT.seed, "SUAnonsense", ""])
def test_what_is_no_users_seed_is_refused(seed: str) -> None:
    with pytest.raises(ConfigError):
        parse_credentials(seed)


def test_a_key_is_of_its_kind() -> None:
    assert read_public(OPERATOR.seed, KeyKind.OPERATOR)[0] == "O"
    with pytest.raises(ConfigError, match="not a account"):
        read_public(OPERATOR.seed, KeyKind.ACCOUNT)
    with pytest.raises(ConfigError, match="32 bytes"):
        make_key_pair(KeyKind.USER, b"short")


def test_an_expired_jwt_says_what_to_do() -> None:
    credentials = Credentials(USER.seed, make_token(exp=ISSUED_S + 60))
    verify_unexpired(credentials, "ada", ISSUED_S + 59)
    verify_unexpired(Credentials(USER.seed), "ada", ISSUED_S + 1e9)
    with pytest.raises(ConfigError, match="expired 0 s ago: .*pocache keys issue ada"):
        verify_unexpired(credentials, "ada", ISSUED_S + 60)
