#!/usr/bin/env bash
# Shows that the CUDA backends give the right bits on an NVIDIA GPU, then measures them:
#   gpu_check.sh pack FOLDER   where we build, with CUDA's compiler (docs/GPU.md): builds gpu_check, cuda_bench and, where the
#                              calibrator is built, its cuBLASLt test, and copies them into FOLDER with the shared libraries they
#                              need, as files below 60 MB
#   gpu_check.sh build FOLDER  the same in a build folder of its own (build/gpu_check) without server and calibrator: needs
#                              neither gRPC nor protobuf nor oneDNN
#   gpu_check.sh source FOLDER packs the sources and the libraries that such a build needs, those of this machine's Debian packages, as
#                              files below 60 MB, instead of programs
#   FOLDER/gpu_check.sh build OUT
#                              on a machine with CUDA 13's toolkit, CMake, a C++20 compiler (as nvcc has to have one) and Ninja or
#                              make, for the processor of the machine that packed: builds in FOLDER from what lies in it, with
#                              nothing else of the machine, for its GPU's architecture, and packs into OUT as above
#   gpu_check.sh run FOLDER [--emulated]
#                              where the GPU is, with its driver and, for large products, CUDA 13's libcublasLt: compares every
#                              kernel and the golden digests, with compute-sanitizer too if it is there, then measures, beside
#                              torch if python3 has it. Needs nothing of ours but FOLDER. Writes FOLDER/gpu_check.log and
#                              gpu_bench.json. --emulated: the same programs without a GPU, tiny, as a test of themselves
# run fails if a bit differs, and where there is no usable GPU. Each of its parts has a limit; all together stay below 8 minutes.
# What was measured until a limit or an error is in gpu_bench.json all the same, with "complete": false.
# FIXPOINT_BUILD_DIR: build folder of pack, default build/release. FIXPOINT_BUNDLE: for pack, a bundle whose golden digest is
# compared too. FIXPOINT_BANDWIDTH_GB, FIXPOINT_INT8_TOPS: for run, the datasheet of a card that cuda_bench does not know.
# FIXPOINT_BENCH_SECONDS: for run, how long the measuring may take, default 150.
# FIXPOINT_CUDA_ARCHITECTURES: for build, as in docs/GPU.md; without it all, but for packed sources those that nvidia-smi names.
# Libraries of CUDA outside the linker's search path: name their folders in LD_LIBRARY_PATH.
set -euo pipefail

usage() { echo "usage: $0 pack|build|source FOLDER, or $0 run FOLDER [--emulated]" >&2; exit 2; }
piece_mb=55
# What the reduced build links, but for the compiler's own libraries.
library_packages=(libabsl-dev libssl-dev libxxhash-dev libsimdjson-dev libutf8proc-dev libgtest-dev libgmock-dev libcli11-dev)

# Splits $1 into files that can travel; join puts them together.
split_large() {
  if [ "$(stat --dereference --format=%s "$1")" -gt $((piece_mb * 1000000)) ]; then
    split --bytes="${piece_mb}MB" "$1" "$1.piece."
    rm "$1"
  fi
}

join() {
  local whole
  for whole in $(compgen -G '*.piece.aa'; compgen -G 'lib/*.piece.aa'); do
    whole=${whole%.piece.aa}
    cat "$whole".piece.* > "$whole"
    case "$whole" in gpu_check | cuda_bench | gemm_cuda_test) chmod +x "$whole" ;; esac
  done
}

# The files of the libraries, relative to /: headers, shared libraries (static ones only where there is no other), CMake's files, licences.
library_files() {
  local packages path
  # The shared libraries are in packages of their own, which the others depend on.
  packages=$(dpkg-query --show --showformat='${Depends}\n' "${library_packages[@]}" | grep --only-matching --extended-regexp '\blib[a-z0-9.+-]+')
  # shellcheck disable=SC2086
  dpkg-query --listfiles "${library_packages[@]}" $packages | sort --unique \
    | grep --extended-regexp '^/usr/(include/|lib/[^/]*/[^/]*\.(so[0-9.]*|a)$|(lib|share)/.*cmake/|share/doc/[^/]*/copyright$)' \
    | while read -r path; do
        if [ -f "$path" ] && { [[ $path != *.a ]] || [ ! -e "${path%.a}.so" ]; }; then printf '%s\n' "${path#/}"; fi
      done
}

pack_source() {
  local folder=$1 file
  rm -f "$folder"/*.piece.*
  # Tracked files as they are now, committed or not, but for deleted ones.
  git ls-files -z | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi
  done | tar --create --gzip --file "$folder/source.tar.gz" --null --files-from -
  library_files | tar --create --gzip --file "$folder/libraries.tar.gz" --directory / --files-from -
  cp scripts/gpu_check.sh "$folder/"
  for file in "$folder"/*.tar.gz; do split_large "$file"; done
  du --summarize --human-readable "$folder"
}

# Unpacks what pack_source packed into the current folder. Files keep their times, so that a second build goes on where the first ended.
unpack_source() {
  join
  mkdir -p source libraries
  tar --extract --no-same-owner --file source.tar.gz --directory source
  tar --extract --no-same-owner --file libraries.tar.gz --directory libraries
}

# Sets `options` for a build with the libraries in $1, Debian's /usr, and for this machine's GPU.
use_libraries() {
  local multiarch capabilities
  multiarch=$(cd "$1/usr/lib" && echo *-linux-gnu)
  if [ "${multiarch%%-*}" != "$(uname -m)" ]; then
    echo "$0: the libraries are for ${multiarch%%-*}, this machine is $(uname -m): pack on one like it" >&2
    exit 1
  fi
  libraries=$1/usr/lib/$multiarch
  options+=("-DCMAKE_PREFIX_PATH=$1/usr" "-DOPENSSL_ROOT_DIR=$1/usr" "-DCMAKE_LIBRARY_ARCHITECTURE=$multiarch")
  options+=("-DCMAKE_CXX_FLAGS=-isystem \"$1/usr/include/$multiarch\"")
  if [ -z "${FIXPOINT_CUDA_ARCHITECTURES:-}" ] && command -v nvidia-smi > /dev/null; then
    # What the driver says of a machine without a GPU is not a list of numbers.
    capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sed --quiet 's/^\([0-9]*\)\.\([0-9]\)$/\1\2/p' \
      | sed 's/^90$/90a/' | sort --unique) || true
    FIXPOINT_CUDA_ARCHITECTURES=${capabilities//$'\n'/;}
  fi
}

pack() {
  local folder=$1 build=$2 programs=(gpu_check cuda_bench) path=${libraries:+$libraries:}${LD_LIBRARY_PATH:-}
  if ! grep --quiet '^FIXPOINT_NVCC:FILEPATH=/' "$build/CMakeCache.txt"; then
    echo "$0: $build is not built with -DFIXPOINT_CUDA=ON (docs/GPU.md)" >&2
    exit 1
  fi
  if ! grep --quiet '^FIXPOINT_BUILD_CALIBRATOR:BOOL=OFF' "$build/CMakeCache.txt"; then programs+=(gemm_cuda_test); fi
  cmake --build "$build" --parallel "$(nproc)" --target "${programs[@]}"
  rm -rf "$folder"/*.piece.* "${folder:?}/lib" "$folder/check.fixpoint"
  mkdir -p "$folder/lib"
  for program in "${programs[@]}"; do
    if [ "$program" = cuda_bench ]; then cp "$build/bin/$program" "$folder/"; else cp "$build/tests/$program" "$folder/"; fi
  done
  cp scripts/gpu_check.sh bench/peers/torch_gemm.py "$folder/"
  # All but the C library and its relatives, which have to be the target's own.
  LD_LIBRARY_PATH=${path%:} ldd "${programs[@]/#/$folder/}" | sed --quiet 's/.* => \(\/.*\) (0x[0-9a-f]*)$/\1/p' | sort --unique \
    | grep --invert-match --extended-regexp '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' \
    | xargs --no-run-if-empty --delimiter='\n' cp --dereference --target-directory "$folder/lib"
  if [ -n "${FIXPOINT_BUNDLE:-}" ]; then cp "$FIXPOINT_BUNDLE" "$folder/check.fixpoint"; fi
  local file
  for file in "$folder"/* "$folder"/lib/*; do
    if [ -f "$file" ]; then split_large "$file"; fi
  done
  du --summarize --human-readable "$folder"
}

# limit SECONDS COMMAND...: its output, its status; says so if the time was not enough.
limit() {
  local seconds=$1 status=0
  shift
  timeout "$seconds" "$@" || status=$?
  if [ "$status" -eq 124 ]; then echo "$1: not done within $seconds seconds" >&2; fi
  return "$status"
}

# A run that does not come to its end in time has still found nothing so far: status 124.
sanitize() {
  local tool status
  if ! command -v compute-sanitizer > /dev/null; then
    echo "no compute-sanitizer on this machine: not run" >&2
    return
  fi
  for tool in memcheck racecheck initcheck synccheck; do
    echo "compute-sanitizer $tool" >&2
    status=0
    timeout 35 compute-sanitizer --tool "$tool" --error-exitcode 9 ./gpu_check > "sanitizer_$tool.log" 2>&1 || status=$?
    tail -n 2 "sanitizer_$tool.log"
    if [ "$status" -eq 124 ]; then echo "compute-sanitizer $tool: no error, not at its end within 35 seconds" >&2; fi
    if [ "$status" -ne 0 ] && [ "$status" -ne 124 ]; then
      echo "$0: compute-sanitizer $tool failed with $status" >&2
      exit 1
    fi
  done
}

# The lines of cuda_bench as one object: the facts, and an array for each part.
collect_figures() {
  local part complete=false
  if grep --quiet '^{"part":"end"}$' "$1"; then complete=true; fi
  printf '{"complete":%s' "$complete"
  sed --quiet 's/^{"part":"facts",\(.*\)}$/,\1/p' "$1"
  for part in products attention steps; do
    printf ',"%s":[\n%s]\n' "$part" "$(sed --quiet "s/^{\"part\":\"$part\",\(.*\)}\$/{\1}/p" "$1" | paste --serial --delimiters=',')"
  done
  printf '}\n'
}

# Time alone is no failure.
measure() {
  local status=0
  limit "${FIXPOINT_BENCH_SECONDS:-150}" "$@" > figures.jsonl || status=$?
  if [ -s figures.jsonl ]; then collect_figures figures.jsonl > gpu_bench.json; fi
  if [ "$status" -ne 0 ] && [ "$status" -ne 124 ]; then
    echo "$0: cuda_bench failed with $status" >&2
    exit 1
  fi
}

beside_torch() {
  local status=0
  if ! command -v python3 > /dev/null; then
    echo "no python3 on this machine: no figures of torch" >&2
    return
  fi
  timeout 60 python3 torch_gemm.py run < gpu_bench.json > torch_gemm.json || status=$?
  case "$status" in
    0) python3 torch_gemm.py merge gpu_bench.json torch_gemm.json > merged.json && mv merged.json gpu_bench.json ;;
    3) echo "no torch with CUDA on this machine: no figures of it" >&2 ;;
    124) echo "torch: not done within 60 seconds, no figures of it" >&2 ;;
    *) echo "$0: torch_gemm.py failed with $status" >&2; exit 1 ;;
  esac
}

run() {
  local check=(./gpu_check) bench=(./cuda_bench) check_seconds=90
  cd "$1"
  if [ "${2:-}" = --emulated ]; then
    check+=(--emulated)
    bench+=(--emulated)
    check_seconds=500
  fi
  export LD_LIBRARY_PATH=$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  join
  if [ -e check.fixpoint ]; then check+=(--bundle check.fixpoint); fi
  if [ -n "${FIXPOINT_BANDWIDTH_GB:-}" ]; then bench+=(--bandwidth "$FIXPOINT_BANDWIDTH_GB"); fi
  if [ -n "${FIXPOINT_INT8_TOPS:-}" ]; then bench+=(--int8 "$FIXPOINT_INT8_TOPS"); fi
  rm -f gpu_bench.json
  echo "equality" >&2
  limit "$check_seconds" "${check[@]}" 2>&1 | tee gpu_check.log
  if [ "${2:-}" != --emulated ]; then
    if [ -e gemm_cuda_test ]; then
      echo "the calibrator's products" >&2
      FIXPOINT_REQUIRE_GPU=1 limit 20 ./gemm_cuda_test 2>&1 | tee --append gpu_check.log
    fi
    sanitize
  fi
  echo "speed" >&2
  measure "${bench[@]}"
  if [ -e gpu_bench.json ]; then
    beside_torch
    cat gpu_bench.json
  fi
}

here=$(cd "$(dirname "$0")" && pwd)
case "${1:-}" in
  pack | build | source)
    [ $# -eq 2 ] || usage
    mkdir -p "$2"
    folder=$(cd "$2" && pwd)
    build=${FIXPOINT_BUILD_DIR:-build/release} libraries='' generator=Ninja
    options=(-DCMAKE_BUILD_TYPE=Release -DFIXPOINT_CUDA=ON)
    if [ "$1" = build ] && compgen -G "$here/source.tar.gz*" > /dev/null; then
      cd "$here"
      unpack_source
      use_libraries "$here/libraries"
      cd source
      command -v ninja > /dev/null || generator='Unix Makefiles'
    else
      cd "$here/.."
    fi
    if [ "$1" = source ]; then
      pack_source "$folder"
      exit
    fi
    if [ "$1" = build ]; then
      build=build/gpu_check
      options+=(-DFIXPOINT_BUILD_SERVER=OFF -DFIXPOINT_BUILD_CALIBRATOR=OFF)
      if [ -n "${FIXPOINT_CUDA_ARCHITECTURES:-}" ]; then options+=("-DFIXPOINT_CUDA_ARCHITECTURES=$FIXPOINT_CUDA_ARCHITECTURES"); fi
    fi
    [ -f "$build/build.ninja" ] || [ -f "$build/Makefile" ] || cmake -S . -B "$build" -G "$generator" "${options[@]}" > /dev/null
    pack "$folder" "$build"
    ;;
  run)
    if [ $# -lt 2 ] || [ $# -gt 3 ] || [ "${3:---emulated}" != --emulated ]; then usage; fi
    run "$2" "${3:-}"
    ;;
  *) usage ;;
esac
