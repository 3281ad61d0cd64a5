#!/usr/bin/env python3
"""CPU time of fixpoint-server for each streamed token, without the model's: 64 streams of a little model that is deep enough to take
about 30 ms a step, so each token is a message of its own, as with a real model. All computing is on the engine's thread (--threads 1),
the one that is busiest; what all others used is transport: gRPC, protobuf, detokenization, metrics, log.

    bench/transport_cost.py [--streams 64] [--tokens 100] [--repeat 5]
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

BIN = pathlib.Path(os.environ.get("FIXPOINT_BIN", pathlib.Path(__file__).resolve().parent.parent / "build/release/bin"))
TICK = os.sysconf("SC_CLK_TCK")


def thread_seconds(pid):
    """CPU seconds of each thread that lives."""
    seconds = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            seconds[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except FileNotFoundError:
            pass
    return seconds


def process_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def measure(server, address, streams, tokens):
    """(microseconds of CPU a token, tokens a second)"""
    before, all_before, start = thread_seconds(server.pid), process_seconds(server.pid), time.monotonic()
    requests = 4 * streams
    subprocess.run([BIN / "fixpoint", "bench", "--target", address, "--concurrency", str(streams), "--requests", str(requests),
                    "--prompt-tokens", "8", "--output-tokens", str(tokens), "--speculation", "off", "--connections", "4"],
                   stdout=subprocess.DEVNULL, check=True)
    after, all_after, took = thread_seconds(server.pid), process_seconds(server.pid), time.monotonic() - start
    engine = max(after[name] - before.get(name, 0) for name in after)
    return (all_after - all_before - engine) / (requests * tokens) * 1e6, requests * tokens / took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--layers", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run([BIN / "make_test_bundle", folder / "deep.fixpoint", "300", "4096", str(options.layers)], check=True,
                       stdout=subprocess.DEVNULL)
        log = folder / "log"  # a file: nobody reads a pipe while the load runs
        with log.open("w") as file:
            server = subprocess.Popen([BIN / "fixpoint-server", folder / "deep.fixpoint", "--listen", "127.0.0.1:0", "--http", "none",
                                       "--threads", "1"], stderr=file)
        try:
            events = {}
            while "ready" not in events:
                if server.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.05)
                events = {e["event"]: e for e in map(json.loads, log.read_text().split("\n")[:-1])}
            address = events["listening"]["grpc"]
            results = [measure(server, address, options.streams, options.tokens) for _ in range(options.repeat)]
        finally:
            server.kill()
            server.wait()
    micros, rates = zip(*results)
    print(f"{options.streams} streams, {statistics.median(rates):.0f} tokens/s together, one message a token: "
          f"{statistics.median(micros):.1f} us of CPU a token beside the engine's thread (medians of {options.repeat}, "
          f"{min(micros):.1f} to {max(micros):.1f})")


if __name__ == "__main__":
    main()
