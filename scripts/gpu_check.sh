#!/usr/bin/env bash
# Shows that the CUDA backend gives the CPU's bits on an NVIDIA GPU, then measures it:
#   gpu_check.sh pack FOLDER   where we build, with CUDA's compiler (docs/GPU.md): builds gpu_check and cuda_bench and copies
#                              them into FOLDER with the shared libraries they need, as files below 60 MB
#   gpu_check.sh run FOLDER    where the GPU is, with its driver and, for large products, CUDA 13's libcublasLt: compares every
#                              kernel and the golden digests, with compute-sanitizer too if it is there, then measures.
#                              Needs nothing of ours but FOLDER and this script. Writes FOLDER/gpu_check.log and gpu_bench.json.
# Fails if a bit differs, and where there is no usable GPU. Each part has a limit; all together stay below 8 minutes.
# FIXPOINT_BUILD_DIR: build folder, default build/release. FIXPOINT_BUNDLE: for pack, a bundle whose golden digest is compared
# too. FIXPOINT_BANDWIDTH_GB, FIXPOINT_INT8_TOPS: for run, the card's datasheet, to print shares of its roofline.
# Libraries of CUDA outside the linker's search path: name their folders in LD_LIBRARY_PATH.
set -euo pipefail

usage() { echo "usage: $0 pack|run FOLDER" >&2; exit 2; }
[ $# -eq 2 ] || usage
piece_mb=55

pack() {
  local folder=$1 root build
  root=$(cd "$(dirname "$0")/.." && pwd)
  mkdir -p "$folder/lib"
  folder=$(cd "$folder" && pwd)
  cd "$root"
  build=${FIXPOINT_BUILD_DIR:-build/release}
  [ -f "$build/build.ninja" ] || cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFIXPOINT_CUDA=ON > /dev/null
  if ! grep --quiet '^FIXPOINT_NVCC:FILEPATH=/' "$build/CMakeCache.txt"; then
    echo "$0: $build is not built with -DFIXPOINT_CUDA=ON (docs/GPU.md)" >&2
    exit 1
  fi
  cmake --build "$build" --target gpu_check cuda_bench
  cp "$build/tests/gpu_check" "$build/bin/cuda_bench" "$folder/"
  cp "$0" "$folder/gpu_check.sh"
  # All but the C library and its relatives, which have to be the target's own.
  ldd "$folder/gpu_check" "$folder/cuda_bench" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort --unique \
    | grep --invert-match --extended-regexp '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' \
    | xargs --no-run-if-empty cp --dereference --target-directory "$folder/lib"
  rm -f "$folder"/bundle.piece.*
  if [ -n "${FIXPOINT_BUNDLE:-}" ]; then
    split --bytes="${piece_mb}M" "$FIXPOINT_BUNDLE" "$folder/bundle.piece."
  fi
  find "$folder" -type f -size "+${piece_mb}M" -print | while read -r large; do
    echo "$0: $large is larger than $piece_mb MB" >&2
    exit 1
  done
  du --summarize --human-readable "$folder"
}

run() {
  local folder=$1 bundle=() limits=()
  cd "$folder"
  export LD_LIBRARY_PATH=$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  if compgen -G 'bundle.piece.*' > /dev/null; then
    cat bundle.piece.* > check.fixpoint
    bundle=(--bundle check.fixpoint)
  fi
  echo "equality" >&2
  timeout 150 ./gpu_check "${bundle[@]}" 2>&1 | tee gpu_check.log
  if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
      echo "compute-sanitizer $tool (60 seconds at most)" >&2
      # A run that does not come to its end in time has still found nothing so far: status 124.
      local status=0
      timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 ./gpu_check > "sanitizer_$tool.log" 2>&1 || status=$?
      tail -n 2 "sanitizer_$tool.log"
      if [ "$status" -ne 0 ] && [ "$status" -ne 124 ]; then
        echo "$0: compute-sanitizer $tool failed with $status" >&2
        exit 1
      fi
    done
  else
    echo "no compute-sanitizer on this machine: not run" >&2
  fi
  if [ -n "${FIXPOINT_BANDWIDTH_GB:-}" ]; then limits+=(--bandwidth "$FIXPOINT_BANDWIDTH_GB"); fi
  if [ -n "${FIXPOINT_INT8_TOPS:-}" ]; then limits+=(--int8 "$FIXPOINT_INT8_TOPS"); fi
  echo "speed" >&2
  timeout 80 ./cuda_bench "${limits[@]}" | tee gpu_bench.json
}

case "$1" in
  pack) pack "$2" ;;
  run) run "$2" ;;
  *) usage ;;
esac
