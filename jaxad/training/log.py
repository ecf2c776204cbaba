"""Metrics of a training run: on the screen, in metrics.jsonl, and as TensorBoard events."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from jaxad.errors import UserError
from jaxad.runtime import disk

_FLUSH_S = 30  # until TensorBoard sees an event


class Log:
    """Metrics to the screen, metrics.jsonl and TensorBoard; averages over the steps since the last line.

    What `warn` says of them is printed when it begins to.
    """

    def __init__(
        self,
        workdir: Path,
        config: ConfigDict,
        *,
        start: int,
        steps: int,
        per_epoch: int,
        warn: Callable[[dict[str, float]], str | None] | None = None,
    ):
        self._config, self._per_epoch = config, per_epoch
        self._warn, self._warned = warn, False
        self._path = workdir / "metrics.jsonl"
        # A killed run may have logged steps after its last checkpoint; they are run, and logged, again.
        rows = [row for row in read_history(workdir) if row["step"] <= start]
        disk.write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._seconds = rows[-1]["seconds"] if rows else 0.0
        self._events = _open_events(workdir / "tensorboard", start=start)
        shown = {"disable": not sys.stderr.isatty(), "dynamic_ncols": True}
        self._bar = tqdm(total=steps, initial=start, unit="step", **shown)
        self._rows, self._clock, self._end, self._flushed = [], time.perf_counter(), steps, time.monotonic()

    def add_all(self, rows: Iterable[tuple[int, dict[str, np.ndarray]]]) -> None:
        """Takes completed steps, each with its metrics."""
        for step, metrics in rows:
            self.add(step, metrics)

    def add(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Takes the metrics of a completed step (`step` counts from 1)."""
        self._rows.append(metrics)
        self._bar.update()
        if step % self._config.log_every and step != self._end:
            return
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self._seconds += elapsed
        means = {name: float(np.mean([row[name] for row in self._rows])) for name in metrics}
        speed = len(self._rows) * self._config.batch / elapsed
        row = {"step": step, "epoch": step / self._per_epoch, **means}
        row |= {"images_per_second": speed, "seconds": self._seconds}
        self._rows = []
        self._write(row)
        self._bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.1f} images/s")
        if self._bar.disable:
            left = (self._end - step) * self._config.batch / speed
            figures = f"loss {means['loss']:.4f}  {speed:.1f} images/s  {left:.0f} s left"
            print(f"step {step}/{self._end}  {figures}", flush=True)
        warning = self._warn(means) if self._warn else None
        if warning and not self._warned:
            tqdm.write(f"warning: step {step}: {warning}", file=sys.stderr)
        self._warned = warning is not None

    def add_synthetic(self, step: int, measure: Callable[[], dict[str, float]]) -> None:
        """Takes what `jaxad.training.synthetic_validation.measure` says after a step, as a row of its own.

        The time that this takes is no part of the training's speed.
        """
        began = time.perf_counter()
        figures = measure()
        self._clock += time.perf_counter() - began
        self._write({"step": step, "epoch": step / self._per_epoch, **figures, "seconds": self._seconds})
        image, pixel = (f"{100 * figures[f'synthetic_{level}_auroc']:.1f} %" for level in ("image", "pixel"))
        tqdm.write(f"step {step}/{self._end}  synthetic defects: image AUROC {image}, pixel AUROC {pixel}")
        sys.stdout.flush()

    def _write(self, row: dict[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step":
                event = Event(wall_time=time.time(), step=int(row["step"]), summary=scalar(name, value))
                self._events.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH_S:  # it waits for the disk
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the bar and the event file."""
        self._bar.close()
        self._events.close()


def _open_events(folder: Path, *, start: int) -> EventsWriter:
    """A file of TensorBoard events, which tell TensorBoard to forget older ones after step `start`.

    It is written in this thread. That of tensorboardX's SummaryWriter ends on a full disk, and the training then waits
    for it for ever.
    """
    folder.mkdir(exist_ok=True)
    events = EventsWriter(str(folder / "events"))
    events.write_event(Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.START)))
    return events


class NoLog:
    """What takes the place of a `Log` in processes that don't write."""

    def add_all(self, rows: Iterable[tuple[int, dict[str, np.ndarray]]]) -> None:
        """Takes completed steps; what `rows` checks of them is checked."""
        for _ in rows:
            pass

    def add_synthetic(self, step: int, measure: Callable[[], dict[str, float]]) -> None:
        """Measures nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_history(workdir: Path) -> list[dict[str, float]]:
    """The rows of a workdir's metrics.jsonl; a last line that was cut off by a kill is left out.

    Raises:
      UserError: Another line was damaged.
    """
    path, rows = Path(workdir) / "metrics.jsonl", []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue
        try:
            rows.append(json.loads(line))
            float(rows[-1]["step"] + rows[-1]["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"line {number} of {path} is damaged; remove the line: the metrics of its step alone are lost",
                about=path,
            ) from error
    return rows
