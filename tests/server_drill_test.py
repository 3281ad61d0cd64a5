"""Crowds of clients that are slow, gone or in a hurry, and a long run under load. After each, the server must be as it was: no
request running or waiting, every KV block free, and answers as before. FIXPOINT_DRILL_CLIENTS (10,000 in the full drill) vanish or are
in a hurry; FIXPOINT_SOAK_SECONDS is the length of the long run (3,600 by hand)."""
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from serving import (api, CLIENT, Code, generate, grpc, long_request, ready_server, request, running, samples, tiny_bundle, until)

SLOW, NORMAL = 1000, 100
CLIENTS = int(os.environ.get("FIXPOINT_DRILL_CLIENTS", "1000"))
SOAK_SECONDS = int(os.environ.get("FIXPOINT_SOAK_SECONDS", "600"))
BENCH = (CLIENT, "bench", "--prompt-tokens", "uniform:4:40")


def metrics(server):
    return samples(server.get("/metrics")[1])[1]


def resident_bytes(server):
    for line in pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def idle(server):
    """Waits until nothing runs or waits; no block of the KV cache may be lost then."""
    def is_idle():
        now = metrics(server)
        return now["fixpoint_requests_running"] == now["fixpoint_requests_waiting"] == 0
    until(is_idle, 60)
    now = metrics(server)
    assert now["fixpoint_kv_cache_free_blocks"] == now["fixpoint_kv_cache_blocks"]


def test_slow_readers_beside_normal_ones(tiny_bundle, api, tmp_path):
    """Normal clients get all their answers, undisturbed, while the slow ones are cut off."""
    server = ready_server(tiny_bundle, "--max-queue", "10000", "--max-running", str(SLOW + NORMAL), "--slow-reader-timeout", "2")
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(server.address, options=small_window) for _ in range(10)]
    try:
        stubs = [api[1].GenerationStub(channel) for channel in channels]
        assert metrics(server)["fixpoint_max_running"] == SLOW + NORMAL
        model = stubs[0].GetModel(api[0].GetModelRequest(), timeout=30)
        expected = generate(stubs[0], request(api)).ids
        message = long_request(api, model)
        message.output.top_logprobs = 20
        slow = [stubs[i % len(stubs)].Generate(message, timeout=600) for i in range(SLOW)]
        normal = subprocess.run([*BENCH, "--target", server.address, "--concurrency", str(NORMAL), "--requests", str(5 * NORMAL),
                                 "--output-tokens", "uniform:4:32", "--json", tmp_path / "normal.json"],
                                capture_output=True, text=True, timeout=540)
        assert normal.returncode == 0, normal
        result = json.loads((tmp_path / "normal.json").read_text())
        assert result["requests"]["finished"] == 5 * NORMAL, result["requests"]
        until(lambda: metrics(server)["fixpoint_slow_readers_total"] == SLOW, 300)
        idle(server)
        codes = set()
        for call in slow:
            with pytest.raises(grpc.RpcError) as error:
                list(call)
            codes.add(error.value.code())
        assert codes == {Code.CANCELLED}
        assert generate(stubs[0], request(api)).ids == expected
        print(f"{SLOW} slow readers, {NORMAL} normal clients with a first token after {result['latency_ms']['ttft']} ms")
    finally:
        for channel in channels:
            channel.close()
        server.close()


def test_vanishing_clients(tiny_bundle, api):
    """Processes with hundreds of streams on a connection each die by kill -9: nobody says goodbye."""
    server = ready_server(tiny_bundle, "--max-queue", "100000")
    stub = api[1].GenerationStub(server.channel)
    a_time = 200
    try:
        expected = generate(stub, request(api)).ids
        seen = metrics(server)["fixpoint_requests_running"]
        gone = 0
        while gone < CLIENTS:
            crowd = subprocess.Popen([*BENCH, "--target", server.address, "--concurrency", str(a_time), "--requests", "1000000",
                                      "--connections", str(a_time), "--output-tokens", "4000"],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

            def all_there():
                assert crowd.poll() is None
                now = metrics(server)
                return now["fixpoint_requests_running"] + now["fixpoint_requests_waiting"] >= a_time
            try:
                until(all_there, 60)
            finally:
                crowd.send_signal(signal.SIGKILL)
                crowd.wait(10)
            gone += a_time
            until(lambda: metrics(server)["fixpoint_requests_running"] == seen, 60)
        idle(server)
        assert generate(stub, request(api)).ids == expected
    finally:
        server.close()


def test_deadline_storm(tiny_bundle, api, tmp_path):
    """Far more calls than can be served within their deadline: each ends with an answer or DEADLINE_EXCEEDED."""
    server = ready_server(tiny_bundle, "--max-queue", "100000")
    stub = api[1].GenerationStub(server.channel)
    try:
        expected = generate(stub, request(api)).ids
        for deadline in ("0.1", "0.3"):
            done = subprocess.run([*BENCH, "--target", server.address, "--concurrency", "500", "--requests", str(CLIENTS), "--deadline",
                                   deadline, "--output-tokens", "uniform:1:3000", "--json", tmp_path / "storm.json"],
                                  capture_output=True, text=True, timeout=300)
            assert done.returncode in (0, 1), done
            requests = json.loads((tmp_path / "storm.json").read_text())["requests"]
            assert requests["sent"] == CLIENTS
            assert set(requests["failed_by_code"]) <= {"DEADLINE_EXCEEDED"}, requests
            assert requests["failed_by_code"]["DEADLINE_EXCEEDED"] > CLIENTS // 20, requests
            idle(server)
        assert generate(stub, request(api)).ids == expected
    finally:
        server.close()


def slope(points):
    """Least squares, of (x, y)."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def test_soak(tiny_bundle, api, tmp_path):
    """Load with cancels for a long time: memory does not grow, nothing fails. The first third is warm-up."""
    # A KV cache that is full before the warm-up ends: its pages count once they are used.
    server = ready_server(tiny_bundle, "--kv-cache-bytes", str(8 << 20))
    stub = api[1].GenerationStub(server.channel)
    try:
        expected = generate(stub, request(api)).ids
        load = ("--output-tokens", "uniform:16:256", "--cancel-share", "0.1", "--shared-prefix-share", "0.3", "--shared-prefix-tokens", "3",
                "--connections", "4")

        def at_concurrency(streams):
            subprocess.run([*BENCH, "--target", server.address, "--concurrency", str(streams), "--duration", "5", "--warmup", "1", *load,
                            "--json", tmp_path / "full.json"], check=True, capture_output=True, timeout=120)
            return json.loads((tmp_path / "full.json").read_text())

        # A full queue first: its memory is the most there can be, also on a machine whose other work makes the load below an overload. Then
        # how much the server can do, and 80 % of it.
        at_concurrency(400)
        full = at_concurrency(32)
        per_second = full["requests"]["finished"] / full["measured_seconds"]
        run = subprocess.Popen([*BENCH, "--target", server.address, "--rate", f"{0.8 * per_second:.3f}", "--duration", str(SOAK_SECONDS), *load,
                                "--json", tmp_path / "soak.json"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        begin = time.monotonic()
        points = []
        while run.poll() is None:
            time.sleep(1)
            points.append((time.monotonic() - begin, resident_bytes(server)))
        output = run.communicate()[0]
        assert run.returncode == 0, output
        requests = json.loads((tmp_path / "soak.json").read_text())["requests"]
        warm = [(x, y) for x, y in points if SOAK_SECONDS / 3 < x < SOAK_SECONDS]
        per_hour = slope(warm) * 3600 / 2**20
        print(f"{requests['finished']} answers in {SOAK_SECONDS} s, {per_second:.0f} a second at most; memory {warm[0][1] / 2**20:.1f} to "
              f"{warm[-1][1] / 2**20:.1f} MiB, slope {per_hour:.2f} MiB/h; failed: {requests['failed_by_code']}")
        # A machine that becomes slower than it was in the first seconds is overloaded, and that is told; nothing else may fail.
        assert set(requests["failed_by_code"]) <= {"RESOURCE_EXHAUSTED"}, requests
        assert requests["left_on_purpose"] > 0 and requests["finished"] > 0
        idle(server)
        assert generate(stub, request(api)).ids == expected
        errors = [line for line in server.lines if line and '"level":"error"' in line]
        assert not errors, errors
        # A slope over minutes is mostly noise of a few pages, so it is printed, and what is bounded is the growth.
        assert warm[-1][1] - warm[0][1] <= 2**20
    finally:
        server.close()
