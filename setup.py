"""The packages; everything else is in pyproject.toml, which cannot say that experiments/ is installed with them."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxad", "jaxad.*"]), "jaxad.experiments"],
    package_dir={"jaxad.experiments": "experiments"},
)
