#!/usr/bin/env bash
# From nothing to a streamed answer on a bare Debian 12 machine: installs packages (root or sudo), builds, fetches a 98 MB model,
# calibrates it into models/smollm2.fixpoint, starts fixpoint-server and asks it something through the fixpoint client.
# About 20 minutes on 2 cores the first time, most of it compiling; seconds the next time. The server stays up.
#   --no-serve   stop after the calibration
set -euo pipefail
cd "$(dirname "$0")/.."

serve=1
for argument in "$@"; do
  case "$argument" in
    --no-serve) serve=0 ;;
    *) echo "usage: $0 [--no-serve]" >&2; exit 2 ;;
  esac
done

step() { printf '\n== %s\n' "$*"; }
bin=build/release/bin
bundle=models/smollm2.fixpoint
listen=127.0.0.1:50051
http=127.0.0.1:8080

step "1/5 packages"
scripts/packages.sh build

step "2/5 build (build/release)"
scripts/build.sh release fixpoint-calibrate fixpoint-server fixpoint

step "3/5 model"
model=$(scripts/fetch_model.sh)
echo "$model"

step "4/5 calibration into $bundle"
if [ -f "$bundle" ] && "$bin/fixpoint-calibrate" inspect "$bundle" > /dev/null; then
  echo "already there (delete it to calibrate again)"
else
  "$bin/fixpoint-calibrate" "$model" -o "$bundle"
fi
[ "$serve" = 1 ] || exit 0

step "5/5 server on $listen (gRPC) and $http (health, metrics)"
if curl --silent --fail "http://$http/readyz" > /dev/null 2>&1; then
  echo "already running"
else
  "$bin/fixpoint-server" "$bundle" --listen "$listen" --http "$http" 2> models/server.log &
  echo $! > models/server.pid
  for _ in $(seq 200); do
    curl --silent --fail "http://$http/readyz" > /dev/null 2>&1 && break
    kill -0 "$(cat models/server.pid)" 2>/dev/null || { cat models/server.log >&2; exit 1; }
    sleep 0.05
  done
  curl --silent --fail "http://$http/readyz" > /dev/null || { echo "server did not become ready" >&2; tail models/server.log >&2; exit 1; }
  echo "ready, pid $(cat models/server.pid), log in models/server.log"
fi

prompt="Explain in three sentences why the sky is blue."
printf '\n> %s\n\n' "$prompt"
"$bin/fixpoint" chat --target "$listen" --message "$prompt" --max-tokens 120

cat <<TEXT

Next:
  $bin/fixpoint chat --target $listen                                   talk to it
  $bin/fixpoint generate --target $listen --prompt 'Once upon a time' --max-tokens 60
  $bin/fixpoint-calibrate verify $bundle                 the golden digest, on this machine
  curl http://$http/metrics
  kill \$(cat models/server.pid)                                          stop the server (it drains first)
TEXT
