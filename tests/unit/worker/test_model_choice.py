"""A model on disk: the engine is built in the shape that the network's entry names, else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.engines import build_small_model
from kit.network import make_network
from pocache.engine.manifest import compute_manifest
from pocache.engine.port import Engine
from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import ModelId
from pocache.runtime.network import Model
from pocache_worker.engines import choose_engine, verify_engine


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model of two layers."""
    return build_small_model(tmp_path_factory.mktemp("model"))


def build(model_dir: Path, models: dict[ModelId, Model]) -> Engine:
    return choose_engine(str(model_dir), models, device="cpu", threads=1)()


def make_model(engine: Engine, **changes: Any) -> Model:
    """Return the network's entry of what an engine runs."""
    found = engine.capabilities()
    fields = {
        "model_id": found.model_id,
        "vocab_size": found.vocab_size,
        "eos_tokens": found.eos_tokens,
        "stack": found.stack,
        "row_schema": json.dumps(found.schema.to_dict()).encode(),
        **changes,
    }
    return Model(make_network().model.entry.model_copy(update=fields))


def test_the_entrys_columns_are_taken_also_among_several_models(model_dir: Path) -> None:
    from pocache.engine.transformers import TransformersEngine

    wide = TransformersEngine(model_dir, columns=24, threads=1)
    model = make_model(wide)
    assert model.model_id == compute_manifest(model_dir).model_id
    other = make_network().model
    for models in ({model.model_id: model}, {model.model_id: model, other.model_id: other}):
        engine = build(model_dir, models)
        assert engine.capabilities().schema == wide.capabilities().schema
        assert verify_engine(engine, models) is model


def test_raw_rows_and_another_stack(model_dir: Path) -> None:
    from pocache.engine.transformers import TransformersEngine

    raw = make_model(TransformersEngine(model_dir, encoding="raw", threads=1))
    engine = build(model_dir, {raw.model_id: raw})
    assert engine.capabilities().schema.encoding == "raw"
    elsewhere = make_model(engine, stack="another machine's")
    with pytest.raises(ConfigError, match="another machine's"):
        verify_engine(engine, {elsewhere.model_id: elsewhere})
