"""Dashboards and alerts against the code: every metric that they name is exported, and every exported one is looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from pocache.runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "pocache.json"
ALERTS = ROOT / "deploy" / "k8s" / "monitoring" / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "operations.md"

FUNCTIONS = {"rate", "increase", "changes", "sum", "max", "count", "histogram_quantile"}
WORDS = {"by", "on", "and", "unless", "or", "without"}
TARGET_LABELS = {"namespace", "pod", "le"}
"""What Prometheus itself adds."""
FORBIDDEN_LABELS = {"job", "job_id", "user", "worker", "participant", "subject", "account"}
TOKEN = re.compile(
    r'\s*(?:(?P<text>"[^"]*")|(?P<range>\[[0-9]+[smh]\])|(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)|(?P<number>[0-9.]+)'
    r"|(?P<mark>==|!=|=~|>=|<=|[-+*/<>=(){},]))"
)


def list_expressions() -> list[tuple[str, str]]:
    """Return every PromQL expression with where it stands."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [
        (panel["title"], target["expr"])
        for panel in panels
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
    return found + [(rule["alert"], rule["expr"]) for rule in list_rules()]


def list_rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load(ALERTS.read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def tokenize(expression: str) -> Iterator[tuple[str, str]]:
    """Yield kind and text of each token; ValueError where there is none."""
    position = 0
    while position < len(expression.rstrip()):
        found = TOKEN.match(expression, position)
        if found is None:
            raise ValueError(f"not PromQL at {expression[position:]!r}")
        assert found.lastgroup is not None
        yield found.lastgroup, found[found.lastgroup]
        position = found.end()


def read_expression(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and labels that an expression names; ValueError when it is not well formed."""
    tokens = [*tokenize(expression), ("end", "")]
    metrics: set[str] = set()
    labels: set[str] = set()
    opened: list[str] = []
    is_grouping = False
    for (kind, text), (_, following) in zip(tokens, tokens[1:], strict=False):
        if text in ("(", "{"):
            opened.append("by" if is_grouping else text)
            is_grouping = False
        elif text in (")", "}"):
            if not opened or (text == "}") != (opened.pop() == "{"):
                raise ValueError(f"{text} closes nothing in {expression}")
        elif kind != "name":
            continue
        elif opened and opened[-1] in ("{", "by"):
            labels.add(text)
        elif text in WORDS:
            is_grouping = text in ("by", "on", "without")
        elif following == "(" or text in FUNCTIONS:
            if text not in FUNCTIONS:
                raise ValueError(f"{text} is no function that is known here")
        else:
            metrics.add(text)
    if opened:
        raise ValueError(f"something is not closed in {expression}")
    return metrics, labels


def list_exported() -> dict[str, set[str]]:
    """Return the sample names of everything that a process exports, with their labels."""
    exported: dict[str, set[str]] = {}
    for one in vars(Metrics("any")).values():
        if isinstance(one, Histogram):
            names = [f"{one._name}_{suffix}" for suffix in ("bucket", "sum", "count")]
        elif isinstance(one, Counter):
            names = [f"{one._name}_total"]
        elif isinstance(one, Gauge):
            names = [one._name]
        else:
            continue
        exported.update({name: set(one._labelnames) for name in names})
    exported["pocache_info"] = {"service", "version"}
    return exported


@pytest.mark.parametrize(("where", "expression"), list_expressions(), ids=lambda text: text[:40])
def test_every_expression_names_what_is_exported(where: str, expression: str) -> None:
    metrics, labels = read_expression(expression)
    exported = list_exported()
    assert metrics, where
    assert metrics <= exported.keys() | {"up"}, f"{where} names {metrics - exported.keys()}"
    known = set().union(*(exported.get(name, set()) for name in metrics)) | TARGET_LABELS
    assert labels <= known, f"{where} uses the labels {labels - known}"


def test_everything_exported_is_looked_at() -> None:
    used = set().union(*(read_expression(expression)[0] for _, expression in list_expressions()))
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in list_exported()}
    assert families == {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in used - {"up"}}


def test_the_export_lists_all_that_is_registered() -> None:
    """What this test holds the files to is the whole registry."""
    families = {family.name for family in Metrics("any").registry.collect()}
    assert families == {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in list_exported()}


def test_nothing_is_labelled_by_a_job_or_a_party() -> None:
    for name, labels in list_exported().items():
        assert not labels & FORBIDDEN_LABELS, name


def test_every_alert_says_how_bad_it_is_and_has_a_runbook() -> None:
    headings = {
        re.sub(r"[^a-z0-9]", "", heading.lower())
        for heading in re.findall(r"^#{2,4} (.+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)
    }
    names = [rule["alert"] for rule in list_rules()]
    assert len(set(names)) == len(names) >= 12
    for rule in list_rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert anchor in headings, rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(rate(pocache_jobs_total[5m])",
        "rat(pocache_jobs_total[5m])",
        "pocache_jobs_total{phase=}}",
        "a ? b",
    ],
)
def test_what_is_no_expression_is_found(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"closed|function|closes|PromQL"):
        read_expression(wrong)
