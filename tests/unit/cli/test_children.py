"""Child processes: one that is ready, one that dies, one that is never ready, one that is killed.

The children are small modules written by the test; they say what they do on standard error, as services do.
"""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pocache_cli.children import Child, ChildFailedError, pick_python_environment

READY_S = 60.0
IMPORTS = """
import json, os, signal, sys
def say(event):
    print(json.dumps({"event": event}), file=sys.stderr, flush=True)
def leave(*_):
    say("stopped")
    sys.exit(0)
"""
DRAINS = "signal.signal(signal.SIGTERM, leave)\n"
IGNORES = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SAYS_READY = "say('starting'); say('ready')\n"
WAITS = "signal.pause()\n"
DRAINING = IMPORTS + DRAINS + SAYS_READY + WAITS
ORDINARY = IMPORTS + SAYS_READY + WAITS

MakeChild = Callable[..., Child]


@pytest.fixture
async def make_child(tmp_path: Path) -> AsyncIterator[MakeChild]:
    """Write a module and return the child that runs it; all are ended with the test."""
    async with AsyncExitStack() as stack:

        def make(source: str, **environ: str) -> Child:
            (tmp_path / "tiny_child.py").write_text(textwrap.dedent(source))
            log = tmp_path / "logs" / "tiny.log"
            child = Child("tiny", "tiny_child", {"PYTHONPATH": str(tmp_path), **environ}, log)
            stack.push_async_callback(child.kill)
            return child

        yield make


def read_log(tmp_path: Path) -> str:
    return (tmp_path / "logs" / "tiny.log").read_text()


async def test_ready_then_stopped_in_order(make_child: MakeChild, tmp_path: Path) -> None:
    child = make_child(DRAINING)
    assert child.pid is None
    await child.start()
    await child.wait_ready(READY_S)
    assert child.pid is not None
    assert child.exit_code is None
    assert await child.stop() == 0
    assert child.pid is None
    assert child.exit_code == 0
    assert '"stopped"' in read_log(tmp_path)


async def test_one_that_ends_before_it_is_ready(make_child: MakeChild, tmp_path: Path) -> None:
    """Its code, its last words and where its log lies: what somebody needs to mend it."""
    child = make_child("import sys; print('set POCACHE_NATS_URL', file=sys.stderr); sys.exit(2)")
    await child.start()
    with pytest.raises(ChildFailedError, match="ended with code 2: set POCACHE_NATS_URL") as caught:
        await child.wait_ready(READY_S)
    assert str(tmp_path / "logs" / "tiny.log") in str(caught.value)
    assert await child.wait() == 2
    assert await child.stop() == 2


async def test_one_that_is_never_ready(make_child: MakeChild) -> None:
    """It says so in time, and can still be ended."""
    child = make_child(
        "import signal, sys; print('still loading', file=sys.stderr, flush=True); signal.pause()"
    )
    await child.start()
    with pytest.raises(ChildFailedError, match=r"was not ready after 0\.01 s"):
        await child.wait_ready(0.01)
    assert child.pid is not None
    assert await child.stop() == -15


async def test_one_that_is_killed(make_child: MakeChild) -> None:
    child = make_child(ORDINARY)
    await child.start()
    await child.wait_ready(READY_S)
    await child.kill()
    assert child.exit_code == -9
    assert child.pid is None
    await child.kill()  # again is nothing


async def test_one_that_dies_is_noticed(make_child: MakeChild) -> None:
    child = make_child(IMPORTS + SAYS_READY + "os.kill(os.getpid(), signal.SIGKILL)")
    await child.start()
    assert await child.wait() == -9


async def test_one_that_ignores_the_signal_is_ended_by_force(
    make_child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocache_cli.children.STOP_S", 0.01)
    child = make_child(IMPORTS + IGNORES + SAYS_READY + WAITS)
    await child.start()
    await child.wait_ready(READY_S)
    assert await child.stop() == -9


async def test_restarting_is_a_new_process_with_the_same_log(make_child: MakeChild, tmp_path: Path) -> None:
    child = make_child(ORDINARY)
    await child.start()
    await child.wait_ready(READY_S)
    first = child.pid
    await child.restart(READY_S)
    assert child.pid not in (None, first)
    assert read_log(tmp_path).count('"ready"') == 2


async def test_a_restart_that_fails_leaves_nothing_running(make_child: MakeChild, tmp_path: Path) -> None:
    """Readiness of the last life does not count in the next."""
    child = make_child(ORDINARY)
    await child.start()
    await child.wait_ready(READY_S)
    (tmp_path / "tiny_child.py").write_text("import signal; signal.pause()")
    with pytest.raises(ChildFailedError, match="was not ready"):
        await child.restart(0.01)
    assert child.pid is None


async def test_waiting_may_be_given_up(make_child: MakeChild, tmp_path: Path) -> None:
    """Who waited is cancelled; the child lives on, and its log is read to the end."""
    child = make_child(DRAINING)
    await child.start()
    await child.wait_ready(READY_S)
    waiting = asyncio.ensure_future(child.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert child.pid is not None
    assert await child.stop() == 0
    assert '"stopped"' in read_log(tmp_path)


async def test_only_an_entry_of_the_log_means_ready(make_child: MakeChild, tmp_path: Path) -> None:
    """A line that merely mentions the word, or is no JSON, or no object, does not; nor does it end the reading."""
    child = make_child(
        """
        import signal, sys
        for line in ('not yet "event": "ready"', '["ready"]', '{"event": "not ready", "was": "ready"}', "\\xff"):
            print(line, file=sys.stderr, flush=True)
        print("end of lines", file=sys.stderr, flush=True)
        """
    )
    await child.start()
    with pytest.raises(ChildFailedError, match="ended with code 0: end of lines"):
        await child.wait_ready(READY_S)
    assert len(read_log(tmp_path).splitlines()) == 5


async def test_a_child_gets_its_own_settings_and_not_ours(
    make_child: MakeChild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One port or database in our environment is not that of every child."""
    monkeypatch.setenv("POCACHE_DATABASE_URL", "sqlite:///shared")
    monkeypatch.setenv("OTHER_SETTING", "kept")
    child = make_child(
        "import os, sys; print(sorted(k for k in os.environ if 'POCACHE' in k or k == 'OTHER_SETTING'), file=sys.stderr)",
        POCACHE_NAME="tiny",
    )
    await child.start()
    assert await child.wait() == 0
    assert read_log(tmp_path).strip() == "['OTHER_SETTING', 'POCACHE_NAME']"


def test_children_find_this_projects_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    roots = pick_python_environment()["PYTHONPATH"].split(os.pathsep)
    assert roots[-1] == "/somewhere"
    assert {"pocache_cli", "pocache"} <= {one.name for root in roots[:-1] for one in Path(root).iterdir()}
