"""The Kubernetes manifests: rendered by kustomize, held against strict schemas, and against what fixpoint-server really does. No cluster
runs them here."""
import copy
import itertools
import re
import subprocess

import jsonschema
import pytest

from conftest import ROOT
from deployment import DEPLOY, RULES, free_ports, get, process, run, succeeds, tool, wait_until, yaml
from serving import SERVER, tiny_bundle

kubernetes_validate = pytest.importorskip("kubernetes_validate")

KUSTOMIZE = DEPLOY / "kustomize"
OVERLAYS = ["cpu", "gpu"]
RENDERED = ["base", "bundle", *(f"overlays/{name}" for name in OVERLAYS)]
VERSIONS = ["1.27", "1.37"]  # the oldest that the manifests promise, and the newest schema that the package has
FLUSH_SECONDS = 1            # server/daemon.cc, kFlushTime
MARGIN_SECONDS = 10


@pytest.fixture(scope="module")
def rendered():
    """{folder: documents}, as kubectl would send them."""
    kubectl = tool("kubectl")
    return {folder: list(yaml.safe_load_all(succeeds(kubectl, "kustomize", KUSTOMIZE / folder))) for folder in RENDERED}


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(rendered, request):
    """{kind/name: document} of each overlay."""
    return by_name(rendered[f"overlays/{request.param}"])


def by_name(documents):
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in documents}


def obj(required=(), **properties):
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


STRING = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
STRINGS = {"type": "object", "additionalProperties": STRING}
METADATA = obj(["name"], name=STRING, namespace=STRING, labels=STRINGS)


def custom(kind, spec):
    return obj(["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": "monitoring.coreos.com/v1"}, kind={"const": kind},
               metadata=METADATA, spec=spec)


# The fields of the Prometheus operator's API that we use.
RECORDING = obj(["record", "expr"], record={"type": "string", "pattern": "^[a-z]+:[a-z_]+:[a-z0-9_]+$"}, expr=STRING, labels=STRINGS)
ALERT = obj(["alert", "expr", "labels", "annotations"], alert={"type": "string", "pattern": "^[A-Z][A-Za-z]+$"}, expr=STRING,
            **{"for": DURATION}, labels=STRINGS, annotations=STRINGS)
CUSTOM = {
    "ServiceMonitor": custom("ServiceMonitor", obj(
        ["selector", "endpoints"], jobLabel=STRING, sampleLimit={"type": "integer"}, selector=obj(["matchLabels"], matchLabels=STRINGS),
        endpoints={"type": "array", "minItems": 1, "items": obj(["port"], port=STRING, path=STRING, interval=DURATION,
                                                                 scrapeTimeout=DURATION)})),
    "PrometheusRule": custom("PrometheusRule", obj(["groups"], groups={"type": "array", "minItems": 1, "items": obj(
        ["name", "rules"], name=STRING, rules={"type": "array", "minItems": 1, "items": {"oneOf": [RECORDING, ALERT]}})})),
}


def problem(document, version="1.37"):
    """What the schema says against it, or None."""
    try:
        if document["kind"] in CUSTOM:
            jsonschema.validate(document, CUSTOM[document["kind"]])
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        return error.message
    return None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", RENDERED)
def test_manifests_fit_the_strict_schemas(rendered, folder, version):
    wrong = {d["kind"]: problem(d, version) for d in rendered[folder] if problem(d, version)}
    assert not wrong, wrong


FREE_FORM = {"labels", "matchLabels", "annotations", "nodeSelector", "selector", "data", "requests", "limits"}


def objects(value, path=()):
    """Paths of all objects inside whose keys the schema knows."""
    if isinstance(value, dict):
        if not path or path[-1] not in FREE_FORM:
            yield path
        for key, inner in value.items():
            yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:3]):  # some rules stand for all: the schema is the same
            yield from objects(inner, (*path, i))


def test_a_typo_anywhere_is_found(rendered):
    planted, missed = 0, []
    for document in itertools.chain(rendered["bundle"], *(rendered[f"overlays/{name}"] for name in OVERLAYS)):
        for path in objects(document):
            broken = copy.deepcopy(document)
            inner = broken
            for key in path:
                inner = inner[key]
            inner["periodSecondz"] = 1
            planted += 1
            if problem(broken) is None:
                missed.append((document["kind"], path))
    assert planted > 100
    assert not missed, missed


def test_a_wrong_type_is_found(overlay):
    broken = copy.deepcopy(overlay["Deployment/fixpoint"])
    broken["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = "150"
    assert problem(broken)


def test_rule_is_that_of_prometheus(tmp_path):
    succeeds(ROOT / "scripts" / "make_prometheus_rule.sh", tmp_path / "rule.yaml")
    made = (tmp_path / "rule.yaml").read_text()
    assert made == (KUSTOMIZE / "components" / "prometheus" / "rule.yaml").read_text(), "run scripts/make_prometheus_rule.sh"
    groups = {g["name"]: g for file in RULES for g in yaml.safe_load(file.read_text())["groups"]}
    assert {g["name"]: g for g in yaml.safe_load(made)["spec"]["groups"]} == groups


# ---- Against the server.

def server_pod(overlay):
    return overlay["Deployment/fixpoint"]["spec"]["template"]


def server_container(overlay):
    containers = server_pod(overlay)["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


def flag(arguments, name):
    values = [a.split("=", 1)[1] for a in arguments if a.startswith(f"--{name}=")]
    assert len(values) == 1, name
    return values[0]


def test_a_server_starts_with_these_arguments_and_answers_these_probes(overlay, tiny_bundle, tmp_path):
    container = server_container(overlay)
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    grpc_port, http_port = free_ports(2)
    arguments = [a.replace("/models/model.fixpoint", str(tiny_bundle)).replace(f"0.0.0.0:{ports['grpc']}", f"127.0.0.1:{grpc_port}")
                 .replace(f"0.0.0.0:{ports['http']}", f"127.0.0.1:{http_port}") for a in container["args"]]
    assert str(tiny_bundle) in arguments and not any("0.0.0.0" in a for a in arguments)
    arguments = [a for a in arguments if a != "--device=cuda:0"]  # the next test's
    with process(tmp_path / "server.log", SERVER, *arguments):
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[name]["httpGet"]
            assert probe["port"] == "http"
            wait_until(name, lambda: get(f"http://127.0.0.1:{http_port}{probe['path']}"), 30)


def test_the_gpu_overlay_asks_for_the_one_device_that_it_serves_on(rendered, tiny_bundle):
    pods = {name: server_pod(by_name(rendered[f"overlays/{name}"]))["spec"] for name in OVERLAYS}
    servers = {name: pod["containers"][0] for name, pod in pods.items()}
    assert [a for a in servers["gpu"]["args"] if a.startswith("--device")] == ["--device=cuda:0"]
    assert servers["gpu"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pods["gpu"]["tolerations"]
    assert "nvidia.com/gpu.present" in pods["gpu"]["nodeSelector"]
    # The images are two, of the same version; only the one with CUDA takes such a device.
    image, version = servers["cpu"]["image"].split(":")
    assert servers["gpu"]["image"] == f"{image}-cuda:{version}"
    assert "FROM runtime AS server-cuda" in (ROOT / "docker" / "Dockerfile").read_text()
    assert "gpu" not in str(pods["cpu"])
    # A rolling update must not wait for a device that only the old replica could give back.
    rolling = by_name(rendered["overlays/gpu"])["Deployment/fixpoint"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": 1, "maxSurge": 0}


def test_the_grace_covers_the_drain(overlay):
    arguments = server_container(overlay)["args"]
    notice, timeout = float(flag(arguments, "drain-notice")), float(flag(arguments, "drain-timeout"))
    assert server_pod(overlay)["spec"]["terminationGracePeriodSeconds"] >= notice + timeout + FLUSH_SECONDS + MARGIN_SECONDS
    # The notice is there so that everybody who looks at /readyz has turned away.
    readiness = server_container(overlay)["readinessProbe"]
    assert notice > readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]


def test_the_alert_on_drains_waits_for_the_grace(overlay):
    found = [r for g in overlay["PrometheusRule/fixpoint"]["spec"]["groups"] for r in g["rules"] if r.get("alert") == "FixpointDrainTooLong"]
    assert [60 * int(r["for"].removesuffix("m")) > server_pod(overlay)["spec"]["terminationGracePeriodSeconds"] for r in found] == [True]


def test_threads_are_the_cpus_requested(overlay):
    container = server_container(overlay)
    assert flag(container["args"], "threads") == container["resources"]["requests"]["cpu"]


def pods(rendered):
    for documents in rendered.values():
        for document in documents:
            if document["kind"] in ("Deployment", "Job"):
                yield document, document["spec"]["template"]["spec"]


def test_every_container_is_confined(rendered):
    for document, pod in pods(rendered):
        assert pod["automountServiceAccountToken"] is False
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] == 65532
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                    "capabilities": {"drop": ["ALL"]}}, (document["kind"], container["name"])


def test_every_container_asks_for_what_it_needs(rendered):
    for document, pod in pods({k: v for k, v in rendered.items() if k != "base"}):
        for container in pod["containers"] + pod.get("initContainers", []):
            resources = container["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"} and "memory" in resources["limits"], container["name"]


def test_selectors_find_the_server_and_ports_are_its_own(overlay):
    labels = server_pod(overlay)["metadata"]["labels"]
    ports = {p["name"] for p in server_container(overlay)["ports"]}

    def finds(selector):
        return selector.items() <= labels.items()

    assert finds(overlay["Deployment/fixpoint"]["spec"]["selector"]["matchLabels"])
    assert finds(overlay["PodDisruptionBudget/fixpoint"]["spec"]["selector"]["matchLabels"])
    for name, document in overlay.items():
        if document["kind"] == "Service":
            assert finds(document["spec"]["selector"]), name
            assert {p["targetPort"] for p in document["spec"]["ports"]} <= ports, name
        if document["kind"] == "NetworkPolicy":
            assert finds(document["spec"]["podSelector"]["matchLabels"]), name
            assert {p["port"] for rule in document["spec"]["ingress"] for p in rule["ports"]} <= ports, name


def test_the_monitor_finds_one_service_under_the_rules_job_name(overlay):
    monitor = overlay["ServiceMonitor/fixpoint"]["spec"]
    found = [d for d in overlay.values() if d["kind"] == "Service"
             and monitor["selector"]["matchLabels"].items() <= d["metadata"]["labels"].items()]
    assert [d["metadata"]["name"] for d in found] == ["fixpoint-metrics"]  # a second one would count each replica twice
    assert found[0]["metadata"]["labels"][monitor["jobLabel"]] == "fixpoint"
    assert found[0]["spec"]["publishNotReadyAddresses"] is True
    assert {e["port"] for e in monitor["endpoints"]} <= {p["name"] for p in found[0]["spec"]["ports"]}


def test_the_autoscaler_asks_for_what_the_adapter_gives(overlay):
    scaler = overlay["HorizontalPodAutoscaler/fixpoint"]["spec"]
    assert f"{scaler['scaleTargetRef']['kind']}/{scaler['scaleTargetRef']['name']}" in overlay
    assert "replicas" not in overlay["Deployment/fixpoint"]["spec"]
    wanted = {m["pods"]["metric"]["name"] for m in scaler["metrics"]}
    adapter = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]
    given = {name for rule in adapter for name in re.findall("fixpoint_[a-z_]+", rule["seriesQuery"])}
    assert wanted == given
    targets = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in scaler["metrics"]}
    table = dict(re.findall(r"^\| `(fixpoint_\w+)` \| ([\d.]+) \|", (ROOT / "docs" / "OPERATIONS.md").read_text(), re.M))
    assert {k: v.replace("800m", "0.8") for k, v in targets.items()} == table


# ---- The bundle.

def test_the_job_writes_where_the_server_reads(rendered, overlay):
    documents = {d["kind"]: d for d in rendered["bundle"]}
    job = documents["Job"]["spec"]["template"]["spec"]
    arguments = job["containers"][0]["args"]
    assert f"{flag(arguments, 'output')}" == server_container(overlay)["args"][0]
    claim = job["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == server_pod(overlay)["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == documents["PersistentVolumeClaim"]["metadata"]["name"]
    assert {d["metadata"]["namespace"] for d in [*rendered["bundle"], *overlay.values()] if d["kind"] != "Namespace"} == {"fixpoint"}
    named = job["initContainers"][0]["envFrom"][0]["configMapRef"]["name"]
    assert named == documents["ConfigMap"]["metadata"]["name"]


def test_the_job_s_flags_exist(calibrate, rendered):
    job = next(d for d in rendered["bundle"] if d["kind"] == "Job")
    known = succeeds(calibrate, "--help")
    for argument in job["spec"]["template"]["spec"]["containers"][0]["args"]:
        if argument.startswith("--"):
            assert argument.split("=")[0] in known, argument


def test_the_fetch_step_takes_the_right_file_only(tmp_path):
    job = yaml.safe_load((KUSTOMIZE / "bundle" / "job.yaml").read_text())
    step = job["spec"]["template"]["spec"]["initContainers"][0]
    script = step["args"][0]
    (tmp_path / "fetch.sh").write_text("#!/bin/sh\nset -eu\n" + script)
    succeeds(tool("shellcheck"), tmp_path / "fetch.sh")

    source, folder = tmp_path / "source", tmp_path / "models"
    source.write_bytes(b"a checkpoint")
    folder.mkdir()
    digest = subprocess.run(["sha256sum", source], capture_output=True, text=True, check=True).stdout.split()[0]

    def fetch(sha256):
        return run(*step["command"], script, cwd=folder, env={"PATH": "/usr/bin:/bin", "URL": source.as_uri(), "SHA256": sha256})

    wrong = fetch("0" * 64)
    assert wrong.returncode == 1 and "digest" in wrong.stderr
    assert not (folder / "checkpoint.gguf").exists()
    assert fetch(digest).returncode == 0
    assert (folder / "checkpoint.gguf").read_bytes() == b"a checkpoint"
    source.unlink()
    assert fetch(digest).returncode == 0  # it is there: nothing is fetched
