"""``pocache demo`` as its user runs it: a process of its own, one JSON object at the end, and the right exit code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from pocache_cli.children import pick_python_environment

KEYS = {
    "jobs": int,
    "settled": int,
    "challenged": int,
    "cheats_injected": int,
    "cheats_slashed": int,
    "honest_slashed": int,
    "pool_residue_micro": int,
    "conserved": bool,
}
DEMO_S = 170.0


@pytest.mark.timeout(200)
async def test_the_demo_convicts_every_cheat_and_says_so_in_one_object(tmp_path: Path) -> None:
    """Four kinds of cheating generators and one verifier, without torch: all slashed, nobody honest, no money lost."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "pocache_cli", "demo", "--model", "fake:demo", "--jobs", "20", "--tokens", "12", "--json"),
        env={**os.environ, **pick_python_environment()},
        cwd=tmp_path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEMO_S):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    [line] = out.decode().splitlines()
    found = json.loads(line)
    assert {name: type(value) for name, value in found.items()} == KEYS
    assert list(found) == list(KEYS)
    assert found["jobs"] >= 20
    assert found["settled"] == found["jobs"]
    assert found["cheats_injected"] == found["cheats_slashed"] >= 5
    # The verifier needs no challenge, and who contradicted itself no audit.
    assert found["challenged"] >= 3
    assert (found["honest_slashed"], found["pool_residue_micro"], found["conserved"]) == (0, 0, True)
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in errors.decode()
