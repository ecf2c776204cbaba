#!/usr/bin/env bash
# Usage: tpu_scripts/set_up.sh [--dry-run]
# Brings the commit that is checked out here to every worker, mounts the bucket, and installs jaxad. May be repeated.

# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"

# Quoted: all of it is for the workers. ~/jaxad/runs and ~/jaxad/data are folders of the bucket. Other workers' files
# must be seen at once, so nothing about files is cached. A fresh VM installs updates on its own, hence the lock.
remote=$(
  cat <<'END'
set -eu
if ! [ -e ~/set_up_done ]; then
  gcloud --quiet storage cp "gs://$bucket/gcsfuse.deb" /tmp/gcsfuse.deb
  sudo apt-get -o DPkg::Lock::Timeout=600 -q update
  sudo apt-get -o DPkg::Lock::Timeout=600 -qy install /tmp/gcsfuse.deb python3-venv
  python3 -m venv ~/uv
  ~/uv/bin/pip install -q uv
  ~/uv/bin/uv venv -q --clear --python 3.12 ~/venv
  touch ~/set_up_done
fi
mkdir -p ~/bucket
mountpoint -q ~/bucket ||
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" ~/bucket
mkdir -p ~/bucket/runs ~/bucket/data
rm -rf ~/jaxad
git clone -q ~/jaxad.bundle ~/jaxad
ln -s ~/bucket/runs ~/bucket/data ~/jaxad/
~/uv/bin/uv pip install -q --python ~/venv -e "$HOME/jaxad[tpu,ray]"
END
)

checkout=$(dirname "$here")
bundle=${TMPDIR:-/tmp}/$TPU_NAME.bundle
[[ -z $(git -C "$checkout" status --porcelain) ]] || echo "changes that are not committed stay here" >&2
run git -C "$checkout" bundle create --quiet "$bundle" HEAD
run "${tpus[@]}" tpu-vm scp "$bundle" "$TPU_NAME:jaxad.bundle" "${where[@]}" --worker=all
afresh all "bucket=$TPU_BUCKET
$remote"
