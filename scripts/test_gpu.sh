#!/usr/bin/env bash
# Tests the cuBLASLt backend (calibrator/gemm_cuda.h) on a machine with an NVIDIA GPU, which needs a driver, CUDA 12 or 13
# with cuBLASLt, and nothing else of ours:
#   test_gpu.sh pack FOLDER   where we build: builds the test and copies it into FOLDER with the shared libraries it needs
#   test_gpu.sh run FOLDER    where the GPU is: runs it. A machine without a usable GPU is a failure here; elsewhere (ctest)
#                             the same test skips. Prints the speed of one large product; gates on none.
# Libraries of CUDA outside the linker's search path: name their folders in LD_LIBRARY_PATH.
# FIXPOINT_BUILD_DIR: build folder, default build/release, configured on demand.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { echo "usage: $0 pack|run FOLDER" >&2; exit 2; }
[ $# -eq 2 ] || usage
folder=$2

case "$1" in
  pack)
    build=${FIXPOINT_BUILD_DIR:-build/release}
    [ -f "$build/build.ninja" ] || cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release > /dev/null
    cmake --build "$build" --target gemm_cuda_test
    if ! grep --quiet '^FIXPOINT_CUBLASLT_INCLUDE_DIR:PATH=/' "$build/CMakeCache.txt"; then
      echo "$0: $build is built without CUDA (its headers were not found)" >&2
      exit 1
    fi
    mkdir -p "$folder/lib"
    cp "$build/tests/gemm_cuda_test" "$folder/"
    # All but the C library and its relatives, which have to be the target's own.
    ldd "$folder/gemm_cuda_test" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' \
      | grep --invert-match --extended-regexp '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' \
      | xargs --no-run-if-empty cp --dereference --target-directory "$folder/lib"
    du --summarize --human-readable "$folder"
    ;;
  run)
    LD_LIBRARY_PATH=$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} FIXPOINT_REQUIRE_GPU=1 "$folder/gemm_cuda_test"
    ;;
  *) usage ;;
esac
