"""A model is its files: every changed byte, name or missing file is another model, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pocache
from pocache.engine.manifest import ModelManifest, compute_manifest
from pocache.protocol.errors import EngineError


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("[]")
    return tmp_path


def test_a_manifest_lists_the_model_and_nothing_else(tiny_dir: Path) -> None:
    before = compute_manifest(tiny_dir)
    (tiny_dir / "README.md").write_text("words")
    (tiny_dir / "sub").mkdir()
    (tiny_dir / "sub" / "other.json").write_text("{}")
    assert compute_manifest(tiny_dir) == before
    assert [file.name for file in before.files] == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_every_byte_counts(tiny_dir: Path, name: str) -> None:
    before = compute_manifest(tiny_dir).model_id
    path = tiny_dir / name
    path.write_bytes(path.read_bytes() + b" ")
    assert compute_manifest(tiny_dir).model_id != before


def test_names_count(tiny_dir: Path) -> None:
    before = compute_manifest(tiny_dir).model_id
    (tiny_dir / "tokenizer.json").rename(tiny_dir / "tokenizer2.json")
    assert compute_manifest(tiny_dir).model_id != before


def test_the_json_form_is_read_back(tiny_dir: Path) -> None:
    manifest = compute_manifest(tiny_dir)
    assert ModelManifest.from_dict(manifest.to_dict()) == manifest


def test_a_manifest_that_was_edited_is_refused(tiny_dir: Path) -> None:
    good = compute_manifest(tiny_dir).to_dict()
    entry = good["files"][0]
    for edited in (
        {**good, "model_id": "00" * 32},
        {**good, "model_id": 7},
        {**good, "kind": "other"},
        {**good, "extra": 1},
        {**good, "files": good["files"][1:]},
        {**good, "files": good["files"][::-1]},
        {**good, "files": [{**entry, "size_bytes": -1}, *good["files"][1:]]},
        {**good, "files": [{**entry, "sha256": "00"}, *good["files"][1:]]},
        {**good, "files": [{**entry, "name": "../config.json"}, *good["files"][1:]]},
        {**good, "files": [{"name": "config.json"}, *good["files"][1:]]},
        {**good, "files": None},
    ):
        with pytest.raises(EngineError):
            ModelManifest.from_dict(edited)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_directories_without_a_model_are_refused(tiny_dir: Path, missing: str) -> None:
    (tiny_dir / missing).unlink()
    with pytest.raises(EngineError, match="not a model directory"):
        compute_manifest(tiny_dir)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such"):
        compute_manifest(tmp_path / "nowhere")


def test_the_torch_free_half_of_the_engine_imports_no_torch() -> None:
    """Routers and the command line name, fake and calibrate models without two seconds of imports."""
    code = (
        "import sys; from pocache.engine import adversary, calibrate, demo_model, fake, manifest, port; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    source_root = str(Path(pocache.__path__[0]).parent)
    child = subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": source_root})
    assert child.returncode == 0
