# Settings and functions that the scripts beside this file share; each sources it before anything else.
# shellcheck shell=bash
set -euo pipefail
trap 'exit 130' INT

# To be exported by the user: TPU_PROJECT, TPU_ZONE, TPU_NAME, TPU_BUCKET. The rest has defaults:
TPU_TYPE=${TPU_TYPE:-v5litepod-16}             # accelerator type: 16 chips of v5e
TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5-lite} # software of the VMs; it belongs to the type
TPU_SPOT=${TPU_SPOT:-true}                     # true: spot VMs through a queued resource; false: on demand
TPU_RESTARTS=${TPU_RESTARTS:-50}               # how often train.sh and sweep.sh start again at most
TPU_POLL=${TPU_POLL:-60}                       # seconds between two looks at a TPU that is not ready

fail() {
  echo "error: $*" >&2
  exit 2
}

# These change the arguments of the script that sources this file.
if [[ ${1-} == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit
fi
dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=yes
  shift
fi

for word; do
  [[ $word != --dry-run && $word != --help ]] || fail "$word must be the first argument"
done

for setting in TPU_PROJECT TPU_ZONE TPU_NAME TPU_BUCKET; do
  [[ -n ${!setting-} ]] || fail "$setting is not set; export it as tpu_scripts/README.md shows"
done
TPU_BUCKET=${TPU_BUCKET#gs://}
[[ $TPU_NAME =~ ^[a-z][-a-z0-9]*$ ]] || fail "TPU_NAME is '$TPU_NAME'; use small letters, digits and hyphens"
[[ $TPU_BUCKET =~ ^[a-z0-9][-_.a-z0-9]*$ ]] || fail "TPU_BUCKET is '$TPU_BUCKET'; give a bucket's name without a folder"
[[ $TPU_SPOT =~ ^(true|false)$ ]] || fail "TPU_SPOT is '$TPU_SPOT'; it must be true or false"
for setting in TPU_RESTARTS TPU_POLL; do
  [[ ${!setting} =~ ^[0-9]+$ ]] || fail "$setting is '${!setting}'; it must be a whole number"
done
# What needs no arguments takes none: a mistyped flag must not start what costs money.
(($# == 0)) || [[ $0 == *train.sh || $0 == *sweep.sh ]] || fail "$0 takes no argument $1"
[[ -n $dry_run ]] || command -v gcloud >/dev/null || fail "gcloud is not on the PATH; install the Google Cloud CLI"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tpus=(gcloud --quiet compute tpus)
where=("--project=$TPU_PROJECT" "--zone=$TPU_ZONE")
only=("--filter=name~/$TPU_NAME\$")

# quoted WORD...: prints the words so that a shell reads them as they are.
quoted() {
  local word words=() quote="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$quote}'"
    words+=("$word")
  done
  echo "${words[*]}"
}

# run COMMAND...: runs it; with --dry-run prints it instead.
run() {
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# on WORKER COMMAND: runs a shell command in the home directory of one worker of the slice, or of all.
# The flags end the connection to a VM that has vanished within two minutes; ssh itself would wait for ever.
on() {
  run "${tpus[@]}" tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 --command="$2"
}

# tpu_state: prints none, waiting, ready, gone (pre-empted, to be deleted), or a state that needs a person.
tpu_state() {
  local vm queue
  # Unlike describe, list tells a TPU that is not there (no output) from a failure.
  vm=$("${tpus[@]}" tpu-vm list "${where[@]}" "${only[@]}" --format='value(state)') || return
  queue=$("${tpus[@]}" queued-resources list "${where[@]}" "${only[@]}" --format='value(state.state)') || return
  case $vm/$queue in
    /) echo none ;;
    DELETING/* | */DELETING | */SUSPENDING) echo waiting ;;
    PREEMPTED/* | TERMINATED/* | */SUSPENDED | /ACTIVE) echo gone ;;
    READY/*) echo ready ;;
    CREATING/* | STARTING/* | RESTARTING/* | REPAIRING/*) echo waiting ;;
    /CREATING | /ACCEPTED | /PROVISIONING | /WAITING_FOR_RESOURCES) echo waiting ;;
    *) echo "$vm/$queue" ;;
  esac
}

# patient_state: tpu_state, which waits until the service answers: an outage of the network must not end a long run.
patient_state() {
  until tpu_state; do
    echo "cannot look at $TPU_NAME; trying again" >&2
    sleep "$TPU_POLL"
  done
}

# workdir_of ARGUMENT...: prints the value of --workdir, which must lie where it outlives the VMs.
workdir_of() {
  local workdir='' before='' word
  for word; do
    [[ $word != --workdir=* ]] || workdir=${word#*=}
    [[ $before != --workdir ]] || workdir=$word
    before=$word
  done
  [[ $workdir == runs/?* && /$workdir/ != */../* ]] ||
    fail "give --workdir runs/NAME: runs/ lies in the bucket, and all else is lost with the VMs"
  echo "$workdir"
}

# afresh WORKER COMMAND: like on, but first ends what an earlier connection left running. One command does both, since
# gcloud runs a command again by itself when its connection breaks.
afresh() {
  on "$1" "timeout 300 sh -c 'while pkill -f \"^[^ ]*/venv/bin/python -m jaxad[.]\"; do sleep 5; done' || exit
$2"
}

# until_done FILE: calls the function work, on a TPU that is created and set up again whenever it was pre-empted, until
# FILE is there. Status 143 is that of a training which SIGTERM stopped, as it comes before a pre-emption; it goes on.
until_done() {
  local restart status state
  for ((restart = 0; restart <= TPU_RESTARTS; restart++)); do
    "$here/create.sh" ${dry_run:+--dry-run} || exit
    status=0
    { "$here/set_up.sh" ${dry_run:+--dry-run} && work; } || status=$?
    if ((status == 0)) && on 0 "test -e $(quoted "jaxad/$1")"; then
      [[ -n $dry_run ]] || echo "done; $TPU_NAME still costs money until you run tpu_scripts/delete.sh" >&2
      return
    fi
    echo "$TPU_NAME: the command ended with status $status before it was done; looking at the TPU" >&2
    sleep "$TPU_POLL" # a VM that is being pre-empted answers for half a minute
    state=$(patient_state)
    if ((status && status != 143)) && [[ $state == ready ]] && on all true; then
      echo "error: the TPU is well, so the command itself failed; correct it and start the same command again" >&2
      exit "$status"
    fi
    echo "$TPU_NAME is $state; starting again" >&2
  done
  fail "not done after $TPU_RESTARTS restarts; the same command goes on where it was"
}
