"""The training loop: ``train(config, workdir)``, or several seeds of a training as one program.

It knows a method by its record alone. The step is compiled once; nothing moves between host and devices inside the loop
but what is fed and the metrics that are logged. Where the training images fit on the devices they stay there, and what
is fed are their numbers.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, methods
from jaxad.data import pipeline
from jaxad.data.record import Source
from jaxad.detector import Detector
from jaxad.errors import Stopped, UserError
from jaxad.methods.method import Method
from jaxad.reporting import sample_grid
from jaxad.runtime import devices, disk, processes, provenance, stopping
from jaxad.runtime.checkpoint import Checkpoints
from jaxad.scoring.threshold import fit_threshold
from jaxad.training import intake, synthetic_validation
from jaxad.training import step as training
from jaxad.training.log import Log, NoLog
from jaxad.training.step import Plan, TrainState

_SHOWN = 16  # examples in the picture of what is taught


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


class _Run:
    """One seed of a training: its config, its workdir, its part of the images, and the detectors made of it.

    Attributes:
      source: The training images, in the end as `intake.take_in` returns them.
      white_level: Theirs.

    Raises:
      UserError: There are too few images.
    """

    def __init__(self, config: ConfigDict, method: Method, workdir: str | Path, command: str, source: Source):
        self.config, self.method, self.workdir, self.command = config, method, Path(workdir), command
        self.source, self.white_level, self._scorer = source, None, None
        self.fitted, self.held = pipeline.split_holdout(len(source), holdout=config.data.holdout, seed=config.seed)
        if len(self.fitted) < self.method.least:
            raise UserError(
                f"the density of {config.method} needs at least {self.method.least} good images besides the held-out "
                f"part, and there are {len(self.fitted)}; add images or choose another density"
            )

    def fresh(self, plan: Plan, images: pipeline.Images) -> TrainState:
        """The state that the training starts from."""
        [image] = self._first(images, 1)["image"]
        return training.init_state(self.method, plan.optimizer, image, seed=self.config.seed)

    def abstract(self, plan: Plan, images: pipeline.Images) -> TrainState:
        """Shapes and shardings of the state, for which neither weights are read nor any are drawn."""
        [image] = self._first(images, 1)["image"]
        return training.abstract_state(self.method, plan.optimizer, image, plan.mesh)

    def show(self, images: pipeline.Images) -> None:
        """Writes a picture of what is taught, for the user to see."""
        if self.method.samples is not None and processes.is_main_process():
            sample_grid.write(self.workdir / "samples.png", self.method.samples(self._first(images, _SHOWN)))

    def _first(self, images: pipeline.Images, batch: int) -> dict[str, np.ndarray]:
        """The first host examples of the stream."""
        chosen = pipeline.Chosen(images, self.fitted)
        [made] = pipeline.batches(chosen, self.method.example, seed=self.config.seed, batch=batch, start=0, stop=1)
        return {name: rows[0] for name, rows in made.items()}

    def open_log(self, plan: Plan, *, start: int, name: str) -> Log | NoLog:
        """Where the steps after `start` are logged; the lines that are printed begin with the name."""
        if not processes.is_main_process():
            return NoLog()
        lengths = {"start": start, "steps": plan.steps, "per_epoch": plan.per_epoch}
        return Log(self.workdir, self.config, **lengths, name=name, warn=self.method.warn)

    def _good(self, numbers: np.ndarray) -> pipeline.Images:
        # Each is looked at a few times at most.
        return pipeline.Images(self.source, numbers, size=self.config.score.size, cache_bytes=0)

    @functools.cached_property
    def _made(self) -> synthetic_validation.SyntheticSet | None:
        if not len(self.held):
            return None
        given = self._good(self.held).stack(), self._good(self.fitted)
        return synthetic_validation.make(*given, crop=self.config.evaluate.crop)

    @property
    def watched(self) -> bool:
        """Whether synthetic defects are scored in the course of the training."""
        return bool(self.config.synthetic_every and self._made is not None and self._made.labels.any())

    def detector(self, variables: dict[str, Any]) -> Detector:
        """A detector with the density fitted, and without a threshold."""
        # From here on one device holds the weights; scoring spreads images, not weights.
        variables = devices.to_host(variables)
        density = self.method.fit(variables, self._good(self.fitted), jax.random.key(self.config.seed))
        if self._scorer is None:
            self._scorer = Detector(self.config, variables, density, white_level=self.white_level)
        else:
            self._scorer = self._scorer.with_weights(variables, density)
        return self._scorer

    def measure(self, detector: Detector) -> dict[str, float]:
        """How well it finds synthetic defects in good images that were held out."""
        return synthetic_validation.measure(detector.score(self._made.images), self._made)

    def finish(self, variables: dict[str, Any]) -> Detector:
        """Makes the complete detector and writes it to the workdir."""
        detector = self.detector(variables)
        # A sample of the training images shows how good images score where none were held out.
        scores = detector.score(self._good(self.held if len(self.held) else self.fitted[:32]).stack())
        detector.fit_ranges(scores)
        if len(self.held):
            rate = self.config.threshold.false_alarm_rate
            detector.threshold = fit_threshold(scores.image, false_alarm_rate=rate)
        if processes.is_main_process():
            if len(self.held):
                # How it finds synthetic defects in good images that it has not seen, for `jaxad.evaluate`.
                synthetic_validation.write(self.workdir, self.measure(detector))
            detector.save(self.workdir)  # last: where it is, all is there
        processes.barrier()
        return detector


class _Keeper:
    """The checkpoints and the log of the steps of several runs, whose states are one (see `training.pack`)."""

    def __init__(self, runs: Sequence[_Run]):
        self._runs = runs
        # A kill between two seeds' saves leaves them at two steps, and they resume at one that all have.
        least = min(len(runs), 2)
        self._checkpoints = [
            Checkpoints(run.workdir / "checkpoints", keep=max(run.config.checkpoint.keep, least)) for run in runs
        ]
        self._logs: list[Log | NoLog] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Keeper":
        for checkpoints in self._checkpoints:
            self._open.enter_context(checkpoints)
        return self

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)

    def begin(self, plan: Plan, images: pipeline.Images) -> tuple[int, TrainState]:
        """The newest step that all runs have, and its state; or 0 and a fresh one. What is newer is removed."""
        newest = [checkpoints.newest() or 0 for checkpoints in self._checkpoints]
        done = newest
        while len(set(done)) > 1:
            done = [checkpoints.newest(last=min(done)) or 0 for checkpoints in self._checkpoints]
        for run, checkpoints, own in zip(self._runs, self._checkpoints, newest, strict=True):
            if own > done[0]:
                print(f"seed {run.config.seed} goes back from step {own} to {done[0]}, which all seeds have")
                checkpoints.drop_after(done[0])
        if not done[0]:
            return 0, devices.replicate(training.pack([run.fresh(plan, images) for run in self._runs]), plan.mesh)
        print(f"resuming at step {done[0]} of {plan.steps}")
        like = self._runs[0].abstract(plan, images)
        found = [checkpoints.read(done[0], like) for checkpoints in self._checkpoints]
        return done[0], found[0] if len(found) == 1 else devices.replicate(training.pack(found), plan.mesh)

    def open_logs(self, plan: Plan, *, start: int) -> None:
        """Begins to log the steps after `start`."""
        several = len(self._runs) > 1
        for run in self._runs:
            log = run.open_log(plan, start=start, name=f"seed {run.config.seed}" if several else "")
            self._logs.append(self._open.enter_context(contextlib.closing(log)))

    def log(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches and logs the metrics of the steps of a call that ended with step `done`."""
        metrics = devices.to_host(metrics)
        for number in range(len(self._runs)):
            own = metrics if len(self._runs) == 1 else {name: value[:, number] for name, value in metrics.items()}
            self._logs[number].add_all(self._checked(number, done, own))

    def _checked(
        self, number: int, done: int, metrics: dict[str, np.ndarray]
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
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
                    kept = self._checkpoints[number].steps()
                    where = f"the last good checkpoint is step {kept[-1]}" if kept else "there was no checkpoint yet"
                    advice = "start again with a lower config.optim.learning_rate and another --workdir"
                    seed = ""
                    if len(self._runs) > 1:
                        seed = f" of seed {self._runs[number].config.seed}"
                        advice += "; the other seeds can be trained without --vmap_seeds"
                    raise UserError(f"{words}{seed} is {values[name]} at step {step}; {where}; {advice}")
            yield step, values

    def save(self, done: int, state: TrainState) -> None:
        """Starts to write the state after step `done` as a checkpoint of each run."""
        for checkpoints, own in zip(self._checkpoints, training.unpack(state, len(self._runs)), strict=True):
            checkpoints.save(done, own)

    def settle(self, *, wait: bool = False) -> None:
        """Seals the saves that have finished."""
        for checkpoints in self._checkpoints:
            checkpoints.settle(wait=wait)

    def measure(self, done: int, state: TrainState) -> None:
        """Logs how the detector of each run finds synthetic defects after step `done`."""
        for run, log, own in zip(self._runs, self._logs, training.unpack(state, len(self._runs)), strict=True):

            def figures(run=run, own=own):
                return run.measure(run.detector(_variables(own)))

            if run.watched:
                log.add_synthetic(done, figures)


def _fit_weights(
    runs: Sequence[_Run], images: pipeline.Images, plan: Plan, *, defer_signals: bool
) -> list[dict[str, Any]]:
    """Runs the steps that are left; the variables of each run. Raises Stopped when a signal stopped them."""
    config, method = runs[0].config, runs[0].method
    with _Keeper(runs) as keeper, stopping.deferred() if defer_signals else stopping.at_once() as stop_asked:
        done, state = keeper.begin(plan, images)
        if done < plan.steps:
            _record(runs, start=not done)
            if not done:
                for run in runs:
                    run.show(images)
            step = training.make_step(method, plan.optimizer, plan.schedule, seeds=len(runs))
            train_steps = devices.compile_train_steps(step, plan.mesh)
            given = [run.config for run in runs], method, images, [run.fitted for run in runs], plan.mesh
            shared, calls = training.input_stream(*given, start=done, stop=plan.steps)
            if processes.is_main_process():
                print("compiling the training step, which can take minutes", flush=True)
            keeper.open_logs(plan, start=done)
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
    return [_variables(own) for own in training.unpack(state, len(runs))]


def _record(runs: Sequence[_Run], *, start: bool) -> None:
    """Keeps the command and the machine with every run, and at its start the hashes of the files that it reads."""
    more = {"seeds_as_one_program": [run.config.seed for run in runs]} if len(runs) > 1 else {}
    if start and runs[0].method.files is not None:
        more["sha256"] = runs[0].method.files()
    for run in runs:
        provenance.record(run.workdir, run.command, **more)


def _training_images(runs: Sequence[_Run], source: Source) -> pipeline.Images:
    """All images, kept in the host's memory if they fit there and not on the devices (`fits_on_device`)."""
    config, method = runs[0].config, runs[0].method
    open_images = functools.partial(pipeline.Images, source, np.arange(len(source)), size=config.data.size)
    images = open_images(cache_bytes=0)
    if training.fits_on_device(config, method, images):
        return images
    process_count = 1 + len(runs) * training.workers(config, len(runs))
    return open_images(cache_bytes=config.data.cache_gib * 2**30 / process_count)


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    command: str = "jaxad.training.loop.train",
    restart: bool = False,
    source: Source | None = None,
    defer_signals: bool = True,
) -> Detector:
    """Trains a detector, or resumes its training, and writes it to `workdir`.

    Args:
      config: A locked config as experiments make it.
      workdir: A directory to create, or one made with the same config and images.
      command: What the user typed, for the provenance of the results.
      restart: Begins anew, with any config and images; a training that `workdir` holds is deleted.
      source: The training images; by default those that ``config.data`` names.
      defer_signals: Whether Ctrl-C and SIGTERM let the step under way complete and its state be saved. The process's
        own handlers are replaced for that long.

    Returns:
      The detector.

    Raises:
      UserError: The config or the data cannot be used, the workdir cannot be written, is in use or belongs to another
        config or other images, or the loss is no longer finite.
      Stopped: Ctrl-C or SIGTERM stopped the training; its state was saved, and the same call resumes it.
    """
    options = {"restart": restart, "source": source, "defer_signals": defer_signals}
    [detector] = train_seeds([config], [workdir], commands=[command], **options)
    return detector


def train_seeds(
    several: Sequence[ConfigDict],
    workdirs: Sequence[str | Path],
    *,
    commands: Sequence[str],
    restart: bool = False,
    held: contextlib.ExitStack | None = None,
    source: Source | None = None,
    defer_signals: bool = True,
) -> list[Detector]:
    """Trains detectors that differ in their seed as one program, in which their parameters are stacked.

    Each is what `train` makes of its config up to rounding, with checkpoints and logs of its own. They resume together,
    at the newest checkpoint that all of them have. The time that each one's log tells is that of all.

    Args:
      several: Locked configs that differ in nothing but ``seed``.
      workdirs: One for each.
      commands: What the user typed, or what trains each alone, for the provenance of the results.
      restart: As in `train`, for each.
      held: Keeps the locks of the workdirs for longer than the training.
      source: As in `train`.
      defer_signals: As in `train`.

    Returns:
      The detectors.

    Raises:
      UserError: As in `train`; a loss that is no longer finite ends the training of all.
      Stopped: As in `train`.
      ValueError: The configs differ in more than their seed, or two share a workdir.
    """
    first = configs.flatten(several[0])
    if any(configs.flatten(config) | {"seed": first["seed"]} != first for config in several):
        raise ValueError("the configs differ in more than their seed")
    if len({Path(workdir).absolute() for workdir in workdirs}) < len(several):
        raise ValueError("two configs share a workdir")
    intake.check_places(several[0], workdirs)
    made = [methods.create(config) for config in several]  # before the images are looked for
    intake.check_sizes(several[0], made[0], seeds=len(several))
    source = data.load(several[0]).train if source is None else source
    runs = [_Run(*given, source) for given in zip(several, made, workdirs, commands, strict=True)]
    config, method = several[0], made[0]
    plan = None if method.loss is None else training.plan(config, method, len(runs[0].fitted))
    if method.start is not None and (restart or not all((run.workdir / "config.json").exists() for run in runs)):
        # Weights that cannot be used are refused before anything is written.
        image = jax.ShapeDtypeStruct((1, *[config.data.size] * 2, configs.channels(config)), np.float32)
        method.start(jax.eval_shape(method.init, jax.random.key(0), image))
    if plan is not None:
        intake.check_step(config, method, plan)
    with contextlib.ExitStack() as own:
        # Only now, when nothing in the config is left to be refused: a workdir takes no other config afterwards.
        for run in runs if processes.is_main_process() else ():
            (own if held is None else held).enter_context(disk.locked(run.workdir))
        source, white_level = intake.take_in(several, workdirs, source, restart=restart)
        for run in runs:
            run.source, run.white_level = source, white_level
        with pipeline.opencv_on_one_thread():
            return _train(runs, source, plan, defer_signals=defer_signals)


def _train(
    runs: Sequence[_Run], source: Source, plan: Plan | None, *, defer_signals: bool
) -> list[Detector]:
    """`train_seeds` in workdirs that are claimed."""
    config = runs[0].config
    variables = [{}] * len(runs)
    if plan is None:
        _record(runs, start=True)
    else:
        if config.synthetic_every and not len(runs[0].held):
            print("no good images are held out (config.data.holdout): the training is not watched by synthetic defects")
        variables = _fit_weights(runs, _training_images(runs, source), plan, defer_signals=defer_signals)
    return [run.finish(own) for run, own in zip(runs, variables, strict=True)]
