"""Rules and dashboard against the real thing: a fixpoint-server under a little load, Prometheus with our configuration (scrapes each
second, alerts without patience), Alertmanager with ours. Then the server drains, dies and comes back."""
import contextlib
import json
import math
import re
import signal
import time
import urllib.parse

import pytest

from conftest import ROOT
from deployment import DEPLOY, RULES, alerts, free_ports, get, get_json, process, rules, succeeds, tool, wait_until, yaml
from serving import CLIENT, SERVER, tiny_bundle

MAX_METRICS_BYTES = 100_000
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "fixpoint.json").read_text())
NEEDS_AN_EVENT = {'ALERTS{alertname=~"Fixpoint.*"}': "empty as long as no alert is pending or firing"}
VARIABLES = {"$__rate_interval": "1m", "$job": "fixpoint", "$instance": ".*"}


class Stack:
    """Server, Prometheus and Alertmanager on ports of their own."""

    def __init__(self, bundle, folder):
        self.bundle, self.folder = bundle, folder
        self.grpc, self.http, self.prometheus, self.alertmanager = free_ports(4)
        self.instance = f"127.0.0.1:{self.http}"
        self.ending = contextlib.ExitStack()

    def start_server(self):
        self.server = self.ending.enter_context(process(
            self.folder / "server.log", SERVER, self.bundle, "--listen", f"127.0.0.1:{self.grpc}", "--http", self.instance,
            "--threads", "1", "--drain-notice", "120"))
        wait_until("the server is ready", lambda: get(f"http://{self.instance}/readyz"), 30)

    def configuration(self):
        """Ours, but for addresses and patience."""
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        jobs["fixpoint"]["static_configs"] = [{"targets": [self.instance]}]
        config["scrape_configs"] = [jobs["fixpoint"]]  # the proxy has tests of its own
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{self.alertmanager}"]}]}]
        (self.folder / "rules").mkdir()
        for path in RULES:
            content = yaml.safe_load(path.read_text())
            for rule in (rule for group in content["groups"] for rule in group["rules"] if "for" in rule):
                rule["for"] = "1s"
            (self.folder / "rules" / path.name).write_text(yaml.safe_dump(content))
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def start_monitoring(self):
        self.configuration()
        self.ending.enter_context(process(
            self.folder / "alertmanager.log", tool("prometheus-alertmanager"),
            f"--config.file={DEPLOY / 'alertmanager' / 'alertmanager.yml'}", f"--storage.path={self.folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{self.alertmanager}", "--cluster.listen-address="))
        self.ending.enter_context(process(
            self.folder / "prometheus.log", tool("prometheus"), f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{self.prometheus}"))

    def load(self, requests):
        # Equal beginnings, so that the prefix cache finds something; long answers, so that drafts are made.
        succeeds(CLIENT, "bench", "--target", f"127.0.0.1:{self.grpc}", "--concurrency", "4", "--requests", str(requests),
                 "--prompt-tokens", "200", "--shared-prefix-share", "1", "--shared-prefix-tokens", "150", "--output-tokens", "100")

    def ask(self, path, **parameters):
        answer = get_json(f"http://127.0.0.1:{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        return None if answer is None else answer["data"]

    def query(self, expression):
        """Values of the answer; None when Prometheus cannot parse it."""
        data = self.ask("query", query=expression)
        return None if data is None else [float(sample["value"][1]) for sample in data["result"]]

    def firing(self):
        return {alert["labels"]["alertname"]: alert for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}


@pytest.fixture(scope="module")
def stack(tiny_bundle, tmp_path_factory):
    tool("prometheus-alertmanager"), tool("prometheus")
    stack = Stack(tiny_bundle, tmp_path_factory.mktemp("monitoring"))
    with stack.ending:
        stack.start_server()
        stack.load(4)  # a label value has no series before its first event, and no rate before its second scrape
        stack.start_monitoring()
        wait_until("the first scrape", lambda: stack.query('up{job="fixpoint"} == 1'), 30)
        stack.load(60)
        # Two evaluations of everything behind the load: rules use each other's results.
        wait_until("the load is in the rates", lambda: (stack.query("sum(job:fixpoint_generation_tokens:rate5m)") or [0])[0] > 0, 20)
        seen = stack.query("max(timestamp(job:fixpoint_batch_usage:ratio))")[0]
        wait_until("rules are evaluated", lambda: stack.query("max(timestamp(job:fixpoint_batch_usage:ratio))")[0] > seen + 2, 20)
        yield stack


def expressions():
    found = []
    for panel in DASHBOARD["panels"]:
        found += [target["expr"] for target in panel.get("targets", [])]
    return found


def filled_in(expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def test_every_dashboard_expression_has_an_answer(stack):
    assert set(NEEDS_AN_EVENT) <= set(expressions())
    wrong = {}
    for expression in expressions():
        values = stack.query(filled_in(expression))
        if values is None or (expression not in NEEDS_AN_EVENT and not any(map(math.isfinite, values))):
            wrong[expression] = values
    assert not wrong, wrong


def test_what_the_runbook_says_to_ask_has_an_answer(stack):
    named = re.findall(r"`([^`\n]*\([^`\n]*fixpoint_[^`\n]*)`", (ROOT / "docs" / "OPERATIONS.md").read_text())
    assert len(named) >= 5
    without = {expression for expression in named if not any(map(math.isfinite, stack.query(expression) or []))}
    assert not without


def test_dashboard_variables_have_values(stack):
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] != "query":
            continue
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()
        found = stack.ask(f"label/{label}/values", **{"match[]": filled_in(selector)})
        assert found in (["fixpoint"], [stack.instance]), variable["name"]


def test_every_rule_is_evaluated_and_every_recorded_figure_is_there(stack):
    groups = stack.ask("rules")["groups"]
    evaluated = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(evaluated) == {rule.get("alert") or rule["record"] for rule in rules()}
    assert {(rule["health"], rule.get("lastError", "")) for rule in evaluated.values()} == {("ok", "")}
    for rule in rules():
        values = stack.query(rule.get("record") or rule["expr"])
        assert values is not None, rule
        assert "alert" in rule or any(map(math.isfinite, values)), rule


def test_the_adapter_s_query_has_an_answer(stack):
    """What prometheus-adapter will ask for the HorizontalPodAutoscaler, with a label that is there without Kubernetes."""
    for rule in yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]:
        series = rule["seriesQuery"].replace(',namespace!="",pod!=""', "")
        names = {s["__name__"] for s in stack.ask("series", **{"match[]": series})}
        assert len(names) == 3
        for name in names:
            query = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.LabelMatchers>>", 'job="fixpoint"')
            assert len(stack.query(query.replace("<<.GroupBy>>", "instance"))) == 1, query


def test_keda_s_queries_have_one_answer(stack):
    """As they are, but for the namespace, a label that only Kubernetes gives."""
    scaled = yaml.safe_load((DEPLOY / "kustomize" / "components" / "keda" / "scaledobject.yaml").read_text())
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert len(queries) == 3 and all(',namespace="fixpoint"' in query for query in queries)
    answers = {query: stack.query(query.replace(',namespace="fixpoint"', "")) for query in queries}
    assert {query: values for query, values in answers.items() if values is None or len(values) != 1} == {}


def test_nonsense_would_be_noticed(stack):
    assert stack.query("fixpoint_no_such_metric") == []
    assert stack.query("no_such_function(up)") is None


def metric_names(text):
    """Names of the server's metrics in a text; job:fixpoint_x:rate and the like are recorded ones."""
    return set(re.findall(r"(?<![:\w])fixpoint_[a-z_]+", text))


def test_every_metric_that_is_named_exists(stack):
    exposed = metric_names(get(f"http://{stack.instance}/metrics"))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    files = [*RULES, DEPLOY / "prometheus" / "adapter.yaml", ROOT / "docs" / "OPERATIONS.md", ROOT / "docs" / "SCALING.md", *DEPLOY.glob("grafana/dashboards/*.json"), *DEPLOY.glob("kustomize/**/*.yaml")]
    assert len(files) >= 4
    for path in files:
        text = path.read_text()
        assert metric_names(text) <= exposed, (path, metric_names(text) - exposed)
        used = set(re.findall(r"\b(?:job|instance):fixpoint_\w+:\w+", text))
        assert used <= recorded, (path, used - recorded)


def test_a_scrape_is_small(stack):
    size = len(get(f"http://{stack.instance}/metrics"))
    seconds = stack.query('max_over_time(scrape_duration_seconds{job="fixpoint"}[1m])')[0]
    median = stack.query('quantile_over_time(0.5, scrape_duration_seconds{job="fixpoint"}[1m])')[0]
    samples = stack.query('scrape_samples_scraped{job="fixpoint"}')[0]
    print(f"scrape: {size} bytes, {samples:.0f} samples, median {median * 1000:.2f} ms, longest {seconds * 1000:.2f} ms")
    assert size < MAX_METRICS_BYTES


def test_alerts_fire_and_clear(stack):
    """Last: it ends the server."""
    wait_until("nothing is wrong", lambda: stack.firing() == {}, 30)

    def fires(*names):
        return wait_until(f"{names} fire", lambda: set(names) == set(stack.firing()) and stack.firing(), 30)

    stack.server.send_signal(signal.SIGTERM)
    fires("FixpointDrainTooLong", "FixpointNoReplicaReady")

    stack.server.send_signal(signal.SIGTERM)  # the second one ends it at once
    stack.server.wait(10)
    began = time.monotonic()
    found = fires("FixpointReplicaDown", "FixpointNoReplicaReady")
    print(f"firing {time.monotonic() - began:.1f} s behind the kill")
    assert all(stack.query(expression) for expression in NEEDS_AN_EVENT)
    assert found["FixpointReplicaDown"]["annotations"] == {
        **alerts()["FixpointReplicaDown"]["annotations"], "summary": f"{stack.instance} does not answer Prometheus"}

    def told():
        answer = get_json(f"http://127.0.0.1:{stack.alertmanager}/api/v2/alerts") or []
        return {(a["labels"]["alertname"], a["status"]["state"], a["receivers"][0]["name"]) for a in answer
                if a["labels"]["alertname"] != "FixpointDrainTooLong"}

    # Alertmanager has both, and the cause silences its consequence.
    wait_until("Alertmanager tells the cause alone",
               lambda: told() == {("FixpointNoReplicaReady", "active", "wake-somebody"), ("FixpointReplicaDown", "suppressed", "look-today")}, 30)

    stack.start_server()
    wait_until("all alerts clear", lambda: stack.firing() == {}, 30)
