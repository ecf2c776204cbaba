"""The TPU scripts with a `gcloud` on the PATH that records its arguments and answers as a TPU would."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxad.augment.nsa.settings import SETTINGS
from jaxad.models import flops
from jaxad.models.encoder_decoder import EncoderDecoder
from tests.parts import ROOT

pytestmark = pytest.mark.medium

SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
COMMANDS = ("create", "set_up", "train", "sweep", "status", "delete")
TRAIN = ("--config", "experiments/nsa_logistic.py:bottle", "--config.data.root=data/it's here", "--workdir", "runs/b")
SWEEP = ("--config", "experiments/nsa_logistic.py", "--categories", "all", "--seeds", "5", "--workdir=runs/s")
END = "\x1e"

# The TPU's state and that of its queued resource lie in files. `seen TEXT` counts the calls so far with this text, the
# present one among them. HOOK is what a test adds to this behaviour.
FAKE = r"""#!/usr/bin/env bash
cd "$FAKE" || exit 99
{ printf '%s\0' "${0##*/}" "$@"; printf '\x1e'; } >>calls
seen() { tr '\0' ' ' <calls | tr '\036\n' '\n ' | grep -cF -e "$1"; }
state() { echo "$1" >vm; echo "$2" >queue; }
eval "$HOOK"
case "$*" in
  *'tpu-vm list'*) cat vm ;;
  *'queued-resources list'*) cat queue ;;
  *'queued-resources create'*) state READY ACTIVE ;;
  *'tpu-vm create'*) state READY '' ;;
  *' delete '*) state '' '' ;;
  *'buckets describe'*) echo True ;;
esac
"""


class Cloud:
    """A folder with the programs that the scripts call, and what these were called with."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("gcloud", "git"):
            self.program(name, FAKE)
        self.state("", "")
        settings = {"TPU_PROJECT": "p", "TPU_ZONE": "z", "TPU_NAME": "n", "TPU_BUCKET": "gs://b", "TPU_POLL": "0"}
        own = {"FAKE": str(folder), "HOOK": "", "TMPDIR": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        others = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
        self.environment = others | settings | own

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def state(self, vm: str, queue: str) -> None:
        (self.folder / "vm").write_text(vm)
        (self.folder / "queue").write_text(queue)

    def run(self, script: str, *arguments: str, hook: str = "", **settings: str) -> subprocess.CompletedProcess:
        (self.folder / "calls").write_text("")
        command = ["bash", str(ROOT / "tpu_scripts" / f"{script}.sh"), *arguments]
        environment = self.environment | {"HOOK": hook} | settings
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    @property
    def calls(self) -> list[list[str]]:
        """The calls of the last run, each as its words."""
        texts = (self.folder / "calls").read_text().split(END)[:-1]
        return [text.removesuffix("\0").split("\0") for text in texts]

    @property
    def changes(self) -> list[list[str]]:
        """The calls that do more than look."""
        looks = re.compile(r"tpu-vm list|queued-resources list|buckets describe|git .* status")
        return [call for call in self.calls if not looks.search(" ".join(call))]

    @property
    def story(self) -> list[str]:
        """The changes, one word each; a command on workers by what it runs there."""
        words = {" scp ": "scp", " bundle ": "bundle", " create ": "create", " delete ": "delete"}
        remote = {"git clone": "install", "jaxad.train": "train", "jaxad.sweep": "sweep", "--head": "head",
                  "--address": "join", "test -e": "look", "=true": "probe"}  # fmt: skip
        return [
            next(story for text, story in (remote if "ssh" in call else words).items() if text in " ".join(call))
            for call in self.changes
        ]


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


def remote(call: list[str]) -> str:
    """What a call of ssh runs on the workers."""
    [command] = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    return command


def refusal(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2, result
    assert result.stderr.count("error: ") == 1
    return result.stderr


WHERE = ["--project=p", "--zone=z"]
TPUS = ["gcloud", "--quiet", "compute", "tpus"]
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform"
QUEUE = [
    *TPUS, "queued-resources", "create", "n", "--node-id=n", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
    "--accelerator-type=v5litepod-16", SCOPES, *WHERE,
]  # fmt: skip
SSH = [*TPUS, "tpu-vm", "ssh", "n", *WHERE]
ALIVE = ["--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    result = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_script_is_strict():
    assert {path.stem for path in SCRIPTS} == {*COMMANDS, "common"}
    assert "\nset -euo pipefail\n" in (ROOT / "tpu_scripts/common.sh").read_text()
    for name in COMMANDS:
        path = ROOT / "tpu_scripts" / f"{name}.sh"
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines[0] == 'source "$(dirname "$0")/common.sh"'
        assert os.access(path, os.X_OK)


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_run_prints_what_a_run_calls_and_calls_nothing(cloud, name):
    arguments = {"train": TRAIN, "sweep": SWEEP}.get(name, ())
    printed = cloud.run(name, "--dry-run", *arguments)
    assert printed.returncode == 0, printed
    assert not cloud.changes
    # A shell reads what is printed as the very words of the calls.
    (cloud.folder / "calls").write_text("")
    subprocess.run(["bash", "-e"], input=printed.stdout, env=cloud.environment, text=True, check=True)
    expected = cloud.calls
    cloud.state("", "")
    result = cloud.run(name, *arguments)
    assert result.returncode == 0, result
    assert expected and expected == (cloud.calls if name == "status" else cloud.changes)


@pytest.mark.parametrize("arguments, words", [
    (("x", "--dry-run"), "--dry-run must be the first argument"), (("--dryrun",), "takes no argument --dryrun"),
])  # fmt: skip
def test_a_misplaced_dry_run_starts_nothing(cloud, arguments, words):
    assert words in refusal(cloud.run("create", *arguments)) and not cloud.calls


def test_dry_run_needs_no_gcloud_and_a_run_says_that_it_does(cloud):
    only = cloud.folder / "only"
    only.mkdir()
    for name in ("bash", "dirname", "git"):
        (only / name).symlink_to(shutil.which(name))
    assert cloud.run("create", "--dry-run", PATH=str(only)).stdout == shlex.join(QUEUE) + "\n"
    assert "gcloud is not on the PATH; install" in refusal(cloud.run("create", PATH=str(only)))


def test_help_shows_the_usage(cloud):
    for name in COMMANDS:
        assert cloud.run(name, "--help").stdout.startswith(f"Usage: tpu_scripts/{name}.sh [--dry-run]")


@pytest.mark.parametrize("setting, value", [
    ("TPU_PROJECT", ""), ("TPU_ZONE", ""), ("TPU_NAME", ""), ("TPU_BUCKET", ""), ("TPU_NAME", "My TPU"),
    ("TPU_BUCKET", "gs://b/folder"), ("TPU_SPOT", "yes"), ("TPU_RESTARTS", "-1"), ("TPU_POLL", "1m"),
])  # fmt: skip
def test_settings_are_checked(cloud, setting, value):
    for name in COMMANDS:
        assert setting in refusal(cloud.run(name, *SWEEP, **{setting: value}))
        assert not cloud.calls


class TestCreate:
    """One TPU is there, is ready, and is what was asked for."""

    def test_spot_waits_in_the_queue(self, cloud):
        # WAITING_FOR_RESOURCES, PROVISIONING with a VM that starts, then ready.
        hook = """case "$*" in *'queued-resources create'*) state '' WAITING_FOR_RESOURCES; exit ;; esac
            [[ $* != *'tpu-vm list'* ]] || case $(seen 'tpu-vm list') in
              4) state CREATING PROVISIONING ;; 6) state READY ACTIVE ;; esac"""
        result = cloud.run("create", hook=hook)
        assert result.returncode == 0 and result.stderr.count("waiting for n") == 4, result
        assert cloud.changes == [QUEUE]

    def test_on_demand(self, cloud):
        settings = {"TPU_SPOT": "false", "TPU_TYPE": "v5litepod-8", "TPU_RUNTIME": "other"}
        assert cloud.run("create", **settings).returncode == 0
        assert cloud.changes == [
            [*TPUS, "tpu-vm", "create", "n", "--version=other", "--accelerator-type=v5litepod-8", SCOPES, *WHERE]
        ]
        cloud.run("delete", TPU_SPOT="false")
        assert cloud.changes == [[*TPUS, "tpu-vm", "delete", "n", *WHERE]]

    def test_a_ready_one_stays(self, cloud):
        cloud.state("READY", "ACTIVE")
        assert cloud.run("create").returncode == 0
        assert not cloud.changes
        # Only the TPU of exactly this name is looked at.
        assert all("--filter=name~/n$" in call for call in cloud.calls if "list" in call)

    @pytest.mark.parametrize(
        "vm, queue", [("PREEMPTED", "ACTIVE"), ("", "SUSPENDED"), ("TERMINATED", ""), ("", "ACTIVE")]
    )
    def test_a_preempted_one_is_replaced(self, cloud, vm, queue):
        cloud.state(vm, queue)
        assert cloud.run("create").returncode == 0
        assert cloud.changes == [[*TPUS, "queued-resources", "delete", "n", *WHERE, "--force"], QUEUE]

    def test_one_that_is_going_is_waited_for(self, cloud):
        cloud.state("PREEMPTED", "SUSPENDING")
        hook = "[[ $* != *'tpu-vm list'* || $(seen 'tpu-vm list') != 3 ]] || state '' SUSPENDED"
        assert cloud.run("create", hook=hook).returncode == 0
        assert cloud.story == ["delete", "create"]

    @pytest.mark.parametrize("vm, queue", [("", "FAILED"), ("STOPPED", "")])
    def test_a_state_for_a_person_is_not_touched(self, cloud, vm, queue):
        cloud.state(vm, queue)
        assert f"n is in the state {vm}/{queue}" in refusal(cloud.run("create"))
        assert not cloud.changes

    def test_what_gcloud_refuses_ends_it(self, cloud):
        hook = "case \"$*\" in *' create '*) echo 'quota exceeded' >&2; exit 3 ;; esac"
        result = cloud.run("create", hook=hook)
        assert result.returncode == 3 and "quota exceeded" in result.stderr
        assert cloud.story == ["create"]

    def test_a_flat_bucket_is_refused(self, cloud):
        hook = "case \"$*\" in *'buckets describe'*) exit ;; esac"
        assert "gs://b has no hierarchical namespace" in refusal(cloud.run("create", hook=hook))
        assert not cloud.changes

    def test_not_being_allowed_to_look_ends_it(self, cloud):
        result = cloud.run("create", hook="[[ $* != *' list '* ]] || exit 7")
        assert result.returncode == 7 and not cloud.changes


WHOLE = ["create", "bundle", "scp", "install", "train", "look"]
AGAIN = WHOLE[1:]  # on a TPU that is there


class TestTrain:
    """Until the detector is complete, whatever happens to the TPU."""

    def test_it_runs_on_every_worker(self, cloud):
        result = cloud.run("train", *TRAIN)
        assert result.returncode == 0 and "delete.sh" in result.stderr, result
        assert cloud.story == WHOLE
        assert cloud.changes[-2][:-1] == [*SSH, "--worker=all", *ALIVE]
        assert remote(cloud.changes[-2]).splitlines()[-1] == (
            "cd jaxad && ~/venv/bin/python -m jaxad.train --config experiments/nsa_logistic.py:bottle "
            r"'--config.data.root=data/it'\''s here' --workdir runs/b"
        )
        assert cloud.changes[-1] == [*SSH, "--worker=0", *ALIVE, "--command=test -e jaxad/runs/b/detector.json"]

    def test_preemption_in_the_middle(self, cloud):
        hook = """[[ $* != *jaxad.train* || $(seen jaxad.train) -gt 2 ]] || { state PREEMPTED SUSPENDED; exit 255; }"""
        result = cloud.run("train", *TRAIN, hook=hook)
        assert result.returncode == 0, result
        lost = WHOLE[:-1]
        assert cloud.story == [*lost, "delete", *lost, "delete", *WHOLE]
        trained = [remote(call) for call in cloud.changes if "jaxad.train" in " ".join(call)]
        assert len(trained) == 3 and len(set(trained)) == 1  # the same command, which resumes

    def test_preemption_while_it_is_set_up(self, cloud):
        hook = "[[ $* != *' scp '* || $(seen ' scp ') -gt 1 ]] || { state '' SUSPENDED; exit 1; }"
        assert cloud.run("train", *TRAIN, hook=hook).returncode == 0
        assert cloud.story == ["create", "bundle", "scp", "delete", *WHOLE]

    def test_a_training_that_sigterm_stopped_goes_on(self, cloud):
        # It exits with 143, once with the VM still there and once without.
        hook = """case "$*" in *jaxad.train*) case $(seen jaxad.train) in
            1) exit 143 ;; 2) state '' SUSPENDED; exit 143 ;; esac ;; esac"""
        assert cloud.run("train", *TRAIN, hook=hook).returncode == 0
        assert cloud.story == [*WHOLE[:-1], *AGAIN[:-1], "delete", *WHOLE]

    def test_a_mistake_of_the_user_ends_it(self, cloud):
        result = cloud.run("train", *TRAIN, hook="[[ $* != *jaxad.train* ]] || exit 2")
        assert result.returncode == 2 and "the command itself failed" in result.stderr
        assert cloud.story == [*WHOLE[:-1], "probe"]

    def test_a_lost_connection_is_no_mistake(self, cloud):
        hook = """case "$*" in *jaxad.train*) [[ $(seen jaxad.train) -gt 1 ]] || exit 255 ;;
            *--command=true) exit 255 ;; esac"""
        assert cloud.run("train", *TRAIN, hook=hook).returncode == 0
        assert cloud.story == [*WHOLE[:-1], "probe", *AGAIN]

    def test_an_outage_of_the_network_is_waited_for(self, cloud):
        hook = """case "$*" in *jaxad.train*) [[ $(seen jaxad.train) -gt 1 ]] || { touch outage; exit 1; } ;; esac
            [[ ! -e outage ]] || case "$*" in
              *' list '*) [[ $(seen ' list ') -gt 9 ]] || exit 1 ;; *--command=true) rm outage; exit 1 ;; esac"""
        assert cloud.run("train", *TRAIN, hook=hook).returncode == 0
        assert cloud.story == [*WHOLE[:-1], "probe", *AGAIN]

    def test_it_gives_up_after_so_many_restarts(self, cloud):
        hook = "[[ $* != *jaxad.train* ]] || { state PREEMPTED SUSPENDED; exit 255; }"
        result = cloud.run("train", *TRAIN, hook=hook, TPU_RESTARTS="2")
        assert result.returncode == 2 and "not done after 2 restarts" in result.stderr
        assert cloud.story.count("train") == 3

    def test_a_failing_create_ends_it(self, cloud):
        result = cloud.run("train", *TRAIN, hook="[[ $* != *' create '* ]] || exit 3")
        assert result.returncode == 3 and cloud.story == ["create"]

    @pytest.mark.parametrize("workdir", [[], ["--workdir", "results"], ["--workdir=runs/"], ["--workdir=runs/../x"]])
    def test_a_workdir_that_would_be_lost_is_refused(self, cloud, workdir):
        for name in ("train", "sweep"):
            assert "runs/ lies in the bucket" in refusal(cloud.run(name, "--config", "x.py", *workdir))
            assert not cloud.calls


class TestSweep:
    """A Ray cluster of the hosts, and the sweep on the first."""

    def test_the_cluster_comes_first(self, cloud):
        assert cloud.run("sweep", *SWEEP).returncode == 0
        assert cloud.story == [*WHOLE[:4], "head", "join", "sweep", "look"]
        head, join, sweep, look = cloud.changes[-4:]
        assert ["--worker=0" in call for call in (head, join, sweep, look)] == [True, False, True, True]
        assert "--worker=all" in join
        assert remote(sweep).splitlines()[-1] == (
            "cd jaxad && rm -f runs/s/table.md && ~/venv/bin/python -m jaxad.sweep --engine ray --ray_address auto "
            "--devices_per_run 1 --config experiments/nsa_logistic.py --categories all --seeds 5 --workdir=runs/s"
        )
        assert remote(look) == "test -e jaxad/runs/s/table.md"

    def test_preemption_in_the_middle_makes_the_cluster_anew(self, cloud):
        hook = "[[ $* != *jaxad.sweep* || $(seen jaxad.sweep) -gt 1 ]] || { state PREEMPTED ACTIVE; exit 1; }"
        assert cloud.run("sweep", *SWEEP, hook=hook).returncode == 0
        once = [*WHOLE[:4], "head", "join", "sweep"]
        assert cloud.story == [*once, "delete", *once, "look"]

    def test_no_cluster_no_sweep(self, cloud):
        result = cloud.run("sweep", *SWEEP, hook="[[ $* != *--address* ]] || exit 5")
        assert result.returncode == 5 and cloud.story[-3:] == ["head", "join", "probe"]

    def test_failed_runs_are_its_status(self, cloud):
        result = cloud.run("sweep", *SWEEP, hook="[[ $* != *jaxad.sweep* ]] || exit 1")
        assert result.returncode == 1 and cloud.story[-2:] == ["sweep", "probe"]


def test_status_looks_at_tpu_queue_and_bucket(cloud):
    only = [*WHERE, "--filter=name~/n$"]
    result = cloud.run("status", hook="[[ $* != *'storage ls'* ]] || exit 1")
    assert result.returncode == 0 and "no finished run" in result.stderr
    assert cloud.calls == [
        [*TPUS, "tpu-vm", "list", *only], [*TPUS, "queued-resources", "list", *only],
        ["gcloud", "--quiet", "storage", "ls", "gs://b/runs/**/results.json"],
    ]  # fmt: skip


class Worker:
    """A home directory in which the commands for workers run, with harmless programs for those that they call."""

    def __init__(self, cloud: Cloud):
        self.cloud, self.home = cloud, cloud.folder / "home"
        (self.home / "venv/bin").mkdir(parents=True)
        # 169.0.0.1 is the first worker; the file number says which one this is.
        answers = {
            "curl": 'case "$*" in *number) cat ~/number ;; *endpoints) echo 7:x:169.0.0.1,8:x:169.0.0.2 ;; esac',
            "python3": 'mkdir -p ~/uv/bin; cp "$FAKE/bin/sudo" ~/uv/bin/pip; cp "$FAKE/bin/sudo" ~/uv/bin/uv',
            "pkill": "exit 1", "mountpoint": '[ -e "$FAKE/mounted" ]', "gcsfuse": ':>"$FAKE/mounted"',
        }  # fmt: skip
        record = '{ printf "%s\\0" "${0##*/}" "$@"; printf "\\x1e"; } >>"$FAKE/calls"\n'
        for name in ("sudo", "lsb_release", *answers):
            cloud.program(name, f"#!/usr/bin/env bash\n{record}{answers.get(name, '')}\n")
        for name in ("python", "ray"):
            shutil.copy(cloud.folder / "bin/sudo", self.home / "venv/bin" / name)

    def run(self, command: str) -> list[list[str]]:
        """Runs a command as sshd does; returns the calls of programs."""
        (self.cloud.folder / "calls").write_text("")
        environment = self.cloud.environment | {"HOME": str(self.home)}
        subprocess.run(["bash", "-c", command], cwd=self.home, env=environment, check=True, capture_output=True)
        return self.cloud.calls


def test_a_worker_gets_the_commit_and_keeps_nothing_but_the_bucket(cloud):
    project = cloud.folder / "project"
    shutil.copytree(ROOT / "tpu_scripts", project / "tpu_scripts")
    (cloud.folder / "bin/git").unlink()  # from here on the real one
    identity = {f"GIT_{role}_{part}": "x" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    for words in ("init", "add .", "commit -m first"):
        subprocess.run(["git", *words.split()], cwd=project, env=cloud.environment | identity, check=True,
                       capture_output=True)  # fmt: skip
    (project / "draft").write_text("not committed")
    result = subprocess.run(["bash", project / "tpu_scripts/set_up.sh"], env=cloud.environment, capture_output=True,
                            text=True)  # fmt: skip
    assert result.returncode == 0 and "not committed" in result.stderr, result
    scp, ssh = cloud.calls
    assert scp == [*TPUS, "tpu-vm", "scp", f"{cloud.folder}/n.bundle", "n:jaxad.bundle", *WHERE, "--worker=all"]
    assert "--worker=all" in ssh

    worker = Worker(cloud)
    shutil.copy(cloud.folder / "n.bundle", worker.home / "jaxad.bundle")
    first = worker.run(remote(ssh))
    assert [call for call in first if call[0] == "gcsfuse"] == [
        ["gcsfuse", "--implicit-dirs", "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0", "b",
         str(worker.home / "bucket")]
    ]  # fmt: skip
    install = ["--python", f"{worker.home}/venv", "-e", f"{worker.home}/jaxad[tpu,ray]"]
    assert ["uv", "pip", "install", "-q", *install] in first
    (worker.home / "jaxad/runs/kept").write_text("")
    again = worker.run(remote(ssh))  # on a VM that survived: nothing is installed or mounted twice
    assert {call[0] for call in again} == {"pkill", "mountpoint", "uv"}
    assert (worker.home / "bucket/runs/kept").exists()
    assert (worker.home / "jaxad/data").resolve() == worker.home / "bucket/data"
    assert (worker.home / "jaxad/tpu_scripts/train.sh").exists() and not (worker.home / "jaxad/draft").exists()


def test_workers_run_what_the_user_typed_after_what_was_left_over(cloud):
    cloud.run("train", *TRAIN)
    command = remote(cloud.changes[-2])
    worker = Worker(cloud)
    (worker.home / "jaxad").mkdir()
    ended, trained = worker.run(command)
    assert trained == ["python", "-m", "jaxad.train", *TRAIN]
    assert ended[:2] == ["pkill", "-f"]
    pattern = re.compile(ended[2])
    assert pattern.search("/home/me/venv/bin/python -m jaxad.sweep --engine ray")
    assert not pattern.search(f"bash -c {command}")  # itself


@pytest.mark.parametrize("number, joins", [("0", False), ("1", True)])
def test_every_worker_but_the_first_joins_the_cluster(cloud, number, joins):
    cloud.run("sweep", *SWEEP)
    worker = Worker(cloud)
    (worker.home / "jaxad").mkdir()
    (worker.home / "number").write_text(number)
    calls = worker.run(remote(cloud.changes[-3]))
    rays = [call for call in calls if call[0] == "ray"]
    assert rays == ([["ray", "stop", "--force"], ["ray", "start", "--address=169.0.0.1:6379"]] if joins else [])


def readme_rows(*, columns: int) -> list[list[str]]:
    """The rows of the README's table with so many columns, below its head."""
    text = (ROOT / "tpu_scripts/README.md").read_text()
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if len(row) == columns][2:]


# Good training images of MVTec AD (Bergmann et al. 2019, Table 1).
IMAGES = {
    "carpet": 280, "grid": 264, "leather": 245, "tile": 230, "wood": 247, "bottle": 209, "cable": 224, "capsule": 219,
    "hazelnut": 391, "metal_nut": 220, "pill": 267, "screw": 320, "toothbrush": 60, "transistor": 213, "zipper": 240,
}  # fmt: skip
PEAK = 197e12


@pytest.fixture(scope="module")
def network() -> tuple[int, dict[int, int]]:
    """NSA's network: its parameters, and FLOP of a training step by the image's side."""
    model = EncoderDecoder()

    def apply(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    key, small = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, image: model.init(key, image, train=False), key, small)
    images = {side: jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32) for side in (224, 256)}
    operations = {side: flops.training(apply, variables, image) for side, image in images.items()}
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), operations


def test_the_readmes_sweep_is_the_formulas(network):
    _, operations = network
    work = {
        name: SETTINGS[name].epochs * -(-count // 64) * 64 * operations[SETTINGS[name].view.crop]
        for name, count in IMAGES.items()
    }
    assert f"{5 * sum(work.values()) / 1e15:.1f} PFLOP in 75 runs" in (ROOT / "tpu_scripts/README.md").read_text()
    rows = readme_rows(columns=5)
    assert [row[0] for row in rows] == ["5 %", "10 %", "20 %", "40 %"]
    for share, step, training, whole, wall in rows:
        rate = float(share.split()[0]) / 100 * PEAK
        busy = [0.0] * 16
        for seconds in (work[name] / rate + 120 for name in IMAGES for _ in range(5)):
            busy[busy.index(min(busy))] += seconds
        total = 600 + max(busy)
        assert step == f"{1000 * 64 * operations[224] / rate:.0f} ms"
        assert training == f"{5 * sum(work.values()) / rate / 3600:.1f} chip-hours"
        assert (whole, wall) == (f"{16 * total / 3600:.1f} chip-hours", f"{total / 60:.0f} min")


def test_the_readmes_weak_scaling_is_the_formulas(network):
    parameters, operations = network
    text = (ROOT / "tpu_scripts/README.md").read_text()
    normalised = 10_272
    assert f"of {parameters:,} parameters" in text and f"{parameters - normalised:,} float32" in text
    rows = readme_rows(columns=10)
    assert [row[0] for row in rows] == ["16", "64", "256"]
    for chips, _, bandwidth, gradient, hops, statistics, *efficiencies in rows:
        reduce = 2 * 4 * (parameters - normalised) * (1 - 1 / int(chips)) / (float(bandwidth.split()[0]) * 1e9)
        wait = 58 * int(hops) * 1e-6
        assert (gradient, statistics) == (f"{1e3 * reduce:.2f} ms", f"{1e3 * wait:.2f} ms")
        for shown, (images, share) in zip(efficiencies, ((64, 0.2), (64, 0.4), (16, 0.2), (4, 0.2)), strict=True):
            compute = images * operations[224] / (share * PEAK)
            assert shown == f"{100 * compute / (compute + reduce + wait):.0f} %"
