"""Who may connect: a network's NATS operator, its accounts, and the JWTs of its users, kept beside its other keys.

``trust/`` holds what signs: the operator's seed, one seed for each account, one scoped signing key for each user, and
``revoked.json``. It stays with whoever runs the network; the cluster gets the public result (``compute_operator``), and each
process its own seed and JWT (``transport/``). Refused: a seed that others can read, a name nobody has.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pocache.bus.accounts import (
    CORE,
    AccountKeys,
    OperatorConfig,
    compute_operator_claims,
    compute_operator_config,
    compute_user_claims,
)
from pocache.bus.jwt import KeyKind, make_key_pair, read_claims, read_public, sign_claims
from pocache.bus.permissions import NatsUser, generate_transport_key, get_public_key
from pocache.protocol.errors import ConfigError
from pocache.runtime.network import NetworkDirectory, read_secret, write_secret

TRUST_FOLDER: Final = "trust"
OPERATOR, SYSTEM = "operator", "system"
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Issued:
    """A user's new credentials: where they lie, and until when they count (None: until revoked)."""

    name: str
    account: str
    public: str
    files: tuple[str, ...]
    expires_s: int | None


class Trust:
    """The signing keys of one network directory."""

    def __init__(self, directory: NetworkDirectory) -> None:
        self._directory = directory
        self._path = directory.path / TRUST_FOLDER

    @property
    def exists(self) -> bool:
        """Whether this network has accounts; one without has a list of keys in one account."""
        return self._seed_file(OPERATOR).exists()

    def create(self, core_names: Iterable[str], guest_names: Iterable[str]) -> None:
        """Make the operator, the accounts and everybody's JWT, in a directory that has their transport keys."""
        for name in (OPERATOR, SYSTEM):
            self._make(self._seed_file(name), KeyKind.OPERATOR if name == OPERATOR else KeyKind.ACCOUNT)
        operator = read_secret(self._seed_file(OPERATOR))
        claims = compute_operator_claims(read_public(operator), self.get_account_of(SYSTEM))
        write_secret(self._path / "operator.jwt", sign_claims(operator, claims, issued_s=int(time.time())))
        self._make(self._account_file(CORE), KeyKind.ACCOUNT)
        for name in core_names:
            self._issue(name, CORE, None)
        for name in guest_names:
            self._make(self._account_file(name), KeyKind.ACCOUNT)
            self._issue(name, name, None)

    def issue(self, name: str, *, days: int | None = None) -> Issued:
        """Sign a new JWT for the key that a user has; the old one counts on until it expires or is revoked."""
        return self._issue(name, self._find_account(name), days)

    def rotate(self, name: str, *, days: int | None = None) -> Issued:
        """Give a user a new transport key and JWT, and revoke the old key.

        The server cuts the old key off once it has the new configuration.
        """
        account = self._find_account(name)
        self.revoke(name)
        for kind in ("seed", "jwt"):
            (self._directory.path / "transport" / f"{name}.{kind}").unlink(missing_ok=True)
        key = generate_transport_key(secrets.token_bytes(32))
        write_secret(self._directory.path / "transport" / f"{name}.seed", key.seed)
        return self._issue(name, account, days)

    def revoke(self, name: str) -> str:
        """Have every JWT of a user's present key count no more, and return that key."""
        self._find_account(name)
        public = get_public_key(self._directory.transport_seed(name))
        revoked = {**self._read_revoked(), public: int(time.time())}
        self._path.joinpath("revoked.json").write_text(json.dumps(revoked, indent=1) + "\n", encoding="ascii")
        return public

    def rotate_signers(self, names: Iterable[str], *, days: int | None = None) -> tuple[Issued, ...]:
        """Replace the signing keys behind these users: whatever the old ones signed counts no more."""
        issued = []
        for name in names:
            account = self._find_account(name)
            self._signer_file(name).unlink(missing_ok=True)
            issued.append(self._issue(name, account, days))
        return tuple(issued)

    def rotate_operator(self) -> tuple[str, str]:
        """Replace the operator's seed, sign its own JWT anew, and return the old and the new public key.

        The accounts keep their keys, so every user's credentials and all streams stay: only servers, which know the operator
        by its JWT, have to be started again with the new configuration. Interrupted, it is done again from the beginning.
        """
        old = self.get_operator()
        pair = make_key_pair(KeyKind.OPERATOR, secrets.token_bytes(32))
        claims = compute_operator_claims(pair.public, self.get_account_of(SYSTEM))
        token = sign_claims(pair.seed, claims, issued_s=int(time.time()))
        for name, text in ((f"{OPERATOR}.seed", pair.seed), (f"{OPERATOR}.jwt", token)):
            fresh = self._path / f"{name}.new"
            fresh.unlink(missing_ok=True)  # of a rotation that was interrupted
            write_secret(fresh, text)
            fresh.replace(self._path / name)
        return old, pair.public

    def get_operator(self) -> str:
        """Return the operator's public key. Raises ConfigError on a network without accounts."""
        if not self.exists:
            raise ConfigError(f"{self._directory.path} has no accounts, and so no NATS operator")
        return read_public(read_secret(self._seed_file(OPERATOR)), KeyKind.OPERATOR)

    def get_account_of(self, name: str) -> str:
        """Return the public key of an account that is kept beside the operator: the system's."""
        return read_public(read_secret(self._seed_file(name)), KeyKind.ACCOUNT)

    def compute_operator(self, users: Sequence[NatsUser]) -> OperatorConfig:
        """Return what the server has to know, signed. Raises ConfigError when somebody has no account yet."""
        revoked = self._read_revoked()
        operator = read_secret(self._path / "operator.jwt")
        if read_claims(operator).subject != self.get_operator():
            raise ConfigError(
                f"{self._path / 'operator.jwt'} is about another key than operator.seed, as after an interrupted rotation: "
                "run `pocache keys rotate-operator` again"
            )
        accounts = {
            name: AccountKeys(
                public=read_public(read_secret(self._account_file(name)), KeyKind.ACCOUNT),
                signers={
                    user.name: read_public(read_secret(self._signer_file(user.name)), KeyKind.ACCOUNT)
                    for user in users
                    if self._signer_file(user.name).exists() and self._find_account(user.name) == name
                },
                revoked=revoked,
            )
            for name in (CORE, *(user.name for user in users if user.is_guest))
            if self._account_file(name).exists()
        }
        return compute_operator_config(
            read_secret(self._seed_file(OPERATOR)),
            operator,
            self.get_account_of(SYSTEM),
            accounts,
            users,
            # As old as the operator: the same accounts are the same text, and a server sees only what has changed.
            issued_s=read_claims(operator).issued_s,
        )

    def get_account(self, name: str = CORE) -> str:
        """Return the public key of an account: NATS calls it so in metrics and in its monitoring."""
        return read_public(read_secret(self._account_file(name)), KeyKind.ACCOUNT)

    def _issue(self, name: str, account: str, days: int | None) -> Issued:
        if not self._signer_file(name).exists():
            self._make(self._signer_file(name), KeyKind.ACCOUNT)
        public = get_public_key(read_secret(self._directory.path / "transport" / f"{name}.seed"))
        now_s = int(time.time())
        expires_s = None if days is None else now_s + days * _DAY_S
        # A JWT issued in the second of a revocation would be revoked with it.
        issued_s = max(now_s, self._read_revoked().get(public, 0) + 1)
        claims = compute_user_claims(name, public, self.get_account(account), expires_s=expires_s)
        token = sign_claims(read_secret(self._signer_file(name)), claims, issued_s=issued_s)
        read_claims(token)
        file = self._directory.path / "transport" / f"{name}.jwt"
        file.unlink(missing_ok=True)
        write_secret(file, token)
        return Issued(name, account, public, (str(file.with_suffix(".seed")), str(file)), expires_s)

    def _find_account(self, name: str) -> str:
        if not self.exists:
            raise ConfigError(f"{self._directory.path} has no accounts: its NATS users are a list of keys")
        if not (self._directory.path / "transport" / f"{name}.seed").exists():
            known = sorted(file.stem for file in (self._directory.path / "transport").glob("*.seed"))
            raise ConfigError(f"nobody here is called {name}; there are: {', '.join(known)}")
        return name if self._account_file(name).exists() else CORE

    def _read_revoked(self) -> dict[str, int]:
        file = self._path / "revoked.json"
        try:
            found = json.loads(file.read_bytes())
            return {str(public): int(at_s) for public, at_s in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{file} is not a list of revoked keys: {error}") from error

    def _seed_file(self, name: str) -> Path:
        return self._path / f"{name}.seed"

    def _account_file(self, name: str) -> Path:
        return self._path / "accounts" / f"{name}.seed"

    def _signer_file(self, name: str) -> Path:
        return self._path / "signers" / f"{name}.seed"

    @staticmethod
    def _make(file: Path, kind: KeyKind) -> None:
        write_secret(file, make_key_pair(kind, secrets.token_bytes(32)).seed)
