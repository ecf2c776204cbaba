"""Eight simulated CPU devices for every test, and a compilation cache of the run's own; set before JAX starts.

Processes of pytest-xdist start with the variables that are set here, and share the cache.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxad-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"  # as the commands have it, from the first test on
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# A shell without job control starts what runs in the background with Ctrl-C ignored, which tests of it inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["onednn", "cpu", "accelerator"])
def formulation(request, monkeypatch):
    """Runs a test on CPU by oneDNN, without it by what `jaxad.models.cpu` rewrites, and with the forms of XLA."""
    from jaxad.models.cpu.onednn import library

    if request.param == "onednn" and not library.has_avx512():
        pytest.skip("oneDNN is not installed, or there is no AVX512")
    if request.param == "cpu":
        monkeypatch.setattr(library, "multiplies", lambda dtype: False)
    if request.param == "accelerator":
        monkeypatch.setattr("jaxad.models.cpu.preferred", lambda: False)
    return request.param

_PROCESSES = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system")
_quick: list[str] = []  # the quick test that runs, if it is one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as quick what is neither medium nor slow."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("medium", "slow")):
            item.add_marker("quick")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Keeps which quick test runs, from its fixtures on."""
    _quick[:] = [item.nodeid] if item.get_closest_marker("quick") else []
    try:
        return (yield)
    finally:
        _quick.clear()


def _refuse_processes(event: str, arguments: tuple) -> None:
    if _quick and event in _PROCESSES:
        raise RuntimeError(f"{_quick[0]} starts a process: mark it medium")


sys.addaudithook(_refuse_processes)
