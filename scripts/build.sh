#!/usr/bin/env bash
# Configures and builds a preset: build.sh [release|debug|asan|tsan] [target...]. First release build: about 8 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
shift || true
cmake --preset "$preset" > "/tmp/fixpoint-configure-$$.log" 2>&1 || { cat "/tmp/fixpoint-configure-$$.log" >&2; exit 1; }
rm -f "/tmp/fixpoint-configure-$$.log"
cmake --build "build/$preset" ${1:+--target "$@"}
