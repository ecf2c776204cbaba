"""TensorFlow Datasets: `mvtec_ad` as `jaxad.data.mvtec_ad` prepares it, and one class of `cifar10` or `mnist`.

Prepared datasets are read with `tfds.data_source`, which imports no TensorFlow.
"""

import dataclasses
import difflib
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jaxad.data.folder import GOOD, OBJECTS, TEXTURES
from jaxad.data.image import list_folder, to_grey
from jaxad.data.record import Dataset, Record
from jaxad.errors import UserError

MVTEC_AD = "mvtec_ad"
# The categories of each dataset; no two datasets have one in common, so a category tells its dataset.
CATEGORIES = {
    MVTEC_AD: TEXTURES + OBJECTS,
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "mnist": tuple("0123456789"),
}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Records that are decoded from their examples on access.

    Attributes:
      examples: The split as `tfds.data_source` opens it: dicts with uint8 ``image`` (h, w, 3) or (h, w, 1) and, where
        the dataset has masks, uint8 ``mask`` (h, w, 1) of 0 and 255.
      encoded: The same with the images as they are stored, in bytes.
      rows: Where in the split the records lie.
      ids: ``train/good/<name>`` or ``test/<defect>/<name>``.
      labels: 0 good, 1 defective.
      defects: ``good`` or the defect type.
      channels: 3 for RGB images, 1 for grey ones.
      place, deep, others: See `jaxad.data.record.Source`.
    """

    examples: Sequence[dict] = dataclasses.field(repr=False)
    encoded: Sequence[dict] = dataclasses.field(repr=False)
    rows: list[int] = dataclasses.field(repr=False)
    ids: list[str] = dataclasses.field(repr=False)
    labels: list[int] = dataclasses.field(repr=False)
    defects: list[str] = dataclasses.field(repr=False)
    channels: int = 3
    place: str = ""
    deep: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict, repr=False)
    others: tuple[()] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        """Decodes one record. The mask of a defective image is None where the dataset has none."""
        example = self.examples[self.rows[index]]
        image, label, mask = example["image"], self.labels[index], None
        if image.shape[2] != self.channels:
            image = to_grey(image) if self.channels == 1 else np.repeat(image, 3, axis=2)
        if "mask" in example:
            mask = example["mask"][..., 0] // 255
        elif not label:
            mask = np.zeros(image.shape[:2], np.uint8)
        return Record(image, label, mask, self.ids[index], self.defects[index])

    def fingerprint(self, index: int, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `Source.fingerprint`."""
        data = self.encoded[self.rows[index]]["image"]
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def bound(self, fingerprints: Sequence[Mapping[str, Any]], white_level: int | None) -> "TfdsSource":
        """See `Source.bound`; TFDS decodes by itself, from files of many records that it keeps open."""
        return self

    def left_out(self) -> dict[str, int | None]:
        """See `Source.left_out`."""
        return {}


def load(root: str | os.PathLike, category: str, *, channels: int = 3) -> Dataset:
    """Opens a prepared dataset. Labels are read now, a few seconds for ten thousand, images are decoded on access.

    Args:
      root: TFDS's ``data_dir``.
      category: A category of MVTec AD (the builder's config), or a class of CIFAR-10 or MNIST (``0`` to ``9``). Images
        of the class are good, all other test images defective, their class being the defect type: semantic outliers
        rather than defects, without masks.
      channels: 3 for RGB images, 1 for grey ones, whatever the dataset holds.

    Returns:
      The training and the test source, in the order in which the dataset was written.

    Raises:
      UserError: tensorflow-datasets is not installed; the category is unknown; its dataset is not prepared in `root`,
        in another file format than array_record, or cannot be read; `root` is empty or no folder.
    """
    if not os.fspath(root):
        raise UserError(
            "config.data.root is empty; name the data_dir of TFDS: --config.data.root=DIR", about="data.root"
        )
    dataset = dataset_of(category)
    name = f"{dataset}/{category}" if dataset == MVTEC_AD else dataset
    tfds = library()
    list_folder(root)
    prepare = _preparation(root, dataset, category)
    if not any(pathlib.Path(root, name).glob("*/dataset_info.json")):
        raise UserError(f"'{root}' holds no prepared '{name}'; {prepare}", about=root)
    try:
        splits = {split: _open(tfds, name, root, split) for split in ("train", "test")}
    except NotImplementedError:  # no random access
        raise UserError(
            f"'{name}' in '{root}' is not in the array_record format; delete it and {prepare}", about=root
        ) from None
    except Exception as error:  # the readers of records and of metadata raise nearly anything on damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"'{name}' in '{root}' cannot be read ({reason}); delete it and {prepare}", about=root
        ) from error
    source = _of_category if dataset == MVTEC_AD else _of_classes
    options = {"channels": channels, "place": f"'{name}' in '{root}'"}
    return Dataset(*(source(split, *opened, category, **options) for split, opened in splits.items()))


def library() -> ModuleType:
    """The package tensorflow_datasets, which is optional and takes seconds to import.

    Raises:
      UserError: It, or a package that it needs, is not installed.
    """
    try:
        import importlib_resources  # noqa: F401  tensorflow_datasets 4.9.10 uses it without requiring it
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"TensorFlow Datasets is not installed ({error.name} is missing); run python3 -m pip install 'jaxad[tfds]'"
        ) from error
    return tensorflow_datasets


def check_category(where: str, category: str, known: Sequence[str]) -> None:
    """Raises a UserError that names the nearest of the `known` categories if `category` is none of them."""
    if category not in known:
        nearest = difflib.get_close_matches(category, known, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'? " if nearest else ""
        raise UserError(
            f"{where}: there is no category '{category}'; {hint}choose one of {', '.join(known)}",
            about=where.removeprefix("config."),
        )


def dataset_of(category: str, *, where: str = "config.data.category") -> str:
    """The dataset that has the category; raises a UserError that says where it was named if none has."""
    check_category(where, category, [name for names in CATEGORIES.values() for name in names])
    return next(dataset for dataset, names in CATEGORIES.items() if category in names)


def _preparation(root: str | os.PathLike, dataset: str, category: str) -> str:
    """How the user prepares a dataset."""
    if dataset == MVTEC_AD:
        return f"run python -m jaxad.data.mvtec_ad --manual_dir DIR --data_dir {root} --categories {category}"
    return f"run tfds build {dataset} --data_dir={root} --file_format=array_record where TensorFlow is installed"


def _open(
    tfds: ModuleType, name: str, root: str | os.PathLike, split: str
) -> tuple[Sequence[dict], Sequence[dict], list[dict]]:
    """The examples of a split, the same with encoded images, and what they hold besides images."""
    # A version makes TFDS read what is prepared by its files alone, not by the code of that name in its registry.
    examples = tfds.data_source(name, split=split, data_dir=root, download=False, builder_kwargs={"version": "*.*.*"})
    images = {"image", "mask"} & set(examples.dataset_info.features)
    undecoded = dataclasses.replace(examples, decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()))
    return examples, undecoded, [{key: row[key] for key in row.keys() - images} for row in undecoded]


def _of_category(
    split: str, examples: Sequence[dict], encoded: Sequence[dict], fields: list[dict], category: str, **options: Any
) -> TfdsSource:
    """A split of MVTec AD; `category` is already what the split holds."""
    return TfdsSource(
        examples,
        encoded,
        rows=list(range(len(fields))),
        ids=[field["id"].decode() for field in fields],
        labels=[int(field["label"]) for field in fields],
        defects=[field["defect"].decode() for field in fields],
        **options,
    )


def _of_classes(
    split: str, examples: Sequence[dict], encoded: Sequence[dict], fields: list[dict], category: str, **options: Any
) -> TfdsSource:
    """A split of images of ten classes, of which `category` is the good one and the only one to train on."""
    names = examples.dataset_info.features["label"].names
    defects = [GOOD if names[field["label"]] == category else names[field["label"]] for field in fields]
    rows = [row for row, defect in enumerate(defects) if split == "test" or defect == GOOD]
    return TfdsSource(
        examples,
        encoded,
        rows=rows,
        ids=[f"{split}/{defects[row]}/{row:05d}" for row in rows],
        labels=[int(defects[row] != GOOD) for row in rows],
        defects=[defects[row] for row in rows],
        **options,
    )
