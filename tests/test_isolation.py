"""The Python API leaves the settings of its caller's process as they were, and the commands make theirs."""

import json
import os
import subprocess
import sys

import pytest

from tests.parts import ROOT

pytestmark = pytest.mark.medium

# Settings of the caller's own: a cache, flags that jaxlib 0.10.2 computes wrong numbers with, and JAX's precision.
PROGRAM = """
import json, locale, logging, os, signal, sys, threading, warnings
import cv2, jax, numpy as np

OWN = sys.argv[1] == "own"
if OWN:
    os.environ["XLA_FLAGS"] = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
    jax.config.update("jax_compilation_cache_dir", sys.argv[2])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1000)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "float32")
    jax.numpy.ones(1).block_until_ready()
    cv2.setNumThreads(3)
    signal.signal(signal.SIGTERM, lambda *_: None)
    warnings.simplefilter("always", DeprecationWarning)

def settings():
    return {
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "environment": dict(os.environ),
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "wakeup": signal.set_wakeup_fd(-1),
        "OpenCV": [cv2.getNumThreads(), cv2.utils.logging.getLogLevel(), cv2.useOptimized()],
        "warnings": [repr(row) for row in warnings.filters],
        "locale": locale.setlocale(locale.LC_ALL),
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
        "loggers": {
            name: [logger.level, *map(repr, (logger.filters, logger.handlers))]
            for name in (None, "absl", "asyncio", "jax") for logger in [logging.getLogger(name)]
        },
        "folder": os.getcwd(),
        "path": sys.path,
    }

import flax, grain, orbax.checkpoint, sklearn.mixture  # set things of their own when they are imported
from jaxad.runtime import stopping
stopping.deferred = None  # the API may not even ask for it
import jaxad

before = settings()
config = jaxad.configs.load(
    "nsa_logistic", "texture", method="tests.tiny:create", epochs=2, batch=4, log_every=1, synthetic_every=2,
    data={"size": 32}, view={"crop": 32}, checkpoint={"every_steps": 2},
)
images = np.random.default_rng(0).integers(80, 120, (9, 40, 40, 3)).astype(np.uint8)
images += np.linspace(0, 60, 40).astype(np.uint8)[:, None]
trained = jaxad.train(config, images, sys.argv[2] + "/workdir")
loaded = jaxad.load(sys.argv[2] + "/workdir")
scores = [prediction.score for prediction in loaded.predict(images)]
assert scores == [prediction.score for prediction in trained.predict(images)]
after = settings()
changed = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps({"changed": changed, "scores": scores, "programs": len(os.listdir(sys.argv[2]))}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the program tells in a process with settings of its own, and in a plain one."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    told = {}
    for kind in ("own", "plain"):
        command = [sys.executable, "-c", PROGRAM, kind, str(tmp_path_factory.mktemp(kind))]
        done = subprocess.run(command, env=plain | {"JAX_PLATFORMS": "cpu"}, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told[kind] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("kind", ["own", "plain"])
def test_training_loading_and_predicting_change_no_setting(found, kind):
    assert found[kind]["changed"] == {}


def test_no_program_is_kept_but_where_the_caller_says(found):
    """Nothing lies beside the workdir: one process has no cache, and the other's is for programs of 1,000 seconds."""
    assert [found[kind]["programs"] for kind in ("own", "plain")] == [1, 1]


def test_scores_do_not_depend_on_the_callers_settings(found):
    assert found["own"]["scores"] == pytest.approx(found["plain"]["scores"], rel=1e-5)


def test_importing_jaxad_starts_no_jax():
    program = "import sys, jaxad; jaxad.UserError, jaxad.configs; print(dir(jaxad)); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"Detector", "Prediction", "UserError", "configs", "load", "train"} <= set(eval(done.stdout))
