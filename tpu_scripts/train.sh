#!/usr/bin/env bash
# Usage: tpu_scripts/train.sh [--dry-run] --config FILE:CATEGORY --workdir runs/NAME [ARGUMENT...]
# Trains one detector on all chips: creates the TPU, sets it up and runs python -m jaxad.train with these arguments on
# every worker, again after each pre-emption, until the detector is complete.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"

workdir=$(workdir_of "$@")
command=$(quoted -m jaxad.train "$@")

work() {
  afresh all "cd jaxad && ~/venv/bin/python $command"
}

until_done "$workdir/detector.json"
