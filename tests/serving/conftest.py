"""A detector of parts, and a server of it that tests of a file share."""

import pytest

from jaxad import detector
from tests.serving.running import fitted, running


@pytest.fixture(scope="package")
def workdir(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def found(workdir):
    return detector.load(workdir)


@pytest.fixture(scope="module")
def served(found):
    with running({"nut": found}) as started:
        yield started
