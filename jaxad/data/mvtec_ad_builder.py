"""The TFDS builder of MVTec AD (Bergmann et al., CVPR 2019), one builder config for each category.

Importing it takes the optional package tensorflow-datasets, but neither writing nor reading takes TensorFlow, since the
builder is given encoded images. ``python -m jaxad.data.mvtec_ad`` runs it.
"""

import pathlib
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from jaxad.data import folder
from jaxad.data.record import Dataset, Source
from jaxad.data.tfds import CATEGORIES, MVTEC_AD
from jaxad.errors import UserError

INSTRUCTIONS = (
    "download it from MVTec's own page, mvtec.com/company/research/datasets/mvtec-ad, and unpack it so that each "
    "category has its folder in the manual directory: bottle/train, bottle/test, bottle/ground_truth, ..."
)


def find(manual_dir: pathlib.Path, category: str) -> Dataset:
    """The images and masks of one category in the manual directory, complete as MVTec AD is; nothing is decoded yet.

    Raises:
      UserError: The category, or a part of it, is missing; a defective image lacks its mask; and as `folder.load`.
    """
    for part in ("train", "test", "ground_truth"):
        if not (manual_dir / category / part).is_dir():
            raise UserError(
                f"there is no '{manual_dir / category / part}' of MVTec AD; {INSTRUCTIONS}",
                about=manual_dir / category / part,
            )
    dataset = folder.load(manual_dir, category)
    if not len(dataset.test):
        raise UserError(
            f"'{manual_dir / category / 'test'}' holds no images; unpack MVTec AD again",
            about=manual_dir / category / "test",
        )
    return dataset


class MvtecAd(tfds.core.GeneratorBasedBuilder):
    """Examples of uint8 ``image`` (h, w, 3) and ``mask`` (h, w, 1; 0 and 255), ``label``, ``defect`` and ``id``.

    The last three are the fields of `jaxad.data.record.Record`. Examples stand in the order of the folders, and images
    have the pixels that `jaxad.data.image.read_image` decodes, whatever the file's format, as PNG.
    """

    name = MVTEC_AD
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=category) for category in CATEGORIES[MVTEC_AD]]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["good", "defective"]),
            "defect": tfds.features.Text(),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Good images, and test images with defects that are marked pixel by pixel.",
            homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        dataset = find(pathlib.Path(dl_manager.manual_dir), self.builder_config.name)
        return {"train": self._generate_examples(dataset.train), "test": self._generate_examples(dataset.test)}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict]]:
        for index in range(len(source)):
            record = source[index]
            example = {
                "image": _png(record.image[..., ::-1]),  # OpenCV's order of channels
                "mask": _png(record.mask * np.uint8(255)),
                "label": record.label,
                "defect": record.defect,
                "id": record.id,
            }
            yield index, example


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()
