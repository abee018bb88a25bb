"""``pocache open``: the paper's figure 2 between three parties who pass files: generator, user, verifier.

``generate`` writes tokens with the vectors that context sampling makes due; ``ask`` checks these, makes a question of them
and a key that the user keeps; ``match`` answers the question; ``check`` holds the answer against the key. What comes out is
for the user alone: it never counts as an audit (docs/protocol.md 15 and 16).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pocache.protocol.errors import ConfigError, EncodingError
from pocache_cli.failure import exit_on_error

if TYPE_CHECKING:
    from pocache.protocol.context import ContextRule
    from pocache.protocol.encoding import RowSchema

DELIVERY_KIND: Final = "context-delivery.v1"
QUESTION_KIND: Final = "open-question.v1"
KEY_KIND: Final = "open-key.v1"
ANSWER_KIND: Final = "open-answer.v1"
FILE_BYTES_MAX: Final = 256_000_000
SHARE_DEFAULT: Final = "1/16"

_FILE = click.Path(path_type=Path, dir_okay=False)


def _parse_share(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, int]:
    numerator, _, denominator = text.partition("/")
    if not (
        numerator.isascii() and numerator.isdecimal() and denominator.isascii() and denominator.isdecimal()
    ):
        raise click.BadParameter("a share is written as 1/16")
    return int(numerator), int(denominator)


@click.group("open")
def open_mode() -> None:
    """Check vectors of a job with one verifier, by the paper's open mode.

    Four steps between three parties, by files. It never counts as an audit: the generator foresees which vectors are due.
    """


@open_mode.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2, 4_096), help="Output tokens.")
@click.option(
    "--share",
    default=SHARE_DEFAULT,
    show_default=True,
    callback=_parse_share,
    help="Of positions that are due.",
)
@click.option("--layers", default=1, show_default=True, type=click.IntRange(1, 512), help="Layers of each.")
@click.option("--out", required=True, type=_FILE, help="Write tokens and vectors here.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def generate(
    model: str, prompt: str, tokens: int, share: tuple[int, int], layers: int, out: Path, as_json: bool
) -> None:
    """Generate as MODEL, and ship the vectors that are due along with the tokens (the generator's part)."""
    with exit_on_error("open generate", as_json=as_json):
        from pocache.engine.port import GenerateRequest
        from pocache.protocol.commitment import Sampling
        from pocache.protocol.context import ContextRule, collect_samples, compute_due, encode_samples
        from pocache.protocol.ids import JobId, NetworkId
        from pocache_cli.calibrate import build_engine
        from pocache_cli.models import load_tokenizer, make_encoder

        engine = build_engine(model, encoding="sketch", device="cpu", threads=None)
        found = engine.capabilities()
        request = GenerateRequest(
            job_id=JobId(secrets.token_bytes(32)),
            attempt=1,
            prompt=tuple(make_encoder(model, found.vocab_size)(prompt)),
            max_tokens=tokens,
            sampling=Sampling(),
            seed=secrets.token_bytes(32),
            network=NetworkId(hashlib.sha256(b"pocache/open").digest()),
        )
        capture = engine.generate(request, lambda _tokens: None, lambda: False)
        rule = ContextRule(share, layers)
        every = request.prompt + capture.output
        samples = collect_samples(
            capture.schema,
            capture.leaves,
            capture.prompt_count,
            compute_due(every, capture.prompt_count, found.layer_count, rule),
        )
        job = {
            "model_id": found.model_id.hex(),
            "network": request.network.hex(),
            "job_id": request.job_id.hex(),
            "seed": request.seed.hex(),
            "tokens": list(every),
            "prompt_count": capture.prompt_count,
            "row_schema": found.schema.to_dict(),
        }
        vectors = encode_samples(samples)
        content = {"job": job, "share": list(share), "layers": layers, "vectors": vectors.hex()}
        _write(out, DELIVERY_KIND, content)
        codec = load_tokenizer(model)
        text = None if codec is None else codec.decode(capture.output)
        _say(
            {
                "tokens": len(capture.output),
                "vectors": len(samples),
                "vector_bytes": len(vectors),
                "text": text,
            },
            as_json=as_json,
        )


@open_mode.command()
@click.argument("delivery", type=_FILE)
@click.option(
    "--with-indices/--without-indices",
    "indexed",
    default=False,
    show_default=True,
    help="Tell where they belong.",
)
@click.option(
    "--decoys",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2_048),
    help="Pairs of decoys, with indices.",
)
@click.option("--question", required=True, type=_FILE, help="Write what the verifier is told here.")
@click.option("--key", required=True, type=_FILE, help="Write what you keep here.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def ask(delivery: Path, indexed: bool, decoys: int, question: Path, key: Path, as_json: bool) -> None:
    """Check that DELIVERY has just the vectors that are due, and make a question of them (the user's part)."""
    with exit_on_error("open ask", as_json=as_json):
        from pocache.protocol.challenge import DeterministicStream
        from pocache.protocol.context import ContextRule, decode_samples, verify_samples
        from pocache.protocol.encoding import RowSchema
        from pocache.protocol.ids import Digest
        from pocache.protocol.open_mode import build_question

        def read(content: Mapping[str, Any]) -> tuple[dict[str, Any], RowSchema, ContextRule, bytes]:
            job, schema = dict(content["job"]), RowSchema.from_dict(content["job"]["row_schema"])
            rule = ContextRule((int(content["share"][0]), int(content["share"][1])), int(content["layers"]))
            return job, schema, rule, bytes.fromhex(content["vectors"])

        job, schema, rule, vectors = _read(delivery, DELIVERY_KIND, read)
        samples = decode_samples(schema, vectors)
        verify_samples(samples, job["tokens"], job["prompt_count"], schema.layer_count, rule)
        stream = DeterministicStream(Digest(secrets.token_bytes(32)))
        asked, kept = build_question(samples, indexed=indexed, decoy_pairs=decoys, stream=stream)
        content: dict[str, Any] = {
            "job": job,
            "vectors": [[one.key_row.hex(), one.value_row.hex()] for one in asked.vectors],
            "indices": asked.indices and [[index.position, index.layer] for index in asked.indices],
        }
        digest = _write(question, QUESTION_KIND, content)
        indices = [None if index is None else [index.position, index.layer] for index in kept.indices]
        _write(key, KEY_KIND, {"question": digest, "indices": indices})
        _say(
            {"vectors": len(samples), "decoys": kept.indices.count(None), "indexed": indexed}, as_json=as_json
        )


@open_mode.command()
@click.argument("model")
@click.argument("question", type=_FILE)
@click.option(
    "--profile",
    "description",
    required=True,
    type=_FILE,
    help="The model as `pocache calibrate --out` wrote it.",
)
@click.option("--out", required=True, type=_FILE, help="Write the answer here.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def match(model: str, question: Path, description: Path, out: Path, as_json: bool) -> None:
    """Look for the vectors of QUESTION in MODEL's own pass over the tokens (the verifier's part)."""
    with exit_on_error("open match", as_json=as_json):
        from pocache.engine.open_mode import OpenRequest, answer_questions
        from pocache.engine.transformers import TransformersEngine
        from pocache.protocol.ids import JobId, NetworkId
        from pocache.protocol.matching import MatchingProfile
        from pocache.protocol.open_mode import OpenIndex, OpenQuestion, OpenVector

        def read(content: Mapping[str, Any]) -> tuple[OpenRequest, str]:
            job, indices = content["job"], content["indices"]
            vectors = tuple(OpenVector(bytes.fromhex(k), bytes.fromhex(v)) for k, v in content["vectors"])
            places = None if indices is None else tuple(OpenIndex(*map(int, one)) for one in indices)
            return OpenRequest(
                JobId(bytes.fromhex(job["job_id"])),
                tuple(int(token) for token in job["tokens"]),
                int(job["prompt_count"]),
                bytes.fromhex(job["seed"]),
                NetworkId(bytes.fromhex(job["network"])),
                OpenQuestion(vectors, places),
            ), str(job["model_id"])

        request, model_id = _read(question, QUESTION_KIND, read)
        known = json.loads(description.read_text(encoding="ascii"))
        engine = TransformersEngine(model)
        found = engine.capabilities()
        if not found.model_id.hex() == model_id == known["model_id"]:
            raise ConfigError(
                f"the question is about model {model_id}: {model} and the profile must be of that one"
            )
        if found.stack != known["stack"]:
            raise ConfigError(f"the profile was measured on {known['stack']}; calibrate on this stack first")
        [answer] = answer_questions(engine, [request], MatchingProfile.from_dict(known["profile"]))
        matches = [[number, index.position, index.layer] for number, index in answer.matches]
        digest = hashlib.sha256(question.read_bytes()).hexdigest()
        _write(out, ANSWER_KIND, {"question": digest, "matches": matches, "layers_run": answer.layers_run})
        _say(
            {
                "vectors": len(request.question.vectors),
                "matched": len(matches),
                "layers_run": answer.layers_run,
                "layer_count": found.layer_count,
            },
            as_json=as_json,
        )


@open_mode.command()
@click.argument("question", type=_FILE)
@click.argument("key", type=_FILE)
@click.argument("answer", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(question: Path, key: Path, answer: Path, as_json: bool) -> None:
    """Hold an ANSWER against your own copy: exits 0 when all matched, 1 when not or when it cannot be true."""
    with exit_on_error("open check", as_json=as_json):
        from pocache.protocol.open_mode import (
            OpenAnswer,
            OpenIndex,
            OpenKey,
            OpenQuestion,
            OpenVector,
            OpenVerdict,
            verify_answer,
        )

        def read_question(content: Mapping[str, Any]) -> OpenQuestion:
            indices = content["indices"]
            return OpenQuestion(
                tuple(OpenVector(bytes.fromhex(k), bytes.fromhex(v)) for k, v in content["vectors"]),
                None if indices is None else tuple(OpenIndex(*map(int, one)) for one in indices),
            )

        def read_key(content: Mapping[str, Any]) -> tuple[str, OpenKey]:
            places = (None if one is None else OpenIndex(*map(int, one)) for one in content["indices"])
            return content["question"], OpenKey(tuple(places))

        def read_answer(content: Mapping[str, Any]) -> tuple[str, OpenAnswer]:
            found = tuple((int(one[0]), OpenIndex(int(one[1]), int(one[2]))) for one in content["matches"])
            return content["question"], OpenAnswer(found, int(content["layers_run"]))

        asked = _read(question, QUESTION_KIND, read_question)
        digest = hashlib.sha256(question.read_bytes()).hexdigest()
        kept_of, kept = _read(key, KEY_KIND, read_key)
        answered_of, answered = _read(answer, ANSWER_KIND, read_answer)
        if not kept_of == answered_of == digest:
            raise EncodingError("question, key and answer do not belong together")
        verdict = verify_answer(asked, kept, answered)
        _say(
            {"verdict": verdict.value, "matched": len(answered.matches), "counts_as_audit": False},
            as_json=as_json,
        )
    raise SystemExit(0 if verdict is OpenVerdict.MATCHED else 1)


def _write(file: Path, kind: str, content: Mapping[str, Any]) -> str:
    """Write one of the four files; return its SHA-256."""
    data = json.dumps({"kind": kind, **content}, sort_keys=True).encode("ascii") + b"\n"
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _read(file: Path, kind: str, parse: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Return what a file of this kind says. Raises ConfigError for no such file, EncodingError for another."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise EncodingError(f"{file} has {len(data)} bytes, more than {FILE_BYTES_MAX}")
    try:
        content = json.loads(data)
        if content["kind"] != kind:
            raise EncodingError(f"{file} is {content['kind']!r} and no {kind}")
        return parse(content)
    except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise EncodingError(f"{file} is no {kind}: {error!r}") from error


def _say(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        if value is not None:
            click.echo(f"{name:14} {value}")
