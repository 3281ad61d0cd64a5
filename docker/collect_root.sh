#!/usr/bin/env bash
# Makes the root file system of an image FROM scratch: collect_root.sh ROOT PROGRAM... [-- LIBRARY...]
# The programs (stripped), every shared library that they load, the loader, tini as init, a user, /tmp, and an SBOM
# (/usr/share/sbom/packages.spdx.json) that names the Debian package and version of each file that is not ours, and of each header that
# ninja has seen in their build folder.
# LIBRARY: one more, of a PyPI package (SITE/nvidia/...), that a program opens when it runs.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 ROOT PROGRAM..." >&2; exit 2; }
root=$1
shift
[ ! -e "$root" ] || { echo "$0: $root exists" >&2; exit 1; }
programs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  programs+=("$1")
  shift
done
[ $# -eq 0 ] || shift
libraries=("$@")

mkdir -p "$root"/usr/{bin,lib,lib64} "$root/etc" "$root/usr/share/sbom"
# A new volume mounted there takes its owner, so that the calibrator can write.
install -d --owner=65532 --group=65532 "$root/models"
mkdir --mode=1777 "$root/tmp"
ln -s usr/bin "$root/bin"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
echo 'fixpoint:x:65532:65532:fixpoint:/:/nonexistent' > "$root/etc/passwd"
echo 'fixpoint:x:65532:' > "$root/etc/group"
# Names from /etc/hosts (which the container runtime writes) before DNS.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"

for program in "${programs[@]}"; do
  install -D --strip "$program" "$root/usr/bin/$(basename "$program")"
done
install -D /usr/bin/tini-static "$root/usr/bin/tini"

# "NAME => PATH (address)" of a library; "PATH (address)" of the loader, whose place is part of each program.
packages=(tini)
while read -r library; do
  case "$library" in
    */ld-linux*) place=/usr${library#/usr} ;;
    *) place=/usr/lib/$(basename "$(dirname "$library")")/$(basename "$library") ;;
  esac
  install -D --mode=755 "$(readlink --canonicalize "$library")" "$root$place"
  # dpkg knows a file by the path before or behind the /usr merge.
  real=$(readlink --canonicalize "$library")
  owner=$(dpkg-query --search "$real" 2>/dev/null || dpkg-query --search "${real#/usr}")
  packages+=("${owner%%:*}")
done < <(ldd "${programs[@]}" "${libraries[@]}" | awk '$2 == "=>" {print $3} $1 ~ /^\// && $2 ~ /^\(/ {print $1}' | sort --unique)

# Libraries of headers alone have no file in the image, yet are part of the programs.
mapfile -t headers < <(ninja -C "$(dirname "$(dirname "${programs[0]}")")" -t deps | sed -n 's|^ *\(/usr/.*\)|\1|p' | sort --unique)
mapfile -t compiled_in < <(dpkg-query --search "${headers[@]}" | sed 's/:.*//' | sort --unique)

# "NAME VERSION" of the package that a library came with.
pypi=()
for library in "${libraries[@]}"; do
  install -D --mode=755 "$library" "$root/usr/lib/$(uname -m)-linux-gnu/$(basename "$library")"
  site=${library%%/nvidia/*}
  record=$(grep --files-with-matches --fixed-strings "${library#"$site/"}," "$site"/*.dist-info/RECORD)
  distribution=$(basename "$(dirname "$record")" .dist-info)
  pypi+=("${distribution%-*} ${distribution##*-}")
done

# SPDX 2.3. No time stamps: the same packages give the same file.
name=$(basename "${programs[0]}")
version=$("${programs[0]}" --version | awk 'NR == 1 {print $NF}')
{
  printf '{"spdxVersion":"SPDX-2.3","dataLicense":"CC0-1.0","SPDXID":"SPDXRef-DOCUMENT","name":"%s-%s",' "$name" "$version"
  printf '"documentNamespace":"urn:fixpoint:%s:%s","creationInfo":{"creators":["Tool: docker/collect_root.sh"],"created":"1970-01-01T00:00:00Z"},' \
    "$name" "$version"
  printf '"packages":[{"SPDXID":"SPDXRef-fixpoint","name":"fixpoint","versionInfo":"%s","licenseDeclared":"Apache-2.0","downloadLocation":"NOASSERTION"}' \
    "$version"
  printf '%s\n' "${packages[@]}" "${compiled_in[@]}" | sort --unique | while read -r package; do
    dpkg-query --show --showformat=',{"SPDXID":"SPDXRef-${Package}","name":"${Package}","versionInfo":"${Version}","downloadLocation":"NOASSERTION","externalRefs":[{"referenceCategory":"PACKAGE-MANAGER","referenceType":"purl","referenceLocator":"pkg:deb/debian/${Package}@${Version}?arch=${Architecture}"}]}' "$package"
  done
  for package in "${pypi[@]}"; do
    name=${package% *}
    name=${name//_/-}
    printf ',{"SPDXID":"SPDXRef-%s","name":"%s","versionInfo":"%s","downloadLocation":"NOASSERTION","externalRefs":[{"referenceCategory":"PACKAGE-MANAGER","referenceType":"purl","referenceLocator":"pkg:pypi/%s@%s"}]}' \
      "$name" "$name" "${package#* }" "$name" "${package#* }"
  done
  printf ']}\n'
} > "$root/usr/share/sbom/packages.spdx.json"
