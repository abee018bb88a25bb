"""NKeys and NATS JWTs in pure Python: what an operator signs about accounts, and an account about its users.

A token is ``header.claims.signature`` in unpadded base64url, signed by Ed25519 over the first two parts
(github.com/nats-io/jwt, version 2). Refused when read: another algorithm, a signature that is not its issuer's, an issuer
of the wrong kind, claims that are no claims. Not covered: what the claims permit. The server judges that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import nkeys

from pocache.protocol.errors import ConfigError

TOKEN_BYTES_MAX: Final = 1 << 20
_HEADER: Final = b'{"typ":"JWT","alg":"ed25519-nkey"}'
_PREFIXES: Final[Mapping[str, int]] = {
    "O": nkeys.PREFIX_BYTE_OPERATOR,
    "A": nkeys.PREFIX_BYTE_ACCOUNT,
    "U": nkeys.PREFIX_BYTE_USER,
}
_PUBLIC: Final = re.compile(r"[OAU][A-Z2-7]{55}")
_ISSUER_OF: Final[Mapping[str, str]] = {"operator": "O", "account": "O", "user": "A"}
_CREDENTIALS: Final = re.compile(
    r"-----BEGIN NATS USER JWT-----\s+(?P<jwt>[A-Za-z0-9_.-]+)\s+-+END NATS USER JWT-+\s+"
    r"(?:.*\s)*?-----BEGIN USER NKEY SEED-----\s+(?P<seed>S[A-Z2-7]+)\s+-+END USER NKEY SEED-+"
)


class KeyKind(StrEnum):
    """What a key pair is: the first letter of its public NKey."""

    OPERATOR = "O"
    ACCOUNT = "A"
    USER = "U"


class KeyPair(NamedTuple):
    """A seed and its public key, in NKey text."""

    seed: str
    public: str


class Claims(NamedTuple):
    """What a token says: who signed it about whom, until when (0: without end), and the rest as it stands."""

    issuer: str
    subject: str
    name: str
    expires_s: int
    body: Mapping[str, Any]


class Credentials(NamedTuple):
    """How a NATS client proves who it is: the seed of its key and, where accounts are used, its JWT."""

    seed: str
    jwt: str | None = None


def make_key_pair(kind: KeyKind, entropy: bytes) -> KeyPair:
    """Return the key pair of 32 bytes of entropy. Raises ConfigError on another length."""
    if len(entropy) != 32:
        raise ConfigError("a key is made of 32 bytes of entropy")
    seed = bytes(nkeys.encode_seed(entropy, _PREFIXES[kind.value])).decode()
    return KeyPair(seed, read_public(seed))


def read_public(seed: str, kind: KeyKind | None = None) -> str:
    """Return the public NKey of a seed. Raises ConfigError when it is none, or of another kind."""
    public: str = _load(seed).public_key.decode()
    if not _PUBLIC.fullmatch(public) or (kind is not None and public[0] != kind.value):
        raise ConfigError(
            f"the NKey seed is not {'one of ours' if kind is None else f'a {kind.name.lower()}'}'s"
        )
    return public


def sign_claims(seed: str, claims: Mapping[str, Any], *, issued_s: int) -> str:
    """Return the token of these claims; ``iss``, ``iat`` (seconds) and ``jti`` are filled in."""
    pair = _load(seed)
    body: dict[str, Any] = {**claims, "iss": pair.public_key.decode(), "iat": issued_s}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    signed = (
        _encode(_HEADER) + "." + _encode(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    )
    return signed + "." + _encode(pair.sign(signed.encode()))


def read_claims(token: str) -> Claims:
    """Return what a token says, its signature verified. Raises ConfigError saying what is wrong with it."""
    try:
        if len(token) > TOKEN_BYTES_MAX:
            raise ConfigError("the token is too long")
        header, payload, signature = token.split(".")
        if json.loads(_decode(header)).get("alg") != "ed25519-nkey":
            raise ConfigError("the token is not signed by Ed25519")
        body = json.loads(_decode(payload))
        issuer, kind = str(body["iss"]), str(body["nats"]["type"])
        if _ISSUER_OF.get(kind) != issuer[:1]:
            raise ConfigError(f"{kind!r} is not what {issuer[:1]} keys sign")
        raw = base64.b32decode(issuer + "=" * (-len(issuer) % 8))[1:-2]
        nkeys.nacl.signing.VerifyKey(raw).verify(f"{header}.{payload}".encode(), _decode(signature))
        return Claims(
            issuer, str(body["sub"]), str(body.get("name", "")), int(body.get("exp", 0)), body["nats"]
        )
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, nkeys.nacl.exceptions.CryptoError) as error:
        raise ConfigError(f"not a NATS JWT: {type(error).__name__}") from None


def parse_credentials(text: str) -> Credentials:
    """Return what a seed, or the credentials text of NATS tools, says.

    Raises ConfigError where there is neither, or where the JWT is about another key than the seed's.
    """
    found = _CREDENTIALS.search(text)
    if found is None:
        read_public(text.strip(), KeyKind.USER)
        return Credentials(text.strip())
    credentials = Credentials(found["seed"], found["jwt"])
    if read_claims(found["jwt"]).subject != read_public(found["seed"], KeyKind.USER):
        raise ConfigError("the user JWT is about another key than the seed beside it: issue it again")
    return credentials


def verify_unexpired(credentials: Credentials, name: str, now_s: float) -> None:
    """Raise ConfigError when the JWT is over: no server would let it in, and would not say so as clearly."""
    if credentials.jwt is None:
        return
    claims = read_claims(credentials.jwt)
    if claims.expires_s and claims.expires_s <= now_s:
        raise ConfigError(
            f"the user JWT of {name} expired {round(now_s - claims.expires_s)} s ago: have the network's operator run "
            f"`pocache keys issue {name}` and install what it writes"
        )


def _load(seed: str) -> nkeys.KeyPair:
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, ValueError, binascii.Error) as error:
        raise ConfigError(f"not an NKey seed: {type(error).__name__}") from None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
