"""The reference model: what ships is small, whole and has learnt its language; a run that is interrupted loses nothing."""

from __future__ import annotations

import json
import re
import sysconfig
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pocache.engine.calibrate import draw_prompts, run_calibration
from pocache.engine.fake import FakeEngine
from pocache.engine.manifest import compute_manifest
from pocache.engine.reference import REFERENCE_NAME, corpus, find_shipped_description, get_reference_dir
from pocache.engine.reference.corpus import BEGIN, END, Corpus, read_corpus, train_tokenizer
from pocache.engine.reference.train import Recipe, Training, compute_rate_share
from pocache.engine.transformers import TransformersEngine, resolve_model_dir
from pocache.protocol.encoding import RowSchema
from pocache.protocol.errors import EngineError
from pocache.protocol.ids import ModelId
from pocache.protocol.matching import MatchingProfile
from pocache_cli import prepare
from pocache_cli.calibrate import describe

PROFILES = get_reference_dir().with_name("profiles")
SHIPPED_BYTES_MAX = 12_000_000
LEARNT_NATS_MAX = 4.2
UNLEARNT_NATS_MIN = 8.0
"""ln 4096 is 8.3."""

TINY = Recipe(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=32,
    layer_count=1,
    head_count=2,
    kv_head_count=1,
    context_tokens=16,
    sequences_per_step=4,
)
TEXT = Corpus(
    tuple(f"def name_{number}(self):\n    return {number}\n" for number in range(40)),
    ("def name_41(self):\n    return 41\n" * 3,),
    "x",
)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(REFERENCE_NAME, threads=1)


def load_tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(get_reference_dir() / "tokenizer.json"))


def test_what_ships_is_small_and_names_its_origin() -> None:
    folder = get_reference_dir()
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert 0 < size <= SHIPPED_BYTES_MAX
    card = (folder.parent / "README.md").read_text(encoding="utf-8")
    assert compute_manifest(folder).model_id.hex() in card
    for word in ("PSF", "parameters", "held-out", "python -m pocache.engine.reference.train"):
        assert word in card


def test_the_name_wins_over_a_directory_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REFERENCE_NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model_dir(REFERENCE_NAME) == get_reference_dir()


def test_it_has_learnt_its_language(engine: TransformersEngine) -> None:
    """Loss on text that is not in the library it learnt from; the same text with its tokens in another order is noise."""
    tokenizer = load_tokenizer()
    tokens = [tokenizer.token_to_id(BEGIN), *tokenizer.encode(SAMPLE).ids]
    assert tokenizer.decode(tokens[1:]) == SAMPLE
    assert compute_nats(engine, tokens) < LEARNT_NATS_MAX
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0)).tolist()
    assert compute_nats(engine, [tokens[place] for place in order]) > compute_nats(engine, tokens) + 2


def test_it_has_an_end_and_a_vocabulary_of_its_own(engine: TransformersEngine) -> None:
    tokenizer, found = load_tokenizer(), engine.capabilities()
    assert found.eos_tokens == (tokenizer.token_to_id(END),)
    assert tokenizer.get_vocab_size() == found.vocab_size == Recipe().vocab_size
    assert found.context_tokens_max == 2_048


def compute_nats(engine: TransformersEngine, tokens: list[int]) -> float:
    with torch.inference_mode():
        logits = engine.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(tokens[1:])))


def run_tiny(
    folder: Path, *, until: int, steps: int = 6, threads: int = 1, recipe: Recipe = TINY
) -> Training:
    """Train to step ``until`` of a run of ``steps``, as if it were interrupted there."""
    run = Training(folder, recipe, steps, threads=threads, corpus=TEXT)
    run.train(checkpoint_every_s=0.0, until=until)
    return run


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Bit for bit, whatever the number of threads; the curve has a line for each checkpoint."""
    whole = run_tiny(tmp_path / "whole", until=6)
    run_tiny(tmp_path / "cut", until=2)
    assert Training(tmp_path / "cut", TINY, 6).progress.step == 2
    cut = run_tiny(tmp_path / "cut", until=6, threads=2)
    assert replace_time(cut) == replace_time(whole)
    for left, right in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(left, right)
    curve = (tmp_path / "cut" / "curve.csv").read_text(encoding="ascii").splitlines()
    assert [line.split(",")[0] for line in curve] == ["step", "1", "2", "3", "4", "5", "6"]


def replace_time(run: Training) -> Any:
    return replace(run.progress, train_s=0.0)


def test_training_learns_and_exports_what_the_engine_runs(tmp_path: Path) -> None:
    run = Training(tmp_path, replace(TINY, sequences_per_step=8), 60, corpus=TEXT)
    before = run.compute_held_out_nats()
    run.train(checkpoint_every_s=60.0)
    assert run.compute_held_out_nats() < before - 1
    engine = TransformersEngine(run.export(), threads=1)
    assert engine.capabilities().vocab_size == TINY.vocab_size
    assert next(iter(engine.model.parameters())).dtype == torch.float32
    assert (tmp_path / "model" / "tokenizer_config.json").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run_tiny(tmp_path, until=1)
    with pytest.raises(EngineError, match="another corpus, shape or seed"):
        Training(tmp_path, replace(TINY, hidden_size=64), 6, corpus=TEXT)
    for recipe, text in ((replace(TINY, seed=1), TEXT), (TINY, replace(TEXT, digest="y"))):
        with pytest.raises(EngineError, match="made with another"):
            Training(tmp_path, recipe, 6, corpus=text)


def test_the_rate_rises_stays_and_falls_to_its_end() -> None:
    shares = [compute_rate_share(step, 1_000) for step in range(1_000)]
    assert 0 < shares[0] < shares[30] < 1
    assert set(shares[60:700]) == {1.0}
    assert all(left > right for left, right in zip(shares[701:], shares[702:], strict=False))
    assert 0 < shares[-1] < 0.01


def test_the_corpus_is_the_library_without_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    for name in ("one.py", "package/two.py", "test/three.py", "site-packages/four.py", "broken.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'def f():\n    """{"What this does, said at some length. " * 3}{name}"""\n')
    (tmp_path / "broken.py").write_text("def broken(:")
    with pytest.raises(EngineError, match="nothing to learn from"):
        read_corpus(0)
    monkeypatch.setattr(corpus, "CORPUS_BYTES_MIN", 100)
    found = read_corpus(0)
    text = "\n".join((*found.training, *found.held_out))
    assert "one.py" in text
    assert "package.two.f()" in text, "a docstring is a document of its own, under its name"
    assert "three.py" not in text
    assert "four.py" not in text
    assert "def broken(:" not in text
    assert found.held_out
    assert not set(found.held_out) & set(found.training)
    assert read_corpus(0) == found
    assert read_corpus(1).digest != found.digest


def test_the_tokenizer_takes_any_text() -> None:
    tokenizer = train_tokenizer(TEXT.training, 300)
    for text in ("def name_3", "ünïcödé \x00 🙂\n\t", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


SAMPLE = '''def read_lines(path, encoding="utf-8"):
    """Return the lines of a file as a list of strings.

    If the file does not exist, an empty list is returned.
    """
    try:
        with open(path, encoding=encoding) as file:
            return file.readlines()
    except FileNotFoundError:
        return []


class Counter:
    def __init__(self, name=None):
        self.name = name
        self.value = 0

    def increment(self, amount=1):
        if amount < 0:
            raise ValueError("amount must not be negative")
        self.value += amount
        return self.value
'''


def describe_fake(folder: Path) -> tuple[FakeEngine, dict[str, Any]]:
    engine = FakeEngine("shipped")
    claims = engine.capabilities()
    profile = run_calibration(engine, engine, draw_prompts(claims, count=3), max_tokens=4)
    description = describe(claims, profile, "shipped")
    (folder / "one.json").write_text(json.dumps(description), encoding="ascii")
    return engine, description


def test_a_calibration_that_ships_is_taken_on_its_own_stack_alone(tmp_path: Path) -> None:
    engine, description = describe_fake(tmp_path)
    claims = engine.capabilities()
    assert find_shipped_description(claims, tmp_path) == json.loads(json.dumps(description))
    for other in (
        replace(claims, stack=f"{claims.stack} cpu=AVX2"),
        replace(claims, model_id=ModelId(bytes(32))),
        replace(claims, schema=replace(claims.schema, layer_count=claims.schema.layer_count + 1)),
    ):
        assert find_shipped_description(other, tmp_path) is None
    mixed = {**description, "profile": {**description["profile"]}}
    mixed["profile"]["about"] = {**mixed["profile"]["about"], "verifier_stack": "another"}
    (tmp_path / "one.json").write_text(json.dumps(mixed), encoding="ascii")
    assert find_shipped_description(claims, tmp_path) is None, "of a mixed pair"


def test_whoever_prepares_a_model_takes_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, description = describe_fake(tmp_path)
    monkeypatch.setattr(prepare, "build_engine", lambda *_arguments, **_options: engine)
    monkeypatch.setattr(
        prepare, "find_shipped_description", partial(find_shipped_description, folder=tmp_path)
    )
    monkeypatch.setattr(prepare, "run_calibration", None)
    prepare.main("fake:shipped", tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text()) == json.loads(json.dumps(description))


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.json")), ids=lambda file: file.stem)
def test_what_ships_is_a_fitted_profile_of_this_model(file: Path, engine: TransformersEngine) -> None:
    """For some stack; the stack that this machine has may be another."""
    description = json.loads(file.read_text(encoding="ascii"))
    profile = MatchingProfile.from_dict(description["profile"])
    assert description["profile_digest"] == profile.digest().hex()
    assert description["model_id"] == engine.capabilities().model_id.hex()
    assert description["name"] == REFERENCE_NAME
    assert int(profile.about["job_count"]) >= 300
    assert profile.limits.means
    assert profile.limits.tokens is not None
    dtype = re.search(r"dtype=(\w+)", description["stack"])
    assert dtype is not None
    assert dtype[1] in file.stem
    known = replace(
        engine.capabilities(),
        stack=description["stack"],
        schema=RowSchema.from_dict(description["row_schema"]),
    )
    assert find_shipped_description(known) == description


def test_a_calibration_ships_for_a_cpu() -> None:
    """Of the dtype that commands take there."""
    assert "float32" in {file.stem.split("-")[0] for file in PROFILES.glob("*.json")}
