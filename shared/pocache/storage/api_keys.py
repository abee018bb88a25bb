"""API keys: which account each stands for and what it may take; only their hashes are kept.

A key is ``sk-pocache-<id>-<secret>`` with 256 bits of secret, so a plain SHA-256 of it hides it as well as a slow hash
would. Many processes read the table and several may write it: the gateways, and the command that issues and revokes.
Refuses keys that are unknown, malformed or revoked, all in the same words.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from pocache.protocol.errors import ConfigError

KEY_PATTERN: Final = re.compile(r"sk-pocache-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_BUSY_TIMEOUT_MS: Final = 10_000

METADATA: Final = sa.MetaData()
API_KEYS: Final = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_id", sa.String(12), primary_key=True),
    sa.Column("key_hash", sa.LargeBinary(32), nullable=False, comment="SHA-256 of the whole key"),
    sa.Column("account", sa.String(64), nullable=False, comment="whose keys sign and whose money pays"),
    sa.Column("label", sa.String(128), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_ms", sa.BigInteger, nullable=True),
    sa.Column("requests_per_minute_max", sa.Integer, nullable=False),
    sa.Column("concurrent_max", sa.Integer, nullable=False),
    sa.Column("body_bytes_max", sa.Integer, nullable=False),
)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What the holder of a key may take."""

    requests_per_minute_max: int = 600
    concurrent_max: int = 64
    body_bytes_max: int = 1_000_000


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret."""

    key_id: str
    account: str
    label: str
    created_ms: int
    revoked_ms: int | None
    limits: KeyLimits

    @property
    def is_revoked(self) -> bool:
        """Whether it was taken back."""
        return self.revoked_ms is not None


class ApiKeyStore:
    """The table of keys in a database that several processes use at once."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _set_up_sqlite)
        try:
            self._create_table()
        except sa.exc.OperationalError as error:
            shown = self._engine.url.render_as_string()
            raise ConfigError(f"cannot open the database of API keys {shown}: {error.orig}") from error

    def issue(self, account: str, *, label: str = "", limits: KeyLimits | None = None) -> tuple[str, ApiKey]:
        """Make a key and return it with its entry: the only time that the key itself is seen."""
        limits = limits or KeyLimits()
        key_id = secrets.token_hex(6)
        secret = f"sk-pocache-{key_id}-{secrets.token_urlsafe(32)}"
        entry = ApiKey(key_id, account, label, time.time_ns() // 1_000_000, None, limits)
        with self._engine.begin() as connection:
            connection.execute(
                sa.insert(API_KEYS).values(
                    key_id=key_id,
                    key_hash=_hash(secret),
                    account=account,
                    label=label,
                    created_ms=entry.created_ms,
                    requests_per_minute_max=limits.requests_per_minute_max,
                    concurrent_max=limits.concurrent_max,
                    body_bytes_max=limits.body_bytes_max,
                )
            )
        return secret, entry

    def revoke(self, key_id: str) -> bool:
        """Take a key back; False when there is none of this id that is still good."""
        with self._engine.begin() as connection:
            done = connection.execute(
                sa.update(API_KEYS)
                .where(API_KEYS.c.key_id == key_id, API_KEYS.c.revoked_ms.is_(None))
                .values(revoked_ms=time.time_ns() // 1_000_000)
            )
        return bool(done.rowcount)

    def find(self, secret: str) -> ApiKey | None:
        """Return the entry of a key that is known and not revoked."""
        match = KEY_PATTERN.fullmatch(secret)
        if match is None:
            return None
        with self._engine.connect() as connection:
            row = connection.execute(
                sa.select(API_KEYS).where(API_KEYS.c.key_id == match.group(1))
            ).one_or_none()
        if row is None or not hmac.compare_digest(bytes(row.key_hash), _hash(secret)):
            return None
        entry = _read(row)
        return None if entry.is_revoked else entry

    def list(self) -> list[ApiKey]:
        """Return every key there ever was, oldest first."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(API_KEYS).order_by(API_KEYS.c.created_ms, API_KEYS.c.key_id)
            ).all()
        return [_read(row) for row in rows]

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _create_table(self) -> None:
        """Make the table where there is none; of several processes that do so at once, one does and all go on."""
        try:
            METADATA.create_all(self._engine)
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError):
            if not sa.inspect(self._engine).has_table(API_KEYS.name):
                raise


@contextmanager
def open_api_keys(url: str) -> Iterator[ApiKeyStore]:
    """Open the table while the context lasts. Raises ConfigError."""
    store = ApiKeyStore(url)
    try:
        yield store
    finally:
        store.close()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(b"pocache/api-key/v1\x00" + secret.encode()).digest()


def _read(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        account=row.account,
        label=row.label,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
        limits=KeyLimits(row.requests_per_minute_max, row.concurrent_max, row.body_bytes_max),
    )


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()
