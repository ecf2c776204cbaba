"""``python -m jaxad.data.mvtec_ad``: prepares MVTec AD for TensorFlow Datasets, without TensorFlow.

What it writes below ``--data_dir`` is read with ``config.data.source=tfds``, or anywhere else with
``tfds.data_source("mvtec_ad/bottle", split="test", data_dir=DIR)``.
"""

import argparse
import pathlib
from collections.abc import Sequence

from jaxad.data.tfds import CATEGORIES, MVTEC_AD, check_category, library
from jaxad.errors import UserError, refused, run


def prepare(manual_dir: pathlib.Path, data_dir: pathlib.Path, categories: Sequence[str]) -> None:
    """Writes categories as TFDS's ``data_dir/mvtec_ad/<category>/<version>``; those already there are left as they are.

    Raises:
      UserError: tensorflow-datasets is not installed; a category is unknown or incomplete; an image cannot be used;
        `data_dir` cannot be written.
    """
    for category in categories:
        check_category("--categories", category, CATEGORIES[MVTEC_AD])
    tfds = library()
    from jaxad.data.mvtec_ad_builder import MvtecAd, find

    for category in categories:
        find(manual_dir, category)  # before minutes are spent on the others
    for category in categories:
        try:
            builder = MvtecAd(config=category, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
        except Exception as error:  # TFDS and array_record tell what the file system refuses by several types
            if isinstance(error, UserError) or not (reason := refused(error)):
                raise
            raise UserError(
                f"category {category} cannot be written to {data_dir} ({reason}); make that possible and run the same "
                "command again, which goes on with this category",
                about=data_dir,
            ) from error
        sizes = ", ".join(f"{split.num_examples} {name}" for name, split in builder.info.splits.items())
        print(f"{category}: {sizes} images in {builder.data_path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python -m jaxad.data.mvtec_ad", description="Prepares MVTec AD for TFDS.")
    parser.add_argument(
        "--manual_dir", type=pathlib.Path, required=True, metavar="DIR", help="where MVTec AD was unpacked"
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True, metavar="DIR", help="TFDS's data_dir")
    parser.add_argument(
        "--categories", default=",".join(CATEGORIES[MVTEC_AD]), metavar="A,B,...", help="all 15 by default"
    )
    flags = parser.parse_args(argv)
    prepare(flags.manual_dir, flags.data_dir, flags.categories.split(","))


if __name__ == "__main__":
    run(main)
