"""fixpoint-server with a checkpoint instead of a bundle. The calibrator is a stand-in script, its own tests are elsewhere."""
import os
import pathlib
import re
import stat

import pytest

from serving import (api, Code, fails_to_start, generate, health, ready_server, refused, request, Server,
                     tiny_bundle, until)


def fake_calibrator(tmp_path, body):
    program = tmp_path / "calibrate.sh"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"FIXPOINT_CALIBRATE": str(program), "FIXPOINT_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def test_checkpoint_is_calibrated_once(tmp_path, checkpoint, tiny_bundle, api):
    go = tmp_path / "go"
    calls = tmp_path / "calls"
    environment = fake_calibrator(tmp_path, f"""
        echo "$@" >> {calls}
        echo '{{"event": "progress", "stage": "test"}}' >&2
        while [ ! -e {go} ]; do sleep 0.05; done
        cp {tiny_bundle} "$3" """)
    server = Server(checkpoint, environment=environment)
    try:
        server.wait_for("progress")
        assert server.get("/healthz")[0] == 200
        assert server.get("/readyz")[0] == 503
        assert server.health() == health.HealthCheckResponse.NOT_SERVING
        stub = api[1].GenerationStub(server.channel)
        refused(lambda: stub.Generate(request(api), timeout=10), Code.UNAVAILABLE)
        go.touch()
        server.wait_for("ready")
        assert server.get("/readyz")[0] == 200
        assert stub.GetModel(api[0].GetModelRequest(), timeout=10).model == "model"
        assert len(generate(stub, request(api)).ids) == 24
    finally:
        server.close()
    arguments = calls.read_text().split()
    assert arguments[0] == str(checkpoint)
    assert arguments[1] == "-o" and re.fullmatch("[0-9a-f]{64}.fixpoint", pathlib.Path(arguments[2]).name)
    assert arguments[3:5] == ["--progress", "json"]
    # Again, under another name: nothing is calibrated.
    renamed = checkpoint.rename(tmp_path / "renamed.gguf")
    ready_server(renamed, environment=environment).close()
    assert len(calls.read_text().splitlines()) == 1
    # A damaged bundle in the cache is made anew.
    cached = pathlib.Path(arguments[2])
    cached.write_bytes(cached.read_bytes()[:-1])
    ready_server(renamed, environment=environment).close()
    assert len(calls.read_text().splitlines()) == 2


def test_sigterm_stops_the_calibrator(tmp_path, checkpoint):
    pid_file = tmp_path / "pid"
    environment = fake_calibrator(tmp_path, f"echo $$ > {pid_file}\nexec sleep 600")
    server = Server(checkpoint, environment=environment)
    try:
        until(lambda: pid_file.exists() and pid_file.read_text().strip())
        pid = int(pid_file.read_text())
        server.signal()
        assert server.wait(10) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        server.close()


def test_failing_calibrator_is_one_clear_line(tmp_path, checkpoint):
    environment = fake_calibrator(tmp_path, "exit 3")
    assert "exit status 3" in fails_to_start(checkpoint, "--listen", "127.0.0.1:0", "--http", "none", environment=environment)


def test_missing_calibrator_is_named(tmp_path, checkpoint):
    environment = {"FIXPOINT_CALIBRATE": "/no/such/program", "FIXPOINT_CACHE": str(tmp_path)}
    assert "/no/such/program" in fails_to_start(checkpoint, "--listen", "127.0.0.1:0", "--http", "none",
                                                environment=environment)
