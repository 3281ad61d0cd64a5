"""docs/OPERATIONS.md says what the programs say: flags, their defaults, devices."""
import re

from conftest import ROOT
from deployment import succeeds
from serving import CLIENT, SERVER, fails_to_start, tiny_bundle

TEXT = (ROOT / "docs" / "OPERATIONS.md").read_text()
OTHERS = {"--now", "--namespace", "--for", "--timeout", "--build-arg", "--verify"}  # of systemctl, kubectl, docker, scripts/release.sh
DEFAULT = r"(-?[\d.,]+)"


def test_flags_exist():
    known = succeeds(SERVER, "--help") + "".join(succeeds(CLIENT, command, "--help") for command in ("bench", "generate", "health"))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - OTHERS
    assert len(named) > 10
    missing = {flag for flag in named if not re.search(rf"^  {flag}[ ,]", known, re.M)}
    assert not missing


def test_defaults_are_the_server_s():
    text = succeeds(SERVER, "--help")
    compared = 0
    for names, cell in re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", TEXT, re.M):
        flags, values = re.findall("--[a-z-]+", names), re.findall(rf"(?:^|; ){DEFAULT}", cell)
        if len(values) != len(flags):
            continue  # told in words
        for flag, value in zip(flags, values):
            told = re.search(rf"^  {flag} [A-Z]+(?::[^=]*)?={DEFAULT}", text, re.M)[1]
            assert float(value.replace(",", "")) == float(told), flag
            compared += 1
    assert compared >= 9


def test_without_a_gpu_every_cuda_device_is_refused(tiny_bundle):
    """A build without CUDA does not know such devices; one with CUDA finds no driver."""
    assert "refuses every `--device` but `cpu`" in TEXT
    line = fails_to_start(tiny_bundle, "--device", "cuda:0", codes=(1, 2))
    assert "this build serves on: cpu" in line or "cuda:0: no CUDA driver or device" in line
