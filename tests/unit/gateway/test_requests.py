"""Bodies: what is read, and that everything else is refused by its name."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocache_gateway.errors import ApiError
from pocache_gateway.requests import Asked, parse_chat, parse_completion, parse_json

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**changes: Any) -> Asked:
    return parse_chat(parse_json(json.dumps({"model": "m", "messages": HELLO, **changes}).encode()))


def refuse(**changes: Any) -> tuple[int, str, str | None]:
    with pytest.raises(ApiError) as raised:
        chat(**changes)
    return raised.value.status, raised.value.code, raised.value.param


def test_a_conversation_is_read() -> None:
    asked = chat(
        temperature=0.7,
        top_p=0.95,
        top_k=40,
        seed=7,
        stop=["a", "b"],
        max_completion_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]},
        ],
    )
    assert asked.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    )
    sampling = asked.sampling
    assert (sampling.temperature_micro, sampling.top_p_micro, sampling.top_k) == (700_000, 950_000, 40)
    assert (asked.seed, asked.stops) == ((7).to_bytes(32, "big"), ("a", "b"))
    assert (asked.max_tokens, asked.is_streamed, asked.includes_usage) == (9, True, True)


def test_defaults_are_openais() -> None:
    asked = chat()
    assert (asked.sampling.temperature_micro, asked.sampling.top_p_micro) == (1_000_000, 1_000_000)
    assert (asked.max_tokens, asked.seed, asked.stops, asked.eos_stop) == (None, None, (), True)
    assert not asked.is_streamed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("top_logprobs", 3),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("logit_bias", {"50256": -100}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["audio"]),
        ("reasoning_effort", "low"),
        ("service_tier", "flex"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("prediction", {"type": "content"}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(field: str, value: Any) -> None:
    assert refuse(**{field: value}) == (400, "unsupported_parameter", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 1),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("presence_penalty", 0.0),
        ("frequency_penalty", 0),
        ("logit_bias", {}),
        ("tools", []),
        ("response_format", {"type": "text"}),
        ("service_tier", "auto"),
        ("store", False),
        ("top_logprobs", None),
        ("user", "somebody"),
    ],
)
def test_what_asks_for_nothing_is_taken(field: str, value: Any) -> None:
    assert chat(**{field: value}).is_chat


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": 1}, "model"),
        ({"model": ""}, "model"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "messages[0].content[0].text",
        ),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"ignore_eos": "no"}, "ignore_eos"),
    ],
    ids=str,
)
def test_a_wrong_type_or_range_is_refused_by_name(changes: dict[str, Any], param: str) -> None:
    assert refuse(**changes) == (400, "invalid_value", param)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"wizardry": 1}, "unknown_parameter", "wizardry"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "unsupported_parameter",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            "unsupported_parameter",
            "messages[0].tool_calls",
        ),
        ({"stream": True, "stream_options": {"magic": 1}}, "unsupported_parameter", "stream_options.magic"),
    ],
    ids=str,
)
def test_unknown_fields_are_refused_by_name(changes: dict[str, Any], code: str, param: str) -> None:
    assert refuse(**changes) == (400, code, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seed": ' + b"1" * 5_000 + b"}",
        b"\xff\xfe",
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\\ud800"}',
        b'{"seed": NaN}',
        b'{"temperature": 1e9999999999999999999}',
        b'{"max_tokens": 4, "model": "m", "max_tokens": 5}',
        b'{"messages": [{"role": "user", "role": "system"}]}',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        parse_json(body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")


def test_a_name_that_is_given_twice_is_named() -> None:
    """A proxy before the gateway may have looked at the first, and the deposit would be that of the last."""
    with pytest.raises(ApiError, match="'max_tokens' is given twice"):
        parse_json(b'{"max_tokens": 4, "model": "m", "max_tokens": 5}')


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("Hi", "Hi"), (["Hi"], "Hi"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2))],
    ids=str,
)
def test_a_prompt_is_a_text_or_tokens(prompt: Any, read: Any) -> None:
    assert parse_completion({"model": "m", "prompt": prompt}).prompt == read


@pytest.mark.parametrize("prompt", [None, 3, [], [-1], [2**32], [True], [1.5], {}], ids=str)
def test_another_prompt_is_none(prompt: Any) -> None:
    with pytest.raises(ApiError, match="token ids|prompt must"):
        parse_completion({"model": "m", "prompt": prompt})


def test_several_prompts_are_refused_by_name() -> None:
    with pytest.raises(ApiError, match="one job has one prompt"):
        parse_completion({"model": "m", "prompt": ["a", "b"]})


@given(st.decimals(min_value=0, max_value=2, allow_nan=False, allow_infinity=False, places=9))
def test_a_temperature_is_rounded_to_millionths(temperature: Decimal) -> None:
    """Exactly, from the digits that were sent: no float takes part."""
    body = f'{{"model": "m", "prompt": "x", "temperature": {temperature:f}}}'.encode()
    micro = parse_completion(parse_json(body)).sampling.temperature_micro
    assert abs(Decimal(micro) - temperature * 1_000_000) <= Decimal("0.5")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
        max_leaves=8,
    )
)
def test_any_json_is_read_or_refused(value: Any) -> None:
    """Whatever a field holds: an answer by name, never another exception."""
    codes = {400}
    for field in ("messages", "stop", "seed", "temperature", "stream_options", "n", "max_tokens", "model"):
        try:
            chat(**{field: value})
        except ApiError as error:
            codes.add(error.status)
    assert codes == {400}


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, None),
        ({"logprobs": None}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": None}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
    ],
)
def test_a_conversation_asks_for_the_tokens_that_are_delivered(
    changes: dict[str, Any], asked: int | None
) -> None:
    assert chat(**changes).logprobs == asked


@pytest.mark.parametrize(("given", "asked"), [(None, None), (False, None), (0, 0), (1, 1)])
def test_a_plain_completion_asks_for_them_by_a_number(given: object, asked: int | None) -> None:
    body = {"model": "m", "prompt": "Hi", "logprobs": given}
    assert parse_completion(parse_json(json.dumps(body).encode())).logprobs == asked


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (2, "unsupported_parameter"),
        (5, "unsupported_parameter"),
        (True, "invalid_value"),
        (-1, "invalid_value"),
        ("1", "invalid_value"),
        (0.5, "invalid_value"),
        (21, "invalid_value"),
    ],
)
def test_other_tokens_than_the_delivered_are_refused_with_the_reason(given: object, code: str) -> None:
    body = {"model": "m", "prompt": "Hi", "logprobs": given}
    with pytest.raises(ApiError) as raised:
        parse_completion(parse_json(json.dumps(body).encode()))
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, "logprobs")
    if code == "unsupported_parameter":
        assert "of the token that it delivers" in raised.value.message
