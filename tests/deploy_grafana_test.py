"""The Grafana files as far as they can be checked without Grafana: structure, references, geometry. That every expression is answered is
tested by deploy_prometheus_test.py."""
import itertools
import json

import pytest

from deployment import DEPLOY, yaml

GRAFANA = DEPLOY / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))


@pytest.fixture(params=DASHBOARDS, ids=lambda path: path.name)
def dashboard(request):
    return json.loads(request.param.read_text())


def test_there_is_a_dashboard():
    assert DASHBOARDS


def test_uids_and_ids_are_unique(dashboard):
    assert dashboard["uid"] and dashboard["title"]
    uids = [json.loads(path.read_text())["uid"] for path in DASHBOARDS]
    assert len(uids) == len(set(uids))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert all(titles) and len(titles) == len(set(titles))


def overlap(a, b):
    return a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def test_panels_lie_in_the_grid_and_do_not_overlap(dashboard):
    places = {panel["title"]: panel["gridPos"] for panel in dashboard["panels"]}
    for title, place in places.items():
        assert place["x"] >= 0 and place["y"] >= 0 and place["w"] > 0 and place["h"] > 0 and place["x"] + place["w"] <= 24, title
    for (one, a), (other, b) in itertools.combinations(places.items(), 2):
        assert not overlap(a, b), (one, other)


def test_every_query_asks_the_chosen_datasource(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == chosen, panel["title"]
        assert panel["targets"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == chosen and target["expr"], panel["title"]
    assert all(v["datasource"] == chosen for v in variables.values() if v["type"] == "query")


def test_provisioning():
    datasources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert [d["type"] for d in datasources["datasources"]] == ["prometheus"]
    scrape_interval = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert datasources["datasources"][0]["jsonData"]["timeInterval"] == scrape_interval
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "fixpoint.yaml").read_text())["providers"]
    assert [p["type"] for p in providers] == ["file"]
