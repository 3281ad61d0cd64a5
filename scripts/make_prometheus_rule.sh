#!/usr/bin/env bash
# Writes the PrometheusRule of Kubernetes from deploy/prometheus/rules, to its place or to the file that is named: the same groups,
# so that there is one place to change them. tests/deploy_kubernetes_test.py fails while the two differ.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-deploy/kustomize/components/prometheus/rule.yaml}

{
  cat <<'HEAD'
# Made by scripts/make_prometheus_rule.sh from deploy/prometheus/rules. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fixpoint
spec:
  groups:
HEAD
  # The lists below each file's `groups:`, two columns further in.
  for name in recording alerts; do
    sed '1,/^groups:$/d; s/^\(.\)/  \1/' "deploy/prometheus/rules/$name.yml"
  done
} > "$output"
