"""The library of augmentations: pairs of a random and a deterministic function, exported from their packages."""

import ast
import functools
import importlib
import inspect
import re

import jax
import jax.numpy as jnp
import pytest

from jaxad import augment
from jaxad.augment import cutpaste, dla, nsa
from jaxad.augment.cutpaste.proxy_tasks import TASKS_WITH
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


def test_a_process_with_64_bits_has_the_same_types():
    color, key = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32), jax.random.key(0)
    levels = jax.ShapeDtypeStruct(color.shape, jnp.uint8)
    options = cutpaste.CutPasteOptions()
    calls = [
        (functools.partial(nsa.random_synthesize, settings=nsa.SETTINGS["bottle"].synthesis), (levels, levels)),
        (functools.partial(nsa.random_view, rotation=5.0, center_crop=(60, 60), crop=(32, 32), flip=True), (levels,)),
        (functools.partial(dla.random_view_pair, options=dla.ViewOptions()), (color,)),
        (functools.partial(dla.random_local_augmentation, options=dla.LocalOptions()), (color,)),
        *((functools.partial(getattr(cutpaste, name), options=options), (color,)) for package, name in RANDOM
          if package is cutpaste),
        *((lambda key, image, name=name: cutpaste.proxy_batch(key[None], image[None], proxy=name, options=options)[0],
           (color,)) for name in cutpaste.PROXIES),
    ]  # fmt: skip
    for call, images in calls:
        with jax.enable_x64(True):
            wide = jax.eval_shape(lambda *images, call=call: call(key, *images), *images)
        floats = [leaf.dtype for leaf in jax.tree.leaves(wide) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert set(floats) <= {jnp.dtype("float32")}, call


@pytest.mark.parametrize("option", cutpaste.CutPasteOptions._fields)
def test_an_option_changes_the_tasks_that_are_said_to_use_it(option):
    plain, size = cutpaste.CutPasteOptions(), (64, 64, 3)
    other = {"area": (0.02, 0.1), "aspect": (0.5, 2.0), "scar_width": (2, 10), "scar_length": (10, 20), "side": 300}
    changed = plain._replace(**{option: other.get(option, 0.25)})

    def program(task, options):
        make = functools.partial(cutpaste.proxy_batch, proxy=task, options=options)
        traced = jax.make_jaxpr(make)(jax.random.split(jax.random.key(0), 1), jnp.zeros((1, *size)))
        return f"{traced} {traced.consts}"

    used = {task for task in cutpaste.PROXIES if program(task, plain) != program(task, changed)}
    assert used == set(TASKS_WITH.get(option, cutpaste.PROXIES))


def test_pictures_are_small():
    pictures = list((ROOT / "docs/images").iterdir())
    assert pictures and sum(picture.stat().st_size for picture in pictures) < 2**20


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match=r"'jaxad\.augment\.nsa' has no attribute 'synthesise'"):
        nsa.synthesise  # noqa: B018
    assert dir(nsa) == nsa.__all__
