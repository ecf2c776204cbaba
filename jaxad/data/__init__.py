"""Data sources: each yields the same records, whatever the images come from."""

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data import chest_xray, layouts, tfds
from jaxad.data.demo import source as demo
from jaxad.data.record import Dataset
from jaxad.errors import UserError

# Below the coarsest stride of the networks (32) an image holds no feature of its own.
MIN_SIDE = 32
GIVEN = "given"  # config.data.source of a detector that was trained on images of a Python program


def load(config: ConfigDict, *, white_level: int | None = None) -> Dataset:
    """Opens the dataset that ``config.data`` names; images are decoded on access.

    Args:
      config: A config.
      white_level: Of 16-bit files, where ``config.data.white_level`` gives none; see `jaxad.data.levels`.

    Raises:
      UserError: The source is unknown, or the data is not as its source expects it.
    """
    data = config.data
    options = {"min_side": MIN_SIDE, "channels": configs.channels(config)}
    if data.source in (*layouts.SOURCES, "chest_xray"):
        options["white_level"] = configs.white_level(config) or white_level
        options["max_pixels"] = configs.max_pixels(config)
    elif configs.white_level(config):
        raise UserError(
            f"config.data.white_level is for files of 16 bits a channel, and the source {data.source} has none; "
            "leave it 0",
            about="data.white_level",
        )
    if data.source == "demo":
        if data.root or data.test or data.ground_truth:
            raise UserError(
                "config.data.source is demo, which reads no folder, but a folder is given; name a category after the "
                "config file (such as :object or :texture for images of your own) or set config.data.source=folder",
                about="data.source",
            )
        if options["channels"] != 3:
            raise UserError(
                "config.data.channels must be 3 for the demo, whose images are in colour", about="data.channels"
            )
        return demo.load(data.category, size=data.size)
    if data.source in layouts.SOURCES:
        named = {"test": data.test, "ground_truth": data.ground_truth}
        return layouts.load(data.source, data.root, data.category, **named, **options)
    if data.source == "chest_xray":
        return _load_chest_xray(data, **options)
    if data.source == "tfds":
        if data.test or data.ground_truth:
            raise UserError(
                "config.data.source is tfds, whose datasets hold their own test images and masks; leave "
                "config.data.test and config.data.ground_truth empty",
                about="data.source",
            )
        # Without a smallest side: MNIST's 28 pixels are enlarged to config.data.size like those of any other image.
        return tfds.load(data.root, data.category, channels=options["channels"])
    if data.source == GIVEN:
        raise UserError(
            "config.data.source is given: the training images came from a Python program, which only jaxad.train can "
            "give again; for test images set config.data.source=folder and config.data.root",
            about="data.source",
        )
    *names, last = layouts.SOURCES
    raise UserError(
        f"config.data.source must be demo, tfds, chest_xray, {', '.join(names)} or {last}, not {data.source!r}",
        about="data.source",
    )


def _load_chest_xray(data: ConfigDict, **options: int | None) -> Dataset:
    if "lists" not in data:
        raise UserError(
            "config.data.source chest_xray needs lists of images, which this config has no keys for; train with the "
            "category chest_xray_male or chest_xray_female of an experiment of NSA",
            about="data.source",
        )
    if data.test or data.ground_truth:
        raise UserError(
            "config.data.source is chest_xray, whose test images are listed and have no masks; leave config.data.test "
            "and config.data.ground_truth empty",
            about="data.source",
        )
    lists = {"train": data.train_list, "test_good": data.test_good_list, "test_abnormal": data.test_abnormal_list}
    return chest_xray.load(data.root, lists=data.lists, **lists, **options)
