"""API keys on each database that a gateway may have: found by the whole key alone, revoked for good, never readable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from pocache.storage.api_keys import API_KEYS, ApiKeyStore, KeyLimits, open_api_keys


@pytest.fixture
def keys(database_url: str) -> Iterator[ApiKeyStore]:
    with open_api_keys(database_url) as store:
        yield store


def test_a_key_stands_for_its_account(keys: ApiKeyStore, database_url: str) -> None:
    """Another process that has the table open sees it at once, and its end as well."""
    limits = KeyLimits(requests_per_minute_max=7, concurrent_max=2, body_bytes_max=5_000)
    secret, entry = keys.issue("ada", label="laptop", limits=limits)
    assert keys.find(secret) == entry
    assert (entry.account, entry.label, entry.limits, entry.is_revoked) == ("ada", "laptop", limits, False)
    with open_api_keys(database_url) as other:
        assert other.find(secret) == entry
        assert other.revoke(entry.key_id)
    assert keys.find(secret) is None
    assert not keys.revoke(entry.key_id)
    assert [one.is_revoked for one in keys.list()] == [True]


def test_nothing_but_the_whole_key_finds_it(keys: ApiKeyStore) -> None:
    secret, entry = keys.issue("ada")
    other, _ = keys.issue("grace")
    wrong = (
        "",
        entry.key_id,
        secret[:-1],
        secret + "A",
        secret.upper(),
        f"sk-pocache-{entry.key_id}-{other[-43:]}",
        f"sk-pocache-{'0' * 12}-{secret[-43:]}",
        "' OR 1=1 --",
    )
    assert [keys.find(one) for one in wrong] == [None] * len(wrong)


def test_the_table_does_not_hold_the_secret(keys: ApiKeyStore, database_url: str) -> None:
    secret, _ = keys.issue("ada")
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        row = connection.execute(sa.select(API_KEYS)).one()
    engine.dispose()
    assert secret not in str(tuple(row))
    assert secret[-43:].encode() not in b"".join(one for one in row if isinstance(one, bytes))


def test_many_gateways_make_the_table_at_once(database_url: str) -> None:
    """The Pods of a set start together on an empty database: one makes the table, none ends for it."""
    gate = threading.Barrier(8)

    def start() -> bool:
        gate.wait()
        with open_api_keys(database_url) as store:
            return store.list() == []

    with ThreadPoolExecutor(8) as pool:
        started = [pool.submit(start) for _ in range(8)]
        assert [one.result() for one in started] == [True] * 8
