"""Runs the deployment and breaks it: see scripts/e2e.sh, which gives this file its namespace, image and tools."""
import collections
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from serving import api, grpc
from conftest import BIN, ROOT
from stack import (ask_once, FRONT, get, IMAGE, is_ready, Prometheus, PROXY_METRICS, Proxy, Replica, RETRYING, run, StreamLoad, UnaryLoad,
                   undisturbed, until)

pytestmark = pytest.mark.skipif(not IMAGE, reason="run scripts/e2e.sh: these tests need containers and a network namespace")

KILLS = int(os.environ.get("FIXPOINT_E2E_KILLS", "8"))
STREAM_TOKENS = 500
SEEDS = 12
PROMPTS = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("e2e")
    path.chmod(0o755)  # the containers' user reads the bundles
    return path


def make_bundle(folder, name, layers):
    path = folder / "bundles" / name
    path.parent.mkdir(mode=0o755, exist_ok=True)
    run(BIN / "make_test_bundle", path, 300, 4096, layers)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def bundle(folder):
    """A little model whose streams take long enough to be hit."""
    return make_bundle(folder, "model.fixpoint", 24)


@pytest.fixture(scope="module")
def replicas(bundle):
    both = {letter: Replica(letter, bundle) for letter in "ab"}
    for replica in both.values():
        replica.start()
    yield both
    for replica in both.values():
        replica.remove()


@pytest.fixture(scope="module")
def proxy(folder, replicas):
    proxy = Proxy(folder, replicas["a"], replicas["b"])
    for letter in replicas:
        proxy.wait_up(letter)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def prometheus(folder, replicas):
    prometheus = Prometheus(folder, replicas.values())
    yield prometheus
    prometheus.stop()


@pytest.fixture(scope="module")
def expected(api, replicas):
    """(short answers, streams) of a replica that nobody disturbs."""
    with grpc.insecure_channel(replicas["a"].grpc) as channel:
        stub = api[1].GenerationStub(channel)
        short = [ask_once(stub, api[0], number) for number in range(PROMPTS)]
    return short, undisturbed(replicas["a"].grpc, STREAM_TOKENS, SEEDS)


@pytest.fixture(autouse=True)
def all_up(request):
    """Each test begins and ends with both replicas serving."""
    yield
    if "proxy" in request.fixturenames:
        for letter in "ab":
            request.getfixturevalue("proxy").wait_up(letter)


def show(**figures):
    print("\n  " + ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()))


def test_image(replicas, folder):
    image = json.loads(run("podman", "image", "inspect", IMAGE).stdout)[0]
    configuration = image["Config"]
    assert configuration["User"] == "65532:65532"
    assert configuration["StopSignal"] == "SIGTERM"
    assert set(configuration["ExposedPorts"]) == {"50051/tcp", "8080/tcp"}
    assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"][:2] == ["CMD", "/usr/bin/fixpoint"]
    assert image["Size"] <= 60_000_000
    a = replicas["a"]
    # The probe of the image has the image's port; here each replica has its own.
    assert run("podman", "exec", a.name, "/usr/bin/fixpoint", "health", "--target", a.grpc).returncode == 0
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{a.server_pid()}/status").read().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0 and status["NoNewPrivs"] == "1"
    assert run("podman", "exec", a.name, "/usr/bin/fixpoint", "model", "--target", a.grpc, "--no-such-flag", check=False).returncode == 2
    copied = folder / "packages.spdx.json"
    run("podman", "cp", f"{a.name}:/usr/share/sbom/packages.spdx.json", copied)
    packages = {package["name"]: package["versionInfo"] for package in json.loads(copied.read_text())["packages"]}
    assert {"fixpoint", "libc6", "libgrpc29", "tini", "libcli11-dev", "libboost1.74-dev"} <= set(packages)
    if os.environ.get("FIXPOINT_PACKAGES") != "newest":
        locked = dict(line.split("=", 1) for line in (ROOT / "docker" / "packages.lock").read_text().splitlines() if not line.startswith("#"))
        assert {name: version for name, version in packages.items() if name != "fixpoint" and locked.get(name) != version} == {}
    assert a.stop() == 0
    starts = []
    for _ in range(5):
        starts.append(a.start())
        a.kill()
    a.start()
    show(image_mb=image["Size"] / 1e6, packages=len(packages), start_to_ready_s=sorted(starts)[2])


def test_rolling_restart_fails_nobody(api, replicas, proxy, expected):
    """Replica after replica: SIGTERM, drain, a new container. Callers have no retry policy."""
    unary = UnaryLoad(api, FRONT, expected[0])
    streams = StreamLoad(FRONT, expected[1], STREAM_TOKENS, retries=0)
    begin, rolls = time.monotonic(), 0
    while rolls < 2 or unary.finished() < 10_000 or streams.finished < 200:
        assert time.monotonic() < begin + 300, (unary.finished(), streams.finished)
        for letter, replica in replicas.items():
            assert replica.stop() == 0
            replica.start()
            proxy.wait_up(letter)
        rolls += 1
    unary.end(), streams.end()
    show(rolls=rolls, unary=len(unary.seconds), streams=streams.finished, unary_p50_ms=unary.percentile(0.5), unary_p99_ms=unary.percentile(0.99))
    assert unary.failures == {} and unary.different == 0
    assert streams.wrong == [] and streams.broken == 0


def test_killed_replicas_lose_nothing(api, replicas, proxy, prometheus, expected):
    """kill -9 in mid-stream, one replica after the other. Streams go on by themselves, short calls have gRPC's own retry policy."""
    until(lambda: not prometheus.firing() & {"FixpointReplicaDown"}, 30, "no alert at first")
    unary = UnaryLoad(api, FRONT, expected[0], per_second=200, service_config=RETRYING)
    streams = StreamLoad(FRONT, expected[1], STREAM_TOKENS)
    fired = 0
    for kill in range(KILLS):
        letter = "ab"[kill % 2]
        time.sleep(0.5)
        replicas[letter].kill()
        if kill in (0, KILLS - 1):
            until(lambda: "FixpointReplicaDown" in prometheus.firing(), 30, "the alert fires")
            fired += 1
        proxy.wait_down(letter)
        replicas[letter].start()
        proxy.wait_up(letter)
    unary.end(), streams.end()
    until(lambda: "FixpointReplicaDown" not in prometheus.firing(), 30, "the alert clears")
    show(kills=KILLS, streams=streams.finished, broken_and_continued=streams.broken, unary=len(unary.seconds), alerts=fired)
    assert streams.wrong == [] and streams.finished > 0
    assert unary.failures == {} and unary.different == 0
    assert streams.broken > 0, "no kill hit a stream: the model is too fast for this test"


def test_a_stopped_replica_is_left(replicas, proxy, expected):
    """SIGSTOP: its connections stay open and nothing comes. Probes fail, streams go on elsewhere."""
    tokens = 6 * STREAM_TOKENS
    streams = StreamLoad(FRONT, undisturbed(replicas["a"].grpc, tokens, 6), tokens, flags=("--stall-timeout", "1", "--first-message-timeout", "2"))
    time.sleep(2)
    pid = replicas["a"].server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        proxy.wait_down("a")
        time.sleep(3)
    finally:
        os.kill(pid, signal.SIGCONT)
    proxy.wait_up("a")
    streams.end()
    show(streams=streams.finished, broken_and_continued=streams.broken)
    assert streams.wrong == []
    assert streams.broken > 0, "the stop came too late to hit a stream"


def test_a_damaged_bundle_never_serves(api, bundle, replicas, proxy, expected):
    damaged = bundle.with_name("damaged.fixpoint")
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    damaged.chmod(0o644)
    unary = UnaryLoad(api, FRONT, expected[0], per_second=100)
    assert replicas["b"].stop() == 0
    broken = Replica("b", damaged)
    broken.start(wait=False)
    until(lambda: broken.inspect("{{.State.Status}}") == "exited", 20, "the server refuses the bundle")
    assert broken.inspect("{{.State.ExitCode}}") == "1"
    last = broken.log().splitlines()[-1]
    assert last.startswith("fixpoint-server: ") and "damaged.fixpoint" in last, last
    assert proxy.column("b", "status").startswith("DOWN")
    broken.remove()
    replicas["b"].start()
    proxy.wait_up("b")
    unary.end()
    show(unary=len(unary.seconds), refused_with=repr(last))
    assert unary.failures == {} and unary.different == 0


def flood(kind, seconds):
    done = subprocess.run([sys.executable, ROOT / "tests" / "e2e" / "flood.py", kind, FRONT, "127.0.0.9", str(seconds)], capture_output=True,
                          text=True, timeout=seconds + 30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["reset", "continuation"])
def test_the_proxy_holds_off_floods(api, replicas, proxy, expected, kind):
    """Callers from another address see the same answers at about the same speed; the replicas see no flood."""
    def calm(seconds):
        unary = UnaryLoad(api, FRONT, expected[0], per_second=100)
        time.sleep(seconds)
        return unary.end()

    before = calm(6)
    streams_before = int(proxy.column("a", "stot")) + int(proxy.column("b", "stot"))
    unary = UnaryLoad(api, FRONT, expected[0], per_second=100)
    sent = flood(kind, 6)
    unary.end()
    reached = int(proxy.column("a", "stot")) + int(proxy.column("b", "stot")) - streams_before - len(unary.seconds)
    after = calm(2)
    show(flood=kind, **sent, reached_replicas=reached, p50_ms_before=before.percentile(0.5), p50_ms_during=unary.percentile(0.5),
         p99_ms_before=before.percentile(0.99), p99_ms_during=unary.percentile(0.99))
    for load in (before, unary, after):
        assert load.failures == {} and load.different == 0
    assert sent["frames"] > 1000
    assert reached < sent["frames"] / 20
    for replica in replicas.values():
        assert is_ready(replica.http)


def test_blue_green_upgrade(api, folder, replicas, proxy, prometheus, expected):
    """A new bundle beside the old one. Streams that run finish on theirs, new ones begin on the new one, nobody fails."""
    new = make_bundle(folder, "new.fixpoint", 20)
    digests = lambda: {labels["digest"] for labels, _ in prometheus.query("fixpoint_bundle_info")}
    old = digests()
    assert len(old) == 1
    tokens = 7 * STREAM_TOKENS
    streams = StreamLoad(FRONT, undisturbed(replicas["a"].grpc, tokens, 2), tokens, streams=4, retries=0)
    until(lambda: int(proxy.column("a", "scur")) + int(proxy.column("b", "scur")) >= 4, 20, "streams run")
    streams.ended.set()  # the ones that run are the last of the old model
    try:
        assert replicas["b"].stop() == 0
        replicas["b"].bundle = new
        replicas["b"].start()
        proxy.wait_up("b")
        until(lambda: len(digests()) == 2, 10, "Prometheus sees both digests side by side")
        unary = UnaryLoad(api, FRONT, expected[0], per_second=100)
        assert replicas["a"].stop() == 0
        replicas["a"].bundle = new
        replicas["a"].start()
        proxy.wait_up("a")
        until(lambda: len(digests()) == 1 and not digests() & old, 10, "only the new digest is left")
        unary.end()
        streams.end()
        assert streams.wrong == [] and streams.finished >= 4
        assert unary.failures == {}
        show(streams_finished_on_the_old_one=streams.finished, unary=len(unary.seconds))
    finally:
        for letter, replica in replicas.items():
            replica.stop()
            replica.bundle = folder / "bundles" / "model.fixpoint"
            replica.start()
            proxy.wait_up(letter)


def test_prometheus_may_restart(prometheus, replicas):
    total = 'sum(fixpoint_calls_total)'
    before = until(lambda: prometheus.query(total), 20, "calls are counted")
    moment = time.time()
    prometheus.stop(kill=True)
    prometheus.start()
    prometheus.wait_ready()
    assert prometheus.query(total, at=moment) == before  # nothing that was stored is lost
    until(lambda: prometheus.query('sum(up{job="fixpoint"} == 1)') == [({}, float(len(replicas)))], 30, "both are scraped again")
    scrapes = prometheus.query('max(scrape_duration_seconds{job="fixpoint"})')[0][1]
    size = max(len(get(replica.http, "/metrics")) for replica in replicas.values())
    show(scrape_ms=scrapes * 1000, metrics_bytes=size)
    assert size < 100_000


def test_affinity_keeps_prefixes_on_one_replica(api, replicas, proxy):
    """Callers that share a long prompt meet at one replica when they send its key: hit tokens of both replicas, with and without."""
    pb = api[0]

    def hit_rate(with_key, salt):
        def counted(name):
            values = [line.split()[1] for replica in replicas.values() for line in get(replica.http, "/metrics").splitlines()
                      if line.startswith(name)]
            return sum(map(float, values))
        names = ("fixpoint_prefix_cache_hit_tokens_total", "fixpoint_prefix_cache_query_tokens_total")
        before = [counted(name) for name in names]
        def ask(user, turn):
            text = f"{salt} {user} " + "a shared beginning " * 40 + str(turn)
            stub.GenerateOnce(pb.GenerateOnceRequest(prompt=pb.Prompt(text=text.encode()), stopping=pb.Stopping(max_tokens=4, ignore_eos=True)),
                              timeout=30, metadata=[("x-fixpoint-affinity", f"user-{user}")] if with_key else None)

        with grpc.insecure_channel(FRONT) as channel, concurrent.futures.ThreadPoolExecutor(6) as callers:
            stub = api[1].GenerationStub(channel)
            for turn in range(4):
                list(callers.map(lambda i: ask(i * (2 * turn + 5) % 24, turn), range(24)))
        hits, queried = (counted(name) - old for name, old in zip(names, before))
        return hits / queried

    without, with_key = hit_rate(False, "x"), hit_rate(True, "y")
    used = [int(line.split(",")[7]) for line in proxy.admin("show stat").splitlines() if line.startswith("fixpoint_affinity,") and
            line.split(",")[1] in "ab"]
    show(hit_rate_without_key=without, hit_rate_with_key=with_key, requests_of_each_replica=used)
    assert min(used) > 0, "one replica got every key"
    assert with_key > without


def test_what_the_proxy_costs(api, replicas, proxy, expected):
    """One caller at a time, directly and through HAProxy, in turns. Printed, not gated."""
    seconds = collections.defaultdict(list)
    stubs = {name: api[1].GenerationStub(grpc.insecure_channel(target)) for name, target in
             (("direct", replicas["a"].grpc), ("proxy", FRONT))}
    for number in range(600):
        for name, stub in stubs.items():
            begin = time.monotonic()
            assert ask_once(stub, api[0], number % PROMPTS) == expected[0][number % PROMPTS]
            seconds[name].append(time.monotonic() - begin)
    at = lambda name, share: sorted(seconds[name])[int(share * 599)] * 1000
    show(direct_p50_ms=at("direct", 0.5), proxy_p50_ms=at("proxy", 0.5), direct_p99_ms=at("direct", 0.99), proxy_p99_ms=at("proxy", 0.99))
    assert "haproxy_server_status" in get(PROXY_METRICS, "/metrics")
