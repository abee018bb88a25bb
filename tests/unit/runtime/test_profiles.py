"""A profile of another model, dtype, version or shape judges nobody: worker, pool, operator and doctor say which it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.network import Network, make_network
from kit.worker import MODEL_NAME, build_fake_engine, make_worker_network
from pocache.engine.fake import FakeEngine
from pocache.protocol.errors import ConfigError
from pocache.runtime.config import load_settings
from pocache.runtime.network import Genesis, Model, NetworkDirectory
from pocache.runtime.profiles import verify_profile_fits
from pocache_cli.bootstrap import NetworkPlan, create_network, register_model
from pocache_cli.doctor_engine import examine_models
from pocache_cli.prepare import main as prepare
from pocache_verifier.service import VerifierService
from pocache_worker.engines import verify_engine
from pocache_worker.process import serve_with
from pocache_worker.settings import read_worker_settings

OTHERS: dict[str, tuple[Any, str]] = {
    "model_id": ("ab" * 32, "is for the model abab"),
    "generator_stack": ("fake/0", "is for the generator's stack fake/0, not for the entry's"),
    "verifier_stack": ("fake/1 bfloat16", "is for the verifier's stack fake/1 bfloat16"),
    "schema_digest": ("cd" * 32, "is for the row schema cdcd"),
    "layer_count": (3, "is for the count of layers 3, not for the entry's 2"),
    "vocab_size": (99, "is for the vocabulary 99"),
}


def describe(model: Model) -> dict[str, Any]:
    """Return what a profile that was measured for this entry says."""
    return {
        "model_id": model.model_id.hex(),
        "generator_stack": model.entry.stack,
        "verifier_stack": model.entry.stack,
        "schema_digest": model.schema.digest().hex(),
        "layer_count": model.entry.layer_count,
        "vocab_size": model.entry.vocab_size,
    }


def change(model: Model, **about: Any) -> Model:
    """Return a model whose profile says so of itself."""
    profile = model.profile.with_about(**about).to_dict()
    return Model(model.entry.model_copy(update={"profile": json.dumps(profile).encode()}))


def make_production(network: Network) -> Genesis:
    return network.genesis.model_copy(update={"demo": False})


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("is_demo", [True, False])
def test_a_profile_of_something_else_is_refused_by_name(name: str, is_demo: bool) -> None:
    model = make_network().model
    good = change(model, **describe(model))
    verify_profile_fits(good, is_demo=is_demo)
    value, said = OTHERS[name]
    with pytest.raises(ConfigError, match=f"the profile of kit-model {said}.*calibrate this model"):
        verify_profile_fits(change(good, **{name: value}), is_demo=is_demo)


def test_a_profile_that_does_not_say_is_refused_but_by_a_demonstration() -> None:
    model = make_network().model
    verify_profile_fits(model, is_demo=True)
    with pytest.raises(ConfigError, match="the profile of kit-model does not say its model: calibrate"):
        verify_profile_fits(model, is_demo=False)


def test_the_verifier_pool_does_not_start_with_it() -> None:
    network = make_network()
    good = change(network.model, **describe(network.model))
    VerifierService(make_production(network), {good.model_id: good})
    for model in (network.model, change(good, generator_stack="torch 2.1 bfloat16")):
        with pytest.raises(ConfigError, match="the profile of kit-model"):
            VerifierService(make_production(network), {model.model_id: model})


async def test_a_worker_does_not_start_with_it(tmp_path: Path) -> None:
    """Its engine is what the entry says, its profile is not: it ends before it binds or announces anything."""
    network = make_worker_network()
    directory = NetworkDirectory(tmp_path)
    directory.write_genesis(network.genesis)
    environ = {"POCACHE_NETWORK_DIR": str(tmp_path), "POCACHE_NATS_URL": "nats://127.0.0.1:1"}
    settings = load_settings(environ, name_default="worker-1")
    model = change(network.model, verifier_stack="another")
    work = serve_with(
        settings, read_worker_settings(settings), {model.model_id: model}, build_fake_engine, asyncio.Event()
    )
    with pytest.raises((ConfigError, ExceptionGroup)) as raised:
        await work
    assert "is for the verifier's stack another" in str(list(flatten(raised.value)))


def flatten(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from flatten(one)
    else:
        yield str(error)


def test_the_operator_does_not_register_it_and_the_doctor_finds_it(tmp_path: Path) -> None:
    directory = create_network(tmp_path / "network", NetworkPlan("test", ("ada",), ("worker-1",)))
    prepare("fake:x", tmp_path / "model.json")
    description = json.loads((tmp_path / "model.json").read_bytes())
    wrong = {**description, "stack": "fake/0"}
    with pytest.raises(ConfigError, match="is for the generator's stack"):
        register_model(directory, wrong)
    assert not list(directory.path.glob("models/*.entry"))
    register_model(directory, description)
    findings = {one.check: one for one in examine_models(directory, with_engine=False, device="cpu")}
    assert findings["profile"].status == "ok"


def test_an_engine_that_ends_elsewhere_or_takes_less_is_refused() -> None:
    network = make_worker_network()
    entry = network.model.entry
    ends = Model(entry.model_copy(update={"eos_tokens": (*entry.eos_tokens, 77)}))
    with pytest.raises(ConfigError, match="this engine's end of sequence is"):
        verify_engine(build_fake_engine(), {ends.model_id: ends})
    short = FakeEngine(MODEL_NAME, context_tokens_max=entry.context_tokens_max - 1)
    with pytest.raises(ConfigError, match="takes 511 tokens, the network's entry promises 512"):
        verify_engine(short, network.models)
