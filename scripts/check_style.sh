#!/usr/bin/env bash
# Checks formatting (clang-format 14), shell scripts (shellcheck) and, with --tidy, the short clang-tidy list of .clang-tidy
# over build/release/compile_commands.json. --fix formats in place.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-}
mapfile -t sources < <(git ls-files --cached --others --exclude-standard '*.cc' '*.h' '*.cu' '*.cuh')
format=$(command -v clang-format-14 || command -v clang-format)
if [ "$mode" = --fix ]; then
  "$format" -i "${sources[@]}"
  exit 0
fi
"$format" --dry-run --Werror "${sources[@]}"
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
shellcheck "${scripts[@]}"

if [ "$mode" = --tidy ]; then
  tidy=$(command -v clang-tidy-14 || command -v clang-tidy)
  mapfile -t units < <(printf '%s\n' "${sources[@]}" | grep '\.cc$')
  printf '%s\0' "${units[@]}" | xargs -0 -n 4 -P "$(nproc)" "$tidy" --quiet -p build/release
fi
echo "style: ${#sources[@]} sources and ${#scripts[@]} scripts checked"
