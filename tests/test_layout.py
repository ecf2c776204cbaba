"""The structure of the source: who imports whom, where randomness comes from, docstrings and lengths of functions."""

import ast
import importlib
import pkgutil
import subprocess
import sys

import pytest

import jaxad
from tests.parts import ROOT

# From left to right; a unit imports itself and what lies to its left. Within a unit imports are free.
ORDER = (
    ("errors",),
    ("runtime",),
    ("config", "config_keys", "config_values", "guarded_config", "metrics"),
    ("data",),
    ("augment",),
    ("models",),
    ("scoring",),
    ("reporting",),
    ("methods",),
    ("configs", "detector"),
    ("exporting",),
    ("training",),
    ("check", "evaluate", "export", "predict", "refit", "report", "pytorch_peer", "submission"),
    ("serving",),
    ("train", "benchmark", "serve", "synthetic_anomalies"),
    ("sweep",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FILES = sorted((ROOT / "jaxad").rglob("*.py"))
MODULES = {file: ast.parse(file.read_text()) for file in FILES}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def imported(tree):
    """The units of jaxad that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jaxad."))
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            parts = (node.module or "").split(".")
            if parts[0] == "jaxad":
                yield from [parts[1]] if len(parts) > 1 else (alias.name for alias in node.names)


def unit(file):
    return file.relative_to(ROOT / "jaxad").parts[0].removesuffix(".py")


def place(file, node=None):
    """``jaxad/config.py:12``, for a message."""
    return f"{file.relative_to(ROOT)}:{node.lineno}" if node else str(file.relative_to(ROOT))


def nodes():
    """Every node of every module, with its file."""
    return ((file, node) for file, tree in MODULES.items() for node in ast.walk(tree))


def test_imports_point_to_the_left():
    for file, tree in MODULES.items():
        if file == ROOT / "jaxad" / "__init__.py":
            continue  # the package itself gives access to everything, on demand
        assert unit(file) in RANK, f"{unit(file)} has no place in the order of the layout yet"
        wrong = [name for name in imported(tree) if RANK[name] > RANK[unit(file)]]
        assert not wrong, f"{place(file)} lies left of {wrong}"


def test_modules_within_a_unit_do_not_import_in_circles():
    edges = {}
    for file, tree in MODULES.items():
        name = ".".join(("jaxad", *file.relative_to(ROOT / "jaxad").with_suffix("").parts)).removesuffix(".__init__")
        targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jaxad."):
                targets |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        edges[name] = targets
    modules = set(edges)
    edges = {name: (targets & modules) - {name} for name, targets in edges.items()}
    while leaves := [name for name, targets in edges.items() if not targets]:
        edges = {name: targets - set(leaves) for name, targets in edges.items() if name not in leaves}
    assert not edges


def test_every_module_is_looked_at():
    names = {module.name for module in pkgutil.walk_packages(jaxad.__path__, "jaxad.")}
    assert len(names) == len(FILES) - 1


def top_level(tree, kinds):
    return [node for node in tree.body if isinstance(node, kinds)]


def methods_of(tree):
    return [node for cls in top_level(tree, ast.ClassDef) for node in cls.body if isinstance(node, FUNCTIONS)]


def test_randomness_is_the_first_parameter():
    for file, tree in MODULES.items():
        for function in top_level(tree, FUNCTIONS) + methods_of(tree):
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
            names = [name for name in names if name not in ("self", "cls")]
            keywords = [argument.arg for argument in function.args.kwonlyargs]
            for name in ("rng", "key", "keys"):
                assert name not in keywords, f"{place(file, function)}: {name} is positional"
                assert name not in names[1:], f"{place(file, function)}: {name} comes first"


def dotted(node):
    """``np.random.normal`` as text; empty for anything but a chain of names."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def test_randomness_comes_from_a_seed():
    allowed = {"default_rng", "Generator", "SeedSequence"}
    for file, node in nodes():
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
            assert "random" not in names and "numpy.random" not in names, place(file, node)
        if isinstance(node, ast.Attribute) and dotted(node).startswith(("np.random.", "numpy.random.")):
            assert dotted(node).split(".")[2] in allowed, f"{place(file, node)}: {dotted(node)} has a global state"
        if isinstance(node, ast.Call) and dotted(node.func).endswith("random.default_rng"):
            assert node.args, f"{place(file, node)}: a generator without a seed"


def test_nothing_is_unpickled():
    """A pickle runs what its author wants; what is read from a disk or from other hosts is data."""
    modules = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "yaml"}
    for file, node in nodes():
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not modules & {part for name in names for part in name.split(".")}, place(file, node)
        if isinstance(node, ast.Attribute):
            assert node.attr != "read_pickle" and dotted(node) != "torch.load", place(file, node)
        if isinstance(node, ast.Call):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            allowed = given.get("allow_pickle")
            assert allowed is None or getattr(allowed, "value", True) is False, place(file, node)


def test_public_things_have_docstrings():
    for file, tree in MODULES.items():
        assert not tree.body or ast.get_docstring(tree), f"{place(file)} has no docstring"
        for node in top_level(tree, FUNCTIONS | ast.ClassDef) + methods_of(tree):
            is_signature = any(dotted(decorator) in ("property", "overload") for decorator in node.decorator_list)
            if not node.name.startswith("_") and not is_signature:
                assert ast.get_docstring(node), f"{place(file, node)}: {node.name} has no docstring"


def body_lines(function):
    """Lines of a function without its docstring and its signature."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_fit_a_screen():
    for file, node in nodes():
        if isinstance(node, FUNCTIONS):
            assert body_lines(node) <= 60, f"{place(file, node)}: {node.name} is too long"


@pytest.mark.medium
def test_data_workers_need_no_jax():
    # Worker processes import these again; starting JAX in each would cost seconds and, on a GPU, its memory. Grain
    # looks for JAX on its own when it is there, so it is kept from finding it.
    names = ("augment.nsa.host", "augment.nsa.host_views", "data.demo.source", "data.folder", "data.pipeline")
    modules = [f"jaxad.{name}" for name in names]
    code = (
        "import sys, importlib; sys.modules['grain'] = type(sys)('grain'); "
        f"[importlib.import_module(name) for name in {modules}]; "
        "assert not {'jax', 'jaxlib', 'flax'} & sys.modules.keys(), 'JAX was imported'"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_commands_can_be_imported_without_running():
    names = ("train", "check", "evaluate", "export", "predict", "report", "benchmark", "serve")
    for name in (*names, "sweep.__main__", "synthetic_anomalies.__main__"):
        assert callable(importlib.import_module(f"jaxad.{name}").main)
