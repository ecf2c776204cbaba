"""Sizes that no memory can hold are refused with figures, before anything is allocated or written."""

import re
import resource

import pytest

from jaxad import config as configs
from jaxad import detector, evaluate, methods, predict
from jaxad.methods import memory
from tests.commands import train
from tests.parts import BASELINE, NSA, baseline, command, refusal, write_parts


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A fitted baseline, not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    write_parts(folder / "sets")
    assert command(train.main, *baseline(folder / "sets", folder / "work")) == 0
    return folder / "work"


# A million pixels a side are 3e12 bytes an image: with its partner 5,587.9 GiB.
TRAININGS = {
    "size": (NSA, ["--config.data.size=1000000", "--config.view.crop=64"], "an image and its partner of "
             "config.data.size=1000000 pixels a side take at least 5,587.9 GiB of memory, and this machine has ",
             "; lower config.data.size"),
    "baseline": (BASELINE, ["--config.data.size=1000000"], "config.data.size=1000000 pixels a side take at least "
                 "5,587.9 GiB", ""),
    # 2e9 images and partners of 128 x 128 pixels, on 8 simulated devices.
    "batch": (NSA, ["--config.batch=2000000000", "--config.data.size=128", "--config.view.crop=64"], "a device's part "
              "of config.batch=2000000000 images and partners of config.data.size=128 pixels a side take at least "
              "22,888.2 GiB", "; lower config.batch or config.data.size"),
    "scoring": (NSA, ["--config.score.size=999936", "--config.evaluate.crop=0"], "a device's part of ", " images "
                "(config.evaluate.batch) of config.score.size=999936 pixels a side"),
    "evaluate": (BASELINE, ["--config.evaluate.batch=1000000000"], "a device's part of 1000000000 images "
                 "(config.evaluate.batch) of config.score.size=256 pixels a side take at least 122,070.3 GiB",
                 "; lower config.evaluate.batch or config.score.size"),
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("name", TRAININGS)
def test_an_absurd_training_is_refused_before_anything_is_made(tmp_path, capsys, name) -> None:
    file, flags, *words = TRAININGS[name]
    message = refusal(capsys, train.main, "--config", file, "--workdir", tmp_path / "work", *flags)
    assert all(word in message for word in words), message
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_a_network_whose_first_layer_does_not_fit_is_refused(tmp_path, capsys, monkeypatch) -> None:
    """The first of ResNet-18 gives 64 channels at half the side: 16 MiB for an image of 512 pixels, one a device."""
    monkeypatch.setattr(memory, "check_scoring", lambda config: None)
    write_parts(tmp_path / "sets", train=8)
    given = ["--config", f"{NSA}:object", "--config.batch=8", "--config.data.size=512", "--config.view.crop=512"]
    given += ["--config.view.center_crop=0", "--config.evaluate.crop=0", "--workdir", tmp_path / "work"]
    given += [f"--config.data.root={tmp_path / 'sets' / 'nut'}"]
    monkeypatch.setattr(memory, "host_memory", lambda: 16 * 2**20 - 1)
    message = refusal(capsys, train.main, *given)
    assert "config.batch" in message and "config.data.size=512" in message and "GiB" in message
    assert not (tmp_path / "work").exists()


@pytest.mark.medium
@pytest.mark.parametrize("key, value", [("score.size", 1000000), ("evaluate.batch", 10**12)])
def test_an_absurd_evaluation_is_refused(work, capsys, key, value) -> None:
    before = (work / "results.json").read_bytes()
    message = refusal(capsys, evaluate.main, "--workdir", work, f"--config.{key}={value}")
    assert f"config.{key}" in message and re.search(r"take at least [\d,.]+ GiB of memory, and .* has ", message)
    assert (work / "results.json").read_bytes() == before


@pytest.mark.medium
def test_a_test_set_that_does_not_fit_is_refused(work, capsys, monkeypatch) -> None:
    """5 images of 32 x 32 in colour, 3 bytes a pixel and 4 of the map: 35,840 bytes."""
    monkeypatch.setattr(memory, "check_scoring", lambda config: None)
    monkeypatch.setattr(memory, "host_memory", lambda: 35_839)
    message = refusal(capsys, evaluate.main, "--workdir", work)
    assert "5 test images" in message and "config.score.size=32" in message and "GiB" in message
    monkeypatch.setattr(memory, "host_memory", lambda: 35_840)
    assert command(evaluate.main, "--workdir", work) == 0


@pytest.mark.medium
def test_predict_looks_too(work, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 1000)
    message = refusal(capsys, predict.main, tmp_path, "--workdir", work)
    assert "(config.evaluate.batch) of config.score.size=32 pixels a side take at least" in message
    with pytest.raises(Exception, match="take at least"):
        detector.load(work)


def test_memory_is_that_of_the_machine_its_container_or_the_limit(monkeypatch) -> None:
    everything = memory.host_memory()
    assert 2**28 < everything < 2**50
    monkeypatch.setattr(memory, "_container_limits", lambda: iter([2**30]))
    assert 2**30 <= memory.host_memory() <= everything
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, resource.RLIM_INFINITY))
    assert memory.host_memory() == 2**20


@pytest.mark.parametrize("line, file", [
    ("0::/a/b", "a/memory.max"), ("0::/", "memory.max"), ("4:memory:/a", "memory/a/memory.limit_in_bytes"),
    ("4:cpu,memory:/not/seen", "memory/memory.limit_in_bytes"),
])  # fmt: skip
def test_limits_of_containers(monkeypatch, tmp_path, line, file) -> None:
    """Those of the groups above hold too; within a container its own group is the root."""
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("12345\n")
    read = memory.Path.read_text
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(
        memory.Path, "read_text", lambda self: line if str(self) == "/proc/self/cgroup" else read(self)
    )
    assert list(memory._container_limits()) == [12345]
    (tmp_path / file).write_text("max\n")
    assert list(memory._container_limits()) == []


def test_what_the_experiments_need_is_little() -> None:
    for file in (NSA, BASELINE):
        config = configs.load(file)
        memory.check_training(config, methods.create(config))
        memory.check_scoring(config)
