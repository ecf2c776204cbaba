"""Checkpoints: what is restored is what was saved, or the one before it, and the user is told."""

import errno
import gc
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxad.runtime import checkpoint, devices, disk
from jaxad.runtime.checkpoint import Checkpoints
from tests.refusals import refuses


def state_of(step: int) -> dict:
    """A state that tells its step in every leaf, replicated over the devices."""
    rng = np.random.default_rng(step)
    tree = {"step": np.int32(step), "params": {"w": rng.random((40, 50)).astype(np.float32)}, "empty": {}}
    return devices.replicate(tree, devices.make_mesh())


def restored(directory: Path) -> int | None:
    """The step that a resumed run would start from, after checking that its state is the one that was saved."""
    with Checkpoints(directory, keep=2) as checkpoints:
        step = checkpoints.newest()
        state = None if step is None else checkpoints.read(step, state_of(0))
    if step is None:
        return None
    jax.tree.map(np.testing.assert_array_equal, devices.to_host(state), devices.to_host(state_of(step)))
    assert state["params"]["w"].sharding == state_of(0)["params"]["w"].sharding
    return step


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with the sealed checkpoints 2 and 4."""
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state_of(step))
    return tmp_path / "checkpoints"


def largest_file(path: Path) -> Path:
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(largest_file(path).read_bytes())
    content[len(content) // 2] ^= 1
    largest_file(path).write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(largest_file(path), largest_file(path).stat().st_size // 2)


def lose_file(path: Path) -> None:
    largest_file(path).unlink()


def empty_seal(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").write_text("")


DAMAGES = [flip, truncate, lose_file, empty_seal]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 3, 10, 12):
            checkpoints.save(step, state_of(step))
            checkpoints.settle(wait=True)
            assert checkpoints.steps() == [s for s in (1, 3, 10, 12) if s <= step][-2:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "10.sha256", "12", "12.sha256"]
    assert restored(tmp_path) == 12


def test_nothing_saved_restores_nothing(tmp_path: Path) -> None:
    assert restored(tmp_path / "checkpoints") is None


def test_leaving_seals_the_save_under_way(saved: Path) -> None:
    assert checkpoint.inspect(saved / "4") is None
    assert restored(saved) == 4


def test_seal_is_what_sha256sum_checks(saved: Path) -> None:
    lines = (saved / "4.sha256").read_text().splitlines()
    assert len(lines) == sum(file.is_file() for file in (saved / "4").rglob("*"))
    assert all(re.fullmatch(r"[0-9a-f]{64}  4/.+", line) for line in lines)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_falls_back_and_says_so(saved: Path, damage, capsys) -> None:
    damage(saved / "4")
    assert restored(saved) == 2
    assert re.search(r"checkpoint 4 in .*checkpoints is damaged \(.+\); falling back", capsys.readouterr().out)
    assert sorted(path.name for path in saved.iterdir()) == ["2", "2.sha256"]


def test_all_damaged_starts_afresh(saved: Path, capsys) -> None:
    for step in ("2", "4"):
        flip(saved / step)
    assert restored(saved) is None
    assert capsys.readouterr().out.count("is damaged") == 2


def test_save_that_was_cut_off_is_no_checkpoint(saved: Path) -> None:
    (saved / "4.sha256").unlink()  # killed between the last byte and the seal
    (saved / "6.orbax-checkpoint-tmp").mkdir()  # killed while writing
    (saved / "6.orbax-checkpoint-tmp" / "part").write_text("x")
    assert restored(saved) == 2
    assert sorted(path.name for path in saved.iterdir()) == ["2", "2.sha256"]


LITTER = (".DS_Store", "Thumbs.db", ".nfs000000000001", "._4", "stray")


def test_litter_is_no_damage_and_is_let_be(saved: Path, capsys) -> None:
    for folder in (saved, saved / "4", saved / "4" / "d"):
        for name in LITTER:
            (folder / name).write_text("x")
    (saved / "notes").mkdir()  # of a user
    assert checkpoint.inspect(saved / "4") is None
    assert restored(saved) == 4 and "damaged" not in capsys.readouterr().out
    assert {path.name for path in saved.iterdir()} == {"2", "2.sha256", "4", "4.sha256", "notes", *LITTER}


def test_litter_is_not_sealed(saved: Path) -> None:
    (saved / "4" / ".DS_Store").write_text("x")  # a file manager looks while the save is under way
    (saved / "4" / "Thumbs.db").write_text("x")
    checkpoint.seal(saved / "4")
    (saved / "4" / ".DS_Store").write_text("y")
    (saved / "4" / "Thumbs.db").unlink()
    assert restored(saved) == 4


def test_a_directory_with_litter_that_cannot_be_removed_is_out_of_the_way(saved: Path, monkeypatch) -> None:
    """Network folders keep files that another process has open; the step is saved again beside them."""
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: None)
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(4, state_of(4))
    assert restored(saved) == 4


def test_a_detector_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch) -> None:
    """The reader gets the arrays and the values of one write, whenever the next one comes."""
    pointer, read, calls = tmp_path / "detector.json", checkpoint.read, []
    checkpoint.write(pointer, state_of(1), {"number": 1})

    def replaced(path):
        """The first three reads meet a write: before they begin, so that their files are gone, or behind their end."""
        calls.append(path)
        number = len(calls) + 1
        before = read(path) if number == 3 else None
        if number <= 4:
            checkpoint.write(pointer, state_of(number), {"number": number})
        return before or read(path)

    monkeypatch.setattr(checkpoint, "read", replaced)
    tree, values = checkpoint.load(pointer)
    assert len(calls) == 4 and values == {"number": 4} and tree["step"] == 4
    np.testing.assert_array_equal(tree["params"]["w"], devices.to_host(state_of(4))["params"]["w"])


def test_a_write_that_fails_leaves_the_detector_before_it(tmp_path: Path, monkeypatch) -> None:
    pointer = tmp_path / "detector.json"
    checkpoint.write(pointer, state_of(1), {"number": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name in ((ocp.StandardCheckpointer, "save"), (disk, "write_json")):
        with monkeypatch.context() as patch, refuses(pointer, "space"):
            patch.setattr(module, name, full)
            checkpoint.write(pointer, state_of(2), {"number": 2})
        tree, values = checkpoint.load(pointer)
        assert values == {"number": 1} and tree["step"] == 1
        assert len(list((tmp_path / "detector").iterdir())) == 1


def test_saving_a_step_again_replaces_it(saved: Path) -> None:
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(4, state_of(2) | {"step": state_of(99)["step"]})
    with Checkpoints(saved, keep=2) as checkpoints:
        step = checkpoints.newest()
        state = checkpoints.read(step, state_of(0))
    assert (step, int(state["step"])) == (4, 99)


@pytest.mark.parametrize("call", ["save", "wait_until_finished"])
def test_full_disk_is_told_and_the_last_complete_one_is_kept(saved: Path, call: str, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(saved, keep=2) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, call, full)
        with refuses(saved, "space") as told:
            checkpoints.save(6, state_of(6))
            checkpoints.settle(wait=True)
        assert "6" in str(told.value) and str(told.value).endswith(" 4")
        patch.undo()
        checkpoints.save(8, state_of(8))  # with space again the run could go on
    assert restored(saved) == 8


# Orbax's writing threads may be cleaned up after their event loop is closed, which Python reports as unraisable.
@pytest.mark.medium
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_write_that_really_fails_leaves_the_last_complete_one(saved: Path) -> None:
    """A limit on the size of files makes Orbax's background write fail as a full disk does."""
    big = state_of(6) | {"params": {"w": jnp.asarray(np.random.default_rng(0).random((512, 512), np.float32))}}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with refuses(saved, "step 4"), Checkpoints(saved, keep=2) as checkpoints:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            checkpoints.save(6, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        gc.collect()  # here, and not during a later test
    assert restored(saved) == 4


def test_first_save_that_fails_says_that_there_is_none(tmp_path: Path, monkeypatch) -> None:
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        monkeypatch.setattr(Path, "mkdir", denied)
        with refuses(tmp_path / "checkpoints", "Permission"):
            checkpoints.save(1, state_of(1))


def test_failed_save_does_not_hide_the_error_under_way(saved: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(KeyError, match="the first error"), Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(6, state_of(6))
        monkeypatch.setattr(checkpoint, "seal", full)
        raise KeyError("the first error")
    assert restored(saved) == 4


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with refuses("checkpoint.keep", "least"):
        Checkpoints(tmp_path, keep=0)


def test_write_and_read_a_tree_without_knowing_its_structure(tmp_path: Path) -> None:
    tree = devices.to_host(state_of(5))
    checkpoint.write(tmp_path / "detector.json", state_of(1), {"threshold": 1})
    checkpoint.write(tmp_path / "detector.json", tree, {"threshold": 2})  # replaces
    found, values = checkpoint.load(tmp_path / "detector.json")
    assert values == {"threshold": 2} and len(list((tmp_path / "detector").iterdir())) == 1
    jax.tree.map(np.testing.assert_array_equal, devices.to_host(found), tree)


@pytest.mark.parametrize("damage", DAMAGES)
def test_inspect_sees_every_damage(saved: Path, damage) -> None:
    damage(saved / "4")
    assert checkpoint.inspect(saved / "4")
    assert checkpoint.inspect(saved / "2") is None


def test_write_that_fails_is_told(tmp_path: Path, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    with refuses(tmp_path / "detector.json", "space"):
        checkpoint.write(tmp_path / "detector.json", state_of(1), {})
