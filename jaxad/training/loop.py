"""The training loop: ``train(config, workdir)``.

It knows a method by its record alone. The step is compiled once; nothing moves between host and devices inside the loop
but what is fed and the metrics that are logged. Where the training images fit on the devices they stay there, and what
is fed are their numbers.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, methods
from jaxad import detector as detectors
from jaxad.augment import synthetic_defects
from jaxad.data import binding, geometry, pipeline, summary, tiling
from jaxad.data.record import Source
from jaxad.detector import Detector
from jaxad.errors import Stopped, UserError
from jaxad.methods import memory
from jaxad.methods.method import Method
from jaxad.reporting import sample_grid
from jaxad.runtime import devices, disk, processes, provenance, stopping
from jaxad.runtime.checkpoint import Checkpoints, NoCheckpoints
from jaxad.training import cross_fitting, intake, refit, synthetic_validation
from jaxad.training import step as training
from jaxad.training.log import Log, NoLog
from jaxad.training.step import Plan, TrainState

_SHOWN = 16  # examples in the picture of what is taught


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


class _Run:
    """A training: its config, its workdir, its part of the images, and the detectors made of it.

    Attributes:
      source: The training images, in the end as `intake.take_in` returns them.
      white_level: Theirs.
      resumable: Whether checkpoints are kept.

    Raises:
      UserError: There are too few images.
    """

    def __init__(
        self, config: ConfigDict, method: Method, workdir: Path, command: str, source: Source, *, resumable: bool
    ):
        self.config, self.method, self.workdir, self.command = config, method, workdir, command
        self.resumable = resumable
        self.source, self.white_level, self._scorer, self._summary = source, None, None, None
        self.fitted, self.held = pipeline.split_holdout(source.ids, **configs.split_options(config))
        self.crossed = not len(self.held) and summary.cross_fits(len(source), config)
        fewest = len(self.fitted) - (cross_fitting.largest_fold(len(self.fitted)) if self.crossed else 0)
        if fewest < self.method.hooks.min_images:
            raise UserError(
                f"the density of {config.method} needs at least {self.method.hooks.min_images} good images besides the "
                f"held-out part, and there are {fewest}; add images or choose another density"
            )

    def fresh(self, plan: Plan, images: pipeline.Images) -> TrainState:
        """The state that the training starts from."""
        [image] = self._first(images, 1)["image"]
        good = self._good(self.fitted)
        return training.init_state(self.method, plan.optimizer, image, seed=self.config.seed, good_images=good)

    def abstract(self, plan: Plan, images: pipeline.Images) -> TrainState:
        """Shapes and shardings of the state, for which neither weights are read nor any are drawn."""
        [image] = self._first(images, 1)["image"]
        return training.abstract_state(self.method, plan.optimizer, image, plan.mesh)

    def show(self, images: pipeline.Images) -> None:
        """Writes a picture of what is taught, for the user to see."""
        if self.method.hooks.samples is not None and processes.is_main_process():
            sample_grid.write(self.workdir / "samples.png", self.method.hooks.samples(self._first(images, _SHOWN)))

    def _first(self, images: pipeline.Images, batch: int) -> dict[str, np.ndarray]:
        """The first host examples of the stream."""
        chosen = pipeline.Chosen(images, self.rows)
        [call] = pipeline.batches(chosen, self.method.host_augment, seed=self.config.seed, batch=batch, start=0, stop=1)
        return {name: rows[0] for name, rows in call.items()}

    def open_log(self, plan: Plan, *, start: int) -> Log | NoLog:
        """Where the steps after `start` are logged."""
        if not processes.is_main_process():
            return NoLog()
        lengths = {"start": start, "steps": plan.steps, "per_epoch": plan.per_epoch}
        return Log(self.workdir, self.config, **lengths, warn=self.method.hooks.warn)

    def _frames(self, numbers: np.ndarray, *, cache_bytes: float = 0) -> pipeline.Images:
        # Most are looked at a few times at most.
        return pipeline.Images(self.source, numbers, geometry=geometry.scored(self.config), cache_bytes=cache_bytes)

    def _good(self, numbers: np.ndarray) -> Sequence[np.ndarray]:
        return tiling.cut(self.config, self._frames(numbers))

    @property
    def rows(self) -> np.ndarray:
        """The numbers of the images, or of the tiles of images, that are trained on."""
        tiles = tiling.tiling_of(self.config)
        return self.fitted if tiles is None else tiles.rows(self.fitted)

    @functools.cached_property
    def _synthetic(self) -> synthetic_defects.SyntheticSet | None:
        if not len(self.held):
            return None
        return synthetic_validation.held_out(self.config, self.source, self.fitted, self.held)

    @property
    def watched(self) -> bool:
        """Whether synthetic defects are scored in the course of the training."""
        return bool(self.config.synthetic_every and self._synthetic is not None and self._synthetic.labels.any())

    def detector(self, variables: dict[str, Any]) -> Detector:
        """A detector with the density fitted, and without a threshold."""
        # From here on one device holds the weights; scoring spreads images, not weights.
        variables, refits = devices.to_host(variables), self.method.hooks.refit
        key, tiles = jax.random.key(self.config.seed), tiling.tiling_of(self.config)
        if tiles is not None and self.method.hooks.per_position:
            density = self._tile_densities(key, variables, tiles)
        else:
            given = variables, self._good(self.fitted), key
            density, self._summary = (self.method.fit(*given), None) if refits is None else refits.fit(*given)
        if self._scorer is None:
            self._scorer = Detector(self.config, variables, density, white_level=self.white_level)
        else:
            self._scorer = self._scorer.with_weights(variables, density)
        return self._scorer

    def _tile_densities(self, key: jax.Array, variables: dict[str, Any], tiles: tiling.Tiling) -> dict[str, Any]:
        """A density for each tile, by name. A network that the first has drawn is in it alone."""
        frames, made = self._frames(self.fitted, cache_bytes=self.config.data.cache_gib * 2**30), {}
        for number in range(len(tiles.places())):
            density = devices.to_host(self.method.fit(variables, tiling.Tiles(frames, tiles, number), key))
            if not number:
                memory.check_tiles(density, len(tiles.places()))
            elif isinstance(density, dict):
                density.pop("variables", None)
            made[f"tile{number}"] = density
        return made

    def measure(self, detector: Detector) -> dict[str, float]:
        """How well it finds synthetic defects in good images that were held out."""
        made = self._synthetic
        return synthetic_validation.measure(detector.score(made.images, boxes=made.boxes), made)

    def finish(self, variables: dict[str, Any]) -> Detector:
        """Makes the complete detector and writes it to the workdir."""
        detector = self.detector(variables)
        # A sample of the training images shows how good images score where none were held out.
        sample = self.fitted if self.crossed else self.fitted[: refit.SAMPLE]
        frames, figures = self._frames(self.held if len(self.held) else sample), None
        seen, boxes = frames.framed()
        if self.crossed:
            figures = refit.complete_crossed(detector, seen, boxes)
        else:
            refit.complete(detector, seen, boxes, held_out=bool(len(self.held)))
        if processes.is_main_process():
            if self._summary is not None and self.resumable:
                images = binding.read(self.workdir) or {}
                kept = refit.Kept(self._summary, seen, boxes, len(self.fitted), images, self.crossed)
                refit.write(self.workdir, kept)
            if len(self.held) or self.crossed:
                # How it finds synthetic defects in good images that it has not seen, for `jaxad.evaluate`.
                synthetic_validation.write(self.workdir, self.measure(detector) if figures is None else figures)
            detectors.write(detector, self.workdir)  # last: where it is, all is there
            print(refit.on_thresholds(detector), end="", flush=True)
        processes.barrier()
        return detector


class _Keeper:
    """The checkpoints and the log of a training's steps."""

    def __init__(self, run: _Run):
        self._run = run
        folder, keep = run.workdir / "checkpoints", run.config.checkpoint.keep
        self._checkpoints = Checkpoints(folder, keep=keep) if run.resumable else NoCheckpoints()
        self._log: Log | NoLog = NoLog()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Keeper":
        self._open.enter_context(self._checkpoints)
        return self

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)

    def begin(self, plan: Plan, images: pipeline.Images) -> tuple[int, TrainState]:
        """The step of the newest checkpoint, and its state; or 0 and a fresh one."""
        done = self._checkpoints.newest() or 0
        if not done:
            return 0, devices.replicate(self._run.fresh(plan, images), plan.mesh)
        print(f"resuming at step {done} of {plan.steps}")
        return done, self._checkpoints.read(done, self._run.abstract(plan, images))

    def open_log(self, plan: Plan, *, start: int) -> None:
        """Begins to log the steps after `start`."""
        self._log = self._open.enter_context(contextlib.closing(self._run.open_log(plan, start=start)))

    def log(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches and logs the metrics of the steps of a call that ended with step `done`."""
        self._log.add_all(self._checked(done, devices.to_host(metrics)))

    def _checked(self, done: int, metrics: dict[str, np.ndarray]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yields each step of a call with its own metrics, which are (k,) for k steps.

        Raises:
          UserError: The loss is not finite, or its gradient, which would spoil the state that is saved next.
        """
        count = len(metrics["loss"])
        for row in range(count):
            step, values = done - count + 1 + row, {name: value[row] for name, value in metrics.items()}
            for name, words in (("loss", "the loss"), ("gradient_norm", "the norm of the gradient")):
                if not np.isfinite(values[name]):
                    self.settle(wait=True)
                    kept = self._checkpoints.steps()
                    where = f"; the last good checkpoint is step {kept[-1]}" if kept else ""
                    advice = "start again with a lower config.optim.learning_rate"
                    advice += " and another --workdir" if self._run.resumable else ""
                    raise UserError(f"{words} is {values[name]} at step {step}{where}; {advice}")
            yield step, values

    def save(self, done: int, state: TrainState) -> None:
        """Starts to write the state after step `done` as a checkpoint."""
        self._checkpoints.save(done, state)

    def settle(self, *, wait: bool = False) -> None:
        """Seals the saves that have finished."""
        self._checkpoints.settle(wait=wait)

    def measure(self, done: int, state: TrainState) -> None:
        """Logs how the detector finds synthetic defects after step `done`."""
        if self._run.watched:
            self._log.add_synthetic(done, lambda: self._run.measure(self._run.detector(_variables(state))))


def _fit_weights(run: _Run, images: pipeline.Images, plan: Plan, *, defer_signals: bool) -> dict[str, Any]:
    """Runs the steps that are left; the variables after them. Raises Stopped when a signal stopped them."""
    config = run.config
    with _Keeper(run) as keeper, stopping.deferred() if defer_signals else stopping.at_once() as stop_asked:
        done, state = keeper.begin(plan, images)
        if done < plan.steps:
            _record(run, start=not done)
            if not done:
                run.show(images)
            step = training.make_step(run.method, plan.optimizer, plan.schedule)
            train_steps = devices.compile_train_steps(step, plan.mesh)
            shared, calls = training.input_stream(
                config, run.method, images, run.rows, plan.mesh, start=done, stop=plan.steps
            )
            if processes.is_main_process():
                print("compiling the training step, which can take minutes", flush=True)
            keeper.open_log(plan, start=done)
        else:
            calls = ()
        with jax.transfer_guard("disallow"):
            waiting = None
            for batches in calls:
                state, metrics = train_steps(state, batches, shared)
                # Metrics are fetched one call late, so that the devices never wait for the host.
                if waiting is not None:
                    keeper.log(done, waiting)
                waiting, done = metrics, done + len(batches["index"])
                stop = stop_asked()
                due = done == plan.steps or done % config.checkpoint.every_steps == 0 or bool(stop)
                # The last figures are those of the complete detector, see `_Run.finish`.
                measured = config.synthetic_every and done < plan.steps and done % config.synthetic_every == 0
                if due or measured:
                    keeper.log(done, waiting)
                    waiting = None
                with jax.transfer_guard("allow"):  # both copy the state to the host on purpose
                    if due:
                        keeper.save(done, state)
                    if measured and not stop:
                        keeper.measure(done, state)
                keeper.settle()
                if stop:
                    break
            else:  # it may have come while nothing was left to do
                stop = stop_asked()
    if stop:
        sentence = f"stopped at step {done} of {plan.steps}; the same command resumes there"
        print(sentence, flush=True)
        raise Stopped(stop, sentence)
    return _variables(state)


def _record(run: _Run, *, start: bool) -> None:
    """Keeps the command and the machine with the run, and at its start the hashes of the files that it reads."""
    checksums = run.method.hooks.pretrained_checksums
    read = {"sha256": checksums()} if start and checksums is not None else {}
    provenance.record(run.workdir, run.command, **read)


def _training_images(run: _Run) -> pipeline.Images:
    """All images, kept in the host's memory if they fit there and not on the devices (`fits_on_device`)."""
    config, source = run.config, run.source
    framed = {"geometry": geometry.trained(config)}
    open_images = functools.partial(pipeline.Images, source, np.arange(len(source)), **framed)
    images = tiling.cut(config, open_images(cache_bytes=0))
    if training.fits_on_device(config, run.method, images):
        return images
    return tiling.cut(config, open_images(cache_bytes=config.data.cache_gib * 2**30 / (1 + config.data.workers)))


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    command: str = "jaxad.training.loop.train",
    restart: bool = False,
    held: contextlib.ExitStack | None = None,
    source: Source | None = None,
    defer_signals: bool = True,
    resumable: bool = True,
) -> Detector:
    """Trains a detector, or resumes its training, and writes it to `workdir`.

    Args:
      config: A locked config as experiments make it.
      workdir: A directory to create, or one made with the same config and images.
      command: What the user typed, for the provenance of the results.
      restart: Begins anew, with any config and images; a training that `workdir` holds is deleted.
      held: Keeps the lock of the workdir for longer than the training.
      source: The training images; by default those that ``config.data`` names.
      defer_signals: Whether Ctrl-C and SIGTERM let the step under way complete and its state be saved. The process's
        own handlers are replaced for that long.
      resumable: Whether checkpoints are kept.

    Returns:
      The detector.

    Raises:
      UserError: The config or the data cannot be used, the workdir cannot be written, is in use or belongs to another
        config or other images, or the loss is no longer finite.
      Stopped: Ctrl-C or SIGTERM stopped the training; its state was saved, and the same call resumes it.
    """
    workdir = Path(workdir)
    intake.check_place(config, workdir)
    config = intake.with_dtype(config, workdir, restart=restart)
    config = intake.with_begun_roi(config, workdir, restart=restart)
    method = methods.create(config)  # before the images are looked for
    intake.check_sizes(config, method)
    source = data.load(config).train if source is None else source
    measured = intake.with_aspect(intake.with_roi(config, source), workdir, source, restart=restart)
    if measured is not config:
        config, method = measured, methods.create(measured)
        intake.check_sizes(config, method)
    run = _Run(config, method, workdir, command, source, resumable=resumable)
    plan = None if method.loss is None else training.plan(config, method, len(run.rows))
    load_pretrained = method.hooks.load_pretrained
    if load_pretrained is not None and (restart or not (workdir / "config.json").exists()):
        # Weights that cannot be used are refused before anything is written.
        size = configs.seen_size(config)
        image = jax.ShapeDtypeStruct((1, *size, configs.channels(config)), np.float32)
        load_pretrained(jax.eval_shape(method.init, jax.random.key(0), image))
    if plan is not None:
        intake.check_step(config, method, plan)
    with contextlib.ExitStack() as own:
        # Only now, when nothing in the config is left to be refused: a workdir takes no other config afterwards.
        if processes.is_main_process():
            (own if held is None else held).enter_context(disk.locked(workdir))
        run.source, run.white_level = intake.take_in(config, workdir, source, restart=restart)
        with pipeline.opencv_on_one_thread():
            return _train(run, plan, defer_signals=defer_signals)


def _train(run: _Run, plan: Plan | None, *, defer_signals: bool) -> Detector:
    """`train` in a workdir that is claimed."""
    if plan is None:
        _record(run, start=True)
        begun = time.perf_counter()
        made = run.finish({})
        provenance.add(run.workdir, fit_s=time.perf_counter() - begun)
        return made
    if run.config.synthetic_every and not len(run.held):
        print("no good images are held out (config.data.holdout): the training is not watched by synthetic defects")
    return run.finish(_fit_weights(run, _training_images(run), plan, defer_signals=defer_signals))
