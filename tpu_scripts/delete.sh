#!/usr/bin/env bash
# Usage: tpu_scripts/delete.sh [--dry-run]
# Deletes the TPU, and its queued resource where it has one, whatever it is doing. The bucket stays.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"

if [[ $TPU_SPOT == true ]]; then
  run "${tpus[@]}" queued-resources delete "$TPU_NAME" "${where[@]}" --force
else
  run "${tpus[@]}" tpu-vm delete "$TPU_NAME" "${where[@]}"
fi
