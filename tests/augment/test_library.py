"""The library of augmentations: pairs of a random and a deterministic function, exported from their packages."""

import ast
import importlib
import inspect
import re

import pytest

from jaxad import augment
from jaxad.augment import cutpaste, dla, nsa
from tests.parts import ROOT

PACKAGES = (augment, cutpaste, dla, nsa)
RANDOM = [(package, name) for package in PACKAGES for name in package.__all__ if name.startswith("random_")]
MODULES = sorted((ROOT / "jaxad" / "augment").rglob("*.py"))
each_random = pytest.mark.parametrize(("package", "name"), RANDOM, ids=[name for _, name in RANDOM])
KEYWORD = inspect.Parameter.KEYWORD_ONLY


@each_random
def test_the_key_comes_first_and_options_are_keyword_only(package, name):
    parameters = inspect.signature(getattr(package, name)).parameters
    assert next(iter(parameters)) == "key"
    positional = [parameter.name for parameter in parameters.values() if parameter.kind != KEYWORD]
    assert set(positional) <= {"key", "image", "partner", "box"}
    assert len(positional) < len(parameters)


@each_random
def test_a_random_function_has_a_deterministic_partner(package, name):
    partner = name.removeprefix("random_")
    assert partner in package.__all__
    assert not {"key", "keys", "rng"} & inspect.signature(getattr(package, partner)).parameters.keys()


def test_there_are_pairs_of_every_paper():
    assert {package.__name__ for package, _ in RANDOM} == {package.__name__ for package in PACKAGES}


@pytest.mark.parametrize("file", MODULES, ids=[str(file.relative_to(ROOT)) for file in MODULES])
def test_functions_that_draw_are_called_so(file):
    for function in ast.parse(file.read_text()).body:
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_") and function.args.args:
            draws = function.args.args[0].arg in ("key", "rng")
            assert draws == function.name.startswith(("random_", "sample_")), function.name


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_name_is_on_the_page(package):
    text = (ROOT / "docs/augmentations.md").read_text()
    documented = {}
    for module, members in re.findall(r"(?s)::: (\S+)\n    options:\n      members: \[(.*?)\]", text):
        if module.rpartition(".")[0] == package.__name__:
            documented |= {name: getattr(importlib.import_module(module), name) for name in re.split(r",\s+", members)}
    assert documented == {name: getattr(package, name) for name in package.__all__}


def test_pictures_are_small():
    pictures = list((ROOT / "docs/images").iterdir())
    assert pictures and sum(picture.stat().st_size for picture in pictures) < 2**20


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match=r"'jaxad\.augment\.nsa' has no attribute 'synthesise'"):
        nsa.synthesise  # noqa: B018
