"""The documents say what the code says: cited numbers exist, and every table is the code's own."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel

from pocache.protocol import errors, limits
from pocache.protocol.payoff import RULES_DEFAULT
from pocache.runtime.network import AuditConfig, Bounds, Deadlines, EjectionConfig
from pocache.runtime.rules import CommitteeRules, UnifiedPoolRules
from pocache.wire import messages
from pocache.wire.model import WireModel
from pocache.wire.topics import TOPICS, Topic

ROOT = Path(__file__).parents[2]
SPECIFICATION = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
THREATS = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")

HEADING = re.compile(r"^(?P<marks>#{2,3}) (?P<number>\d+(?:\.\d+)?)\.? \S", re.MULTILINE)
RULE = re.compile(r"^- \*\*(?P<number>\d+\.\d+\.\d+)[ *]", re.MULTILINE)
CITATION = re.compile(r"docs/protocol\.md[ \n]+(?P<numbers>\d+(?:\.\d+)*(?:(?:, | and )\d+(?:\.\d+)*)*)")
INNER = re.compile(
    r"(?<![\d.,/·×−‖^u-])\b(?P<number>(?:[1-9]|1[0-3])\.\d{1,2}(?:\.\d{1,2})?)\b(?![\d%,]|\.\d)"
)
CODE = re.compile(r"^    code(?:: ClassVar\[str\])? = \"(?P<code>E\d{3})\"", re.MULTILINE)
SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("rules", UnifiedPoolRules),
    ("rules", CommitteeRules),
    ("audit", AuditConfig),
    ("ejection", EjectionConfig),
    ("deadlines", Deadlines),
    ("bounds", Bounds),
)


def read_sources() -> Iterator[tuple[Path, str]]:
    for folder in ("shared", "services", "tests", "bench"):
        for suffix in ("py", "json", "md"):
            for file in sorted((ROOT / folder).rglob(f"*.{suffix}")):
                if file != Path(__file__):
                    yield file.relative_to(ROOT), file.read_text(encoding="utf-8")


def read_numbers(text: str) -> list[tuple[int, ...]]:
    found = [(match.start(), match["number"]) for rule in (HEADING, RULE) for match in rule.finditer(text)]
    return [tuple(map(int, number.split("."))) for _, number in sorted(found)]


def read_section(number: str) -> str:
    """Return the text from a heading to the next one."""
    start = re.search(rf"^#+ {re.escape(number)}\.? ", SPECIFICATION, re.MULTILINE)
    assert start is not None, f"no section {number}"
    end = re.compile(r"^#", re.MULTILINE).search(SPECIFICATION, start.end())
    return SPECIFICATION[start.end() : end.start() if end else None]


def read_table(number: str) -> list[list[str]]:
    """Return the rows of a section's table, cells stripped, without its head."""
    lines = [line for line in read_section(number).splitlines() if line.startswith("|")]
    assert len(lines) > 2, f"section {number} has no table"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


NUMBERS = {".".join(map(str, number)) for number in read_numbers(SPECIFICATION)}


def test_numbers_ascend_without_gap_or_repetition() -> None:
    """A number means one thing, so a citation that was true stays findable."""
    assert read_numbers(SPECIFICATION)[0] == (1,)
    for before, after in pairwise(read_numbers(SPECIFICATION)):
        following = {(*before, 1)} | {(*before[:depth], before[depth] + 1) for depth in range(len(before))}
        # Rules hang below a heading of two numbers, so a section's first heading may open with its first rule.
        assert after in following, f"{after} does not follow {before}"


def test_headings_have_as_many_marks_as_numbers() -> None:
    for match in HEADING.finditer(SPECIFICATION):
        assert len(match["marks"]) == 2 + match["number"].count("."), match[0]


def test_what_the_code_cites_exists() -> None:
    cited = [
        (file, number)
        for file, text in read_sources()
        for match in CITATION.finditer(text)
        for number in re.split(r", | and ", match["numbers"])
    ]
    assert len(cited) > 20, "the citations were not found"
    wrong = [f"{file}: {number}" for file, number in cited if number not in NUMBERS]
    assert not wrong


def test_every_mention_of_the_specification_names_a_number() -> None:
    """A citation without a number cannot go wrong, and says nothing."""
    for file, text in read_sources():
        if file.suffix == ".py":
            assert text.count("docs/protocol.md") == len(CITATION.findall(text)), file


def test_what_the_specification_cites_of_itself_exists() -> None:
    prose = "\n".join(line for line in SPECIFICATION.splitlines() if not line.startswith("#"))
    cited = {number for group in re.findall(r"\(([^()]*)\)", prose) for number in INNER.findall(group)}
    assert {"2.2", "11.4", "5.4.3"} <= cited, "the citations were not found"
    rfc_sections = {"2.1.1", "2.1.2", "2.1.3.2", "2.1.4.2"}
    assert not sorted(cited - NUMBERS - rfc_sections)


def describe_topic(topic: Topic[WireModel]) -> list[str]:
    named = f" (named: `{{{topic.named_signer}}}`)" if topic.named_signer else ""
    return [
        f"`{topic.pattern}`",
        f"`{topic.model.kind}`",
        topic.stream.value if topic.stream else "core",
        topic.signer.value + named,
        ", ".join(taker.value for taker in topic.takers) or "–",
    ]


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.pattern)
def test_every_topic_is_in_the_message_table(topic: Topic[WireModel]) -> None:
    assert describe_topic(topic) in read_table("11.3")


def test_the_message_table_has_nothing_else() -> None:
    assert len(read_table("11.3")) == len(TOPICS)


def test_every_body_is_listed_with_its_fields() -> None:
    models: list[type[WireModel]] = [
        model
        for model in vars(messages).values()
        if inspect.isclass(model) and issubclass(model, WireModel) and model is not WireModel
    ]
    expected = [
        [f"`{model.kind}`", ", ".join(f"`{name}`" for name in model.model_fields) or "–"] for model in models
    ]
    assert sorted(read_table("11.6")) == sorted(expected)


def test_every_limit_is_listed_with_its_value() -> None:
    expected = {
        f"`{name}`": f"{value:,}"
        for name, value in vars(limits).items()
        if name.isupper() and isinstance(value, int)
    }
    assert {row[0]: row[1] for row in read_table("12.1")} == expected


def test_every_network_parameter_is_listed_with_its_default() -> None:
    expected = {
        f"`{section}.{name}`": f"{info.default:,}" if isinstance(info.default, int) else str(info.default)
        for section, config in SECTIONS
        for name, info in config.model_fields.items()
    }
    expected["`rules.name`"] = RULES_DEFAULT
    assert {row[0]: row[1] for row in read_table("12.2")} == expected


def test_every_error_of_the_tree_is_listed() -> None:
    tree = {
        (error.code, f"`{error.__name__}`", error.disposition.value)
        for error in vars(errors).values()
        if inspect.isclass(error) and issubclass(error, errors.PocacheError)
    }
    assert tree <= {(row[0], row[1], row[2]) for row in read_table("12.4")}


def test_every_code_in_the_sources_is_listed_once() -> None:
    """Also those that a package declares for itself, beside the tree."""
    declared = {
        code
        for file, text in read_sources()
        if file.parts[0] in ("shared", "services") and file.suffix == ".py"
        for code in CODE.findall(text)
    }
    listed = [row[0] for row in read_table("12.4")]
    assert "E802" in declared, "the codes were not found"
    assert sorted(listed) == sorted(declared)


def test_streams_are_listed() -> None:
    streams = {topic.stream.value for topic in TOPICS if topic.stream is not None}
    assert streams | {"DEADLETTER", "ADVISORIES"} == {row[0] for row in read_table("11.1")}


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")])


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_table_has_a_head_and_rows_of_its_width(file: Path) -> None:
    """A blank line before a row ends the table, and what follows is shown as bars."""
    rule = re.compile(r"\|[\s:|-]+\|")
    tables = re.findall(r"(?:^\|.*\n?)+", file.read_text(encoding="utf-8"), re.MULTILINE)
    for lines in (table.splitlines() for table in tables):
        assert len(lines) > 2, lines[0]
        assert rule.fullmatch(lines[1]), lines[0]
        widths = {re.sub(r"`[^`]*`", "", line).count("|") for line in lines}
        assert len(widths) == 1, lines[0]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_link_inside_the_repository_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (file.parent / target).exists(), target


def test_every_refusal_of_the_gateway_is_listed_with_its_status() -> None:
    """docs/gateway.md has each code that the gateway's sources name, and no other."""
    sources = "\n".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "services/pocache_gateway").glob("*.py")
    )
    made = set(re.findall(r"code(?:: str)? ?= ?\"([a-z_]+)\"", sources))
    made |= set(re.findall(r"unavailable\(\s*f?\"[^\"]*\",\s*\"([a-z_]+)\"", sources))
    made |= set(re.findall(r"\" if \"context\" in reason else \"([a-z_]+)\"", sources))
    table = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8").split("| status | `code` | when |")[1]
    rows = [line.split("|") for line in table.split("\n\n")[0].splitlines()[2:]]
    listed = [code for row in rows for code in re.findall(r"`([a-z_]+)`", row[2])]
    assert sorted(listed) == sorted(made)


def test_the_threat_model_names_only_tests_that_exist() -> None:
    """A test is named as `file.py::test`; a file alone stands for all of its tests."""
    named = re.findall(r"`((?:[a-z_]+/)*test_[a-z_0-9]+\.py)(?:::(test_[a-z_0-9]+))?`", THREATS)
    assert len(named) > 20, "the tests were not found"
    for path, name in named:
        file = ROOT / "tests" / path
        assert file.is_file(), path
        assert not name or f"def {name}(" in file.read_text(encoding="utf-8"), f"{path}::{name}"
