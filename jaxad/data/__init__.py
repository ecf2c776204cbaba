"""Data sources: each yields the same records, whatever the images come from."""

from ml_collections import ConfigDict

from jaxad.data import demo, folder
from jaxad.data.record import Dataset
from jaxad.errors import UserError

# Below the coarsest stride of the networks (32) an image holds no feature of its own.
MIN_SIDE = 32


def load(config: ConfigDict) -> Dataset:
    """Opens the dataset that ``config.data`` names; images are decoded on access.

    Raises:
      UserError: The source is unknown, or the data is not as its source expects it.
    """
    data = config.data
    if data.source == "demo" and (data.root or data.test or data.ground_truth):
        raise UserError(
            "config.data.source is demo, which reads no folder, but a folder is given; name a category after the "
            "config file (such as :object or :texture for images of your own) or set config.data.source=folder"
        )
    if data.source == "demo":
        return demo.load(data.category, size=data.size)
    if data.source == "folder":
        return folder.load(data.root, data.category, test=data.test, ground_truth=data.ground_truth, min_side=MIN_SIDE)
    raise UserError(f"config.data.source must be demo or folder, not {data.source!r}")
