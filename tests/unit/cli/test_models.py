"""A network's model as the command line sees it: its description, where it came from, its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocache.protocol.errors import ConfigError
from pocache.protocol.ids import ModelId
from pocache.runtime.network import NetworkDirectory
from pocache_cli.models import (
    DEFAULT_MODEL,
    TextStream,
    load_tokenizer,
    make_encoder,
    prepare_model,
    read_source,
    record_source,
    resolve_source,
)

MODEL_ID = ModelId(bytes(range(32)))


async def test_a_model_is_prepared_once(tmp_path: Path) -> None:
    """In a process of its own; the second time its description is read. Another model has another description."""
    said: list[str] = []
    first = await prepare_model("fake:one", folder=tmp_path, say=said.append)
    assert first["name"] == "fake:one"
    assert said[0] == "loading fake:one"
    assert any("calibrating" in line for line in said)
    said.clear()
    assert await prepare_model("fake:one", folder=tmp_path, say=said.append) == first
    assert said == []
    other = await prepare_model("fake:two", folder=tmp_path, say=said.append)
    assert other["model_id"] != first["model_id"]


async def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """With the preparing process's last words, and no description left behind."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=f"the model {empty} could not be prepared: .+"):
        await prepare_model(str(empty), folder=tmp_path / "out", say=lambda _: None)
    assert list((tmp_path / "out").glob("*.json")) == []


def test_where_a_model_came_from_is_remembered(tmp_path: Path) -> None:
    directory = NetworkDirectory(tmp_path)
    (tmp_path / "models").mkdir()
    assert read_source(directory, MODEL_ID) is None
    record_source(directory, MODEL_ID, "fake:one")
    assert read_source(directory, MODEL_ID) == "fake:one"


def test_a_directory_is_remembered_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_source("model") == str(tmp_path / "model")
    assert resolve_source("fake:model") == "fake:model"
    assert resolve_source("org/model") == "org/model"


def test_the_reference_model_has_a_name_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a directory of that name lies, and without the name being tied to this installation's place."""
    (tmp_path / DEFAULT_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_source(DEFAULT_MODEL) == DEFAULT_MODEL
    codec = load_tokenizer(DEFAULT_MODEL)
    assert codec is not None
    tokens = codec.encode("class Queue:\n    pass")
    assert codec.decode(tokens) == "class Queue:\n    pass"
    assert len(tokens) < 10


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"hello": 5, "world": 6, "?": 7}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_models_own_tokenizer_is_used(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    codec = load_tokenizer(str(tmp_path))
    assert codec is not None
    assert codec.encode("hello world") == [5, 6]
    assert codec.decode([5, 6]) == "hello world"
    assert make_encoder(str(tmp_path), 4)("world") == [6]


@pytest.mark.parametrize("source", ["fake:one", "no/such-model-in-the-cache", "not a model id"])
def test_a_model_without_a_tokenizer(source: str) -> None:
    """Submissions need token ids then; the demo folds bytes into the vocabulary."""
    assert load_tokenizer(source) is None
    assert make_encoder(source, 100)("é") == [0xC3 % 100, 0xA9 % 100]


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert load_tokenizer(str(tmp_path)) is None


def test_text_comes_once_and_in_whole_characters() -> None:
    stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"))
    fed = [stream.feed(list(piece)) for piece in (b"a", b"\xe2", b"\x82", b"\xac", b"", b"!\xf0")]
    assert fed == ["a", "", "", "€", "", "!"]
    assert stream.feed((), is_last=True) == "\ufffd"


def test_text_that_the_decoder_takes_back_waits() -> None:
    """Decoders may join a piece with the one before it."""
    texts = iter(["ab", "a", "abc"])
    stream = TextStream(lambda _tokens: next(texts))
    assert [stream.feed([1]) for _ in range(3)] == ["ab", "", "c"]
