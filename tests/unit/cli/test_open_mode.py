"""``pocache open`` as three parties use it: four files, and an exit code that says whether to believe the verifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from kit.engines import build_small_model
from pocache_cli.calibrate import calibrate
from pocache_cli.open_mode import open_mode


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build_small_model(tmp_path_factory.mktemp("open") / "model")


@pytest.fixture(scope="module")
def profile(model: Path) -> Path:
    file = model.parent / "profile.json"
    arguments = [str(model), "--runs", "4", "--tokens", "12", "--out", str(file)]
    assert CliRunner().invoke(calibrate, arguments).exit_code == 0
    return file


@pytest.fixture(scope="module")
def delivery(model: Path) -> Path:
    file = model.parent / "delivery.json"
    found = run(0, "generate", model, "Once upon a time", "--tokens", "32", "--share", "1/2", "--out", file)
    assert found["tokens"] == 32
    assert found["vectors"] > 6
    return file


def run(code: int, *arguments: object) -> Any:
    result = CliRunner().invoke(open_mode, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout.splitlines()[0])


def change(file: Path, edit: Callable[[Any], object]) -> Path:
    content = json.loads(file.read_bytes())
    edit(content)
    changed = file.with_name("changed-" + file.name)
    changed.write_text(json.dumps(content))
    return changed


@pytest.mark.parametrize("form", ["--with-indices", "--without-indices"])
def test_the_whole_way_and_what_a_lazy_verifier_gets(
    model: Path, profile: Path, delivery: Path, tmp_path: Path, form: str
) -> None:
    question, key, answer = tmp_path / "question", tmp_path / "key", tmp_path / "answer"
    decoys = ["--decoys", 2] if form == "--with-indices" else []
    asked = run(0, "ask", delivery, form, *decoys, "--question", question, "--key", key)
    assert asked["decoys"] == (4 if decoys else 0)
    found = run(0, "match", model, question, "--profile", profile, "--out", answer)
    assert found["matched"] == asked["vectors"] - asked["decoys"]
    judged = run(0, "check", question, key, answer)
    assert judged == {"verdict": "matched", "matched": found["matched"], "counts_as_audit": False}

    count = asked["vectors"]
    lazy = change(answer, lambda one: one.update(matches=[[number, 20, 0] for number in range(count)]))
    assert run(1, "check", question, key, lazy)["verdict"] == "false-claim"
    idle = change(answer, lambda one: one.update(matches=[]))
    assert run(1, "check", question, key, idle)["verdict"] == "unmatched"
    again = run(0, "ask", delivery, form, *decoys, "--question", question, "--key", key)
    assert again["vectors"] == count
    assert run(1, "check", question, key, answer)["code"] == "E105", "an answer to another question"


def test_vectors_left_out_or_changed_are_refused(
    model: Path, profile: Path, delivery: Path, tmp_path: Path
) -> None:
    question, key, answer = tmp_path / "question", tmp_path / "key", tmp_path / "answer"
    files = ("--question", question, "--key", key)
    width = 2 * 6 + 2 * 2 * 16 * 4  # index, K row and V row of 16 float32, in hexadecimal
    short = change(delivery, lambda one: one.update(vectors=one["vectors"][width:]))
    assert run(1, "ask", short, *files)["code"] == "E303"
    torn = change(delivery, lambda one: one.update(vectors=one["vectors"][2:]))
    assert run(1, "ask", torn, *files)["code"] == "E105"
    negated = change(delivery, lambda one: one.update(vectors=one["vectors"][:-128] + "3f800000" * 16))
    assert not question.exists()
    run(0, "ask", negated, *files)
    run(0, "match", model, question, "--profile", profile, "--out", answer)
    assert run(1, "check", question, key, answer)["verdict"] == "unmatched"


def test_files_and_profiles_that_do_not_fit_are_refused(
    model: Path, profile: Path, delivery: Path, tmp_path: Path
) -> None:
    question, key, answer = tmp_path / "question", tmp_path / "key", tmp_path / "answer"
    files = ("--question", question, "--key", key)
    assert run(2, "ask", tmp_path / "none", *files)["code"] == "E601"
    assert run(1, "ask", profile, *files)["code"] == "E105"
    (tmp_path / "text").write_text("no json")
    assert run(1, "ask", tmp_path / "text", *files)["code"] == "E105"
    assert run(1, "ask", change(delivery, lambda one: one.pop("share")), *files)["code"] == "E105"
    run(0, "ask", delivery, *files)
    for edit in (lambda one: one.update(stack="another"), lambda one: one.update(model_id="00")):
        other = change(profile, edit)
        assert run(2, "match", model, question, "--profile", other, "--out", answer)["code"] == "E601"
    assert not answer.exists()
    result = CliRunner().invoke(
        open_mode, ["generate", str(model), "x", "--share", "half", "--out", str(answer)]
    )
    assert result.exit_code == 2
