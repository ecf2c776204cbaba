#!/usr/bin/env bash
# Usage: tpu_scripts/create.sh [--dry-run]
# Creates the TPU and waits until it is ready. One that was pre-empted is deleted first; one that is ready stays.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"

if [[ $TPU_SPOT == true ]]; then
  create=(queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--runtime-version=$TPU_RUNTIME" --spot)
else
  create=(tpu-vm create "$TPU_NAME" "--version=$TPU_RUNTIME")
fi
create+=("--accelerator-type=$TPU_TYPE" --scopes=https://www.googleapis.com/auth/cloud-platform)

if [[ -n $dry_run ]]; then
  run "${tpus[@]}" "${create[@]}" "${where[@]}"
  exit
fi

# A checkpoint becomes complete by renaming its folder, which is atomic in such a bucket only.
folders=(--raw '--format=value(hierarchicalNamespace.enabled)')
[[ $(gcloud --quiet storage buckets describe "gs://$TPU_BUCKET" "${folders[@]}") == True ]] ||
  fail "gs://$TPU_BUCKET has no hierarchical namespace; make a bucket with --enable-hierarchical-namespace"

state=$(tpu_state)
while [[ $state != ready ]]; do
  case $state in
    none) "${tpus[@]}" "${create[@]}" "${where[@]}" ;;
    gone) "$here/delete.sh" ;;
    waiting) echo "waiting for $TPU_NAME" >&2 ;;
    *) fail "$TPU_NAME is in the state $state; look with status.sh, and create it again after delete.sh" ;;
  esac
  sleep "$TPU_POLL"
  state=$(patient_state)
done
