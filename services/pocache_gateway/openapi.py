"""The OpenAPI document of the gateway, written out: what there is, what it takes, what it answers."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from pocache.protocol.limits import OUTPUT_TOKENS_MAX, TOP_K_MAX
from pocache_gateway.requests import ROLES, STOP_CHARS_MAX, STOPS_MAX, TEMPERATURE_MAX

_JOB: Final = {
    "name": "job",
    "in": "path",
    "required": True,
    "description": "the job's id, as `x-pocache-job` says it",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}
_LAST_EVENT: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "go on behind this event of an interrupted answer; nothing is submitted again",
    "schema": {"type": "string"},
}
_ERRORS: Final = {
    "400": "malformed, out of range, or not supported: `param` names the field",
    "401": "no key, or one that is unknown or revoked",
    "402": "the account's balance is short of the deposit",
    "404": "no such model or job of this account",
    "408": "the body did not come in time",
    "413": "the body is larger than the key allows",
    "429": "too many requests, jobs in hand, or a full network: see Retry-After",
    "502": "the network failed to do the job; it was refunded",
    "503": "the gateway is stopping, or the network is away: see Retry-After",
}


def make_document(public_url: str) -> dict[str, Any]:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Proof of Cache gateway",
            "version": version("proof-of-cache"),
            "description": "OpenAI-compatible completions whose answers carry receipts.",
        },
        "servers": [{"url": public_url or "/"}],
        "security": [{"key": []}],
        "paths": {
            "/v1/models": {"get": _operation("listModels", "The models that are served")},
            "/v1/models/{model}": {
                "get": _operation("getModel", "One model", parameters=[_path("model")]),
            },
            "/v1/chat/completions": {
                "post": _operation(
                    "createChatCompletion",
                    "Answer a conversation",
                    body="Chat",
                    parameters=[_LAST_EVENT],
                    streams=True,
                ),
            },
            "/v1/completions": {
                "post": _operation(
                    "createCompletion",
                    "Continue a prompt",
                    body="Completion",
                    parameters=[_LAST_EVENT],
                    streams=True,
                ),
            },
            "/v1/balance": {"get": _operation("getBalance", "What the key's account has, in micro-units")},
            "/v1/jobs/{job}": {"get": _operation("getJob", "Where a job is", parameters=[_JOB])},
            "/v1/jobs/{job}/stream": {
                "get": _operation(
                    "streamJob", "The text of a job in hand", parameters=[_JOB, _LAST_EVENT], streams=True
                ),
            },
            "/v1/jobs/{job}/challenge": {
                "post": _operation(
                    "challengeJob", "Have the commitment audited in full", parameters=[_JOB], ok="202"
                ),
            },
            "/v1/jobs/{job}/cancel": {
                "post": _operation("cancelJob", "Ask for no more of a job", parameters=[_JOB], ok="202"),
            },
            "/v1/receipts/{job}": {
                "get": _operation(
                    "getReceipt",
                    "The receipt, once the job is over; 202 when it is not over after wait_s",
                    parameters=[
                        _JOB,
                        {
                            "name": "wait_s",
                            "in": "query",
                            "schema": {"type": "integer", "minimum": 0, "default": 30},
                        },
                    ],
                ),
            },
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Chat": _chat(), "Completion": _completion(), "Error": _error(), "Pocache": _note()},
        },
    }


def _operation(
    name: str,
    summary: str,
    *,
    body: str | None = None,
    parameters: list[dict[str, Any]] | None = None,
    streams: bool = False,
    ok: str = "200",
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "parameters": parameters or [],
        "responses": {
            ok: {"description": "done", "content": content},
            **{status: {"description": why, "content": failure} for status, why in _ERRORS.items()},
        },
    }
    if body is not None:
        schema = {"schema": {"$ref": f"#/components/schemas/{body}"}}
        operation["requestBody"] = {"required": True, "content": {"application/json": schema}}
    return operation


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _common() -> dict[str, Any]:
    stop = {"type": "string", "minLength": 1, "maxLength": STOP_CHARS_MAX}
    return {
        "model": {"type": "string"},
        "stream": {"type": "boolean", "default": False},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": OUTPUT_TOKENS_MAX},
        "temperature": {"type": "number", "minimum": 0, "maximum": TEMPERATURE_MAX, "default": 1},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 1},
        "top_k": {"type": "integer", "minimum": 0, "maximum": TOP_K_MAX, "default": 0},
        "seed": {"type": "integer"},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": STOPS_MAX}]},
        "ignore_eos": {"type": "boolean", "default": False, "description": "go on behind an end of sequence"},
        "n": {"const": 1},
        "user": {"type": "string", "description": "taken and not used"},
    }


def _chat() -> dict[str, Any]:
    message = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(ROLES)}, "content": {}, "name": {"type": "string"}},
    }
    messages = {"type": "array", "minItems": 1, "items": message}
    limit = {"type": "integer", "minimum": 1, "maximum": OUTPUT_TOKENS_MAX}
    return {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            **_common(),
            "messages": messages,
            "max_completion_tokens": limit,
            "logprobs": {"type": "boolean", "default": False, "description": "as the worker says them"},
            "top_logprobs": {"const": 0},
        },
    }


def _completion() -> dict[str, Any]:
    tokens = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    prompt = {"anyOf": [{"type": "string"}, tokens]}
    return {
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {
            **_common(),
            "prompt": prompt,
            "logprobs": {"enum": [None, 0, 1], "description": "of the chosen token, as the worker says them"},
        },
    }


def _note() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "`pocache` of a whole answer, and of the last chunk of a stream",
        "properties": {
            "job_id": {"type": "string"},
            "receipt_url": {"type": "string"},
            "status": {"type": "string"},
            "cancelled": {"type": "boolean"},
        },
    }


def _error() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"message": {"type": "string"}, "type": text, "param": text, "code": text},
            }
        },
    }
