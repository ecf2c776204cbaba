"""What each key of a config means, for the page that docs/tables.py makes of it: docs/configuration.md.

A key is explained once. Keys that one kind of method has stand under the name of its module. Options of augmentations
are explained by their records alone: `CutPasteOptions`, `LocalOptions`, `ViewOptions`, `Synthesis` and NSA's `View`.
"""

import re
import textwrap


def explained(text: str) -> dict[str, str]:
    """What a text says of each name: lines ``name: what it is``, and more lines of it with an indent."""
    parts = re.split(r"(?m)^([\w.]+): ", textwrap.dedent(text).strip())[1:]
    return {name: " ".join(said.split()) for name, said in zip(parts[::2], parts[1::2], strict=True)}


GENERAL = explained("""
experiment: Name of the experiment in result files and in the default workdir.
category: What the experiment was made for. It is written behind the file's name: FILE:CATEGORY.
method: A method of jaxad, or `package.module:create` for one outside.
seed: Where all randomness comes from.
epochs: Length of the training; 0 for a method that is not trained.
batch: Images in a step. Batches are always full, so an epoch has ceil(images / batch) steps.
dtype: Compute dtype. Parameters and score maps stay float32, as does all of DLA's scoring. On recent NVIDIA GPUs XLA
  computes float32 networks in TF32, unless `JAX_DEFAULT_MATMUL_PRECISION=highest` is set.
log_every: Steps between two lines of the log.
synthetic_every: Steps between two looks at synthetic defects on the held-out images; 0 for one at the end alone.
steps_per_call: Most steps that the devices run in one call, with images that stay on them; 0 for one on CPU and 16
  elsewhere.
data.source: Where images come from: the demo, a folder, TensorFlow Datasets, or the NIH release of chest X-rays.
data.root: The folder of the images.
data.category: The folder below `data.root`, or the good class of CIFAR-10 and MNIST; empty for `data.root` itself.
data.test: A folder of test images elsewhere.
data.ground_truth: A folder of masks elsewhere.
data.size: Side in pixels that images are resized to. Change it, the crops of `view` and `score.size` together.
data.white_level: The value of 16-bit files that is white; 0 for what the files declare, else a common sensor's white
  that is not below their largest value.
data.max_megapixels: The largest images that are read, in millions of pixels.
data.holdout: Share of the good images kept back for the threshold and for synthetic defects.
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
score.size: Side in pixels of the images that are scored.
score.reduction: The image score from the map: `mean`, `max`, or `top`, the mean of the highest `score.top`.
score.top: Share of the map's highest values in the image score by `top`.
threshold.false_alarm_rate: Share of good images that the threshold may call defective.
evaluate.batch: Images that are scored at once.
evaluate.crop: Side in pixels of the central square that is judged, 0 for the whole image. With another value than the
  trained one there is no threshold.
evaluate.heatmap_sigma: Standard deviation, in pixels of the scored map, by which drawn heatmaps alone are smoothed.
evaluate.pro_limit: False-positive rate up to which AU-PRO integrates.
checkpoint.every_steps: Steps between two checkpoints. SIGTERM and ctrl-C save one before the training stops.
checkpoint.keep: Checkpoints that are kept.
""")

BY_METHOD = {
    "nsa": explained("""
data.synthesis: Whether examples are made on the device or, with OpenCV, on the host.
data.channels: Channels of the images: 3, or 1 for grey ones. `normalize` then holds one number each.
data.lists: The folder of the three lists of chest X-rays.
data.train_list: The list of good training images in it.
data.test_good_list: The list of good test images.
data.test_abnormal_list: The list of abnormal test images.
label: What the network is taught of a pixel.
"""),
    "cutpaste": explained("""
steps_per_epoch: Steps of an epoch, in place of once through the images. The learning rate is constant in one.
proxy.task: What is told apart; the proxy task.
model.backbone: The network; `resnet18_small` is for images of 32 pixels.
model.weights: A safetensors file of published weights, FILE or `hf:OWNER/REPO`; empty to train from scratch.
model.sha256: SHA-256 that the file of weights must have, where jaxad does not know it.
model.frozen_norm: BatchNorm stays as it was published.
model.stochastic_depth: Share of blocks that a training step skips (EfficientNet).
model.head_depth: Layers of the projection head.
model.head_width: Channels of the projection head.
optim.l2: Factor of the kernels' squared norm in the loss.
optim.head_epochs: Epochs that train the head alone, before all layers.
optim.head_learning_rate: Learning rate of these.
density.levels: Stages that a density is fitted on, with commas between; `pool` is the last one, averaged.
density.per_location: Each position has a density of its own, for parts that lie alike in every image.
density.name: The density of the good images' features.
density.l2_normalize: Features are divided by their norm first.
density.shrinkage: How the Gaussian's covariance is made invertible.
density.ridge: What is added to every variance, in squared units of the features.
density.bandwidth: Bandwidth of the kernel density.
density.components: Components of the mixture.
density.covariance: Covariances of the mixture.
density.tolerance: Gain in log likelihood at which the fit of the mixture ends.
score.level: The one of `density.levels` that scores.
score.gradcam: What the map explains: the density's score or the classifier's log odds.
patch.crop: Patch model: side in pixels of the random training crops.
patch.size: Patch model: side in pixels of the patches that are scored.
patch.stride: Patch model: pixels between two patches.
patch.per_location: Patch model: each place has a density of its own.
patch.chunk: Patch model: patches that are computed at once. No score depends on it.
"""),
    "dla": explained("""
model.width: Channels of the projection and of the prediction.
model.bottleneck: Channels between the two layers of the prediction.
model.dense_hidden: Channels between the two layers of the dense heads.
model.dense_width: Channels of the dense heads.
model.zero_init_residual: Residual blocks start as their shortcuts, as in SimSiam's program.
model.dropout: Rate of the dropout, in training and in the passes of the scoring.
model.dropout_place: Dropout inside the blocks or behind the stages.
model.remat: Computes the blocks again in the gradient, so that the paper's batch needs less memory.
objective.global_weight: Weight of the global loss; 0 switches it off.
objective.dense_weight: Weight of the dense loss.
objective.negative_weight: Weight of the loss of negative samples.
objective.pairs: Positive pairs: of all images of a batch, or of an image with itself alone.
objective.reverse: Equation 14 recomputed, or as it is printed.
optim.weight_decay: Weight decay.
score.stages: Stages that are compared, with commas between.
score.channels: Mean or sum of the squared differences over the channels; the sum is the paper's.
score.standardize: Squared differences are divided by their variance over good images; the paper's are not.
score.passes: Dropout passes.
score.regression_weight: Weight of the regression error.
score.uncertainty_weight: Weight of the uncertainty; 0 saves the passes.
"""),
    "baseline": explained("""
score.sigma: Standard deviation in pixels of the blur.
score.floor: What is added to every standard deviation, in grey levels.
"""),
    "synthetic_anomalies": explained("""
size: Bounds of a shape's longer side, as shares of the image's side.
digits: scikit-learn's digits, or MNIST's.
mnist_root: The folder in which TensorFlow Datasets has prepared MNIST.
natural_root: A folder of natural images.
data_root: Where the test images are now, if not where they were.
"""),
}
