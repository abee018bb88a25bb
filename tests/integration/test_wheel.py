"""The wheel that users install: in an environment with nothing else, it judges a receipt without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECEIPTS = ROOT / "tests" / "vectors" / "receipts"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the built wheel and its base dependencies; returns its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
    if built.returncode and os.environ.get("POCACHE_REQUIRE") != "all":
        pytest.skip(f"NOT TESTED: the wheel could not be built here: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert run([sys.executable, "-m", "venv", str(folder / "venv")]).returncode == 0
    python = str(folder / "venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    done = run([python, "-m", "pip", "--quiet", "install", "-c", constraints, str(wheel)])
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin"


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without this test's own import paths."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=cwd)


def test_the_base_install_has_no_torch(installed: Path) -> None:
    """Nothing that a verifier of receipts needs pulls in an engine."""
    code = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'numpy') if u.find_spec(n)])"
    done = run([str(installed / "python"), "-c", code])
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_receipt_is_judged(installed: Path, tmp_path: Path) -> None:
    """A good receipt is valid; one whose payouts were swapped for another job's is not."""
    trust = str(RECEIPTS / "trust.json")
    command = [str(installed / "pocache"), "verify", "--trust", trust, "--json"]
    good = run([*command, str(RECEIPTS / "agree.json")], cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    assert json.loads(good.stdout)["valid"] is True
    text = (RECEIPTS / "agree.json").read_text(encoding="utf-8")
    middle = len(text) // 2
    flipped = next(i for i in range(middle, len(text)) if text[i] in "Aa")
    forged = tmp_path / "forged.json"
    forged.write_text(text[:flipped] + "B" + text[flipped + 1 :], encoding="utf-8")
    bad = run([*command, str(forged)], cwd=tmp_path)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert json.loads(bad.stdout)["valid"] is False


def test_every_service_is_found(installed: Path) -> None:
    """The entry points of the wheel name the services."""
    done = run([str(installed / "pocache"), "serve", "--json"])
    names = set(json.loads(done.stdout)["services"])
    assert {"router", "worker", "commitments", "beacon", "verifier", "ledger"} <= names


def test_the_sdk_is_typed_for_who_imports_it(installed: Path) -> None:
    """Without this marker a type checker takes everything of an installed package for Any."""
    code = "import pocache.client, pathlib; print((pathlib.Path(pocache.client.__file__).parents[1] / 'py.typed').is_file())"
    done = run([str(installed / "python"), "-c", code], cwd=installed)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_the_reference_model_ships(installed: Path) -> None:
    """Weights, configuration, tokenizer and card are where the installed package looks for them."""
    code = (
        "from pocache.engine.reference import get_reference_dir as d; "
        "print(sorted(f.name for f in d().iterdir()), (d().parent / 'README.md').is_file())"
    )
    done = run([str(installed / "python"), "-c", code], cwd=installed)
    assert done.returncode == 0, done.stderr
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "True"):
        assert name in done.stdout


def test_benchmarks_are_not_part_of_it(installed: Path, tmp_path: Path) -> None:
    """They belong to the source, and the command says so."""
    done = run([str(installed / "pocache"), "bench", "--json"], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "come with the source" in json.loads(done.stdout)["reason"]
