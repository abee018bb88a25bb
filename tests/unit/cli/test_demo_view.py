"""The demo's report: what honest generators wrote is shown, and nothing that a model writes commands the terminal."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from pocache.protocol.ids import JobId
from pocache_cli.demo_view import TEXTS_SHOWN, print_report
from pocache_cli.scenario import JobLine, Report


def make_line(number: int, prompt: str, text: str, cheat: str = "") -> JobLine:
    return JobLine(
        JobId(bytes([number]) * 32), "ada", generator="worker-1", cheat=cheat, prompt=prompt, text=text
    )


def show(*lines: JobLine) -> str:
    report = Report(
        jobs=len(lines),
        settled=len(lines),
        challenged=0,
        cheats_injected=0,
        cheats_slashed=0,
        honest_slashed=0,
        pool_residue_micro=0,
        conserved=True,
        lines=lines,
        problems=(),
    )
    out = StringIO()
    print_report(Console(file=out, width=120), report, 1.0)
    return out.getvalue()


def test_honest_texts_are_shown_once_for_each_prompt() -> None:
    shown = show(
        make_line(1, "def f", "(x):\n    return [x]"),
        make_line(2, "def f", "(another)"),
        make_line(3, "class C", "(forged)", cheat="int4"),
        make_line(4, "import ", "os"),
        *(make_line(5 + number, f"prompt {number} ", f"text {number}") for number in range(TEXTS_SHOWN)),
    )
    assert "def f(x):\n    return [x]\n" in shown, "as it is, also what looks like markup"
    assert "import os" in shown
    assert "another" not in shown
    assert "forged" not in shown
    assert "text 1" in shown
    assert f"text {TEXTS_SHOWN - 1}" not in shown


def test_control_characters_are_replaced() -> None:
    shown = show(make_line(1, "a", "\x1b]0;title\x07\x1b[2J\x9b2J done"))
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "\ufffd" in shown
    assert "done" in shown


def test_without_texts_nothing_is_said_of_them() -> None:
    assert "wrote" not in show(make_line(1, "a", ""))
