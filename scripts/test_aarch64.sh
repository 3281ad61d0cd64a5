#!/usr/bin/env bash
# Cross-compiles for aarch64 and runs, under qemu-user, the tests of the kernels and the golden digests of tiny models on the
# levels portable, neon and i8mm and without floating-point registers: equal to those recorded on x86. Installs the compiler and
# qemu (root or sudo) and unpacks libraries into build/. About 5 minutes of CPU from nothing (estimated, not measured).
# FIXPOINT_BUNDLE names a bundle whose recorded digest is checked on the three levels, too (135M: half a minute each).
# Skips aloud where compiler, qemu or libraries cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
  printf 'SKIPPED: aarch64 build and tests: %s\n' "$*" >&2
  exit 0
}
step() { printf -- '-- %s (%d s)\n' "$*" "$SECONDS"; }

scripts/packages.sh aarch64 || skip "cannot install the cross compiler and qemu-user"
scripts/aarch64_sysroot.sh || skip "cannot download the arm64 libraries"

step "build"
TESTS=(arithmetic_test linear_test ops_test attention_test dispatch_test golden_test general_regs_test)
cmake --preset aarch64 > build/aarch64-configure.log || { cat build/aarch64-configure.log >&2; exit 1; }
cmake --build build/aarch64 --target "${TESTS[@]}" ${FIXPOINT_BUNDLE:+golden_digest}

emulator=(qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu)
step "levels under qemu"
# A level that the emulator lacks would just not be tested.
listed=$("${emulator[@]}" build/aarch64/tests/linear_test --gtest_list_tests)
for level in portable neon i8mm; do
  grep --quiet "SmallShapesAgree/$level\b" <<< "$listed" || { echo "qemu does not offer the level $level" >&2; exit 1; }
done

step "tests under qemu"
regex=$(IFS='|'; echo "^(${TESTS[*]}|kernels_weak_symbols_test)\$")
# The bundle has its turn below, on all levels: without vector registers it would take an hour.
env --unset=FIXPOINT_BUNDLE ctest --test-dir build/aarch64 --parallel "$(nproc)" --output-on-failure --timeout 600 \
  --no-tests=error --tests-regex "$regex"

if [ -n "${FIXPOINT_BUNDLE:-}" ]; then
  for level in portable neon i8mm; do
    step "golden digest of $FIXPOINT_BUNDLE"
    FIXPOINT_ISA=$level "${emulator[@]}" build/aarch64/bin/golden_digest "$FIXPOINT_BUNDLE"
  done
fi
step "done"
