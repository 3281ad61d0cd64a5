"""Alert rules and routes: promtool's and amtool's own checks, unit tests that can fail, and a runbook for each alert."""
import copy
import re
import urllib.parse

import pytest

from conftest import ROOT
from deployment import DEPLOY, RULES, alerts, run, succeeds, tool, yaml

CASES_FILE = DEPLOY / "prometheus" / "tests" / "alerts_test.yml"
CASES = yaml.safe_load(CASES_FILE.read_text())
RUNBOOK = ROOT / "docs" / "OPERATIONS.md"


def test_promtool_accepts_configuration_and_rules():
    succeeds(tool("promtool"), "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    succeeds(tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_unit_tests_of_the_alerts():
    succeeds(tool("promtool"), "test", "rules", CASES_FILE)


def firing(case):
    """For each moment of a case, the alerts that are to fire."""
    return [{re.search(r'alertname="(\w+)"', sample["labels"])[1] for sample in moment["exp_samples"]}
            for moment in case["promql_expr_test"]]


def test_every_alert_has_one_case_with_both_outcomes():
    names = [case["name"] for case in CASES["tests"]]
    assert sorted(names) == sorted(alerts())
    for case in CASES["tests"]:
        outcomes = {case["name"] in moment for moment in firing(case)}
        assert outcomes == {True, False}, case["name"]


def outcome_with(name, rule, folder):
    """promtool's exit status for the alert's case when its rule is this one and no other alert exists."""
    folder.mkdir()
    recording = [yaml.safe_load(path.read_text()) for path in RULES if path.stem == "recording"]
    groups = [*recording[0]["groups"], {"name": "fixpoint-alerts", "rules": [rule]}]
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    case = copy.deepcopy(next(case for case in CASES["tests"] if case["name"] == name))
    for moment in case["promql_expr_test"]:
        moment["expr"] = f'count by (alertname, instance) (ALERTS{{alertstate="firing",alertname="{name}"}})'
        moment["exp_samples"] = [s for s in moment["exp_samples"] if f'"{name}"' in s["labels"]]
    (folder / "case.yml").write_text(yaml.safe_dump({**CASES, "rule_files": ["rules.yml"], "tests": [case]}))
    return run(tool("promtool"), "test", "rules", folder / "case.yml").returncode


@pytest.mark.parametrize("name", sorted(alerts()))
def test_a_broken_rule_fails_its_case(name, tmp_path):
    rule = alerts()[name]
    at_once = {key: value for key, value in rule.items() if key != "for"}
    assert outcome_with(name, rule, tmp_path / "as_it_is") == 0
    assert outcome_with(name, {**at_once, "expr": "vector(0) > 1"}, tmp_path / "never") == 1
    assert outcome_with(name, {**at_once, "expr": f"({rule['expr']}) or vector(1)"}, tmp_path / "always") == 1
    if "for" in rule:
        assert outcome_with(name, at_once, tmp_path / "impatient") == 1


def anchor(heading):
    """What the web pages of a git host make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", sorted(alerts()))
def test_form_of_an_alert(name):
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    path, target = urllib.parse.urldefrag(rule["annotations"]["runbook_url"])
    assert (ROOT / path) == RUNBOOK
    assert target == anchor(name)


def test_every_alert_has_its_section_and_no_section_is_orphaned():
    sections = re.split(r"^### ", RUNBOOK.read_text(), flags=re.M)[1:]
    alert_sections = {s.splitlines()[0]: s for s in sections if s.startswith("Fixpoint")}
    assert sorted(alert_sections) == sorted(alerts())
    for name, text in alert_sections.items():
        for part in ("**Means.**", "**See.**", "**Do.**"):
            assert part in text, f"{name} lacks {part}"


def test_alertmanager_routes():
    config = DEPLOY / "alertmanager" / "alertmanager.yml"
    amtool = tool("amtool")
    succeeds(amtool, "check-config", config)
    for severity, receiver in (("critical", "wake-somebody"), ("warning", "look-today")):
        route = succeeds(amtool, "config", "routes", "test", f"--config.file={config}", f"severity={severity}", "job=fixpoint")
        assert route.strip() == receiver
    named = set(re.findall(r"Fixpoint\w+", config.read_text()))
    assert named and named <= set(alerts()), named - set(alerts())
