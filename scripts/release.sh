#!/usr/bin/env bash
# Makes what a release consists of: release.sh [--verify] FOLDER
#   fixpoint-VERSION-linux-ARCH.tar.gz            the three programs, for Debian 12 with the libraries that the SBOM names
#   fixpoint-server-VERSION.docker.tar.gz, ...    the images, for `docker load`
#   *.spdx.json                                   their SBOMs
#   SHA256SUMS
# Everything comes out of docker/Dockerfile, so the tool chain is Debian's, in the versions of docker/packages.lock.
# --verify: builds once more, in another folder and without ccache or cached layers (20 minutes on 2 cores), and fails when a program, a
# library or an SBOM differs by a byte.
# Needs what scripts/image.sh needs, and podman.
set -euo pipefail
cd "$(dirname "$0")/.."

verify=0
if [ "${1:-}" = --verify ]; then
  verify=1
  shift
fi
[ $# -eq 1 ] || { echo "usage: $0 [--verify] FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ -z "$(ls -A "$folder")" ] || { echo "$0: $folder is not empty" >&2; exit 1; }
version=$(sed -n 's/^project(fixpoint VERSION \([0-9.]*\) .*/\1/p' CMakeLists.txt)
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT

# unpack IMAGE FOLDER PATTERN...: those of the image's files.
unpack() {
  local container folder=$2
  container=$(podman create --network none "$1" --version)
  shift 2
  mkdir -p "$folder"
  podman export "$container" | tar --extract --directory "$folder" --wildcards "$@"
  podman rm "$container" > /dev/null
}

scripts/image.sh server calibrator
programs=fixpoint-$version
mkdir -p "$work/$programs/bin"
for target in server calibrator; do
  image=localhost/fixpoint-$target:$version
  unpack "$image" "$work/first/$target" 'usr/*'
  cp "$work/first/$target"/usr/bin/fixpoint* "$work/$programs/bin/"
  cp "$work/first/$target/usr/share/sbom/packages.spdx.json" "$folder/fixpoint-$target-$version.spdx.json"
  podman save --quiet --format docker-archive "$image" | gzip --no-name > "$folder/fixpoint-$target-$version.docker.tar.gz"
done

if [ "$verify" = 1 ]; then
  # The calibrator's and the server's trees in one image. No ccache: it would hand out the first build's objects, and give the compiler
  # relative paths.
  buildah build --quiet --no-cache --isolation chroot --network host --format docker --build-arg "BASE=$(scripts/image.sh base)" \
    --build-arg SOURCE=/verified/from/another/folder --build-arg CCACHE_DISABLE=1 --target programs --tag localhost/fixpoint-programs:verify --file docker/Dockerfile . > /dev/null
  unpack localhost/fixpoint-programs:verify "$work/second" 'server/usr/*' 'calibrator/usr/*'
  buildah rmi localhost/fixpoint-programs:verify > /dev/null
  diff --recursive --no-dereference "$work/first" "$work/second"
  for target in server calibrator; do
    (cd "$work/first/$target/usr/bin" && sha256sum fixpoint*)
  done
  echo "verified: two builds in two folders are equal, $(find "$work/second" -type f | wc -l) files"
fi

cp LICENSE README.md CHANGELOG.md "$work/$programs/"
# No times and no owners: equal programs give an equal archive.
tar --create --directory "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 "$programs" \
  | gzip --no-name > "$folder/fixpoint-$version-linux-$(uname -m).tar.gz"
(cd "$folder" && sha256sum -- * > SHA256SUMS)
ls -l "$folder"
