#!/usr/bin/env bash
# The deployment, run and broken for real: builds the server's image (scripts/image.sh), then tests/e2e runs two containers behind HAProxy,
# scraped by Prometheus, in a network namespace of their own. Needs root, podman, buildah, runc, haproxy and prometheus; says what is
# missing and skips. docker/compose.yaml and the manifests of deploy/kustomize are brought up too. About 9 minutes with nothing built, 4 with
# the images there. Arguments go to pytest.
# FIXPOINT_E2E_IMAGE: an image to test instead. FIXPOINT_E2E_KILLS: kill -9 so often (default 8).
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in podman buildah runc haproxy prometheus promtool unshare ip; do
  command -v "$tool" > /dev/null || { echo "SKIPPED tests/e2e: no $tool here"; exit 0; }
done
if [ "$(id -u)" -ne 0 ] || ! unshare --net true 2> /dev/null; then
  echo "SKIPPED tests/e2e: needs root and the right to make a network namespace"
  exit 0
fi

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
# Debian's default runtime, crun, refuses machines with both versions of cgroups; podman's default limits may be above what we may set.
files=$(ulimit -H -n)
if [ "$files" = unlimited ] || [ "$files" -gt 16384 ]; then files=16384; fi
cat > "$work/containers.conf" << END
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
[network]
network_backend = "netavark"
END
export CONTAINERS_CONF=$work/containers.conf

base=$(scripts/image.sh base) || { echo "SKIPPED tests/e2e: no base image can be had"; exit 0; }
if ! unshare --net -- podman run --rm --network host --security-opt no-new-privileges "$base" true 2> "$work/probe"; then
  echo "SKIPPED tests/e2e: containers do not run here: $(tail -1 "$work/probe")"
  exit 0
fi
if [ -z "${FIXPOINT_E2E_IMAGE:-}" ]; then
  if ! images=$(scripts/image.sh server calibrator); then
    echo "tests/e2e: the images cannot be built with the locked packages; with today's:"
    export FIXPOINT_PACKAGES=newest
    images=$(scripts/image.sh server calibrator)
  fi
  FIXPOINT_E2E_IMAGE=${images%%$'\n'*}
fi
export FIXPOINT_E2E_IMAGE
python=build/venv/bin/python
[ -x "$python" ] || python=python3
export FIXPOINT_BIN=${FIXPOINT_BIN:-$PWD/build/release/bin} PYTHONDONTWRITEBYTECODE=1
unshare --net -- bash -c 'ip link set lo up && exec "$@"' e2e "$python" -m pytest -q -rs -s tests/e2e "$@"
