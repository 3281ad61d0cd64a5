"""Calls that are cut off; drain, signals, exit codes, bad starts, full queues of fixpoint-server."""
import re
import signal
import socket
import subprocess
import time

import pytest

from conftest import BIN
from serving import (Answer, api, Code, fails_to_start, generate, grpc, health, long_request, model,
                     ready_server, request, running, samples, SERVER, server, stub, tiny_bundle, until)


def test_cancel_frees_the_engine(server, stub, api, model):
    call = stub.Generate(long_request(api, model), timeout=60)
    next(call)
    next(call)
    call.cancel()
    until(lambda: running(server) == 0)
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    assert error.value.code() == Code.CANCELLED


def test_deadline_is_kept(server, stub, api, model):
    calls = [stub.Generate(long_request(api, model), timeout=0.05) for _ in range(8)]
    codes = []
    for call in calls:
        try:
            list(call)
            codes.append(Code.OK)
        except grpc.RpcError as error:
            codes.append(error.code())
    assert set(codes) <= {Code.DEADLINE_EXCEEDED, Code.OK}
    assert Code.DEADLINE_EXCEEDED in codes
    until(lambda: running(server) == 0)


def test_vanished_clients_leave_nothing_behind(server, api, model):
    for _ in range(10):
        channel = grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        call = api[1].GenerationStub(channel).Generate(long_request(api, model))
        next(call)
        channel.close()
    until(lambda: running(server) == 0)
    _, text = server.get("/metrics")
    free = float(re.search(r"^fixpoint_kv_cache_free_blocks (\S+)$", text, re.M)[1])
    total = float(re.search(r"^fixpoint_kv_cache_blocks (\S+)$", text, re.M)[1])
    assert free == total


def test_reader_without_progress_is_cancelled(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--slow-reader-timeout", "0.5")
    # A channel with a small window that does not grow.
    channel = grpc.insecure_channel(server.address, options=[("grpc.http2.bdp_probe", 0),
                                                             ("grpc.http2.lookahead_bytes", 16384)])
    try:
        stub = api[1].GenerationStub(channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        message = long_request(api, model)
        message.output.top_logprobs = 20
        call = stub.Generate(message, timeout=120)
        next(call)
        seconds = time.monotonic()
        until(lambda: samples(server.get("/metrics")[1])[1]["fixpoint_slow_readers_total"] == 1, 60)
        assert time.monotonic() - seconds >= 0.5
        until(lambda: running(server) == 0)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
        assert error.value.code() == Code.CANCELLED
        until(lambda: any(e.get("slow_reader") for e in server.events("request")))
        assert server.events("request")[-1]["slow_reader"] is True
        assert len(generate(stub, request(api)).ids) == 24
    finally:
        channel.close()
        server.close()


def test_stopped_and_continued_process_is_not_stuck(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--watchdog", "3")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        call = stub.Generate(long_request(api, model), timeout=300)
        next(call)
        server.signal(signal.SIGSTOP)
        time.sleep(4)
        server.signal(signal.SIGCONT)
        for _ in range(10):
            next(call)
        call.cancel()
        assert not server.events("engine_stuck")
        assert server.get("/healthz")[0] == 200
    finally:
        server.close()


def test_drain_finishes_running_streams(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--drain-notice", "0.5", "--drain-timeout", "60")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        expected = generate(stub, long_request(api, model), timeout=300)
        calls = [stub.Generate(long_request(api, model), timeout=300) for _ in range(4)]
        firsts = [next(call) for call in calls]
        server.signal()
        server.wait_for("draining")
        assert server.health() == health.HealthCheckResponse.NOT_SERVING
        assert server.get("/readyz") == (503, "draining\n")
        assert server.get("/healthz")[0] == 200
        assert len(generate(stub, request(api)).ids) == 24  # still served during the notice
        for first, call in zip(firsts, calls):
            assert Answer([first, *call]).ids == expected.ids
        assert server.wait(90) == 0
        assert server.events("stopped")
    finally:
        server.close()


def test_draining_server_refuses_new_calls(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--drain-notice", "0", "--drain-timeout", "60", "--threads", "2", "--pin-threads")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        calls = [stub.Generate(long_request(api, model), timeout=300) for _ in range(8)]
        for call in calls:
            next(call)
        server.signal()
        server.wait_for("draining")
        codes = set()
        while not codes & {Code.UNAVAILABLE} and server.process.poll() is None:
            try:
                list(stub.Generate(request(api), timeout=10))
            except grpc.RpcError as error:
                codes.add(error.code())
        assert Code.UNAVAILABLE in codes
        for call in calls:
            list(call)
        assert server.wait(60) == 0
    finally:
        server.close()


def test_drain_timeout_ends_streams_with_unavailable(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--drain-notice", "0", "--drain-timeout", "0")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        calls = [stub.Generate(long_request(api, model), timeout=60) for _ in range(8)]
        for call in calls:
            next(call)
        server.signal()
        codes = set()
        for call in calls:
            try:
                list(call)
            except grpc.RpcError as error:
                codes.add(error.code())
        assert codes == {Code.UNAVAILABLE}
        assert server.wait(30) == 0
    finally:
        server.close()


def test_second_sigterm_ends_at_once(tiny_bundle):
    server = ready_server(tiny_bundle, "--drain-notice", "600")
    try:
        server.signal()
        server.wait_for("draining")
        server.signal()
        assert server.wait(5) == 128 + signal.SIGTERM
    finally:
        server.close()


def test_sigint_skips_the_notice(tiny_bundle):
    server = ready_server(tiny_bundle, "--drain-notice", "600")
    try:
        server.signal(signal.SIGINT)
        assert server.wait(10) == 0
    finally:
        server.close()


@pytest.mark.parametrize("flag", ["--listen", "--http"])
def test_taken_port_is_one_clear_line(tiny_bundle, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = {"--listen": "127.0.0.1:0", "--http": "127.0.0.1:0", flag: f"127.0.0.1:{port}"}
        line = fails_to_start(tiny_bundle, *[part for pair in flags.items() for part in pair])
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line.lower()


def test_port_of_a_running_server_is_taken(server, tiny_bundle):
    assert server.address in fails_to_start(tiny_bundle, "--listen", server.address, "--http", "none")


def test_missing_bundle_is_one_clear_line():
    assert "/no/such/model.fixpoint" in fails_to_start("/no/such/model.fixpoint")


def test_version_names_what_would_be_served(server, model, tiny_bundle):
    lines = subprocess.run([SERVER, "--version", tiny_bundle], capture_output=True, text=True, check=True).stdout.splitlines()
    values = dict(line.split(" ", 1) for line in lines)
    assert list(values) == ["fixpoint-server", "build", "numerics", "bundle", "golden"]
    assert values["fixpoint-server"] == model.server_version
    assert f'digest="{values["bundle"]}"' in server.get("/metrics")[1]
    assert f'build_id="{values["build"]}"' in server.get("/metrics")[1]
    assert "/no/such/model.fixpoint" in fails_to_start("--version", "/no/such/model.fixpoint")
    assert "BUNDLE" in fails_to_start(codes=(2,))


def test_damaged_bundles_are_refused(tiny_bundle, tmp_path):
    good = tiny_bundle.read_bytes()
    damaged = tmp_path / "damaged.fixpoint"
    for name, data in [("truncated", good[:len(good) // 2]), ("one byte short", good[:-1]), ("empty", b""),
                       ("magic", b"X" + good[1:]), ("longer", good + b"\0"),
                       ("bit in the middle", good[:len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1:])]:
        damaged.write_bytes(data)
        line = fails_to_start(damaged, "--listen", "127.0.0.1:0", "--http", "none")
        assert "damaged.fixpoint" in line, name


def test_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert "neither a bundle" in fails_to_start(path)


@pytest.mark.parametrize("flags, named", [
    (("--device", "gpu:0"), "unknown device 'gpu:0'"),
    (("--tensor-parallel", "2"), "--tensor-parallel 2 needs GPUs"),
    (("--device", "cuda:0", "--tensor-parallel", "3"), "--tensor-parallel is 3"),
    (("--listen", "nowhere"), "'nowhere'"),
    (("--listen", "127.0.0.1:99999"), "99999"),
    (("--http", "example.org:80"), "example.org"),
])
def test_wrong_flags_are_named(tiny_bundle, flags, named):
    assert named in fails_to_start(tiny_bundle, *flags, codes=(2,))


@pytest.mark.parametrize("flags", [("--threads", "-1"), ("--drain-notice", "-1"), ("--max-queue", "0"), ("--nonsense",),
                                   ("--kv-cache-bytes", "-5"), ("--watchdog", "0"), ("--slow-reader-timeout", "-1"),
                                   ("--max-running", "0"), ("--queue-timeout", "-1"), ("--max-queue-tokens", "0"),
                                   ("--progress", "loud")])
def test_flags_out_of_range_are_refused(tiny_bundle, flags):
    done = subprocess.run([SERVER, tiny_bundle, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert flags[0].lstrip("-") in done.stderr


def test_too_small_kv_cache_is_refused(tiny_bundle):
    fails_to_start(tiny_bundle, "--kv-cache-bytes", "1", "--listen", "127.0.0.1:0", "--http", "none")


def test_full_queue_is_resource_exhausted(tiny_bundle, api):
    server = ready_server(tiny_bundle, "--max-queue", "1", "--threads", "1")
    try:
        stub = api[1].GenerationStub(server.channel)
        model = stub.GetModel(api[0].GetModelRequest(), timeout=10)
        calls = [stub.Generate(long_request(api, model), timeout=120) for _ in range(99)]
        exhausted = 0
        for call in calls:
            try:
                list(call)
            except grpc.RpcError as error:
                assert error.code() == Code.RESOURCE_EXHAUSTED
                assert dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
                exhausted += 1
        assert 0 < exhausted < 99
    finally:
        server.close()


def test_stuck_step_flips_liveness_and_health_until_it_ends(tmp_path, api):
    """A deep model, whose prefill steps take far longer than the watchdog allows."""
    program = BIN / "make_test_bundle"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    path = tmp_path / "deep.fixpoint"
    subprocess.run([program, path, "300", "4096", "150"], check=True, stdout=subprocess.DEVNULL)
    server = ready_server(path, "--watchdog", "0.02", "--threads", "1")
    try:
        stub = api[1].GenerationStub(server.channel)
        calls = [stub.Generate(request(api, text=f"{i} " * 300, max_tokens=1), timeout=300) for i in range(2)]
        server.wait_for("engine_stuck")
        seen = set()
        while not {(503, "engine stuck\n"), (200, "alive\n")} <= seen and not server.events("engine_recovered"):
            seen.add(server.get("/healthz"))
        assert (503, "engine stuck\n") in seen
        for call in calls:
            list(call)
        until(lambda: len(server.events("engine_recovered")) == len(server.events("engine_stuck")))
        assert server.get("/healthz") == (200, "alive\n")
        assert server.get("/readyz") == (200, "ready\n")
        assert server.health() == health.HealthCheckResponse.SERVING
    finally:
        server.close()
