#!/usr/bin/env bash
# Makes what a release consists of: release.sh [--verify] FOLDER
#   fixpoint-VERSION-linux-ARCH.tar.gz            the three programs, for Debian 12 with the libraries that the SBOM names
#   fixpoint-server-VERSION.docker.tar.gz, ...    the images, for `docker load`
#   *.spdx.json                                   their SBOMs
#   SHA256SUMS
# Everything comes out of docker/Dockerfile, so the tool chain is Debian's and the path of the sources always the same.
# --verify: builds once more without any cache (20 minutes on 2 cores) and fails when a program differs by a byte.
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

# The image's files below FOLDER.
unpack() {
  local container
  container=$(podman create --network none "$1" --version)
  mkdir -p "$2"
  podman export "$container" | tar --extract --directory "$2" --wildcards 'usr/bin/fixpoint*' 'usr/share/sbom/*'
  podman rm "$container" > /dev/null
}

scripts/image.sh server calibrator
programs=fixpoint-$version
mkdir -p "$work/$programs/bin"
for target in server calibrator; do
  image=localhost/fixpoint-$target:$version
  unpack "$image" "$work/$target"
  cp "$work/$target"/usr/bin/fixpoint* "$work/$programs/bin/"
  cp "$work/$target/usr/share/sbom/packages.spdx.json" "$folder/fixpoint-$target-$version.spdx.json"
  podman save --quiet --format docker-archive "$image" | gzip --no-name > "$folder/fixpoint-$target-$version.docker.tar.gz"
done

if [ "$verify" = 1 ]; then
  for target in server calibrator; do
    buildah build --quiet --no-cache --isolation chroot --network host --format docker --build-arg "BASE=$(scripts/image.sh base)" \
      --target "$target" --tag "localhost/fixpoint-$target:verify" --file docker/Dockerfile . > /dev/null
    unpack "localhost/fixpoint-$target:verify" "$work/again-$target"
    diff --recursive --brief "$work/$target/usr" "$work/again-$target/usr"
    podman rmi "localhost/fixpoint-$target:verify" > /dev/null
  done
  echo "verified: two builds are equal"
fi

cp LICENSE README.md CHANGELOG.md "$work/$programs/"
# No times and no owners: equal programs give an equal archive.
tar --create --directory "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 "$programs" \
  | gzip --no-name > "$folder/fixpoint-$version-linux-$(uname -m).tar.gz"
(cd "$folder" && sha256sum -- * > SHA256SUMS)
ls -l "$folder"
