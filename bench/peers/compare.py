#!/usr/bin/env python3
"""Prefill and decode speed beside llama.cpp, OpenVINO GenAI and CTranslate2 on the same weights in 8 bits: fresh processes that take
turns, medians over the rounds, a table for README.

    bench/peers/compare.py --bundle models/smollm2.fixpoint --gguf models/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --llama-python LLAMA/bin/python --openvino-python OV/bin/python --ctranslate2-python CT2/bin/python

Each peer is the Python of an environment that has it; peers that are not given are left out.
    llama.cpp     CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python
                  (gcc 12 needs a compiler barrier in front of _tile_loadconfig in ggml's AMX code, or it dies of SIGILL)
    openvino      pip install openvino-genai
    ctranslate2   pip install ctranslate2 transformers torch gguf
llama.cpp requantizes the GGUF to Q8_0 for itself and OpenVINO; transformers and ctranslate2 convert it to int8. Both are kept beside
the bundle. About 15 minutes. FIXPOINT_ISA=vnni or avx2 holds our side to that level: llama.cpp then has to be built for it, with
GGML_NATIVE=OFF and the options of the level. For a model of 1.1 billion parameters: make_random_model.py, and --steps 16.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CELLS = ["prefill 512", "prefill 2048", "decode 1", "decode 8", "decode 32"]
QUANTIZE = """
import llama_cpp, sys
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
params.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def ours(bench, bundle, cell, steps):
    kind, number = cell.split()
    shape = ["--prefill", number, "--decode", 1] if kind == "prefill" else ["--prefill", 16, "--decode", steps, "--batch", number]
    return json.loads(run(bench, bundle, "--json", "--repeat", 3, "--threads", 2, *shape))[f"{kind}_tokens_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, type=pathlib.Path)
    parser.add_argument("--gguf", required=True, type=pathlib.Path)
    parser.add_argument("--bench", type=pathlib.Path, default=HERE.parent.parent / "build/release/bin/model_bench")
    parser.add_argument("--llama-python")
    parser.add_argument("--openvino-python")
    parser.add_argument("--ctranslate2-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=64, help="tokens of each sequence of a decode cell")
    parser.add_argument("--cells", nargs="*", default=CELLS)
    a = parser.parse_args()
    q8, ct2 = a.bundle.with_suffix(".Q8_0.gguf"), a.bundle.with_suffix(".ctranslate2")
    if not q8.exists() and (a.llama_python or a.openvino_python):
        run(a.llama_python, "-c", QUANTIZE, a.gguf, q8)
    if not ct2.exists() and a.ctranslate2_python:
        run(a.ctranslate2_python, HERE / "prepare_ctranslate2.py", a.gguf, ct2)
    peers = {name: (python, model) for name, python, model in (("llama.cpp", a.llama_python, q8), ("openvino", a.openvino_python, q8),
                                                               ("ctranslate2", a.ctranslate2_python, ct2)) if python}
    rates = {name: {cell: [] for cell in a.cells} for name in ("fixpoint", *peers)}
    for number in range(a.rounds):
        for cell in a.cells:
            rates["fixpoint"][cell].append(ours(a.bench, a.bundle, cell, a.steps))
            for name, (python, model) in peers.items():
                rates[name][cell].append(json.loads(run(python, HERE / "peer.py", name, model, cell, "--steps", a.steps).splitlines()[-1])[cell])
            print(f"round {number + 1}, {cell}: " + ", ".join(f"{name} {rates[name][cell][-1]:.0f}" for name in rates), flush=True)
    print(f"\n| tokens/s, medians of {a.rounds} | fixpoint | " + " | ".join(peers) + " | ratio to the best peer |")
    print("| --- |" + " --- |" * (len(peers) + 2))
    for cell in a.cells:
        row = {name: statistics.median(rates[name][cell]) for name in rates}
        best = max(row[name] for name in peers) if peers else float("nan")
        print(f"| {cell} | " + " | ".join(f"{row[name]:.0f}" for name in row) + f" | {row['fixpoint'] / best:.2f} |")


if __name__ == "__main__":
    main()
