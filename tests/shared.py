"""Where the reference data lies, and the marker that skips a test without it."""

import pathlib

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def needs_shared(*parts: str) -> pytest.MarkDecorator:
    """Skips the test when ``../shared/<parts>`` is absent."""
    path = SHARED.joinpath(*parts)
    return pytest.mark.skipif(not path.exists(), reason=f"../shared/{'/'.join(parts)} is absent")
