"""The records of a run: metrics.jsonl, TensorBoard events, lines on the screen."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event

from jaxad.training.log import Log, read_history
from tests.refusals import refuses

CONFIG = ConfigDict({"batch": 4, "log_every": 3})


def record(workdir: Path, steps: range, *, start: int = 0, end: int = 8) -> None:
    """Logs the steps, whose loss is twice their number."""
    log = Log(workdir, CONFIG, start=start, steps=end, per_epoch=2)
    for step in steps:
        log.add(step, {"loss": np.float32(2 * step)})
    log.close()


def scalars(workdir: Path) -> dict[int, float]:
    """The losses in the event files by step; a record is length, its checksum, the event, its checksum."""
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            losses = [value.simple_value for value in event.summary.value if value.tag == "loss"]
            if losses:
                found[event.step] = losses[0]
            content = content[16 + length :]
    return found


def test_rows_average_the_steps_since_the_last_and_the_end_is_logged(tmp_path: Path, capsys) -> None:
    record(tmp_path, range(1, 9))
    rows = read_history(tmp_path)
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == [(3, 1.5, 4), (6, 3, 10), (8, 4, 15)]
    assert all(row["images_per_second"] > 0 for row in rows)
    assert rows[0]["seconds"] < rows[1]["seconds"] < rows[2]["seconds"]
    assert rows[2]["seconds"] - rows[1]["seconds"] == pytest.approx(2 * 4 / rows[2]["images_per_second"])
    assert scalars(tmp_path) == {3: 4, 6: 10, 8: 15}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["3/8", "6/8", "8/8"]
    assert "loss 4.0000" in lines[0] and lines[2].endswith("0 s left")


def test_synthetic_figures_have_a_row_of_their_own_and_cost_no_speed(tmp_path: Path, monkeypatch, capsys) -> None:
    clock = iter(range(0, 1000, 10))  # every look at the clock is ten seconds after the last
    monkeypatch.setattr("jaxad.training.log.time.perf_counter", lambda: next(clock))
    log = Log(tmp_path, CONFIG, start=0, steps=8, per_epoch=2)
    figures = {"synthetic_image_auroc": 0.75, "synthetic_pixel_auroc": 0.5, "synthetic_pixel_auroc_scar": 0.25}
    for step in range(1, 4):
        log.add(step, {"loss": np.float32(step)})
    log.add(4, {"loss": np.float32(4)})
    log.add_synthetic(4, lambda: figures)
    log.add(5, {"loss": np.float32(5)})
    log.add(6, {"loss": np.float32(6)})
    log.close()
    first, second, third = read_history(tmp_path)
    assert second == {"step": 4, "epoch": 2, **figures, "seconds": first["seconds"]}
    # Three looks at the clock since the first line, one of them at the end of the measurement.
    assert (third["step"], third["loss"], third["seconds"] - first["seconds"]) == (6, 5, 20)
    line = capsys.readouterr().out.splitlines()[1]
    assert line == "step 4/8  synthetic defects: image AUROC 75.0 %, pixel AUROC 50.0 %"


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    record(tmp_path, range(1, 8))
    seconds = read_history(tmp_path)[0]["seconds"]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7')
    assert [row["step"] for row in read_history(tmp_path)] == [3, 6]
    record(tmp_path, range(5, 9), start=4)
    assert [(row["step"], row["loss"]) for row in read_history(tmp_path)] == [(3, 4), (6, 11), (8, 15)]
    assert read_history(tmp_path)[1]["seconds"] > seconds
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_kill_while_resuming_costs_no_history(tmp_path: Path, monkeypatch) -> None:
    record(tmp_path, range(1, 9))
    before = read_history(tmp_path)

    def cut_off(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Log(tmp_path, CONFIG, start=6, steps=8, per_epoch=2)
    assert read_history(tmp_path) == before


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 2}', "\0\0", '{"step": null, "seconds": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line) -> None:
    record(tmp_path, range(1, 9))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    with refuses(path, "line 2"):
        read_history(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events"])
def test_a_full_disk_is_an_error_and_no_endless_wait(tmp_path: Path, monkeypatch, name) -> None:
    """Nobody writes in another thread, for which the training would wait for ever."""
    monkeypatch.setattr("jaxad.training.log._FLUSH_S", 0)
    log = Log(tmp_path, ConfigDict({"batch": 4, "log_every": 1}), start=0, steps=100, per_epoch=2)
    if name == "events":
        log._events._py_recordio_writer._writer.close()
        with open("/dev/full", "wb") as full:
            monkeypatch.setattr(log._events._py_recordio_writer, "_writer", full)
            with pytest.raises(OSError, match="No space left on device"):
                log.add(1, {"loss": np.float32(1)})
            full.raw.close()
    else:
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device"):
            log.add(1, {"loss": np.float32(1)})
        log.close()


def test_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_a_warning_is_printed_when_it_begins(tmp_path: Path, capsys) -> None:
    """Of the four rows the second and the third are too high."""

    def warn(row):
        return "too high" if row["loss"] > 5 else None

    log = Log(tmp_path, CONFIG, start=0, steps=12, per_epoch=2, warn=warn)
    for step, loss in enumerate([4, 4, 4, 10, 10, 10, 15, 15, 15, 4, 4, 4], start=1):
        log.add(step, {"loss": np.float32(loss)})
    log.close()
    assert capsys.readouterr().err == "warning: step 6: too high\n"
