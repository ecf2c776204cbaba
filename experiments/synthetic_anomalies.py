"""Synthetic anomalies: Li et al., CVPR 2021, Section 5.3, Figure 6 and Table 6.

    python -m jaxad.synthetic_anomalies --config experiments/synthetic_anomalies.py --workdir W1 W2

For trained detectors, of any method: digits, squares, ellipses and hearts on the good images of the test set, filled
with a random colour, and the last three also with patches of natural images (the columns with a plus). Each workdir
gets synthetic_anomalies.json and a picture, synthetic_anomalies.png: the columns in order, each image beside its mask.

    python -m jaxad.report W1/synthetic_anomalies.json W2/synthetic_anomalies.json

is the table. The paper leaves open how large the shapes are, how they are turned, and which natural images it takes.
Here the longer side of a shape's box is 0.1 to 0.2 of the image's side: an MNIST digit of 28 pixels pasted on an image
of 256 as it is would have 0.11, and dSprites, which the paper cites for its hearts, scales shapes by a factor of two.
Digits stay upright, other shapes are turned by any angle.

    --config.digits=mnist --config.mnist_root=DIR    MNIST's test images, which TFDS has prepared in DIR:
                                                     tfds build mnist --data_dir=DIR --file_format=array_record
    --config.natural_root=DIR                        natural images of your own, all in one folder
    --config.data_root=DIR                           where the test images are now

Without them nothing is downloaded: digits and photos are bundled with scikit-learn. Its photos, china.jpg by Daniel
Buechele and flower.jpg by "vultilion", are under the Creative Commons licence Attribution 2.0, which pictures that show
them have to name.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings of all seven sets."""
    config = ConfigDict()
    config.seed = 0
    config.size = (0.1, 0.2)  # longer side of a shape's box, as a share of the image's side
    config.digits = "digits"  # scikit-learn's, 8 x 8 pixels; or mnist
    config.mnist_root = ""
    config.natural_root = ""
    config.data_root = ""
    return config
