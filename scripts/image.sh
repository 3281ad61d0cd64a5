#!/usr/bin/env bash
# Builds the container images from docker/Dockerfile with buildah, on a machine without a Docker engine:
#   image.sh [base] [lock] [server] [calibrator] [server-cuda]        (default: server and calibrator)
# named localhost/fixpoint-server:VERSION and so on. Needs root, buildah and, where the base image can neither be found nor pulled,
# mmdebstrap, which makes it from Debian's packages. With Docker:
#   docker build -f docker/Dockerfile --target server -t fixpoint-server:VERSION .
# server-cuda: for NVIDIA GPUs; CUDA comes from PyPI (docker/cuda-requirements.txt, 600 MB). FIXPOINT_CUDA_ARCHITECTURES: as CMake's.
# lock: writes docker/packages.lock from what Debian's archive has now. FIXPOINT_PACKAGES=newest builds with that without looking at the lock.
# The host's ccache is lent to the build: the same compiler and sources are not compiled twice.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(server calibrator)
for target in "${targets[@]}"; do
  case "$target" in
    base | lock | server | calibrator | server-cuda) ;;
    *) echo "usage: $0 [base] [lock] [server] [calibrator] [server-cuda]" >&2; exit 2 ;;
  esac
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

# Docker's format: OCI's has no HEALTHCHECK. chroot: no container runtime is needed to build; the network is the host's, for apt.
build=(buildah build --quiet --isolation chroot --network host --format docker --build-arg "BASE=$base" --file docker/Dockerfile)

write_lock() {
  local container packages
  "${build[@]}" --no-cache --build-arg PACKAGES=newest --target packages --tag localhost/fixpoint-packages:newest . > /dev/null
  container=$(buildah from localhost/fixpoint-packages:newest)
  # shellcheck disable=SC2016 # dpkg-query's variables
  packages=$(buildah run --isolation chroot "$container" dpkg-query --show --showformat='${Package}=${Version}\n')
  buildah rm "$container" > /dev/null
  buildah rmi localhost/fixpoint-packages:newest > /dev/null
  {
    echo "# Every Debian package of the image that docker/Dockerfile builds in, the base image's included ($(uname -m))."
    echo "# Written by scripts/image.sh lock; Debian's archive as of $(date --utc +%F)."
    LC_ALL=C sort <<< "$packages"
  } > docker/packages.lock
}

options=()
# Only what is set: ccache tells an empty variable from none.
for name in LANG LC_ALL; do
  [ -z "${!name+set}" ] || options+=(--build-arg "$name=${!name}")
done
if command -v ccache > /dev/null; then
  directory=$(ccache --get-config cache_dir)
  mkdir -p "$directory"
  options+=(--volume "$directory:/var/cache/ccache")
fi
# pip trusts whom the host trusts. Not in place of the image's own list: installing that would fail.
certificates=/etc/ssl/certs/ca-certificates.crt
pip=()
[ ! -f "$certificates" ] || pip=(--volume "$certificates:/run/host-certificates.crt:ro" --build-arg PIP_CERT=/run/host-certificates.crt)
[ -z "${FIXPOINT_CUDA_ARCHITECTURES:-}" ] || options+=(--build-arg "CUDA_ARCHITECTURES=$FIXPOINT_CUDA_ARCHITECTURES")
for target in "${targets[@]}"; do
  case "$target" in
    base) echo "$base" ;;
    lock)
      write_lock
      echo docker/packages.lock
      ;;
    *)
      [ "$target" != server-cuda ] || options+=("${pip[@]}")
      "${build[@]}" --layers "${options[@]}" --build-arg "PACKAGES=${FIXPOINT_PACKAGES:-locked}" --target "$target" \
        --tag "localhost/fixpoint-$target:$version" . > /dev/null
      echo "localhost/fixpoint-$target:$version"
      ;;
  esac
done
