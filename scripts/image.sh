#!/usr/bin/env bash
# Builds the container images from docker/Dockerfile with buildah, on a machine without a Docker engine: image.sh [base] [server] [calibrator]
# (default: the latter two), named localhost/fixpoint-server:VERSION and localhost/fixpoint-calibrator:VERSION. Needs root, buildah and, where
# the base image can neither be found nor pulled, mmdebstrap, which makes it from Debian's packages. With Docker:
#   docker build -f docker/Dockerfile --target server -t fixpoint-server:VERSION .
# The host's ccache is lent to the build: the same compiler and sources are not compiled twice.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(server calibrator)
for target in "${targets[@]}"; do
  case "$target" in base | server | calibrator) ;; *) echo "usage: $0 [base] [server] [calibrator]" >&2; exit 2 ;; esac
done
version=$(sed -n 's/^project(fixpoint VERSION \([0-9.]*\) .*/\1/p' CMakeLists.txt)

base=localhost/debian:bookworm-slim
if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
  if timeout 60 buildah pull --quiet docker.io/library/debian:bookworm-slim > /dev/null 2>&1; then
    buildah tag docker.io/library/debian:bookworm-slim "$base"
  else
    echo "no registry: making $base from Debian's packages" >&2
    work=$(mktemp --directory)
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --variant=minbase --include=ca-certificates --aptopt='Acquire::Languages "none"' \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$work/base.tar"
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/base.tar" / > /dev/null
    buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet "$container" "$base" > /dev/null
    buildah rm "$container" > /dev/null
  fi
fi

cache=()
# Only what is set: ccache tells an empty variable from none.
for name in LANG LC_ALL; do
  [ -z "${!name+set}" ] || cache+=(--build-arg "$name=${!name}")
done
if command -v ccache > /dev/null; then
  directory=$(ccache --get-config cache_dir)
  mkdir -p "$directory"
  cache+=(--volume "$directory:/var/cache/ccache")
fi
for target in "${targets[@]}"; do
  if [ "$target" = base ]; then
    echo "$base"
    continue
  fi
  # Docker's format: OCI's has no HEALTHCHECK. chroot: no container runtime is needed to build; the network is the host's, for apt.
  buildah build --quiet --layers --isolation chroot --network host --format docker "${cache[@]}" --build-arg "BASE=$base" \
    --target "$target" --tag "localhost/fixpoint-$target:$version" --file docker/Dockerfile . > /dev/null
  echo "localhost/fixpoint-$target:$version"
done
