"""The image with CUDA on a machine that has no GPU: it says so, and serves on the CPU. Its build takes 600 MB from PyPI and minutes, so this runs
only where FIXPOINT_E2E_CUDA_IMAGE names the image (scripts/image.sh server-cuda)."""
import json
import os

import pytest

from conftest import BIN
from stack import IMAGE, is_ready, run, until
from serving import CLIENT

CUDA_IMAGE = os.environ.get("FIXPOINT_E2E_CUDA_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE or not CUDA_IMAGE, reason="FIXPOINT_E2E_CUDA_IMAGE names no image with CUDA: it was not run")

NAME = "fixpoint-e2e-cuda"
GRPC, HTTP = "127.0.0.1:51009", "127.0.0.1:8509"


@pytest.fixture
def podman_run(tmp_path):
    """Runs the image with a little model and these words."""
    tmp_path.chmod(0o755)
    run(BIN / "make_test_bundle", tmp_path / "model.fixpoint", 300, 4096)
    (tmp_path / "model.fixpoint").chmod(0o644)

    def start(*words, options=(), check=True):
        return run("podman", "run", "--name", NAME, "--replace", *options, "--network", "host", "--read-only", "--cap-drop", "all", "--security-opt",
                   "no-new-privileges", "--volume", f"{tmp_path}:/models:ro", CUDA_IMAGE, *words, check=check)
    yield start
    run("podman", "rm", "--force", "--ignore", NAME)


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_it_says_that_there_is_no_gpu(podman_run):
    done = podman_run(check=False)  # the image's own arguments
    assert done.returncode == 1
    assert "fixpoint-server: cuda:0: no CUDA driver or device" in done.stderr


def test_it_serves_on_the_cpu(podman_run):
    podman_run("/models/model.fixpoint", "--device", "cpu", "--listen", GRPC, "--http", HTTP, options=["--detach"])
    until(lambda: is_ready(HTTP), 30, "it is ready")
    done = run(CLIENT, "generate", "--target", GRPC, "--prompt", "no device", "--max-tokens", "8", "--ignore-eos", "--json")
    assert len(json.loads(done.stdout)["token_ids"]) == 8


def test_cublaslt_finds_its_libraries_and_the_bill_names_it(podman_run, tmp_path):
    image = json.loads(run("podman", "image", "inspect", CUDA_IMAGE).stdout)[0]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(image["Config"]["Env"])
    done = run("podman", "run", "--rm", "--network", "none", "--entrypoint", "/usr/lib64/ld-linux-x86-64.so.2", CUDA_IMAGE, "--list",
               "/usr/lib/x86_64-linux-gnu/libcublasLt.so.13")
    assert "not found" not in done.stdout and "libc.so.6 => /usr/lib/x86_64-linux-gnu/libc.so.6" in done.stdout
    podman_run("--version")
    run("podman", "cp", f"{NAME}:/usr/share/sbom/packages.spdx.json", tmp_path / "sbom.json")
    packages = {package["name"]: package["versionInfo"] for package in json.loads((tmp_path / "sbom.json").read_text())["packages"]}
    assert packages["nvidia-cublas"].startswith("13.") and "libgrpc29" in packages
