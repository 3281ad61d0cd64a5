"""What kustomize makes of deploy/kustomize/overlays/cpu, run by `podman kube play`: the Deployment's pod with its arguments, volume, user and
limits. Podman ignores the kinds that it does not know (Service, Job, policies), probes and `replicas`; no cluster runs here."""
import json
import pathlib

import pytest

from conftest import BIN
from deployment import DEPLOY, succeeds, tool
from stack import get, IMAGE, is_ready, run, until
from serving import CLIENT

pytestmark = pytest.mark.skipif(not IMAGE, reason="run scripts/e2e.sh: these tests need containers and a network namespace")

HTTP, GRPC = "127.0.0.1:8080", "127.0.0.1:50051"  # podman publishes a pod's ports


@pytest.fixture
def manifests(tmp_path):
    """(volume, servers), rendered; gone from podman afterwards."""
    kubectl = tool("kubectl")
    paths = []
    for name in ("bundle", "overlays/cpu"):
        paths.append(tmp_path / f"{pathlib.Path(name).name}.yaml")
        paths[-1].write_text(succeeds(kubectl, "kustomize", DEPLOY / "kustomize" / name))
    yield paths
    for path in reversed(paths):
        run("podman", "kube", "down", path, check=False)
    run("podman", "volume", "rm", "--force", "fixpoint-models", check=False)
    run("podman", "network", "rm", "podman-default-kube-network", check=False)


def test_the_pod_of_the_deployment_serves(manifests):
    volume, servers = manifests
    assert f"image: {IMAGE}\n" in servers.read_text()
    run("podman", "kube", "play", volume)
    mount = run("podman", "volume", "inspect", "--format", "{{.Mountpoint}}", "fixpoint-models").stdout.strip()
    run(BIN / "make_test_bundle", f"{mount}/model.fixpoint", 300, 4096)
    pathlib.Path(mount, "model.fixpoint").chmod(0o644)
    run("podman", "kube", "play", servers)
    name = next(line for line in run("podman", "ps", "--format", "{{.Names}}").stdout.split() if line.endswith("-server"))
    until(lambda: is_ready(HTTP), 30, f"the pod is ready: {run('podman', 'logs', name, check=False)}")
    state = json.loads(run("podman", "inspect", name).stdout)[0]
    assert state["HostConfig"]["ReadonlyRootfs"] and state["BoundingCaps"] in (None, [])
    assert state["Config"]["User"].split(":")[0] == "65532"
    assert state["HostConfig"]["Memory"] == 2 << 30
    assert [m["RW"] for m in state["Mounts"] if m["Destination"] == "/models"] == [False]
    assert "--drain-notice=10" in state["Args"] and "--threads=2" in state["Args"]
    assert "fixpoint_ready 1" in get(HTTP, "/metrics")
    done = run(CLIENT, "generate", "--target", GRPC, "--prompt", "a pod", "--max-tokens", "16", "--ignore-eos", "--json")
    assert len(json.loads(done.stdout)["token_ids"]) == 16
