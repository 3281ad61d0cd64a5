"""scripts/gpu_check.sh as a GPU machine runs it, as far as it goes without one: packed programs on the emulator, the refusal of a
machine without a GPU, figures of torch put beside ours, packed sources configured with the packed libraries.

Packs a build with CUDA: FIXPOINT_CUDA_BUILD_DIR, default build/cuda; skips aloud where none is configured, and the configuration where
no nvcc is."""
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/gpu_check.sh"
BUILD = pathlib.Path(os.environ.get("FIXPOINT_CUDA_BUILD_DIR", ROOT / "build/cuda"))
PIECE_BYTES = 60 * 1000 * 1000


def script(*words, **environment):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    cache = BUILD / "CMakeCache.txt"
    if not cache.exists() or "FIXPOINT_NVCC:FILEPATH=/" not in cache.read_text():
        pytest.skip(f"no build with -DFIXPOINT_CUDA=ON in {BUILD}: the programs for a GPU machine were not packed")
    folder = tmp_path_factory.mktemp("gpu_check")
    done = script(SCRIPT, "pack", folder, FIXPOINT_BUILD_DIR=str(BUILD), FIXPOINT_BUNDLE="")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_pieces_can_travel(packed):
    files = [f for f in packed.rglob("*") if f.is_file()]
    assert {"gpu_check", "cuda_bench", "gpu_check.sh", "torch_gemm.py"} <= {f.name for f in files}
    assert max(f.stat().st_size for f in files) < PIECE_BYTES


def test_packed_programs_are_equal_on_the_emulator_and_write_their_figures(packed, tmp_path):
    folder = tmp_path / "there"
    shutil.copytree(packed, folder)
    # A program that was too large to travel in one piece.
    subprocess.run(["split", "--bytes=1MB", "gpu_check", "gpu_check.piece."], cwd=folder, check=True)
    (folder / "gpu_check").unlink()
    done = script(folder / "gpu_check.sh", "run", folder, "--emulated", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (folder / "gpu_check.log").read_text().endswith("all equal\n")
    figures = json.loads((folder / "gpu_bench.json").read_text())
    assert figures["emulated"] is True and figures["complete"] is True
    for part in ("products", "attention", "steps"):
        assert figures[part], part
    for figure in [p["own"] for p in figures["products"] if "own" in p] + figures["attention"] + figures["steps"]:
        assert figure["bytes"] > 0 and figure["operations"] > 0 and figure["microseconds"] > 0


LIBRARY_FILE = re.compile(r"usr/(include/(absl|openssl|gtest|gmock|CLI|[a-z0-9_-]+-linux-gnu/openssl)/|include/(simdjson|utf8proc|xx[a-z0-9_]*)\.h$|"
                          r"lib/[^/]+/lib(absl_[a-z0-9_]+|crypto|ssl|simdjson|utf8proc|xxhash)\.so|lib/[^/]+/lib(gtest|gmock)(_main)?\.a$|"
                          r"lib/[^/]+/cmake/(absl|GTest|simdjson)/|share/cmake/CLI11/|share/doc/[^/]+/copyright$)")


@pytest.fixture(scope="module")
def packed_source(tmp_path_factory):
    # A space, and a name that is no regular expression: nothing may depend on where the folder lies.
    folder = tmp_path_factory.mktemp("gpu source+")
    done = script(SCRIPT, "source", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_sources_and_libraries_can_travel(packed_source):
    files = list(packed_source.iterdir())
    assert {f.name for f in files} == {"gpu_check.sh", "source.tar.gz", "libraries.tar.gz"}
    assert max(f.stat().st_size for f in files) < PIECE_BYTES
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    with tarfile.open(packed_source / "source.tar.gz") as archive:
        assert set(archive.getnames()) == {f for f in tracked if f and (ROOT / f).exists()}
    with tarfile.open(packed_source / "libraries.tar.gz") as archive:
        members = archive.getmembers()
    assert [m.name for m in members if not LIBRARY_FILE.match(m.name) or not (m.isfile() or m.issym())] == []
    # Links stay within the folder of the libraries, and lead to what was packed.
    names = {m.name for m in members}
    assert [m.name for m in members if m.issym() and f"{os.path.dirname(m.name)}/{m.linkname}" not in names] == []
    assert {"libabsl-dev", "libssl-dev", "libssl3"} <= {n.split("/")[3] for n in names if n.endswith("/copyright")}


def test_packed_sources_are_configured_with_the_packed_libraries_for_the_gpus_there(packed_source, tmp_path):
    if not shutil.which("nvcc") and not os.path.exists("/usr/local/cuda/bin/nvcc"):
        pytest.skip("no nvcc on this machine: the packed sources were not configured")
    folder = tmp_path / "there, unpacked"
    shutil.copytree(packed_source, folder)
    # Archives that were too large to travel in one piece.
    subprocess.run(["split", "--bytes=1MB", "libraries.tar.gz", "libraries.tar.gz.piece."], cwd=folder, check=True)
    (folder / "libraries.tar.gz").unlink()
    # A cmake that configures, but does not build; two kinds of GPU, and the driver's words about a third.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cmake").write_text(f'#!/bin/sh\n[ "$1" != --build ] || exit 9\nexec {shutil.which("cmake")} "$@"\n')
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 9.0\necho 12.0\necho 9.0\necho Unable to determine the device handle\nexit 15\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    done = script(folder / "gpu_check.sh", "build", tmp_path / "out", PATH=f"{programs}:{os.environ['PATH']}", FIXPOINT_CUDA_ARCHITECTURES="")
    assert done.returncode == 9, done.stdout + done.stderr
    build = folder / "source/build/gpu_check"
    cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE))
    assert cache["FIXPOINT_CUDA_ARCHITECTURES"] == "120;90a"
    for name in ("absl_DIR", "GTest_DIR", "simdjson_DIR", "CLI11_DIR", "OPENSSL_INCLUDE_DIR", "OPENSSL_CRYPTO_LIBRARY", "UTF8PROC_INCLUDE_DIR",
                 "UTF8PROC_LIBRARY", "XXHASH_INCLUDE_DIR"):
        assert cache[name].startswith(f"{folder}/libraries/usr/"), f"{name}: {cache[name]}"
    commands = [c["command"].replace("\\", "").replace('"', "") for c in json.loads((build / "compile_commands.json").read_text())]
    assert commands and all(f"-isystem {folder}/libraries/usr/include/" in c for c in commands)
    assert not any(re.search(r"-(I|isystem) ?/usr/(include|lib)", c) for c in commands)


FACTS = '{"part":"facts","cublaslt":true,"device":"a, \\"b\\""}'
LINES = [FACTS, '{"part":"products","layer":"m o","own":{"microseconds":4}}', '{"part":"products","layer":"m d","own":{"microseconds":5}}',
         '{"part":"attention","what":"decode"}']


@pytest.mark.parametrize("ending, status", [("exec sleep 60", 0), ("exit 1", 1), ("", 0)])
def test_what_was_measured_outlives_time_and_errors(tmp_path, ending, status):
    lines = LINES + ([] if ending else ['{"part":"steps","what":"prefill"}', '{"part":"end"}'])
    (tmp_path / "gpu_check").write_text("#!/bin/sh\necho all equal\n")
    (tmp_path / "cuda_bench").write_text("#!/bin/sh\ncat << 'END'\n" + "\n".join(lines) + f"\nEND\n{ending}\n")
    for program in ("gpu_check", "cuda_bench"):
        (tmp_path / program).chmod(0o755)
    shutil.copy(ROOT / "bench/peers/torch_gemm.py", tmp_path)
    done = script(SCRIPT, "run", tmp_path, "--emulated", FIXPOINT_BENCH_SECONDS="2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == status, done.stderr
    figures = json.loads((tmp_path / "gpu_bench.json").read_text())
    assert figures["complete"] is (ending == "") and figures["cublaslt"] is True and figures["device"] == 'a, "b"'
    assert [p["own"]["microseconds"] for p in figures["products"]] == [4, 5]
    assert figures["attention"] == [{"what": "decode"}]
    assert len(figures["steps"]) == (ending == "")
    assert "part" not in figures["products"][0]


def test_a_machine_without_a_gpu_fails(packed, tmp_path):
    folder = tmp_path / "there"
    shutil.copytree(packed, folder)
    # An empty list of devices hides those of a machine that has some.
    done = script(folder / "gpu_check.sh", "run", folder, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert "no CUDA driver or device" in done.stdout + done.stderr
    assert not (folder / "gpu_bench.json").exists()


@pytest.mark.parametrize("words", [[], ["pack"], ["source"], ["run"], ["run", "x", "--fast"], ["other", "x"]])
def test_wrong_arguments_are_refused(words):
    done = script(SCRIPT, *words)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_ratios_against_torch_are_of_our_faster_kernel():
    spec = importlib.util.spec_from_file_location("torch_gemm", ROOT / "bench/peers/torch_gemm.py")
    torch_gemm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(torch_gemm)
    shape = {"layer": "m o", "outputs": 64, "depth": 32}
    ours = {"products": [{**shape, "tokens": 32, "own": {"microseconds": 4.0}, "cublaslt": {"microseconds": 2.0}},
                         {**shape, "tokens": 1, "own": {"microseconds": 5.0}}, {**shape, "tokens": 8, "own": {"microseconds": 5.0}}]}
    theirs = {"torch": "9.9", "products": [{**shape, "tokens": 32, "int_mm_microseconds": 3.0, "bf16_microseconds": 8.0},
                                           {**shape, "tokens": 1, "bf16_microseconds": 2.5}]}
    large, small, alone = torch_gemm.merged(ours, theirs)["products"]
    assert large["int_mm_over_ours"] == 1.5 and large["bf16_over_ours"] == 4.0
    assert small["bf16_over_ours"] == 0.5 and "int_mm_over_ours" not in small
    assert "torch" not in alone
