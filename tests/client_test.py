"""The fixpoint client against real servers: what it prints, replay, and streams whose servers die under them."""
import json
import os
import signal
import socket
import subprocess
import threading
import time
import xml.etree.ElementTree

import pytest

from serving import (api, client, CLIENT, Code, generate, grpc, model, ready_server, request, SERVER, server, stub, tiny_bundle,
                     until)
from conftest import BIN

# Kills in mid-stream, and streams open at a time; scaled up on a machine with time to spare.
KILLS = int(os.environ.get("FIXPOINT_KILLS", "20"))
STREAMS = int(os.environ.get("FIXPOINT_BENCH_STREAMS", "100"))


@pytest.fixture(scope="module")
def full_wire(stub, api):
    """Skips for a server of before resume_token_ids, n, receipts."""
    message = request(api)
    message.n = 1
    try:
        list(stub.Generate(message, timeout=30))
    except grpc.RpcError as error:
        if error.code() == Code.INVALID_ARGUMENT and "unknown" in error.details().lower():
            pytest.skip(f"{SERVER} is too old: {error.details()}")
        raise


def records(*arguments, **options):
    done = client("generate", *arguments, "--json", **options)
    assert (done.returncode, done.stderr) == (0, ""), done
    return [json.loads(line) for line in done.stdout.splitlines()]


def record(*arguments, **options):
    one, = records(*arguments, **options)
    return one


# What it prints


def test_client_prints_the_answer(server, stub, api):
    target = ("--target", server.address)
    expected = generate(stub, request(api, max_tokens=12))
    done = client("generate", *target, "--prompt", "Once upon a time", "--max-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected.text + "\n"
    piped = client("generate", *target, "--prompt", "-", "--max-tokens", "12", "--json", input="Once upon a time")
    answer = json.loads(piped.stdout)
    assert answer["text"] == expected.text
    assert answer["token_ids"] == expected.ids
    assert answer["finish_reason"] in ("length", "stop")
    assert answer["usage"]["completion_tokens"] == expected.finished.usage.completion_tokens
    assert answer["system_fingerprint"] == expected.started.system_fingerprint
    assert answer["target"] == server.address


def test_client_sampling_flags_reach_the_server(server, stub, api):
    message = request(api, max_tokens=12)
    message.sampling.temperature, message.sampling.top_p, message.sampling.seed = 1.5, 0.9, 5
    message.sampling.top_k, message.sampling.min_p = 40, 0.01
    message.stopping.stop_strings.extend([b"zzz", b"qqq"])
    done = client("generate", "--target", server.address, "--prompt", "Once upon a time", "--max-tokens", "12", "--json",
                  "--temperature", "1.5", "--top-p", "0.9", "--seed", "5", "--top-k", "40", "--min-p", "0.01",
                  "--stop", "zzz", "--stop", "qqq")
    assert json.loads(done.stdout)["token_ids"] == generate(stub, message).ids


def test_every_request_flag_reaches_the_server(server, stub, api, full_wire):
    """Each flag alone, against the same request made here. The record must hold the request, too."""
    target = ("--target", server.address)
    base = ("--prompt", "Once upon a time", "--max-tokens", "16", "--temperature", "1.2", "--seed", "3")
    plain = record(*target, *base)["token_ids"]
    used = plain[0]
    cases = [
        (("--presence-penalty", "1.5"), lambda m: setattr(m.sampling, "presence_penalty", 1.5)),
        (("--frequency-penalty", "-0.5"), lambda m: setattr(m.sampling, "frequency_penalty", -0.5)),
        (("--repetition-penalty", "1.7"), lambda m: setattr(m.sampling, "repetition_penalty", 1.7)),
        (("--logit-bias", f"{used}:-100,7:2.5"),
         lambda m: m.sampling.logit_bias.extend([api[0].LogitBias(token_id=used, bias=-100),
                                                 api[0].LogitBias(token_id=7, bias=2.5)])),
        (("--min-tokens", "9"), lambda m: setattr(m.stopping, "min_tokens", 9)),
        (("--stop-ids", f"{plain[4]},{plain[9]}"), lambda m: m.stopping.stop_ids.extend([plain[4], plain[9]])),
        (("--ignore-eos",), lambda m: setattr(m.stopping, "ignore_eos", True)),
        (("--speculation", "on"), lambda m: setattr(m, "speculation", api[0].SPECULATION_ON)),
        (("--cache-salt", "mine"), lambda m: setattr(m, "cache_salt", b"mine")),
        (("--no-cache",), lambda m: setattr(m, "use_cache", False)),
        (("--priority", "7"), lambda m: setattr(m, "priority", 7)),
        (("--resume-ids", f"{plain[0]},{plain[1]}"), lambda m: m.resume_token_ids.extend(plain[:2])),
    ]
    for flags, change in cases:
        message = request(api, max_tokens=16)
        message.sampling.temperature, message.sampling.seed = 1.2, 3
        change(message)
        expected = generate(stub, message)
        got = record(*target, *base, *flags)
        assert got["token_ids"] == expected.ids, flags
        assert got["text"] == expected.text, flags
        assert got["receipt"] == expected.finished.receipt, flags
        name = flags[0].removeprefix("--").replace("-", "_")
        known = {"cache_salt": None, "no_cache": "use_cache", "resume_ids": "resume_token_ids"}.get(name, name)
        if known:
            parts = got["request"]
            assert any(known in part for part in (parts, parts["sampling"], parts["stopping"])), (flags, parts)
        else:
            assert "mine" not in json.dumps(got), "the salt is a secret"


def test_logprobs_echo_choices_and_batches(server, stub, api, full_wire):
    target = ("--target", server.address)
    got = records(*target, "--prompt", "One", "--prompt", "Two", "-n", "2", "--seed", "5", "--temperature", "1", "--max-tokens", "6",
                  "--logprobs", "2", "--prompt-logprobs", "1", "--echo")
    assert [r["choice"] for r in got] == [0, 1, 2, 3]
    for r in got:
        assert len(r["logprobs"]) == len(r["token_ids"])
        assert all(p["chosen"]["token_id"] == i and len(p["top"]) == 2 for p, i in zip(r["logprobs"], r["token_ids"]))
        alone = request(api, text=["One", "Two"][r["choice"] // 2], max_tokens=6)
        alone.sampling.temperature, alone.sampling.seed = 1, 5 + r["choice"] % 2
        assert generate(stub, alone).ids == r["token_ids"]
    assert [r["prompt"]["text"] for r in got if "prompt" in r] == ["One", "Two"]
    assert all(len(r["prompt"]["logprobs"]) == r["usage"]["prompt_tokens"] - 1 for r in got if "prompt" in r)
    text = client("generate", *target, "--prompt", "One", "--max-tokens", "6", "--echo").stdout
    assert text.startswith("One") and len(text) > 4
    blocks = client("generate", *target, "--prompt", "One", "--prompt", "Two", "--max-tokens", "6").stdout
    assert blocks.startswith("== prompt 0, choice 0 ==\n") and "\n== prompt 1, choice 0 ==\n" in blocks
    by_ids = record(*target, "--prompt-ids", ",".join(client("tokenize", *target, "--prompt", "One").stdout.split()), "--max-tokens", "6")
    assert by_ids["token_ids"] == record(*target, "--prompt", "One", "--max-tokens", "6")["token_ids"]


def test_constraints(server, model, full_wire, tmp_path):
    if not model.has_constraints:
        pytest.skip(f"{SERVER} has no grammars yet")
    target = ("--target", server.address, "--prompt", "Say", "--max-tokens", "40")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type":"object","properties":{"a":{"type":"integer","maximum":9}},"required":["a"],"additionalProperties":false}')
    answer = record(*target, "--json-schema", str(schema))
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["text"])["a"], int)
    assert answer["request"]["constraint"]["json_schema"] == schema.read_text()
    assert set(record(*target, "--regex", "[ab]{5}")["text"]) <= set("ab")
    assert record(*target, "--json-object")["text"].lstrip().startswith("{")


def test_client_chat_health_tokenize_model(server, stub, api, model):
    target = ("--target", server.address)
    assert "SERVING" in client("health", *target).stdout
    assert json.loads(client("model", *target).stdout)["bundle_digest"] == model.bundle_digest
    ids = stub.Tokenize(api[0].TokenizeRequest(prompt=api[0].Prompt(text=b"hello")), timeout=10).token_ids
    assert client("tokenize", *target, "--prompt", "hello").stdout.split() == [str(i) for i in ids]
    if model.has_chat_template:
        once = client("chat", *target, "--system", "Be brief.", "--message", "Hi", "--max-tokens", "8")
        assert once.returncode == 0, once
        turns = client("chat", *target, "--system", "Be brief.", "--max-tokens", "8", input="Hi\nAnd now?\n")
        assert turns.returncode == 0, turns
        assert turns.stdout.startswith(once.stdout)
        assert len(turns.stdout) > len(once.stdout)


def test_client_uses_the_first_target_that_answers(server):
    done = client("generate", "--target", f"127.0.0.1:1,{server.address}", "--connect-timeout", "0.5",
                  "--prompt", "hi", "--max-tokens", "2")
    assert done.returncode == 0, done


def one_line(done, code, *parts):
    assert done.returncode == code, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


def test_client_errors_are_one_line(server, tmp_path):
    one_line(client("generate", "--target", "127.0.0.1:1", "--connect-timeout", "0.3", "--prompt", "hi", "--retries", "1"), 1,
             "UNAVAILABLE", "127.0.0.1:1", "2 attempts")
    target = ("--target", server.address)
    one_line(client("generate", *target, "--prompt", "hi", "--top-p", "7"), 1, "INVALID_ARGUMENT", "sampling.top_p")
    one_line(client("generate", *target, "--prompt", "hi", "--logit-bias", "x:1"), 1, "--logit-bias", "'x:1'")
    one_line(client("generate", *target, "--prompt", "hi", "--logprobs", "1"), 1, "need --json")
    one_line(client("generate", *target, "--prompt", "hi", "--json-schema", str(tmp_path / "none.json")), 1, "--json-schema", "none.json")
    one_line(client("generate", *target), 1, "--prompt")
    one_line(client("generate", *target, "--prompt", "a", "--max-tokens", "4000", "--ignore-eos", "--deadline", "0.01"), 1,
             "DEADLINE_EXCEEDED")
    assert client("health", "--target", "127.0.0.1:1", "--connect-timeout", "0.3").returncode == 1
    for wrong in (("generate", "--nonsense"), (), ("generate", "--regex", "a", "--json-object", "--prompt", "x"),
                  ("generate", "--speculation", "maybe", "--prompt", "x"), ("generate", "--stop-ids", "x", "--prompt", "x")):
        assert client(*wrong).returncode == 2, wrong


def test_a_reader_that_leaves_ends_the_call(server):
    writer = subprocess.Popen([CLIENT, "generate", "--target", server.address, "--prompt", "a", "--max-tokens", "4000", "--ignore-eos"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    writer.stdout.read(1)
    writer.stdout.close()
    assert writer.wait(30) == 1
    assert b"CANCELLED" in writer.stderr.read()
    writer.stderr.close()


# Replay


@pytest.fixture
def recorded(server, full_wire, tmp_path):
    """(file, documents) of three answers."""
    path = tmp_path / "answers.jsonl"
    documents = records("--target", server.address, "--prompt", "Replay \u00e4 me", "-n", "3", "--temperature", "1.3", "--seed",
                        str(2**64 - 2), "--max-tokens", "20", "--repetition-penalty", "1.2", "--logit-bias", "5:1.5", "--stop", "xq", "--logprobs", "1")
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))
    return path, documents


def replay(server, path, *flags, **options):
    return client("replay", "--target", server.address, str(path), *flags, **options)


def test_replay_of_equal_answers(server, recorded):
    path, documents = recorded
    done = replay(server, path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"answer {i}: equal, {len(d['token_ids'])} tokens, receipt {d['receipt']}"
                                        for i, d in enumerate(documents, 1)]
    assert replay(server, "-", input=path.read_text()).stdout == done.stdout


def test_replay_names_the_first_difference(server, recorded):
    path, documents = recorded
    right = documents[1]["token_ids"][4]
    documents[1]["token_ids"][4] = right + 1
    path.write_text("\n".join(json.dumps(d, indent=1) for d in documents))
    done = replay(server, path)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[1] == f"answer 2: differs at token 4: recorded is {right + 1}, now it is {right}"
    assert "equal" in lines[0] and "equal" in lines[2]


def test_replay_checks_receipts(server, recorded):
    path, documents = recorded
    documents[0]["receipt"] = "0" * 64
    path.write_text(json.dumps(documents[0]))
    done = replay(server, path)
    assert done.returncode == 1
    assert "recorded receipt" in done.stdout and "0" * 64 in done.stdout
    # A parameter that happens not to change these tokens is part of the receipt all the same.
    documents[1]["request"]["stopping"]["stop_strings"].append("never to be seen")
    path.write_text(json.dumps(documents[1]))
    done = replay(server, path)
    assert done.returncode == 1
    assert "receipt" in done.stdout


def test_replay_of_a_continued_answer_is_that_of_the_whole(server, recorded, tmp_path):
    whole = record("--target", server.address, "--prompt", "abc", "--max-tokens", "20", "--ignore-eos")
    part = record("--target", server.address, "--prompt", "abc", "--max-tokens", "20", "--ignore-eos",
                  "--resume-ids", ",".join(map(str, whole["token_ids"][:8])))
    assert part["token_ids"] == whole["token_ids"][8:]
    assert part["receipt"] == whole["receipt"]
    path = tmp_path / "part.json"
    path.write_text(json.dumps(part))
    done = replay(server, path)
    assert done.returncode == 0, done
    assert "equal, 20 tokens" in done.stdout


def test_replay_errors_are_status_2(server, recorded, tmp_path):
    path, documents = recorded
    one_line(replay(server, tmp_path / "none"), 2, "none")
    path.write_text("{}")
    one_line(replay(server, path), 2, "document 1", "format")
    documents[0]["system_fingerprint"] = "fp-of-another-model"
    path.write_text(json.dumps(documents[0]))
    one_line(replay(server, path), 2, "fp-of-another-model", "FAILED_PRECONDITION")
    assert replay(server, path, "--any-fingerprint").returncode == 0
    one_line(client("replay", "--target", "127.0.0.1:1", str(path), "--connect-timeout", "0.3", "--retries", "0"), 2, "127.0.0.1:1")
    assert client("replay").returncode == 2


# Servers that die


class Replica:
    """A server that keeps its port over its deaths."""

    def __init__(self, bundle, *flags):
        self.bundle, self.flags = bundle, flags
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.start()

    def start(self):
        self.process = subprocess.Popen([SERVER, self.bundle, "--listen", self.address, "--http", "none", *self.flags],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if '"ready"' in line:
                break
        else:
            raise AssertionError(f"no start: {lines}")
        self.reader = threading.Thread(target=self.process.stderr.read)
        self.reader.start()

    def end(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self.reader.join(10)
        self.process.stderr.close()
        return code


class Streams:
    """Clients that stream the same answer, one process each."""

    def __init__(self, replicas, count, *flags):
        arguments = [CLIENT, "generate", "--target", ",".join(r.address for r in replicas), "--prompt", "Once upon a time", "--json",
                     "--verbose", "--connect-timeout", "2", *flags]
        self.processes = [subprocess.Popen([*arguments, "--seed", str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                          for i in range(count)]
        self.results = [None] * count
        self.threads = [threading.Thread(target=self._read, args=(i,)) for i in range(count)]
        for thread in self.threads:
            thread.start()

    def _read(self, i):
        out, err = self.processes[i].communicate(timeout=300)
        self.results[i] = (self.processes[i].returncode, out, err)

    def open(self):
        return sum(p.poll() is None for p in self.processes)

    def join(self):
        for thread in self.threads:
            thread.join(310)
        return self.results


def wait_for_stream(api, replica):
    """Returns in mid-stream, more or less."""
    with grpc.insecure_channel(replica.address) as channel:
        stub = api[1].GenerationStub(channel)
        until(lambda: stub.GetLoad(api[0].GetLoadRequest(), timeout=10).running > 0, 60)
    time.sleep(0.2)


LONG = ("--max-tokens", "3000", "--ignore-eos", "--temperature", "1")


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory):
    """A model that takes seconds for an answer, so that there is time to be killed in."""
    path = tmp_path_factory.mktemp("slow") / "tiny.fixpoint"
    subprocess.run([BIN / "make_test_bundle", path, "300", "4096", "24"], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture
def replicas(slow_bundle, full_wire):
    both = [Replica(slow_bundle, "--threads", "1", "--drain-notice", "0", "--drain-timeout", "0") for _ in range(2)]
    yield both
    for replica in both:
        replica.end()


def undisturbed(replica, count):
    return [record("--target", replica.address, "--prompt", "Once upon a time", *LONG, "--seed", str(i)) for i in range(count)]


def expect_undisturbed(results, expected):
    breaks = []
    for (code, out, err), right in zip(results, expected):
        assert code == 0, err
        got = json.loads(out)
        assert got["token_ids"] == right["token_ids"]
        assert got["text"] == right["text"]
        assert got["receipt"] == right["receipt"]
        assert got["usage"]["completion_tokens"] == right["usage"]["completion_tokens"]
        breaks += [int(line.split("broke behind ")[1].split()[0]) for line in err.splitlines() if "broke behind" in line]
    return breaks


def test_killed_servers_lose_and_repeat_nothing(replicas):
    """kill -9, one replica after the other; each comes back before the next dies. Until KILLS streams were broken in the middle."""
    count = 3
    expected = undisturbed(replicas[0], count)
    kills = hits = turn = rounds = 0
    while hits < KILLS:
        rounds += 1
        assert rounds <= KILLS, f"{kills} kills in {rounds - 1} rounds have hit {hits} streams: the model is too fast for this test"
        streams = Streams(replicas, count, *LONG, "--retries", "30")
        until_all = time.monotonic() + 120
        while streams.open() == count and time.monotonic() < until_all:
            time.sleep(0.4)  # killed more often, the streams would wait for their targets all the time
            replicas[turn].end()
            kills += 1
            replicas[turn].start()
            turn = 1 - turn
        hits += sum(tokens > 0 for tokens in expect_undisturbed(streams.join(), expected))
    print(f"{kills} kills in {rounds} rounds, {hits} streams broken in mid-stream and continued")


def test_rolling_restart_is_not_seen(api, replicas):
    expected = undisturbed(replicas[0], 3)
    streams = Streams(replicas, 3, *LONG, "--retries", "30")
    wait_for_stream(api, replicas[0])
    for replica in replicas:
        assert replica.end(signal.SIGTERM) == 0
        replica.start()
    expect_undisturbed(streams.join(), expected)


def test_choices_survive_a_kill(api, replicas):
    flags = ("-n", "2", "--prompt", "Two prompts", "--max-tokens", "1500", "--ignore-eos", "--temperature", "1", "--logprobs", "0", "--echo")
    arguments = ["--target", replicas[0].address + "," + replicas[1].address, "--prompt", "Once upon a time", *flags]
    expected = records(*arguments)
    running = subprocess.Popen([CLIENT, "generate", *arguments, "--json", "--verbose"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    wait_for_stream(api, replicas[0])
    replicas[0].end()
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    got = [json.loads(line) for line in out.splitlines()]
    for a, b in zip(got, expected, strict=True):
        for key in ("choice", "text", "token_ids", "logprobs", "receipt", "request", "prompt"):
            assert a.get(key) == b.get(key), key
    if "broke behind" not in err:
        pytest.skip("the kill came too late to hit a stream")


def test_all_targets_down_is_a_clear_error(api, replicas):
    streams = Streams(replicas, 1, *LONG, "--retries", "2")
    wait_for_stream(api, replicas[0])
    for replica in replicas:
        replica.end()
    (code, out, err), = streams.join()
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert "UNAVAILABLE" in last and "the answer broke behind" in last
    assert all(replica.address in last for replica in replicas)


def test_another_model_never_continues_an_answer(api, replicas, tiny_bundle):
    other = Replica(tiny_bundle, "--threads", "1")
    try:
        streams = Streams([replicas[0], other], 1, *LONG, "--retries", "1")
        wait_for_stream(api, replicas[0])
        replicas[0].end()
        (code, out, err), = streams.join()
        assert (code, out) == (1, "")
        last = err.splitlines()[-1]
        assert "answers of two models are never mixed" in last
    finally:
        other.end()


def test_a_stopped_server_is_left(api, replicas):
    """SIGSTOP: the connection stays, nothing comes."""
    expected = undisturbed(replicas[0], 1)
    streams = Streams(replicas, 1, *LONG, "--stall-timeout", "1")
    wait_for_stream(api, replicas[0])
    replicas[0].process.send_signal(signal.SIGSTOP)
    try:
        breaks = expect_undisturbed(streams.join(), expected)
    finally:
        replicas[0].process.send_signal(signal.SIGCONT)
    if not breaks:
        pytest.skip("the stop came too late to hit a stream")


# Bench


def bench(server, *flags, files=None, codes=(0,)):
    arguments = ["bench", "--target", server.address, *flags]
    for name, value in (("--output-tokens", "uniform:2:12"), ("--prompt-tokens", "uniform:4:40")):
        if name not in flags:
            arguments += [name, value]
    if files:
        arguments += ["--json", str(files / "bench.json"), "--plot", str(files / "bench.svg")]
    done = client(*arguments)
    assert done.returncode in codes, done
    return (done, json.loads((files / "bench.json").read_text())) if files else done


def expect_consistent(result):
    requests = result["requests"]
    assert requests["sent"] == sum(requests[k] for k in ("finished", "failed", "left_on_purpose", "cut_at_the_end"))
    assert requests["failed"] == sum(requests["failed_by_code"].values())
    for row in result["latency_ms"].values():
        assert 0 <= row["p50"] <= row["p90"] <= row["p99"] <= row["max"]
        assert (row["count"] > 0) == (row["max"] > 0)
    assert result["latency_ms"]["end_to_end"]["count"] == requests["finished"]


def test_bench_closed_loop(server, tmp_path):
    done, result = bench(server, "--concurrency", "4", "--requests", "40", "--cancel-share", "0.25", "--shared-prefix-share", "0.5",
                         "--shared-prefix-tokens", "16", "--seed", "7", files=tmp_path)
    assert done.stderr == ""
    assert "time to first token" in done.stdout and "output tokens/s" in done.stdout
    expect_consistent(result)
    assert result["requests"]["sent"] == 40 and result["requests"]["failed"] == 0
    assert 2 <= result["requests"]["left_on_purpose"] <= 20
    assert result["requests"]["open_streams_max"] == 4
    svg = xml.etree.ElementTree.parse(tmp_path / "bench.svg").getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "Time to first token, ms" in texts and "Output tokens/s" in texts
    again = bench(server, "--concurrency", "2", "--requests", "40", "--cancel-share", "0.25", "--shared-prefix-share", "0.5",
                  "--shared-prefix-tokens", "16", "--seed", "7", files=tmp_path)[1]
    assert again["requests"] == {**result["requests"], "open_streams_max": 2}, "the same seed asks the same"


def test_bench_open_loop(server, tmp_path):
    done, result = bench(server, "--rate", "30", "--duration", "2", "--warmup", "0.5", "--ramp", "0.5", "--text", __file__, files=tmp_path)
    expect_consistent(result)
    assert done.stderr == ""
    assert 25 <= result["requests"]["sent"] <= 110
    assert result["requests"]["failed"] == 0
    assert result["measured_seconds"] == 2


def test_bench_counts_failures_by_code(tiny_bundle, tmp_path):
    server = ready_server(tiny_bundle, "--max-queue", "1", "--max-running", "1", "--threads", "1")
    try:
        done, result = bench(server, "--concurrency", "8", "--requests", "60", "--output-tokens", "200", files=tmp_path)
        expect_consistent(result)
        assert result["requests"]["failed_by_code"].get("RESOURCE_EXHAUSTED", 0) > 0
        assert "failed RESOURCE_EXHAUSTED" in done.stdout
        assert result["requests"]["finished"] > 0
        patient = bench(server, "--concurrency", "3", "--requests", "6", "--retries", "100", files=tmp_path)[1]
        assert patient["requests"]["finished"] == 6
    finally:
        server.close()


def test_bench_keeps_many_streams_open(tiny_bundle, tmp_path):
    server = ready_server(tiny_bundle, "--max-queue", "100000", "--threads", "1")
    try:
        _, result = bench(server, "--concurrency", str(STREAMS), "--requests", str(STREAMS), "--output-tokens", "30", "--connections", "4",
                          files=tmp_path)
        expect_consistent(result)
        assert result["requests"]["finished"] == STREAMS
        # The first ones may have ended before the last one began: how many overlap depends on the machine.
        assert STREAMS // 10 <= result["requests"]["open_streams_max"] <= STREAMS
    finally:
        server.close()


def test_bench_errors(server):
    one_line(bench(server, "--concurrency", "2", codes=(1,)), 1, "--duration", "--requests")
    one_line(bench(server, "--duration", "2", codes=(1,)), 1, "--concurrency", "--rate")
    one_line(bench(server, "--concurrency", "2", "--requests", "1", "--prompt-tokens", "gauss:3", codes=(1,)), 1, "--prompt-tokens", "gauss:3")
    one_line(bench(server, "--concurrency", "2", "--requests", "1", "--prompt-tokens", "9000", codes=(1,)), 1, "9000")
    one_line(bench(server, "--concurrency", "2", "--requests", "1", "--shared-prefix-share", "1", codes=(1,)), 1, "--shared-prefix-tokens")
    assert bench(server, "--concurrency", "0", "--requests", "1", codes=(2,))
