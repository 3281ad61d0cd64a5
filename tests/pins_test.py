"""What is installed into the images and the tests' environment has one version, written down here; tests/e2e compares the image's SBOM."""
import importlib.metadata
import os
import re
import subprocess

import pytest

from conftest import ROOT
from deployment import yaml

requirements = pytest.importorskip("packaging.requirements")
utils = pytest.importorskip("packaging.utils")

LOCK = ROOT / "docker" / "packages.lock"
PINNED = re.compile(r"[A-Za-z0-9][\w.-]*==[\w.]+")


def lines(path):
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_every_package_of_the_image_has_one_version():
    found = [re.fullmatch(r"([a-z0-9][a-z0-9+.-]+)=[\w.+:~-]+", line) for line in lines(LOCK)]
    assert all(found) and len(found) > 200
    names = {match[1] for match in found}
    assert len(names) == len(found)
    text = (ROOT / "scripts" / "packages.sh").read_text()
    lists = {name: set(body.split()) for name, body in re.findall(r"^(\w+)_PACKAGES=\((.*?)\)", text, re.M | re.S)}
    assert len(lists["BUILD"]) > 20
    assert lists["BUILD"] | lists["IMAGE"] <= names
    assert {"libc6", "libgrpc++1.51", "libssl3"} <= names  # what they pull in, and the base image's


def test_nothing_else_is_installed_into_the_images():
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.M))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) <= stages | {"scratch", "${BASE}"}
    installing = [line for line in re.findall(r"^RUN (.*)", text, re.M) if re.search(r"\b(apt|apt-get|pip|curl|wget|packages\.sh)\b", line)]
    assert [line.split(" ")[0] for line in installing] == ["scripts/packages.sh", "python3"]
    assert "--no-deps --require-hashes" in installing[1] and installing[1].endswith("--requirement docker/cuda-requirements.txt")
    cuda = lines(ROOT / "docker" / "cuda-requirements.txt")
    assert len(cuda) >= 6
    for line in cuda:
        assert re.fullmatch(rf"{PINNED.pattern} --hash=sha256:[0-9a-f]{{64}}", line), line


def test_the_tests_requirements_are_pinned_with_all_they_pull_in():
    listed = lines(ROOT / "tests" / "requirements.txt")
    pinned = {utils.canonicalize_name(line.split("==")[0]) for line in listed if PINNED.fullmatch(line)}
    assert len(pinned) == len(listed)
    for name in pinned:
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # this environment is another one
        for requirement in map(requirements.Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert utils.canonicalize_name(requirement.name) in pinned, f"{name} pulls in {requirement}"


def test_images_of_others_have_a_version():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    images = [service["image"] for service in compose["services"].values()]
    images += re.findall(r"^\s+(?:- )?image: (\S+/\S+)", "".join(p.read_text() for p in (ROOT / "deploy").rglob("*.yaml")), re.M)
    assert len(images) >= 8
    for image in images:
        assert re.fullmatch(r"\S+/\S+:v?\d+\.\d+\S*", image), image


@pytest.fixture
def archive(tmp_path):
    """Runs packages.sh with an apt-get that finds only the versions given."""
    def packages(has, **environment):
        program = tmp_path / "apt-get"
        program.write_text(f"""#!/bin/bash
echo "$*" >> {tmp_path}/calls
[[ "$*" == *simulate* ]] || exit 0
for word; do
  [[ $word != [a-z]*=* || " {has} " == *" $word "* ]] || {{ echo "E: Version '${{word#*=}}' for '${{word%%=*}}' was not found" >&2; code=100; }}
done
exit ${{code:-0}}
""")
        program.chmod(0o755)
        (tmp_path / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (tmp_path / "sudo").chmod(0o755)
        done = subprocess.run([ROOT / "scripts" / "packages.sh", "image"], capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **environment})
        return done, (tmp_path / "calls").read_text()
    return packages


def test_the_locked_versions_are_installed(archive):
    done, calls = archive(has=" ".join(lines(LOCK)))
    assert (done.returncode, done.stderr) == (0, "")
    assert calls.splitlines()[-1].split(" install ")[1].split()[1:] == lines(LOCK)


def test_an_archive_that_moved_on_is_told(archive):
    first, *others = lines(LOCK)
    done, calls = archive(has=" ".join(others))
    assert done.returncode == 1 and " install --allow" not in calls
    name, version = first.split("=", 1)
    assert f"Version '{version}' for '{name}' was not found" in done.stderr
    assert "scripts/image.sh lock" in done.stderr and "PACKAGES=newest" in done.stderr


def test_newest_does_not_look_at_the_lock(archive):
    done, calls = archive(has="", PACKAGES="newest")
    assert done.returncode == 0 and "=" not in calls.split("install")[-1].replace("--quiet=2", "")
    assert " tini" in calls


def test_scripts_know_the_images():
    """Each target that scripts/image.sh names is a stage."""
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.M))
    named = re.search(r"^    base \| lock \| (.*)\) ;;$", (ROOT / "scripts" / "image.sh").read_text(), re.M)[1].split(" | ")
    assert set(named) <= stages and len(named) == 3
    assert "usage" in subprocess.run([ROOT / "scripts" / "image.sh", "no-such-image"], capture_output=True, text=True).stderr
