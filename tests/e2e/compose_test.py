"""docker/compose.yaml brought up by docker-compose, with podman as the engine behind its socket: a little checkpoint is calibrated into the
volume, two replicas serve it behind HAProxy, Prometheus scrapes and knows Alertmanager. Grafana is left out: Debian has none."""
import json
import os
import resource
import shutil
import subprocess
import threading
import urllib.parse

import pytest

from conftest import ROOT
from stack import FRONT, get, IMAGE, PROMETHEUS, run, until
from serving import CLIENT

pytestmark = pytest.mark.skipif(not IMAGE, reason="run scripts/e2e.sh: these tests need containers and a network namespace")

PROJECT = "fixpoint-e2e-compose"
SERVICES = ["bundle", "fixpoint-a", "fixpoint-b", "haproxy", "prometheus", "alertmanager"]
HAPROXY_FILES = 8300  # what its maxconn of 4096 takes


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    """docker-compose with these words; everything it made is gone afterwards."""
    for program in ("docker-compose", "prometheus-alertmanager"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    calibrator = IMAGE.replace("fixpoint-server", "fixpoint-calibrator")
    if run("podman", "image", "exists", calibrator, check=False).returncode != 0:
        pytest.skip(f"no image {calibrator}")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < HAPROXY_FILES:
        pytest.skip("HAProxy may not open as many files as its configuration wants")
    checkpoints = pytest.importorskip("eval_cli_test", reason="numpy is not installed")
    folder = tmp_path_factory.mktemp("compose")
    (folder / "source").mkdir()
    checkpoints.write_checkpoint(folder / "source" / "little", checkpoints.random_weights(7))
    for path in (folder, *(folder / "source").rglob("*"), folder / "source"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the containers' user reads it
    engine_socket = folder / "podman.sock"
    environment = {**os.environ, "DOCKER_HOST": f"unix://{engine_socket}", "MODEL_FOLDER": str(folder / "source"), "MODEL_FILE": "little"}

    def words(*arguments):
        done = subprocess.run(["docker-compose", "--project-name", PROJECT, "--file", ROOT / "docker" / "compose.yaml", "--file",
                               ROOT / "tests" / "e2e" / "compose.yaml", *arguments], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr + (folder / "engine.log").read_text()
        return done.stdout

    with open(folder / "engine.log", "w") as log:
        engine = subprocess.Popen(["podman", "system", "service", "--time", "0", f"unix://{engine_socket}"], stdout=log, stderr=log)
    try:
        until(engine_socket.exists, 20, "podman's socket")
        words("down", "--volumes", "--timeout", "1")  # of a run that was cut off
        try:
            yield words
        finally:
            words("down", "--volumes", "--timeout", "10")
    finally:
        engine.terminate()
        engine.wait(30)


def container(service):
    """Its name, which differs between versions of docker-compose."""
    words = [f"label=com.docker.compose.{key}={value}" for key, value in (("project", PROJECT), ("service", service))]
    return run("podman", "ps", "--all", "--filter", words[0], "--filter", words[1], "--format", "{{.Names}}").stdout.strip()


def log(service):
    done = run("podman", "logs", container(service), check=False)
    return done.stdout + done.stderr


def inspect(service):
    return json.loads(run("podman", "inspect", container(service)).stdout)[0]


def query(expression):
    answer = json.loads(get(PROMETHEUS, "/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    return [float(row["value"][1]) for row in answer["data"]["result"]]


def answer(seed):
    done = run(CLIENT, "generate", "--target", FRONT, "--prompt", "the old stone bridge", "--max-tokens", "24", "--ignore-eos",
               "--temperature", "1", "--seed", seed, "--json")
    return json.loads(done.stdout)["token_ids"]


def test_the_whole_compose_file_serves(compose):
    compose("up", "--detach", *SERVICES)
    bundle = inspect("bundle")
    assert bundle["State"]["ExitCode"] == 0, log("bundle")
    assert "golden digest" in log("bundle")
    up = 'sum(haproxy_server_status{proxy="fixpoint",state="UP"})'
    until(lambda: query('sum(up{job="fixpoint"})') == [2] and query(up) == [2], 60, "Prometheus sees both replicas and the proxy sees them up")
    assert query('up{job="haproxy"}') == [1]
    assert query("count(count by (digest) (fixpoint_bundle_info))") == [1]
    groups = json.loads(get(PROMETHEUS, "/api/v1/rules"))["data"]["groups"]
    assert sum(len(group["rules"]) for group in groups) > 20
    managers = json.loads(get(PROMETHEUS, "/api/v1/alertmanagers"))["data"]["activeAlertmanagers"]
    assert [manager["url"] for manager in managers] == ["http://alertmanager:9093/api/v2/alerts"]
    for service in ("fixpoint-a", "fixpoint-b", "bundle"):
        state = inspect(service)
        assert state["HostConfig"]["ReadonlyRootfs"] and state["BoundingCaps"] in (None, []) and state["Config"]["User"] == "65532:65532"
        assert any(option.startswith("no-new-privileges") for option in state["HostConfig"]["SecurityOpt"])
        assert not any(state["HostConfig"]["PortBindings"].values())  # only the proxy is reachable from outside
    assert inspect("haproxy")["HostConfig"]["PortBindings"] == {"50051/tcp": [{"HostIp": "127.0.0.1", "HostPort": "50051"}]}
    first = [answer(seed) for seed in range(8)]
    assert len({tuple(tokens) for tokens in first}) == 8

    # A replica restarted under load: notice and drain as the file says, the others' answers as before.
    ended, wrong = threading.Event(), []

    def ask():
        while not ended.is_set():
            for seed, tokens in enumerate(first):
                if answer(seed) != tokens:
                    wrong.append(seed)
    caller = threading.Thread(target=ask)
    caller.start()
    try:
        compose("stop", "fixpoint-a")
        state = inspect("fixpoint-a")["State"]
        assert state["ExitCode"] == 0 and '"stopped"' in log("fixpoint-a").splitlines()[-1]
        until(lambda: query(up) == [1], 30, "the proxy sees one replica")
        compose("start", "fixpoint-a")
        until(lambda: query(up) == [2], 30, "the proxy sees both again")
    finally:
        ended.set()
        caller.join(60)
    assert wrong == []
    until(lambda: len(taken := query('haproxy_server_sessions_total{proxy="fixpoint"}')) == 2 and min(taken) > 0, 15, "both took calls")
