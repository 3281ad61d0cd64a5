#!/usr/bin/env bash
# Installs Debian 12 packages: packages.sh build|image|test|e2e|aarch64. Does nothing, in under a second, when all are there. Needs root or
# sudo. The lists are the only place where packages are named, but for aarch64_sysroot.sh and gpu_check.sh.
# image: what docker/Dockerfile builds with, in exactly the versions of docker/packages.lock, those of the base image included. Debian's
# archive keeps the newest version of a package only, so a lock grows old with the next security update: this then fails and says so.
# With PACKAGES=newest the lists are installed as they are today; `scripts/image.sh lock` does that and writes the lock.
set -euo pipefail

BUILD_PACKAGES=(
  g++ cmake ninja-build ccache pkg-config
  libabsl-dev libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  prometheus-cpp-dev libboost-dev libssl-dev libxxhash-dev libsimdjson-dev libutf8proc-dev
  libdnnl-dev libcli11-dev libgtest-dev libgmock-dev libbenchmark-dev zlib1g-dev
  python3 python3-pip curl ca-certificates unzip
)
IMAGE_PACKAGES=(
  tini
)
TEST_PACKAGES=(
  git python3-venv clang-format-14 clang-tidy-14 shellcheck libpcre2-dev binutils valgrind
  prometheus prometheus-alertmanager systemd strace nginx-light procps
)
# scripts/e2e.sh: containers without a Docker engine.
E2E_PACKAGES=(
  buildah podman runc mmdebstrap netavark aardvark-dns nftables iptables catatonit uidmap fuse-overlayfs iproute2 util-linux
  haproxy prometheus prometheus-alertmanager docker-compose
)
# What scripts/test_aarch64.sh needs beside its own libraries.
AARCH64_PACKAGES=(
  g++-aarch64-linux-gnu qemu-user cmake ninja-build ccache pkg-config binutils
)

packages=("${BUILD_PACKAGES[@]}")
case "${1:-build}" in
  build) ;;
  image) packages+=("${IMAGE_PACKAGES[@]}") ;;
  test) packages+=("${TEST_PACKAGES[@]}") ;;
  e2e) packages=("${E2E_PACKAGES[@]}") ;;
  aarch64) packages=("${AARCH64_PACKAGES[@]}") ;;
  *) echo "usage: $0 build|image|test|e2e|aarch64" >&2; exit 2 ;;
esac

apt_get() {
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || { echo "packages.sh: need root or sudo for apt-get $*" >&2; exit 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes --no-install-recommends "$@"
}

if [ "${1:-build}" = image ]; then
  apt_get update
  if [ "${PACKAGES:-locked}" = newest ]; then
    apt_get upgrade > /dev/null
    apt_get install "${packages[@]}" > /dev/null
    exit 0
  fi
  lock=$(dirname "$0")/../docker/packages.lock
  mapfile -t locked < <(grep --invert-match '^#' "$lock")
  # A dry run names all versions that are gone, and installs nothing before they are known.
  if ! said=$(apt_get install --simulate --allow-downgrades "${locked[@]}" 2>&1); then
    grep '^E:' <<< "$said" >&2 || tail -5 <<< "$said" >&2
    cat >&2 <<'END'
packages.sh: Debian's archive does not have what docker/packages.lock names (it keeps the newest versions only). Either
  scripts/image.sh lock                          writes the lock anew, to be looked at and committed, or
  FIXPOINT_PACKAGES=newest scripts/image.sh      builds with today's versions (docker build --build-arg PACKAGES=newest).
END
    exit 1
  fi
  apt_get install --allow-downgrades "${locked[@]}" > /dev/null
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  # A 'cmake' or 'g++' from elsewhere does not count: the build is tested with Debian's.
  dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep --quiet '^installed$' \
    || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

echo "installing ${#missing[@]} packages: ${missing[*]}"
apt_get update
apt_get install "${missing[@]}" > /dev/null
