#!/usr/bin/env bash
# Installs Debian 12 packages: packages.sh build|image|test|e2e|aarch64 (image: what docker/Dockerfile builds with). Does nothing, in under a
# second, when all are there. Needs root or sudo. The lists are the only place where packages are named, but for aarch64_sysroot.sh.
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
  haproxy prometheus
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

missing=()
for package in "${packages[@]}"; do
  # A 'cmake' or 'g++' from elsewhere does not count: the build is tested with Debian's.
  dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep --quiet '^installed$' \
    || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "packages.sh: need root or sudo to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing ${#missing[@]} packages: ${missing[*]}"
"${as_root[@]}" apt-get update --quiet=2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" \
  > /dev/null
