"""A detector of parts, and a server of it that tests of a file share."""

import pytest

from jaxad import detector
from tests.commands import train
from tests.parts import baseline, command, write_parts
from tests.serving.running import running


@pytest.fixture(scope="package")
def workdir(tmp_path_factory):
    """The workdir of a detector with both thresholds."""
    folder = tmp_path_factory.mktemp("served")
    write_parts(folder / "sets", train=20)
    given = {"data__holdout": 0.3, "threshold__cross_fit_below": 0, "data__max_megapixels": 10}
    assert command(train.main, *baseline(folder / "sets", folder / "work", **given)) == 0
    return folder / "work"


@pytest.fixture(scope="package")
def found(workdir):
    return detector.load(workdir)


@pytest.fixture(scope="module")
def served(found):
    with running({"nut": found}) as started:
        yield started
