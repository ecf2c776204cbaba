"""``jaxad.train`` and ``jaxad.refit`` as modules: the attributes of the package with these names are functions."""

import importlib

refit = importlib.import_module("jaxad.refit")
train = importlib.import_module("jaxad.train")
