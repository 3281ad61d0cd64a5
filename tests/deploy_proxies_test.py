"""The example proxies, run: real Envoy and real nginx, each in front of two real servers, while replicas drain, die and come back."""
import contextlib
import json
import re
import signal
import threading

import pytest

from conftest import BIN
from deployment import DEPLOY, free_ports, get, process, run, succeeds, tool, wait_until
from serving import CLIENT, SERVER, Code, api, grpc, request


class Replica:
    def __init__(self, bundle, folder, name, ending):
        self.bundle, self.log, self.ending = bundle, folder / f"{name}.log", ending
        self.port, self.http = free_ports(2)

    def start(self):
        # The default drain notice (5 s) is longer than Envoy's interval plus timeout.
        self.process = self.ending.enter_context(process(
            self.log, SERVER, self.bundle, "--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self.http}", "--threads", "1"))
        wait_until("a replica is ready", lambda: get(f"http://127.0.0.1:{self.http}/readyz"), 30)

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(30)

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", get(f"http://127.0.0.1:{self.http}/metrics") or "", re.M)
        return float(found[1]) if found else 0


class Proxy:
    """A proxy in front of replicas a and b."""

    def __init__(self, bundle, folder, ending):
        self.folder = folder
        self.port, self.admin = free_ports(2)
        self.target = f"127.0.0.1:{self.port}"
        self.replicas = [Replica(bundle, folder, name, ending) for name in "ab"]
        for replica in self.replicas:
            replica.start()
        self.write_configuration()
        self.process = ending.enter_context(process(folder / "proxy.log", *self.command()))
        self.wait_for_both()
        self.channel = ending.enter_context(grpc.insecure_channel(self.target))
        grpc.channel_ready_future(self.channel).result(30)

    def wait_for_both(self):
        pass

    def before_drain(self, replica):
        pass


class Envoy(Proxy):
    def write_configuration(self):
        a, b = self.replicas
        text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
        for old, new in (("address: fixpoint-a, port_value: 50051", f"address: 127.0.0.1, port_value: {a.port}"),
                         ("address: fixpoint-b, port_value: 50051", f"address: 127.0.0.1, port_value: {b.port}"),
                         ("address: 0.0.0.0, port_value: 50050", f"address: 127.0.0.1, port_value: {self.port}"),
                         ("port_value: 9901", f"port_value: {self.admin}")):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (self.folder / "envoy.yaml").write_text(text)

    def command(self):
        return tool("envoy"), "-c", self.folder / "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"

    def healthy(self):
        status = json.loads(get(f"http://127.0.0.1:{self.admin}/clusters?format=json") or "{}")
        hosts = [h for c in status.get("cluster_statuses", []) for h in c.get("host_statuses", [])]
        return {h["address"]["socket_address"]["port_value"] for h in hosts if h["health_status"] == {"eds_health_status": "HEALTHY"}}

    def wait_for_both(self):
        wait_until("Envoy sees both", lambda: self.healthy() == {r.port for r in self.replicas}, 30)


class Nginx(Proxy):
    def write_configuration(self, down=()):
        text = (DEPLOY / "nginx" / "nginx.conf").read_text()
        for name, replica in zip("ab", self.replicas):
            old = f"server fixpoint-{name}:50051 "
            assert text.count(old) == 1
            text = text.replace(old, f"server 127.0.0.1:{replica.port} {'down ' if replica in down else ''}")
        assert text.count("listen 50050 ") == 1
        (self.folder / "nginx.conf").write_text(text.replace("listen 50050 ", f"listen 127.0.0.1:{self.port} "))

    def command(self, *arguments):
        return (tool("nginx"), "-e", "stderr", "-p", self.folder, "-c", self.folder / "nginx.conf",
                "-g", f"pid {self.folder}/nginx.pid; daemon off;", *arguments)

    def generation(self):
        """Worker processes: a reload makes new ones."""
        return set(run("pgrep", "-P", self.process.pid, "-f", "nginx: worker process$").stdout.split())

    def reload(self, down=()):
        old = self.generation()
        self.write_configuration(down)
        succeeds(*self.command("-t"))
        self.process.send_signal(signal.SIGHUP)
        # Old workers that still have a connection stay as "worker process is shutting down".
        wait_until("new workers", lambda: self.generation() and not self.generation() & old, 20)

    def before_drain(self, replica):
        self.reload(down=[replica])

    def wait_for_both(self):
        self.reload()


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory):
    """A model that takes seconds for a long answer, so that there is time to be killed in."""
    path = tmp_path_factory.mktemp("slow") / "tiny.fixpoint"
    succeeds(BIN / "make_test_bundle", path, "300", "4096", "24")
    return path


@pytest.fixture(scope="module", params=[Envoy, Nginx], ids=["envoy", "nginx"])
def proxy(request, slow_bundle, tmp_path_factory):
    tool(request.param.__name__.lower())
    with contextlib.ExitStack() as ending:
        yield request.param(slow_bundle, tmp_path_factory.mktemp("proxy"), ending)


@pytest.fixture(scope="module")
def stub(proxy, api):
    return api[1].GenerationStub(proxy.channel)


def call(stub, api):
    return list(stub.GenerateOnce(request(api, kind="GenerateOnceRequest"), timeout=30).token_ids)


class Calls:
    """Two callers and two readers of streams, one call after the other, as long as the block runs; every call must succeed. The streams keep
    the client's connection from being idle."""

    def __init__(self, stub, api):
        self.stub, self.api = stub, api
        self.stop, self.done, self.streams, self.failures = threading.Event(), 0, 0, []

    def _repeat(self, one):
        while not self.stop.is_set():
            try:
                one()
            except grpc.RpcError as error:
                self.failures.append((error.code(), error.details()))

    def _call(self):
        call(self.stub, self.api)
        self.done += 1

    def _stream(self):
        kinds = [m.WhichOneof("event") for m in self.stub.Generate(request(self.api, max_tokens=2500, ignore_eos=True), timeout=60)]
        if kinds[-1] == "finished":
            self.streams += 1
        else:
            self.failures.append(kinds[-1])

    def __enter__(self):
        self.threads = [threading.Thread(target=self._repeat, args=[one]) for one in (self._call, self._call, self._stream, self._stream)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def some_more(self, count=20):
        goal = self.done + count
        wait_until("calls go on", lambda: self.done >= goal or self.failures, 30)


def test_both_replicas_are_used_and_answer_alike(proxy, stub, api):
    answers = {tuple(call(stub, api)) for _ in range(20)}
    assert len(answers) == 1
    counts = [r.metric('fixpoint_calls_total{code="OK",method="GenerateOnce"}') for r in proxy.replicas]
    assert min(counts) > 0 and sum(counts) == 20


def test_streams_come_message_by_message(proxy, stub, api):
    kinds = [m.WhichOneof("event") for m in stub.Generate(request(api, max_tokens=400, ignore_eos=True), timeout=30)]
    assert kinds[0] == "started" and kinds[-1] == "finished" and kinds.count("delta") > 5


def test_a_drain_is_not_seen(proxy, stub, api):
    replica = proxy.replicas[0]
    with Calls(stub, api) as calls:
        calls.some_more()
        proxy.before_drain(replica)
        assert replica.end(signal.SIGTERM) == 0
        calls.some_more()
        replica.start()
        proxy.wait_for_both()
        calls.some_more()
    assert not calls.failures and calls.streams > 0
    print(f"{calls.done} calls and {calls.streams} streams around a drain")
    wait_until("the replica is used again",
               lambda: call(stub, api) and replica.metric('fixpoint_calls_total{code="OK",method="GenerateOnce"}') > 0, 20)


def test_a_killed_replica_costs_no_call_and_the_client_goes_on_with_its_stream(proxy, stub, api, tmp_path):
    arguments = [CLIENT, "generate", "--target", proxy.target, "--prompt", "a", "--max-tokens", "2500", "--ignore-eos",
                 "--speculation", "off", "--no-cache", "--json", "--verbose"]
    undisturbed = json.loads(succeeds(*arguments))["token_ids"]
    log = tmp_path / "client.log"
    for replica in proxy.replicas:
        replica.tokens_before = replica.metric("fixpoint_inter_token_latency_seconds_count")
    with process(log, *arguments) as reader:
        def in_mid_stream():
            return [r for r in proxy.replicas if r.metric("fixpoint_requests_running")
                    and r.metric("fixpoint_inter_token_latency_seconds_count") > r.tokens_before + 100]

        killed = wait_until("the stream runs", in_mid_stream, 20)[0]
        killed.end(signal.SIGKILL)
        for _ in range(20):
            call(stub, api)
        assert reader.wait(60) == 0, log.read_text()
    *breaks, answer = log.read_text().splitlines()
    assert json.loads(answer)["token_ids"] == undisturbed
    assert any(int(b.split("broke behind ")[1].split()[0]) > 0 for b in breaks if "broke behind" in b), breaks
    killed.start()
    proxy.wait_for_both()


def test_without_replicas_callers_are_told_at_once(proxy, stub, api):
    """Last: it ends both."""
    for replica in proxy.replicas:
        replica.end(signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as error:
        for _ in range(10):
            call(stub, api)
    assert error.value.code() == Code.UNAVAILABLE, error.value


def test_nginx_accepts_its_file(tmp_path):
    text = (DEPLOY / "nginx" / "nginx.conf").read_text().replace("fixpoint-a", "127.0.0.1").replace("fixpoint-b", "127.0.0.1")
    (tmp_path / "nginx.conf").write_text(text)

    def check():
        return run(tool("nginx"), "-t", "-e", "stderr", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", f"pid {tmp_path}/pid;")

    assert check().returncode == 0, check().stderr
    (tmp_path / "nginx.conf").write_text(text.replace("grpc_next_upstream ", "grpc_next_upstreams "))
    assert check().returncode != 0
