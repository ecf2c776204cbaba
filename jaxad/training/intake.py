"""What a training takes in before anything is computed: its workdir, and the images that it is bound to."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import methods
from jaxad.data import binding, geometry, layouts, levels, roi, roi_finding, summary
from jaxad.data.record import Source
from jaxad.errors import UserError
from jaxad.methods import memory
from jaxad.methods.method import Method, compute_dtype
from jaxad.runtime import disk, processes
from jaxad.training import step as training


def check_place(config: ConfigDict, workdir: Path) -> None:
    """Refuses a workdir that cannot be one, before anything is written, by its name or as a folder of the data.

    A training would mix its files with the user's, and its pictures would be read as images.

    Raises:
      UserError: The workdir has a name that `disk.refuse_undecodable` refuses, is a folder of the data, or lies in one
        whose subfolders are read.
    """
    disk.refuse_undecodable(workdir)
    data = config.data
    root, named = data.root and Path(data.root, data.category), [data.test, data.ground_truth]
    layout = layouts.folders_read(root) if root else []
    inside = {Path(os.path.realpath(folder)) for folder in (*layout, *named) if folder}
    taken = inside | {Path(os.path.realpath(folder)) for folder in (data.root, root) if folder}
    place = Path(os.path.realpath(workdir))
    if place in taken or inside.intersection(place.parents):
        where = "is a folder" if place in taken else "lies in a folder"
        raise UserError(
            f"the workdir {workdir} {where} from which images are read; choose another --workdir", about=workdir
        )
    if root and place == Path(os.path.realpath(root)) / "train":
        what = f"would make {root} a folder in MVTec AD's layout"
        raise UserError(f"the workdir {workdir} {what}; choose another --workdir", about=workdir)


def with_dtype(config: ConfigDict, workdir: Path, *, restart: bool) -> ConfigDict:
    """The config with a dtype in place of ``auto``: that of a training which the workdir holds, else this machine's.

    Raises:
      UserError: The dtype is none, or the workdir's config cannot be read.
    """
    if config.get("dtype") != "auto":
        return config
    resumed = not restart and configs.is_workdir(workdir)
    dtype = configs.read(workdir).get("dtype", "auto") if resumed else "auto"
    began = dtype != "auto"
    if not began:
        dtype = str(compute_dtype(config))
    if processes.is_main_process():
        print(f"config.dtype=auto: the network computes in {dtype}" + ", as it began" * began, flush=True)
    return configs.override(config, {"dtype": dtype}, rules_of=methods.rules_of)


def with_begun_roi(config: ConfigDict, workdir: Path, *, restart: bool) -> ConfigDict:
    """The config with the region of interest of a training that the workdir holds, if it was found in the same way.

    It is then what `with_roi` found. A mask file that is still there is read again, since it may be another one.

    Raises:
      UserError: The workdir's config cannot be read.
    """
    given = configs.roi(config)
    if restart or not given or os.path.isfile(given) or not configs.is_workdir(workdir):
        return config
    held = configs.roi(configs.read(workdir))
    if not roi.is_found(held) or roi.origin_of(held) != (given if given == roi.AUTOMATIC else Path(given).name):
        return config
    return configs.override(config, {"data.roi": held})


def with_roi(config: ConfigDict, source: Source) -> ConfigDict:
    """The config with polygons in shares of the images' sides as its region of interest, if it has any.

    Raises:
      UserError: The region cannot be used, or does not fit the images, or one of these cannot be read.
    """
    if not configs.roi(config) or not len(source):
        return config
    if configs.roi(config) == roi.AUTOMATIC:  # by the images as they are trained on, also those of 16 bits
        fingerprints = binding.fingerprints(source, {})
        white = levels.choose(fingerprints, configs.white_level(config)).value
        source = source.bound(list(fingerprints.values()), white)
    text, said = roi_finding.resolve(config, source)
    if processes.is_main_process():
        print(said, flush=True)
    return configs.override(config, {"data.roi": text})


def with_aspect(config: ConfigDict, workdir: Path, source: Source, *, restart: bool) -> ConfigDict:
    """The config with the aspect ratio of the training images, or of their region of interest, where they keep it and
    none is given.

    It is that of a training which the workdir holds, as `with_dtype`.

    Raises:
      UserError: An image cannot be read, or the workdir's config.
    """
    if configs.resize(config) != "keep" or config.data.aspect or not len(source):
        return config
    resumed = not restart and configs.is_workdir(workdir)
    aspect = configs.read(workdir).data.aspect if resumed else 0.0
    region = roi.read(configs.roi(config))
    config = configs.override(config, {"data.aspect": aspect or round(geometry.aspect_of(source, region), 4)})
    if processes.is_main_process():
        height, width = configs.frame(config, config.data.size)
        print(f"images are {width} x {height} pixels (width x height) in training, by their aspect ratio", flush=True)
    return config


def take_in(config: ConfigDict, workdir: Path, source: Source, *, restart: bool) -> tuple[Source, int | None]:
    """Claims a workdir for a config, binds it to the training images, and says what these are.

    Args:
      config: The config.
      workdir: Its workdir.
      source: The training images.
      restart: Removes the training that the workdir holds, once the images have been read.

    Returns:
      The source of the very images that the workdir is bound to, which refuses others, and their white level (see
      `jaxad.data.levels`).

    Raises:
      UserError: The workdir cannot be written, or belongs to another config or other images; an image cannot be read;
        the processes do not see the same.
    """
    what = "the config, or the list of training images,"
    processes.assert_equal_across_processes(what, [config.to_json(), list(source.ids)])
    if processes.is_main_process():
        binding.refuse_foreign(workdir)
    if not restart:
        _claim(workdir, config)
    fingerprints = binding.fingerprints(source, {} if restart else binding.read(workdir) or {})
    white = levels.choose(fingerprints, configs.white_level(config))
    if restart:
        _read_all(source)
        if processes.is_main_process():
            binding.clear(workdir)
        _claim(workdir, config)
    if processes.is_main_process():
        binding.claim(workdir, fingerprints)
    processes.barrier()
    if processes.is_main_process():
        print(summary.training_images(source, config, fingerprints), flush=True)
        if white.reason:
            print(white.reason, flush=True)
    return source.bound(list(fingerprints.values()), white.value), white.value


def check_sizes(config: ConfigDict, method: Method) -> None:
    """Refuses images that no memory can hold, before they are looked for; see `jaxad.methods.memory`."""
    memory.check_training(config, method)
    memory.check_scoring(config)


def check_step(config: ConfigDict, method: Method, plan: training.Plan) -> None:
    """`memory.check_step` of a training whose examples are made on the devices.

    Raises:
      UserError: The images are too many or too large.
    """
    size = (*configs.seen_size(config), configs.channels(config))
    rows = config.batch // plan.mesh.size

    def make():
        like = training.abstract_state(method, plan.optimizer, jax.ShapeDtypeStruct(size, np.uint8), plan.mesh)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        batch = dict.fromkeys(("image", "partner"), jax.ShapeDtypeStruct((rows, *size), np.uint8))
        batch["index"] = jax.ShapeDtypeStruct((rows,), np.int32)
        shared = training.Shared(jax.ShapeDtypeStruct((), np.uint32), None)
        return training.make_step(method, plan.optimizer, plan.schedule), (state, batch, shared)

    if method.host_augment is None:
        memory.check_step(config, make)


def _read_all(source: Source) -> None:
    """Decodes every image once, so that a damaged one is told before a training is removed for it."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(source.__getitem__, range(len(source))[processes.local_slice(len(source))]):
            pass


def _claim(workdir: Path, config: ConfigDict) -> None:
    """`jaxad.config.claim` by process 0, for all processes, which must see the same workdir."""
    if processes.is_main_process():
        unfitted = methods.rules_of(config.method).unfitted
        configs.claim(workdir, config, unfitted=unfitted, remedy=binding.advice(workdir))
    processes.barrier()
    if not (workdir / "config.json").exists():
        raise UserError(
            f"process 0 has made the workdir {workdir}, which is not seen here; choose one that all share",
            about=workdir,
        )
