"""The deployment of tests/e2e: replicas in podman containers, HAProxy with deploy/haproxy/haproxy.cfg, Prometheus with deploy/prometheus'
rules, and the load on them. Everything listens on loopback of the namespace that scripts/e2e.sh makes, so ports are fixed."""
import json
import math
import os
import pathlib
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import pytest

from serving import CLIENT, grpc
from conftest import ROOT

IMAGE = os.environ.get("FIXPOINT_E2E_IMAGE", "")
FRONT = "127.0.0.1:50051"
PROXY_METRICS = "127.0.0.1:8404"
PROMETHEUS = "127.0.0.1:9090"
DRAIN_NOTICE = 1


def run(*command, check=True, timeout=120):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
    return done


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def get(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return answer.read().decode()


def is_ready(address):
    try:
        return get(address, "/readyz") == "ready\n"
    except OSError:
        return False


def bill_of_materials(image, folder):
    """The image's own SBOM as the SPDX tools read it; they find nothing wrong with it."""
    parse = pytest.importorskip("spdx_tools.spdx.parser.parse_anything")
    validation = pytest.importorskip("spdx_tools.spdx.validation.document_validator")
    container = run("podman", "create", "--network", "none", image).stdout.strip()
    path = folder / "packages.spdx.json"
    run("podman", "cp", f"{container}:/usr/share/sbom/packages.spdx.json", path)
    run("podman", "rm", container)
    document = parse.parse_file(str(path))
    assert validation.validate_full_spdx_document(document) == []
    return {package.name: package.version for package in document.packages}


class Replica:
    """A container as an operator would run it: no root, no capabilities, nothing to write to, memory and CPUs limited."""

    def __init__(self, letter, bundle):
        offset = 1 + ord(letter) - ord("a")
        self.letter, self.bundle = letter, bundle
        self.name = f"fixpoint-e2e-{letter}"
        self.grpc, self.http = f"127.0.0.1:{51000 + offset}", f"127.0.0.1:{8500 + offset}"
        run("podman", "rm", "--force", "--ignore", self.name)

    def start(self, wait=True):
        """Seconds until it is ready."""
        begin = time.monotonic()
        run("podman", "run", "--detach", "--name", self.name, "--network", "host", "--read-only", "--cap-drop", "all", "--security-opt",
            "no-new-privileges", "--memory", "512m", "--volume", f"{self.bundle.parent}:/models:ro", "--stop-timeout", "40", IMAGE,
            f"/models/{self.bundle.name}", "--listen", self.grpc, "--http", self.http, "--threads", "1", "--drain-notice", DRAIN_NOTICE,
            "--drain-timeout", "30")
        if wait:
            until(lambda: is_ready(self.http), 30, f"{self.name} is ready: {self.log()}")
        return time.monotonic() - begin

    def inspect(self, format):
        return run("podman", "inspect", "--format", format, self.name).stdout.strip()

    def log(self):
        done = run("podman", "logs", self.name, check=False)
        return done.stdout + done.stderr

    def server_pid(self):
        """Of the server itself: the container's first process is the init."""
        init = self.inspect("{{.State.Pid}}")
        return int(pathlib.Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])

    def stop(self):
        """SIGTERM and the whole drain; the exit status."""
        run("podman", "stop", self.name)
        code = int(self.inspect("{{.State.ExitCode}}"))
        self.remove()
        return code

    def kill(self):
        run("podman", "kill", "--signal", "KILL", self.name)
        self.remove()

    def remove(self):
        run("podman", "rm", "--force", "--ignore", self.name)


class Process:
    """A program of the stack with its output in a file."""

    def __init__(self, folder, *command, environment=None):
        self.command, self.environment = [str(word) for word in command], {**os.environ, **(environment or {})}
        self.output = folder / (pathlib.Path(self.command[0]).name + ".log")
        self.start()

    def start(self):
        with open(self.output, "a") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT, env=self.environment)

    def cpu_seconds(self):
        """User and system time of all threads so far."""
        columns = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, kill=False):
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(30)


class Proxy(Process):
    def __init__(self, folder, a, b, configuration=ROOT / "deploy" / "haproxy" / "haproxy.cfg", **variables):
        self.admin_socket = folder / "haproxy.sock"
        super().__init__(folder, "haproxy", "-f", configuration, environment={
            "FIXPOINT_FRONT": FRONT, "HAPROXY_METRICS": PROXY_METRICS, "HAPROXY_ADMIN": str(self.admin_socket),
            "FIXPOINT_A": a.grpc, "FIXPOINT_A_HTTP": a.http.split(":")[1], "FIXPOINT_B": b.grpc, "FIXPOINT_B_HTTP": b.http.split(":")[1],
            **variables})
        until(self.admin_socket.exists, 10, "HAProxy's admin socket")

    def admin(self, command):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.admin_socket))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def column(self, letter, name):
        rows = [line.split(",") for line in self.admin("show stat").lstrip("# ").splitlines() if line]
        return next(row[rows[0].index(name)] for row in rows if row[:2] == ["fixpoint", letter])

    def wait_up(self, letter):
        until(lambda: self.column(letter, "status") == "UP", 20, f"HAProxy sees {letter} up")

    def wait_down(self, letter):
        until(lambda: self.column(letter, "status").startswith("DOWN"), 20, f"HAProxy sees {letter} down")


class Prometheus(Process):
    """Scrapes each second. Alerts wait seconds instead of minutes: `for` is what this test has no time for."""

    def __init__(self, folder, replicas):
        rules = []
        for path in sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")):
            text = "\n".join(f"{line.split('for:')[0]}for: 1s" if line.strip().startswith("for:") else line
                             for line in path.read_text().splitlines())
            (folder / path.name).write_text(text + "\n")
            rules.append(path.name)
        assert rules
        configuration = folder / "prometheus.yml"
        configuration.write_text(json.dumps({  # YAML reads JSON
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}, "rule_files": rules,
            "scrape_configs": [{"job_name": "fixpoint", "static_configs": [{"targets": [r.http for r in replicas]}]},
                               {"job_name": "haproxy", "static_configs": [{"targets": [PROXY_METRICS]}]}]}))
        super().__init__(folder, "prometheus", "--config.file", configuration, "--storage.tsdb.path", folder / "tsdb",
                         "--web.listen-address", PROMETHEUS)
        self.wait_ready()

    def wait_ready(self):
        def ready():
            try:
                return "Ready" in get(PROMETHEUS, "/-/ready")
            except OSError:
                return False
        until(ready, 30, "Prometheus is ready")

    def query(self, expression, at=None):
        """[(labels, value)]"""
        arguments = {"query": expression, **({"time": at} if at else {})}
        answer = json.loads(get(PROMETHEUS, "/api/v1/query?" + urllib.parse.urlencode(arguments)))
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def firing(self):
        answer = json.loads(get(PROMETHEUS, "/api/v1/alerts"))
        return {alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"}


RETRYING = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": {
    "maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}]})


class UnaryLoad:
    """Callers that ask for short answers, one after the other at a pace, each compared with the one that an undisturbed replica gave."""

    def __init__(self, api, target, expected, threads=4, per_second=400, service_config=None):
        self.pb, self.expected = api[0], expected
        self.pause = threads / per_second
        self.failures, self.different, self.seconds, self.begun = {}, 0, [], []
        self.lock, self.ended = threading.Lock(), threading.Event()
        options = [("grpc.service_config", service_config)] if service_config else []
        # One connection a thread: grpcio shares channels with the same options.
        self.channels = [grpc.insecure_channel(target, options + [("fixpoint.thread", i)]) for i in range(threads)]
        self.threads = [threading.Thread(target=self._ask, args=(api[1].GenerationStub(channel), i)) for i, channel in
                        enumerate(self.channels)]
        for thread in self.threads:
            thread.start()

    def _ask(self, stub, number):
        due = time.monotonic()
        while not self.ended.is_set():
            due = max(due + self.pause, time.monotonic() - 1)
            time.sleep(max(0, due - time.monotonic()))
            number = (number + 7) % len(self.expected)
            begin = time.monotonic()
            try:
                ids = ask_once(stub, self.pb, number)
            except grpc.RpcError as error:
                with self.lock:
                    key = f"{error.code().name}: {error.details()}"
                    self.failures[key] = self.failures.get(key, 0) + 1
                continue
            with self.lock:
                self.seconds.append(time.monotonic() - begin)
                self.begun.append(begin)
                self.different += ids != self.expected[number]

    def finished(self):
        with self.lock:
            return len(self.seconds)

    def end(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(60)
        for channel in self.channels:
            channel.close()
        return self

    def percentile(self, share, window=(0, math.inf)):
        """Milliseconds, of the calls that began in a window of time."""
        with self.lock:
            seconds = sorted(s for s, begin in zip(self.seconds, self.begun) if window[0] <= begin < window[1])
        return seconds[int(share * (len(seconds) - 1))] * 1000


def ask_once(stub, pb, number, metadata=None):
    message = pb.GenerateOnceRequest(prompt=pb.Prompt(text=b"unary %d" % number), stopping=pb.Stopping(max_tokens=2, ignore_eos=True))
    return list(stub.GenerateOnce(message, timeout=30, metadata=metadata).token_ids)


class StreamLoad:
    """`fixpoint generate` processes, so many at a time, until told to end; each answer compared with the undisturbed one."""

    FLAGS = ("--prompt", "A stream", "--ignore-eos", "--temperature", "1", "--json", "--verbose")

    def __init__(self, target, expected, tokens, streams=6, retries=30, flags=()):
        self.expected, self.command = expected, command(target, tokens, "--retries", retries, *flags)
        self.finished, self.broken, self.wrong = 0, 0, []
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self._stream, args=(i,)) for i in range(streams)]
        for thread in self.threads:
            thread.start()

    def _stream(self, seed):
        while not self.ended.is_set():
            seed = (seed + 5) % len(self.expected)
            done = subprocess.run([*self.command, "--seed", str(seed)], capture_output=True, text=True, timeout=300)
            with self.lock:
                self.finished += 1
                self.broken += sum(int(line.split("broke behind ")[1].split()[0]) > 0 for line in done.stderr.splitlines()
                                   if "broke behind" in line)
                if done.returncode != 0:
                    self.wrong.append(done.stderr)
                else:
                    answer = json.loads(done.stdout)
                    if any(answer[key] != self.expected[seed][key] for key in ("token_ids", "text", "receipt")):
                        self.wrong.append(f"another answer for seed {seed}")

    def end(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(310)
        return self


def command(target, tokens, *flags):
    return [str(word) for word in (CLIENT, "generate", "--target", target, *StreamLoad.FLAGS, "--max-tokens", tokens, *flags)]


def undisturbed(target, tokens, seeds):
    return [json.loads(run(*command(target, tokens, "--seed", seed)).stdout) for seed in range(seeds)]
