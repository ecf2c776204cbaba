"""The command ``jaxad.train`` as a module: the package's attribute of that name is the function."""

import importlib

train = importlib.import_module("jaxad.train")
