"""What the tests of deploy/ share: tools that may be missing, free ports, processes that always end, the alert rules."""
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from conftest import ROOT

yaml = pytest.importorskip("yaml")

DEPLOY = ROOT / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))


def tool(name):
    """Path of a program: beside this Python (PyPI packages), on PATH, or in /usr/sbin; skips aloud."""
    beside = pathlib.Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command, seconds=60, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=seconds, **options)


def succeeds(*command, **options):
    done = run(*command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def free_ports(count):
    """Ports that nobody listens on, all different; below those that Linux gives to connections, so that none is taken meanwhile."""
    found = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


@contextlib.contextmanager
def process(log, *command, **options):
    """A program in the background with its output in the file `log`; it and what it started are killed at the end, whatever happens."""
    with open(log, "w") as out:
        started = subprocess.Popen([str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(10)


def get(url, timeout=5):
    """Body of a 2xx answer, else None."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def get_json(url):
    body = get(url)
    return None if body is None else json.loads(body)


def wait_until(what, condition, seconds):
    """The first true result of the condition."""
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def rules():
    """Every rule of deploy/prometheus/rules, recording and alerting."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}
