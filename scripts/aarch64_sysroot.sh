#!/usr/bin/env bash
# Unpacks the arm64 libraries that the aarch64 build links into build/aarch64-sysroot: about 10 MB of downloads, once. apt works
# in folders of its own, so neither the machine's architectures nor its installed packages change, and no root is needed.
# The compiler's own libraries (libc, libstdc++) come with g++-aarch64-linux-gnu (packages.sh aarch64).
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
  libabsl-dev libabsl20220623 libssl-dev libssl3 libxxhash-dev libsimdjson-dev libsimdjson14 libutf8proc-dev libutf8proc2
  libcli11-dev libgtest-dev libgmock-dev
)
sysroot=$PWD/build/aarch64-sysroot
if [ "$(cat "$sysroot/packages" 2>/dev/null)" = "${PACKAGES[*]}" ]; then
  exit 0
fi

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt downloads as a user of its own
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/debs"
: > "$work/status"
apt=(
  apt-get --quiet=2
  --option APT::Architecture=arm64 --option APT::Architectures=arm64
  --option Dir::State="$work/state" --option Dir::State::status="$work/status" --option Dir::Cache="$work/cache"
  --option APT::Sandbox::User="$(id -un)"
)
echo "arm64 libraries: ${PACKAGES[*]}"
"${apt[@]}" update
(cd "$work/debs" && "${apt[@]}" download "${PACKAGES[@]}" > /dev/null)
rm -rf "$sysroot"
mkdir -p "$sysroot"
for deb in "$work"/debs/*.deb; do
  dpkg-deb --extract "$deb" "$sysroot"
done
printf '%s' "${PACKAGES[*]}" > "$sysroot/packages"
