"""What tests ask of an error for the user: what it is about, and one word, so that its sentence can be improved."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from jaxad.errors import UserError


@contextlib.contextmanager
def refuses(about: str | os.PathLike | None, word: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Checks that a `UserError` about this key, option or path is raised, in one line that holds this word."""
    with pytest.raises(UserError) as caught:
        yield caught
    sentence = str(caught.value)
    assert caught.value.about == (None if about is None else str(about)), sentence
    assert word in sentence and "\n" not in sentence, sentence
