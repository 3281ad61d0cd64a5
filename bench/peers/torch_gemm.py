#!/usr/bin/env python3
"""torch on the products of cuda_bench, for scripts/gpu_check.sh: _int_mm (cuBLASLt's int8 behind torch) and bf16 matmul on the same
shapes, timed with CUDA events.

    torch_gemm.py run < gpu_bench.json > torch_gemm.json     status 3, and why on stderr, without torch or CUDA
    torch_gemm.py merge gpu_bench.json torch_gemm.json       both in one, with torch's time over ours for each product, on stdout

Weights are used in turn, from as many copies as no cache holds, as cuda_bench does. _int_mm refuses 16 tokens and fewer: left out.
"""
import json
import statistics
import sys

COPIES_BYTES = 512 << 20
LEAST_INT_MM_TOKENS = 17  # torch's own rule
ROUNDS, RUNS = 5, 10


def seconds(torch, run):
    run(0)
    torch.cuda.synchronize()
    taken = []
    for round_ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for i in range(RUNS):
            run(round_ * RUNS + i)
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1000 / RUNS)
    return statistics.median(taken)


def int8_matches(torch, x, w):
    """A few rows and columns by the definition, on the CPU."""
    rows, columns = x[:4].cpu().long(), w[:8].cpu().long()
    return torch.equal(torch._int_mm(x, w.t())[:4, :8].cpu().long(), rows @ columns.t())


def product(torch, shape):
    outputs, depth, tokens = shape["outputs"], shape["depth"], shape["tokens"]
    result = {key: shape[key] for key in ("layer", "outputs", "depth", "tokens")}
    copies = max(1, COPIES_BYTES // (outputs * depth))
    weights = torch.randint(-127, 128, (copies, outputs, depth), dtype=torch.int8, device="cuda")
    x = torch.randint(-128, 128, (tokens, depth), dtype=torch.int8, device="cuda")
    if tokens >= LEAST_INT_MM_TOKENS:
        try:
            if not int8_matches(torch, x, weights[0]):
                sys.exit(f"torch_gemm: _int_mm is wrong for {result}")
            result["int_mm_microseconds"] = 1e6 * seconds(torch, lambda i: torch._int_mm(x, weights[i % copies].t()))
        except RuntimeError as error:  # a shape or a card that torch's cuBLASLt refuses
            result["int_mm_error"] = str(error).splitlines()[0]
    # The same number of bytes of weights in turn: half as many copies.
    wide = weights[: max(1, copies // 2)].to(torch.bfloat16)
    wide_x = x.to(torch.bfloat16)
    result["bf16_microseconds"] = 1e6 * seconds(torch, lambda i: wide_x @ wide[i % len(wide)].t())
    return result


def run():
    try:
        import torch
    except ImportError as error:
        print(f"torch_gemm: {error}", file=sys.stderr)
        sys.exit(3)
    if not torch.cuda.is_available():
        print("torch_gemm: torch has no CUDA device here", file=sys.stderr)
        sys.exit(3)
    shapes = json.load(sys.stdin)["products"]
    json.dump({"torch": torch.__version__, "device": torch.cuda.get_device_name(), "products": [product(torch, s) for s in shapes]},
              sys.stdout, indent=1)


def merged(ours, theirs):
    """Our file with torch's times, and ratios above 1 where we are faster."""
    by_shape = {(p["outputs"], p["depth"], p["tokens"]): p for p in theirs["products"]}
    for shape in ours["products"]:
        times = [shape[kind]["microseconds"] for kind in ("own", "cublaslt") if kind in shape]
        peer = by_shape.get((shape["outputs"], shape["depth"], shape["tokens"]))
        if not times or peer is None:
            continue
        shape["torch"] = {key: value for key, value in peer.items() if key not in ("layer", "outputs", "depth", "tokens")}
        for kind in ("int_mm", "bf16"):
            if f"{kind}_microseconds" in peer:
                shape[f"{kind}_over_ours"] = peer[f"{kind}_microseconds"] / min(times)
    ours["torch"] = theirs["torch"]
    return ours


def main():
    if sys.argv[1:] == ["run"]:
        run()
    elif len(sys.argv) == 4 and sys.argv[1] == "merge":
        with open(sys.argv[2], encoding="utf-8") as ours, open(sys.argv[3], encoding="utf-8") as theirs:
            json.dump(merged(json.load(ours), json.load(theirs)), sys.stdout, indent=1)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
