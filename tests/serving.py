"""What the tests of fixpoint-server share: a real process, gRPC through grpcio with stubs made from our .proto, HTTP through the
standard library. The bundle is a random little model by the make_test_bundle program, so that thousands of tokens take a
moment. A test file imports the fixtures that it uses; each file has a server of its own."""
import importlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import BIN, ROOT

grpc = pytest.importorskip("grpc")
protoc = pytest.importorskip("grpc_tools.protoc")
health = pytest.importorskip("grpc_health.v1.health_pb2")
health_stubs = pytest.importorskip("grpc_health.v1.health_pb2_grpc")

SERVER = BIN / "fixpoint-server"
CLIENT = BIN / "fixpoint"
START_SECONDS = 60
Code = grpc.StatusCode

if not SERVER.exists():
    pytest.skip(f"{SERVER} is not built", allow_module_level=True)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """(messages, stubs) of fixpoint.v1, generated from the .proto."""
    out = tmp_path_factory.mktemp("stubs")
    source = ROOT / "proto" / "fixpoint" / "v1" / "generation.proto"
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}", f"--grpc_python_out={out}", str(source)]) == 0
    sys.path.insert(0, str(out))
    try:
        return (importlib.import_module("fixpoint.v1.generation_pb2"),
                importlib.import_module("fixpoint.v1.generation_pb2_grpc"))
    finally:
        sys.path.remove(str(out))


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory):
    """A random little model with a context that takes a while to fill."""
    program = BIN / "make_test_bundle"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    path = tmp_path_factory.mktemp("bundle") / "tiny.fixpoint"
    subprocess.run([program, path, "300", "4096"], check=True, stdout=subprocess.DEVNULL)
    return path


class Server:
    """One process. Its log is read by a thread, so that it can never block on a full pipe."""

    def __init__(self, model, *flags, environment=None):
        self.process = subprocess.Popen(
            [SERVER, model, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
        self.lines = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        listening = self.wait_for("listening")
        self.address, self.http = listening["grpc"], listening["http"]
        self.channel = grpc.insecure_channel(self.address)

    def _read(self):
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.lines.append(None)
            self.changed.notify_all()

    def events(self, name):
        found = []
        for line in self.lines:
            if line and line.startswith("{"):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found

    def wait_for(self, name, seconds=START_SECONDS):
        until = time.monotonic() + seconds
        with self.changed:
            while True:
                if self.events(name):
                    return self.events(name)[0]
                if self.lines and self.lines[-1] is None:
                    raise AssertionError(f"the server ended before '{name}': {self.lines}")
                left = until - time.monotonic()
                assert left > 0, f"no '{name}' within {seconds} s: {self.lines}"
                self.changed.wait(left)

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self, service=""):
        stub = health_stubs.HealthStub(self.channel)
        return stub.Check(health.HealthCheckRequest(service=service), timeout=10).status

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, seconds=30):
        code = self.process.wait(seconds)
        self.reader.join(10)
        return code

    def close(self):
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()


def ready_server(model, *flags, **arguments):
    server = Server(model, *flags, **arguments)
    try:
        server.wait_for("ready")
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="module")
def server(tiny_bundle):
    server = ready_server(tiny_bundle, "--threads", "2")
    yield server
    server.close()


@pytest.fixture(scope="module")
def stub(server, api):
    return api[1].GenerationStub(server.channel)


@pytest.fixture(scope="module")
def model(stub, api):
    return stub.GetModel(api[0].GetModelRequest(), timeout=10)


def request(api, text="Once upon a time", kind="GenerateRequest", **stopping):
    pb = api[0]
    if not stopping:
        stopping = {"max_tokens": 24, "ignore_eos": True}
    return getattr(pb, kind)(prompt=pb.Prompt(text=text.encode()), stopping=pb.Stopping(**stopping))


class Answer:
    """The messages of one choice, in the order that they must have."""

    def __init__(self, messages, resumed=0):
        messages = list(messages)
        assert [m.WhichOneof("event") for m in messages] == ["started"] + ["delta"] * (len(messages) - 2) + ["finished"]
        self.started, self.finished = messages[0].started, messages[-1].finished
        deltas = [m.delta for m in messages[1:-1]]
        self.text = "".join(d.text for d in deltas)
        self.ids = [i for d in deltas for i in d.token_ids]
        self.logprobs = [p for d in deltas for p in d.logprobs]
        count = resumed
        for delta in deltas:
            assert delta.index == count
            count += len(delta.token_ids)


def generate(stub, message, timeout=60):
    return Answer(stub.Generate(message, timeout=timeout), len(message.resume_token_ids))


def generate_choices(stub, message, timeout=60):
    """{choice: Answer} and the prompt parts of a call with several choices."""
    choices, parts = {}, []
    for response in stub.Generate(message, timeout=timeout):
        kind = response.WhichOneof("event")
        if kind == "prompt_part":
            parts.append(response.prompt_part)
        else:
            choices.setdefault(getattr(response, kind).choice, []).append(response)
    return {number: Answer(messages) for number, messages in choices.items()}, parts


def refused(call, code=Code.INVALID_ARGUMENT):
    """The message of the call's status, which must have this code."""
    with pytest.raises(grpc.RpcError) as error:
        result = call()
        if hasattr(result, "__iter__"):
            list(result)
    assert error.value.code() == code, error.value
    return error.value.details()


def running(server):
    _, text = server.get("/metrics")
    return float(re.search(r"^fixpoint_requests_running (\S+)$", text, re.M)[1])


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)


def long_request(api, model):
    return request(api, text="a", max_tokens=model.max_context_tokens - 8, ignore_eos=True)


def samples(text):
    """{name with labels: value}; every line must be a comment or a sample, and every sample's family typed."""
    types, values = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif line and not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+)(\{[a-zA-Z_]+="[^"]*"(?:,[a-zA-Z_]+="[^"]*")*\})? (\S+)', line)
            assert match, line
            family = re.sub(r"_(bucket|sum|count)$", "", match[1])
            assert match[1] in types or types.get(family) == "histogram", line
            values[match[1] + (match[2] or "")] = float(match[3])
    return types, values


def fails_to_start(*arguments, environment=None, codes=(1,)):
    """stderr's plain lines: exactly one, beside JSON log lines."""
    done = subprocess.run([SERVER, *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **(environment or {})})
    assert done.returncode in codes, done
    assert done.stdout == ""
    plain = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(plain) == 1, done.stderr
    assert plain[0].startswith("fixpoint-server: ")
    return plain[0]


def client(*arguments, **options):
    return subprocess.run([CLIENT, *arguments], capture_output=True, text=True, timeout=60, **options)
