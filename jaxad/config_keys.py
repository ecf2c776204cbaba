"""What is known of config keys beside their types: ranges, and the meanings that docs/configuration.md shows.

The keys of one method are beside it, as ``KEYS`` of its module.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Keys(NamedTuple):
    """Rules for keys, wherever a config has them. Keys that no rule names take any value of their type.

    Options of augmentations are explained by their records instead: `CutPasteOptions`, `LocalOptions`, `ViewOptions`,
    `Synthesis` and NSA's `View`.

    Attributes:
      meanings: What each key is, for the documentation.
      at_least: The smallest value; the key takes integers alone where this is one.
      below: What its values are smaller than.
      shares: The part of [0, 1] that a key's numbers lie in, with open or closed ends, such as ``[0, 1)``.
      used_with: What a key has no effect without: another key of one of these values, or neither 0, false nor none
        where there are none.
      task: The key that names what a training teaches, where there are several tasks.
      unfitted: Beginnings of the keys that may be changed in a workdir until a density was fitted.
    """

    meanings: Mapping[str, str] = {}
    at_least: Mapping[str, float] = {}
    below: Mapping[str, float] = {}
    shares: Mapping[str, str] = {}
    used_with: Mapping[str, tuple[str, Sequence[object] | None]] = {}
    task: str = ""
    unfitted: tuple[str, ...] = ()

    def joined_with(self, others: "Keys") -> "Keys":
        """These rules and others. Of a key that both have, and of `task` and `unfitted`, these are taken."""
        pairs = zip(others, self, strict=True)
        return Keys(*({**other, **own} if isinstance(own, Mapping) else own or other for other, own in pairs))


def explained(text: str) -> dict[str, str]:
    """What a text says of each name: lines ``name: what it is``, and more lines of it with an indent."""
    parts = re.split(r"(?m)^([\w.]+): ", textwrap.dedent(text).strip())[1:]
    return {name: " ".join(said.split()) for name, said in zip(parts[::2], parts[1::2], strict=True)}


GENERAL = Keys(
    meanings=explained("""
experiment: Name of the experiment in result files and in the default workdir.
category: What the experiment was made for. It is written behind the file's name: FILE:CATEGORY.
method: A method of jaxad, or `package.module:create` for one outside.
seed: Where all randomness comes from.
epochs: Length of the training; 0 for a method that is not trained.
batch: Images in a step. Batches are always full, so an epoch has ceil(images / batch) steps.
dtype: Compute dtype. auto is bfloat16 on a CPU with oneDNN that multiplies in it (AVX512-BF16 or AMX) and float32
  elsewhere. Parameters and score maps stay float32, as does all of DLA's scoring. On recent NVIDIA GPUs XLA
  computes float32 networks in TF32, unless `JAX_DEFAULT_MATMUL_PRECISION=highest` is set.
log_every: Steps between two lines of the log.
synthetic_every: Steps between two looks at synthetic defects on the held-out images; 0 for one at the end alone.
steps_per_call: Most steps that the devices run in one call, with images that stay on them; 0 for one on CPU and 16
  elsewhere.
data.source: Where images come from: the demo, TensorFlow Datasets, the NIH release of chest X-rays, a folder whose
  layout is recognized, a folder in the layout that is named, or a table.
data.root: The folder of the images, or the table.
data.category: The folder below `data.root`, or the good class of CIFAR-10 and MNIST; empty for `data.root` itself.
data.test: A folder of test images elsewhere.
data.ground_truth: A folder of masks elsewhere.
data.size: Shorter side in pixels that images are resized to. Change it, the crops of `view` and `score.size` together.
data.roi: The region of interest, outside of which nothing is trained on, scored or counted: the path of a mask file,
  polygons as `x,y x,y x,y; ...` in shares of width and height or in pixels, or `auto` for what lies before a plain
  background. A training puts the polygons that it finds in its place. Empty for whole images.
data.resize: How images are brought to one size. `squeeze` makes squares of them, as the papers do. `keep` keeps the
  aspect ratio: all images have that of the training images, and one that differs is padded. `pad` makes a square by
  padding, `crop` by cutting off. Padding shows the image's mirror image, and is neither scored nor counted.
data.aspect: Width over height for `keep`; 0 for that of the training images, or of their region of interest, which
  takes its place.
data.tile: Side in pixels of the square tiles of a frame that are trained on and scored, for small defects in large
  images; 0 for the whole frame. `data.size` is then the frame's shorter side, and `score.size` has no effect.
data.tile_overlap: Smallest share of a tile's side by which tiles overlap.
data.white_level: The value of 16-bit files that is white; 0 for what the files declare, else a common sensor's white
  that is not below their largest value.
data.max_megapixels: The largest images that are read, in millions of pixels.
data.holdout: Share of the good images kept back for the threshold and for synthetic defects. It has no effect where the
  data set has validation images, which take this part.
data.workers: Processes that decode, or make examples on the host, where the training images don't stay on the devices;
  0 uses threads. What is made does not depend on it.
data.cache_gib: Memory on the host for decoded images; a larger set is decoded on the fly.
data.device_gib: Memory on each device for the training images; a larger set is streamed. What is trained does not
  depend on it.
normalize.mean: Mean of each channel that is subtracted from images in [0, 1].
normalize.std: Standard deviation of each channel that they are then divided by.
optim.name: The optimizer.
optim.learning_rate: Learning rate at the beginning of the cosine schedule.
optim.final_learning_rate: Learning rate at its end.
optim.momentum: Momentum of SGD.
score.size: Shorter side in pixels of the images that are scored.
score.reduction: The image score from the map: `mean`, `max`, or `top`, the mean of the highest `score.top`.
score.top: Share of the map's highest values in the image score by `top`.
threshold.false_alarm_rate: Share of good images that the threshold may call defective, and in which a pixel may exceed
  the threshold for pixels.
threshold.cross_fit_below: With fewer good images than this none is held out where nothing is trained: each is scored by
  a density of the others, for the threshold and for synthetic defects. 0 for never.
evaluate.batch: Images that are scored at once.
evaluate.crop: Side in pixels of the central square that is judged, 0 for the whole image. With another value than the
  trained one there is no threshold.
evaluate.heatmap_sigma: Standard deviation, in pixels of the scored map, by which drawn heatmaps alone are smoothed.
evaluate.pro_limit: False-positive rate up to which AU-PRO integrates.
evaluate.mask_rule: Which pixels of a mask that was made smaller are anomalous, by the share of their area that was:
  `any`, above 0; `half`, above 0.5; `all`, 1. Published programs differ in this.
checkpoint.every_steps: Steps between two checkpoints. SIGTERM and ctrl-C save one before the training stops.
checkpoint.keep: Checkpoints that are kept.
"""),
    at_least={
        "seed": 0,
        "epochs": 0,
        "steps_per_call": 0,
        "batch": 1,
        "log_every": 1,
        "synthetic_every": 0,
        "data.size": 1,
        "data.aspect": 0.0,
        "data.tile": 0,
        "data.tile_overlap": 0.0,
        "data.white_level": 0,
        "data.max_megapixels": 1,
        "data.workers": 0,
        "data.cache_gib": 0.0,
        "data.device_gib": 0.0,
        "optim.learning_rate": 0.0,
        "optim.final_learning_rate": 0.0,
        "score.size": 1,
        "threshold.cross_fit_below": 0,
        "evaluate.batch": 1,
        "evaluate.crop": 0,
        "evaluate.heatmap_sigma": 0.0,
        "checkpoint.every_steps": 1,
        "checkpoint.keep": 1,
    },
    # A larger sigma takes hours to draw.
    below={"seed": 2**32, "data.white_level": 2**16, "evaluate.heatmap_sigma": 100, "data.aspect": 100},
    shares={
        "data.holdout": "[0, 1)",
        "optim.momentum": "[0, 1)",
        "score.top": "(0, 1]",
        "threshold.false_alarm_rate": "[0, 1)",
        "evaluate.pro_limit": "(0, 1]",
    },
    used_with={
        "score.top": ("score.reduction", ("top",)),
        "data.aspect": ("data.resize", ("keep",)),
        "data.tile_overlap": ("data.tile", None),
        "threshold.cross_fit_below": ("epochs", (0,)),
    },
)
