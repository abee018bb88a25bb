"""The committed vectors are what this implementation computes today: whoever changes the protocol sees it here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vectors", FOLDER / "make_vectors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()


@pytest.mark.parametrize("name", MAKER.MAKERS)
def test_committed_vectors_come_out_again(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text(encoding="ascii") == MAKER.write_text(name)


def test_every_section_is_described() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, make in MAKER.MAKERS.items():
        assert f"| `{name}` |" in readme
        assert all(f"| `{section}` |" in readme for section in make())
