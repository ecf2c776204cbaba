#!/usr/bin/env bash
# Usage: tpu_scripts/sweep.sh [--dry-run] --config FILE --categories all --seeds 5 --workdir runs/NAME [ARGUMENT...]
# Runs python -m jaxad.sweep with these arguments over a Ray cluster of the TPU's hosts, one chip for each run: creates
# the TPU and sets it up, again after each pre-emption, until the sweep's table is written.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"

workdir=$(workdir_of "$@")
command=$(quoted -m jaxad.sweep --engine ray --ray_address auto --devices_per_run 1 "$@")

# Every VM knows its number, and of all the addresses ("id:type:address,..."); the first one's is the cluster's.
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
head='cd jaxad && { ~/venv/bin/ray stop --force; ~/venv/bin/ray start --head --port=6379 --disable-usage-stats; }'
join="know() { curl -fsS -H Metadata-Flavor:Google $metadata/\$1; }
[ \"\$(know agent-worker-number)\" = 0 ] || {
  cd jaxad
  ~/venv/bin/ray stop --force
  ~/venv/bin/ray start --address=\"\$(know worker-network-endpoints | cut -d, -f1 | cut -d: -f3)\":6379
}"

work() {
  afresh 0 "$head" &&
    on all "$join" &&
    afresh 0 "cd jaxad && rm -f $(quoted "$workdir/table.md") && ~/venv/bin/python $command"
}

until_done "$workdir/table.md"
