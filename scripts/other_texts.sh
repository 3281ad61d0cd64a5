#!/usr/bin/env bash
# other_texts.sh FOLDER: four texts of other kinds than encyclopaedia articles, to measure bundles on:
#   code.txt (Python), dialogue.txt (chat lines, quotes, short jokes), german.txt, technical.txt (a manual)
# At most 200,000 bytes each, cut at a line's end, put together from Debian 12 packages that apt downloads and nobody installs
# (no root needed, but package lists: apt-get update). The same package versions give the same bytes; versions and digests are printed.
set -euo pipefail

if [ $# -ne 1 ] || [ -z "$1" ]; then
  echo "usage: $0 FOLDER" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
for tool in apt-get dpkg-deb dpkg-query sha256sum iconv; do
  command -v "$tool" > /dev/null || { echo "other_texts.sh: $tool is needed (a Debian machine)" >&2; exit 1; }
done

PACKAGES=(libpython3.11-stdlib fortunes fortunes-de debian-policy)
MAX_BYTES=200000

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# apt's own user may not write into a folder of root's; it says so on stderr and goes on.
apt-get download --quiet=2 "${PACKAGES[@]}" 2> download.log || { cat download.log >&2; exit 1; }
for package in *.deb; do
  dpkg-deb --extract "$package" tree
  echo "from $(dpkg-deb --field "$package" Package) $(dpkg-deb --field "$package" Version)"
done

# stdin to NAME: whole lines of at most MAX_BYTES. Fails on what is not UTF-8, and on much less text than wanted.
take() {
  # To the end of the input: whoever writes it must not meet a closed pipe.
  awk -v max="$MAX_BYTES" '{ bytes += length($0) + 1 } bytes <= max' > "$1"
  iconv --from-code=UTF-8 --to-code=UTF-8 "$1" > /dev/null || { echo "other_texts.sh: $1 is not UTF-8" >&2; exit 1; }
  local bytes
  bytes=$(wc -c < "$1")
  [ "$bytes" -ge $((MAX_BYTES / 2)) ] || { echo "other_texts.sh: $1 has only $bytes bytes" >&2; exit 1; }
  mv "$1" "$out/$1"
}

# FOLDER NAME...: collections of quotes; a line of one % parts them.
quotes() {
  local folder=$1 name
  shift
  for name in "$@"; do
    sed 's/^%$//' "tree/usr/share/games/fortunes/$folder/$name"
    echo
  done
}

export LC_ALL=C  # awk counts bytes
python=tree/usr/lib/python3.11
cat "$python"/{shlex,queue,sched,cmd,fractions,statistics,shutil,trace}.py | take code.txt
quotes . knghtbrd startrek paradoxum kids humorists linuxcookie miscellaneous | take dialogue.txt
quotes de anekdoten kinderzitate mathematiker regeln stilblueten linuxtag computer fussball | take german.txt
# The chapters, without the table of contents in front.
zcat tree/usr/share/doc/debian-policy/policy.txt.gz | sed -n '/^1\.1\. Scope/,$p' | take technical.txt

cd "$out"
sha256sum code.txt dialogue.txt german.txt technical.txt
