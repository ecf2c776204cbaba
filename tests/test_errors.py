"""Errors for the user: what they are about goes where they go, and those about one key say so."""

import ast
import pickle
from pathlib import Path

import pytest

from jaxad.errors import UserError
from jaxad.guarded_config import MissingKey
from tests.parts import ROOT


@pytest.mark.parametrize("about, text", [("data.size", "data.size"), (Path("a/b"), "a/b"), (None, None)])
def test_what_an_error_is_about_travels_with_it(about, text):
    """From data workers and from other processes, too."""
    for kind in (UserError, MissingKey):
        error = pickle.loads(pickle.dumps(kind("it is wrong", about=about)))
        assert (type(error), str(error), error.about) == (kind, "it is wrong", text)


def test_every_sentence_that_begins_with_a_key_is_about_it():
    for file in sorted((ROOT / "jaxad").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("UserError", "MissingKey"):
                sentence = ast.unparse(node.args[0]).lstrip("f\"'")
                named = {keyword.arg for keyword in node.keywords}
                assert not sentence.startswith("config.") or "about" in named, f"{file}:{node.lineno}"
