"""Permission sets hold what the role needs and are rendered without room for injection."""

from __future__ import annotations

import nkeys
import pytest

from pocache.bus.permissions import (
    NatsUser,
    compute_permissions,
    generate_transport_key,
    get_public_key,
    render_authorization,
)
from pocache.protocol.errors import ConfigError

KEY = generate_transport_key(b"\x07" * 32)


def test_a_transport_key_is_the_nkeys_package_s_own() -> None:
    pair = nkeys.from_seed(bytearray(KEY.seed.encode()))
    assert pair.public_key.decode() == KEY.public
    assert KEY.public.startswith("U")
    assert get_public_key(KEY.seed) == KEY.public


@pytest.mark.parametrize("seed", ["", "x", "SU", KEY.public, "SA" + KEY.seed[2:]])
def test_what_is_no_user_seed_is_refused(seed: str) -> None:
    with pytest.raises(ConfigError):
        get_public_key(seed)


def test_a_worker_gets_exactly_what_it_needs() -> None:
    user = compute_permissions(
        "worker",
        KEY.public,
        publish_subjects=("results.completed.W", "results.completed.W"),
        pull_consumers=(("TASKS", "generate"),),
        read_streams=("RECORD",),
    )
    assert user.publish_allow == (
        "results.completed.W",
        "$JS.API.CONSUMER.MSG.NEXT.TASKS.generate",
        "$JS.ACK.TASKS.generate.>",
        "$JS.ACK.*.*.TASKS.generate.>",
        "dead.TASKS.generate",
        "$JS.API.DIRECT.GET.RECORD",
        "$JS.API.DIRECT.GET.RECORD.>",
    )
    assert user.subscribe_allow == ("_INBOX.worker.>",)
    assert not user.allow_responses


def test_a_user_without_subjects_may_do_nothing() -> None:
    text = render_authorization([NatsUser(name="mute", nkey_public=KEY.public)])
    assert text.count('{ deny: [">"] }') == 2


@pytest.mark.parametrize("subject", ["", "a b", 'a"\n', "a\x00b", "a\tb"])
def test_a_subject_that_could_break_out_is_refused(subject: str) -> None:
    with pytest.raises(ConfigError):
        render_authorization([NatsUser(name="u", nkey_public=KEY.public, publish_allow=(subject,))])


def test_two_users_never_share_a_key() -> None:
    user = compute_permissions("a", KEY.public)
    with pytest.raises(ConfigError, match="same transport key"):
        render_authorization([user, compute_permissions("b", KEY.public)])


@pytest.mark.parametrize("key", ["", "U", "u" * 56, KEY.public + "A", "A" + KEY.public[1:]])
def test_what_is_no_user_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError):
        render_authorization([NatsUser(name="u", nkey_public=key)])


@pytest.mark.parametrize("name", ["", "a.b", "a b", ">", "*"])
def test_a_role_name_is_one_token(name: str) -> None:
    with pytest.raises(ConfigError):
        compute_permissions(name, KEY.public)
