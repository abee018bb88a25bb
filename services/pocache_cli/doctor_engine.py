"""The doctor's look at models: are these the registered bytes, and does the engine here reproduce itself within its profile."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pocache.protocol.errors import PocacheError
from pocache.runtime.network import Model, NetworkDirectory
from pocache.runtime.profiles import verify_profile_fits
from pocache.text import FAKE_PREFIX, get_model_dir
from pocache_cli.doctor import FAIL, OK, SKIP, Finding, run_check
from pocache_cli.models import read_source

if TYPE_CHECKING:
    from pocache.engine.port import Engine
    from pocache.protocol.matching import Comparison

_TOKENS: Final = 8
_PROMPT_TOKENS: Final = 6
_DOMAIN: Final = b"pocache/doctor/v1"
_ONE_Q16: Final = 65_536


def examine_models(directory: NetworkDirectory, *, with_engine: bool, device: str) -> Iterator[Finding]:
    """Yield what is found about each registered model."""
    try:
        models = directory.load_models()
    except PocacheError as error:
        yield Finding(
            "models", FAIL, str(error), "take the entry out of models/, or have the operator sign it again"
        )
        return
    if not models:
        yield Finding("models", SKIP, "none is registered here")
    for model in models.values():
        yield from _examine_model(directory, model, with_engine=with_engine, device=device)


def _examine_model(
    directory: NetworkDirectory, model: Model, *, with_engine: bool, device: str
) -> Iterator[Finding]:
    name = f"model {model.entry.name[:40]!r}"
    yield run_check(
        "profile",
        lambda: _say_fit(directory, model, name),
        "calibrate the model on the stack that its entry names, and register the result",
    )
    source = read_source(directory, model.model_id)
    if source is None:
        yield Finding("model digest", SKIP, f"{name}: its files were not registered from this machine")
        return
    digest = _examine_digest(model, name, source)
    yield digest
    if digest.status == FAIL:
        return
    if not with_engine:
        yield Finding("engine", SKIP, f"{name}: not loaded: --no-engine")
        return
    yield _examine_engine(model, name, source, device)


def _say_fit(directory: NetworkDirectory, model: Model, name: str) -> str:
    verify_profile_fits(model, is_demo=directory.genesis.demo)
    return f"{name}: measured for {model.entry.stack}"


def _examine_digest(model: Model, name: str, source: str) -> Finding:
    if source.startswith(FAKE_PREFIX):
        return Finding("model digest", OK, f"{name}: the engine without a model has no files")
    files = get_model_dir(source)
    if files is None:
        return Finding(
            "model digest", SKIP, f"{name}: {source} is no directory here; the engine will look for it"
        )
    from pocache.engine.manifest import compute_manifest

    try:
        found = compute_manifest(files).model_id
    except (PocacheError, OSError) as error:
        return Finding("model digest", FAIL, f"{name}: {error}", "put the model's files back")
    if found != model.model_id:
        detail = f"{name}: the files in {files} are {found.hex()[:16]}…, registered is {model.model_id.hex()[:16]}…"
        return Finding(
            "model digest", FAIL, detail, "other bytes are another model: restore them, or register them anew"
        )
    return Finding("model digest", OK, f"{name}: {model.model_id.hex()[:16]}… is what lies in {files}")


def _examine_engine(model: Model, name: str, source: str, device: str) -> Finding:
    try:
        from pocache_cli.calibrate import build_engine

        engine = build_engine(source, encoding=model.schema.encoding, device=device, threads=None)
        found = engine.capabilities()
        if found.model_id != model.model_id:
            return Finding(
                "engine", FAIL, f"{name}: the engine runs {found.model_id.hex()[:16]}…", "register this model"
            )
        if found.stack != model.entry.stack:
            detail = f"{name}: this machine's stack is {found.stack}; the profile was measured on {model.entry.stack}"
            return Finding("engine", FAIL, detail, "run `pocache calibrate` here, and register the result")
        compared = _compare_with_itself(engine, model)
    except ImportError as error:
        return Finding(
            "engine",
            SKIP,
            f"{name}: {error.name} is not installed here",
            "pip install 'proof-of-cache[engine]'",
        )
    except (PocacheError, OSError, ValueError) as error:
        return Finding(
            "engine", FAIL, f"{name}: {error}", "the engine does not run this model on this machine"
        )
    numbers = f"{compared.row_count} rows, worst {compared.peak_q16 / _ONE_Q16:+.2f}, limit {model.profile.peak_match_max_q16 / _ONE_Q16:.2f}"
    if compared.verdict.value != "match":
        detail = f"{name}: it does not reproduce itself: {compared.verdict.value} ({numbers})"
        return Finding(
            "engine",
            FAIL,
            detail,
            "calibrate again on this machine; if that does not help, its hardware is in doubt",
        )
    return Finding(
        "engine", OK, f"{name}: {_TOKENS} tokens generated, run again as one prefill: match ({numbers})"
    )


def _compare_with_itself(engine: Engine, model: Model) -> Comparison:
    """Return the comparison of a short generation with the prefill over its own tokens."""
    from pocache.engine.port import GenerateRequest, VerifyRequest
    from pocache.protocol.challenge import compute_full_corner
    from pocache.protocol.commitment import Sampling
    from pocache.protocol.encoding import decode_leaf
    from pocache.protocol.ids import JobId, NetworkId
    from pocache.protocol.matching import compare

    job_id, network = (hashlib.sha256(_DOMAIN + what).digest() for what in (b"job", b"network"))
    words = struct.unpack(f">{_PROMPT_TOKENS}I", hashlib.shake_256(_DOMAIN).digest(4 * _PROMPT_TOKENS))
    prompt = tuple(word % model.entry.vocab_size for word in words)
    request = GenerateRequest(
        job_id=JobId(job_id),
        attempt=1,
        prompt=prompt,
        max_tokens=_TOKENS,
        sampling=Sampling(),
        seed=hashlib.sha256(_DOMAIN + b"seed").digest(),
        network=NetworkId(network),
        eos_stop=False,
    )
    capture = engine.generate(request, lambda _tokens: None, lambda: False)
    leaf_count = len(capture.leaves)
    corner = compute_full_corner(model.schema.layer_count, leaf_count)
    [again] = engine.verify(
        [
            VerifyRequest(
                job_id=request.job_id,
                tokens=prompt + capture.output,
                prompt_count=len(prompt),
                corner=corner,
                sampling=request.sampling,
                seed=request.seed,
                network=request.network,
            )
        ]
    )
    rows = [
        {
            position: decode_leaf(model.schema, position, position >= len(prompt) - 1, leaf)
            for position, leaf in enumerate(leaves)
        }
        for leaves in (again.leaves, capture.leaves)
    ]
    return compare(model.profile, rows[0], rows[1], model.schema.float_format)
