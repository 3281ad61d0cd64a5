"""Every CUDA kernel compiled for every target: no warning, no register spilled, no floating point in its PTX.

Needs nvcc, of an installed toolkit or of PyPI's nvidia-cuda-nvcc (docs/GPU.md), and no GPU; skips aloud without. Takes minutes, so
what has passed is remembered in build/cuda_compile/ by the contents of the kernel and all headers."""
import glob
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = sorted((ROOT / "kernels/cuda").glob("*.cu"))
TARGETS = ["80", "89", "90a", "100", "120"]
FLOATING_POINT = re.compile(r"\.(f16|f16x2|bf16|bf16x2|tf32|f32|f64|e4m3|e5m2)\b")
MEMORY = ROOT / "build/cuda_compile"


def find_nvcc():
    named = os.environ.get("FIXPOINT_NVCC")
    if named:
        return named
    found = shutil.which("nvcc")
    if found:
        return found
    for folder in [*sys.path, ROOT / "build/cuda_venv/lib"]:
        for nvcc in sorted(glob.glob(f"{folder}/**/nvidia/cu13/bin/nvcc", recursive=True) if "cuda_venv" in str(folder)
                           else glob.glob(f"{folder}/nvidia/cu13/bin/nvcc")):
            return nvcc
    return None


NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine: the CUDA kernels were not compiled")


def sources_digest(kernel):
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes() + kernel.read_bytes())
    for folder in ("kernels/cuda", "kernels/reference", "kernels"):
        for source in sorted((ROOT / folder).glob("*")):
            if source.suffix in (".cuh", ".h", ".inc"):
                digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()


def nvcc(source, *flags):
    command = [NVCC, "-std=c++20", "--expt-relaxed-constexpr", "-O3", "-I", str(ROOT), "-Werror", "all-warnings", *flags, str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{source.name}: {run.stdout}{run.stderr}"
    return run


def remembered(kernel, what, work):
    """Runs work() unless it has passed with the same sources before."""
    MEMORY.mkdir(parents=True, exist_ok=True)
    passed = MEMORY / f"{kernel.stem}.{what}.passed"
    digest = sources_digest(kernel)
    if not passed.exists() or passed.read_text() != digest:
        work()
        passed.write_text(digest)


def test_there_are_kernels():
    assert len(KERNELS) >= 7


def test_floating_point_is_recognised():
    assert FLOATING_POINT.search("  fma.rn.f32 \t%f1, %f2, %f3, %f4;")
    assert FLOATING_POINT.search("  cvt.rn.f64.s64 %fd1, %rd2;")
    assert not FLOATING_POINT.search("  mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r2};")


@needs_nvcc
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.stem)
def test_compiles_for_every_target_without_spills(kernel, tmp_path):
    def work():
        code = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS]
        run = nvcc(kernel, "-fatbin", "-o", str(tmp_path / "kernel.fatbin"), *code, "-Xptxas",
                   "-v,--warning-as-error,--warn-on-spills,--warn-on-local-memory-usage")
        report = run.stdout + run.stderr
        functions = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
        assert len(functions) >= len(TARGETS), report
        assert all(f == ("0", "0", "0") for f in functions), report

    remembered(kernel, "targets", work)


@needs_nvcc
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.stem)
def test_ptx_has_no_floating_point(kernel, tmp_path):
    def work():
        nvcc(kernel, "-ptx", "-arch=compute_80", "-o", str(tmp_path / "kernel.ptx"))
        lines = (tmp_path / "kernel.ptx").read_text().splitlines()
        assert any(".entry" in line for line in lines)
        wrong = [line for line in lines if not line.lstrip().startswith("//") and FLOATING_POINT.search(line)]
        assert not wrong, wrong[:10]

    remembered(kernel, "ptx", work)
