#!/usr/bin/env bash
# Usage: tpu_scripts/status.sh [--dry-run]
# Shows the TPU, its place in the queue, and which runs in the bucket are finished.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"

run "${tpus[@]}" tpu-vm list "${where[@]}" "${only[@]}"
run "${tpus[@]}" queued-resources list "${where[@]}" "${only[@]}"
run gcloud --quiet storage ls "gs://$TPU_BUCKET/runs/**/results.json" ||
  echo "no finished run was found in gs://$TPU_BUCKET/runs" >&2
