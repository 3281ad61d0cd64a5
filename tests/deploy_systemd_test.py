"""The systemd unit: what systemd itself says about it, and that the real server needs nothing that the unit takes away. No systemd runs it
here."""
import ctypes
import os
import re
import signal
import sys

import pytest

from deployment import DEPLOY, get, process, run, succeeds, tool, wait_until
from serving import CLIENT, SERVER, tiny_bundle

UNIT = DEPLOY / "systemd" / "fixpoint-server.service"
INSTALLED = "/usr/bin/fixpoint-server"
EXPOSURE = 10  # tenths; 0 is a program without network, 100 one with everything
FLUSH_SECONDS = 1  # server/daemon.cc, kFlushTime
MARGIN_SECONDS = 10


def verify(folder, text):
    """Everything that systemd has to say about the unit; empty when nothing."""
    path = folder / UNIT.name
    assert INSTALLED in text
    path.write_text(text.replace(INSTALLED, str(SERVER)))
    done = run(tool("systemd-analyze"), "verify", path)
    return done.stdout + done.stderr + (f"status {done.returncode}" if done.returncode else "")


def exposed(folder, text):
    path = folder / UNIT.name
    path.write_text(text)
    return run(tool("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE}", path).returncode != 0


def test_systemd_has_nothing_to_say(tmp_path):
    assert verify(tmp_path, UNIT.read_text()) == ""


def test_a_typo_is_found(tmp_path):
    assert "RestartSex" in verify(tmp_path, UNIT.read_text().replace("RestartSec", "RestartSex"))


def test_the_service_is_confined(tmp_path):
    text = UNIT.read_text()
    assert not exposed(tmp_path, text)
    assert exposed(tmp_path, text.replace("DynamicUser=yes\n", ""))
    assert exposed(tmp_path, re.sub("SystemCallFilter=.*\n", "", text))


def setting(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def flags():
    return re.fullmatch(r'"FIXPOINT_FLAGS=(.*)"', setting("Environment")[0])[1].split()


def test_the_grace_covers_the_drain():
    values = dict(f.lstrip("-").split("=") for f in flags())
    seconds = float(values["drain-notice"]) + float(values["drain-timeout"]) + FLUSH_SECONDS + MARGIN_SECONDS
    assert [float(s) >= seconds - 1e-9 for s in setting("TimeoutStopSec")] == [True]


PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
WRITABLE_CODE = "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)"


def no_writable_code():
    """MemoryDenyWriteExecute=, by the kernel's own switch (Linux 6.3)."""
    ctypes.CDLL(None).prctl(PR_SET_MDWE, ctypes.c_ulong(REFUSE_EXEC_GAIN), 0, 0, 0)


def serve_one_call(folder, bundle, *prefix, **options):
    """Start, one answer, a scrape, a drain, with the unit's flags; the exit status."""
    with process(folder / "server.log", *prefix, SERVER, *flags(), bundle, "--listen", "127.0.0.1:0", "--http",
                 "127.0.0.1:0", **options) as server:
        log = folder / "server.log"
        wait_until("ready", lambda: '"event":"ready"' in log.read_text() or server.poll() is not None, 60)
        text = log.read_text()
        assert '"event":"ready"' in text, text
        addresses = {name: re.search(rf'"{name}":"([^"]+)"', text)[1] for name in ("grpc", "http")}
        succeeds(CLIENT, "generate", "--target", addresses["grpc"], "--prompt", "a", "--max-tokens", "20", "--ignore-eos")
        assert get(f"http://{addresses['http']}/metrics")
        traced = run("pgrep", "-P", server.pid).stdout.split()  # strace's child, else none
        os.kill(int(traced[0]) if traced else server.pid, signal.SIGINT)  # a drain without notice
        return server.wait(30)


def test_the_server_makes_no_code_at_run_time(tiny_bundle, tmp_path):
    if run(sys.executable, "-c", WRITABLE_CODE, preexec_fn=no_writable_code).returncode == 0:
        pytest.skip("this kernel does not refuse writable code (PR_SET_MDWE)")
    assert serve_one_call(tmp_path, tiny_bundle, preexec_fn=no_writable_code) == 0


def filter_set(name):
    """All system calls of a set of systemd, sets inside resolved."""
    calls = set()
    for line in succeeds(tool("systemd-analyze"), "syscall-filter", name).splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            calls |= filter_set(word)
        elif word and not word.startswith("#"):
            calls.add(word)
    return calls


def test_the_server_needs_no_call_that_the_filter_takes(tiny_bundle, tmp_path):
    allowed = set()
    for line in setting("SystemCallFilter"):
        for name in line.lstrip("~").split():
            allowed = allowed - filter_set(name) if line.startswith("~") else allowed | filter_set(name)
    strace = tool("strace")
    trace = tmp_path / "trace"
    assert serve_one_call(tmp_path, tiny_bundle, strace, "-f", "-qq", "-o", trace) == 0
    lines = trace.read_text().splitlines()
    used = set(re.findall(r"^\d+ +(\w+)\(", "\n".join(lines), re.M))
    assert {"futex", "accept4", "sched_getaffinity"} <= used
    assert used <= allowed, used - allowed
    families = set(re.findall(r"socket\((AF_\w+)", "\n".join(lines)))
    assert families and families <= set(setting("RestrictAddressFamilies")[0].split()), families
