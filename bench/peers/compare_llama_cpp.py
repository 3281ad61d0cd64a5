#!/usr/bin/env python3
"""Prefill and decode speed of fixpoint beside llama.cpp on the same weights, interleaved, medians.

    python3 bench/peers/compare_llama_cpp.py --gguf models/SmolLM2-135M-Instruct.Q4_1.gguf --bundle models/smollm2.fixpoint

Needs PyPI's llama-cpp-python, built natively:
    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python
The GGUF is requantized to Q8_0 first (kept beside the bundle), so both run 8-bit weights. Each round is a fresh process of each
program, taking turns; a round is one warm-up and three repeats inside the process. About 3 minutes.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def quantize(source, target):
    import llama_cpp
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        sys.exit("llama.cpp could not requantize the model")


def peer_round(gguf, prefill, decode, threads):
    """Runs in a child process: llama.cpp alone."""
    import llama_cpp
    model = llama_cpp.Llama(str(gguf), n_ctx=prefill + decode + 64, n_threads=threads, n_threads_batch=threads, n_batch=prefill,
                            n_ubatch=prefill, flash_attn=True, logits_all=False, verbose=False)
    vocab = model.n_vocab()
    prompt = [(i * 7919 + 13) % vocab for i in range(prefill)]
    rates = []

    def run(ids):  # the C call: the wrapper's eval copies every row of logits into Python
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(model._ctx.ctx, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            sys.exit("llama_decode failed")
        llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)  # waits for the result

    for _ in range(4):
        model._ctx.kv_cache_clear()
        start = time.perf_counter()
        run(prompt)
        middle = time.perf_counter()
        for i in range(decode):
            run([(i * 31 + 1) % vocab])
        end = time.perf_counter()
        rates.append((prefill / (middle - start), decode / (end - middle)))
    rates = rates[1:]
    print(json.dumps({"prefill_tokens_per_s": statistics.median(r[0] for r in rates),
                      "decode_tokens_per_s": statistics.median(r[1] for r in rates)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, type=pathlib.Path)
    parser.add_argument("--bundle", type=pathlib.Path)
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "build/release/bin/model_bench")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-round", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.peer_round:
        peer_round(a.gguf, a.prefill, a.decode, a.threads)
        return
    q8 = a.bundle.with_suffix(".Q8_0.gguf")
    if not q8.exists():
        quantize(a.gguf, q8)
    ours, peer = [], []
    for i in range(a.rounds):
        command = [str(a.bench), str(a.bundle), "--json", "--repeat", "3", "--prefill", str(a.prefill), "--decode", str(a.decode),
                   "--threads", str(a.threads)]
        ours.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        command = [sys.executable, __file__, "--gguf", str(q8), "--prefill", str(a.prefill), "--decode", str(a.decode), "--threads",
                   str(a.threads), "--peer-round"]
        peer.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        print(f"round {i + 1}: fixpoint {ours[-1]['prefill_tokens_per_s']:.0f} / {ours[-1]['decode_tokens_per_s']:.1f}, "
              f"llama.cpp Q8_0 {peer[-1]['prefill_tokens_per_s']:.0f} / {peer[-1]['decode_tokens_per_s']:.1f} tokens/s", flush=True)
    for key, name in (("prefill_tokens_per_s", f"prefill {a.prefill}"), ("decode_tokens_per_s", "decode batch 1")):
        mine, theirs = statistics.median(r[key] for r in ours), statistics.median(r[key] for r in peer)
        print(f"{name:16} fixpoint {mine:8.1f}   llama.cpp Q8_0 {theirs:8.1f} tokens/s   ratio {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
