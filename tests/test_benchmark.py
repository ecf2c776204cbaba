"""``python -m jaxad.benchmark``: the arithmetic of a figure, the whole command on tiny networks, its table."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxad import benchmark, methods, report
from jaxad import config as configs
from jaxad.models import flops
from jaxad.runtime import devices
from jaxad.training import step as training
from tests import tiny
from tests.parts import BASELINE, NSA, ROOT, SIZE, command, refusal, write_parts

FIGURES = ["host synthesis", "device synthesis", "training step", "training loop", "inference", "evaluation"]
BATCH, REPEATS = 8, 3
SIZES = {"nsa_logistic": {"view.crop": "128", "score.size": "128"}}
# Of the tiny network's two 3x3 convolutions, from 3 to 8 channels and from 8 to 1.
FORWARD = 2 * SIZE**2 * 9 * (3 * 8 + 8 * 1)
TRAINING = 2 * SIZE**2 * 9 * (2 * 3 * 8 + 3 * 8 * 1)


@pytest.fixture(scope="module", autouse=True)
def environment():
    """The tiny method has a name, small matrices are the yardstick, and compilation is real."""
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "tiny", tiny.create)
        patch.setattr(benchmark, "_SIDES", (32, 64))
        patch.setattr(benchmark, "_SAMPLE_S", 0.01)
        yield
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"), train=12)


def arguments(root, **changes):
    given = {"method": "tiny", "data__root": f"{root}/nut", "data__size": SIZE, "score__size": SIZE, "batch": BATCH}
    given |= {"view__crop": SIZE, "epochs": 20, "evaluate__batch": 8, "data__holdout": 0, "dtype": "float32"} | changes
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()]
    return ["--config", f"{NSA}:texture", "--repeats", REPEATS, *flags]


def run(output, given):
    assert command(benchmark.main, *given, "--output", output) == 0
    return json.loads(output.read_text())


@pytest.fixture(scope="module", params=["device", "host"])
def made(request, root, tmp_path_factory):
    """Where the synthesis is, and the results of the command."""
    folder = tmp_path_factory.mktemp("figures")
    return request.param, run(folder / "made" / "tiny.json", arguments(root, data__synthesis=request.param))


@pytest.mark.slow
def test_every_figure_is_there(made):
    place, results = made
    assert list(results["figures"]) == FIGURES
    for name, figure in results["figures"].items():
        if place == "device" and name == "host synthesis":
            assert figure == {"images_per_s": None, "fraction": None, "reason": "nothing is made on the host"}
        else:
            assert figure["images_per_s"]["median"] > 0, name


@pytest.mark.medium
def test_figures_are_consistent(made):
    for name, figure in made[1]["figures"].items():
        if figure["images_per_s"] is None:
            continue
        seconds, rate = figure["seconds"], figure["images_per_s"]
        assert 0 < seconds["lower"] <= seconds["median"] <= seconds["upper"] and figure["repeats"] == REPEATS
        for ours, its in (("lower", "upper"), ("median", "median"), ("upper", "lower")):
            assert rate[ours] == pytest.approx(figure["images"] / seconds[its])
        if "synthesis" in name:
            assert figure["operations_per_image"] is None and figure["fraction"] is None
            continue
        done = figure["operations_per_image"] * rate["median"]
        assert figure["fraction"] == pytest.approx(done / figure["peak_operations_per_s"])


@pytest.mark.medium
def test_operations_and_images_are_those_of_the_work(made):
    figures = made[1]["figures"]
    operations = {"training step": TRAINING, "training loop": TRAINING, "inference": FORWARD, "evaluation": FORWARD}
    images = {"training step": BATCH, "training loop": BATCH, "inference": 32, "evaluation": 5}
    for name, count in operations.items():
        assert (figures[name]["operations_per_image"], figures[name]["images"]) == (count, images[name]), name


@pytest.mark.slow
def test_training_alone(root, tmp_path, capsys):
    results = run(tmp_path / "tiny.json", [*arguments(root), "--training"])
    assert list(results["figures"]) == FIGURES[:4] and list(results["compile_s"]) == ["training step"]
    assert results["command"].endswith(" --training") and "| training loop |" in report.benchmarks([results])
    untrained = ["--config", f"{BASELINE}:texture", f"--config.data.root={root}/nut", "--training"]
    assert "not trained" in refusal(capsys, benchmark.main, *untrained)


class NoYardstick:
    """Measures nothing."""

    def measure(self, call, **_):
        call()
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("experiment, rows", [("nsa_logistic", 8), ("cutpaste_3way", 24), ("cutpaste_patch", 24)])
def test_the_step_alone_takes_the_examples_that_were_made(experiment, rows):
    """Also where a method makes several of an image: the loss of what is made can be computed."""
    sizes = {"data.size": "128", "batch": "8"}
    config = configs.load(f"{ROOT}/experiments/{experiment}.py:texture", sizes | SIZES.get(experiment, {}))
    method, images = methods.create(config), np.zeros((8, 128, 128, 3), np.uint8)
    batch = {"image": images, "partner": images, "index": np.arange(8, dtype=np.int32)}
    _, made = benchmark._device_synthesis(config, method, batch, devices.make_mesh(), NoYardstick())
    assert len(made["image"]) == len(made["index"]) == rows
    plan, key = training.plan(config, method, images=8), jax.random.key(0)
    state = training.init_state(method, plan.optimizer, images[0], seed=0)

    def loss(batch):
        return method.loss(state.params, state.batch_stats, batch, key)[0]

    part = jax.tree.map(lambda leaf: leaf[None], made)
    jax.eval_shape(jax.vmap(loss, axis_name=devices.AXIS), part)


@pytest.mark.medium
def test_shares_of_the_step_are_in_matrix_products(made):
    """A machine that is twice as fast in the loop's minute than in the step's must not make the loop twice as fast."""
    figures = made[1]["figures"]
    step = figures["training step"]
    for name in ("device synthesis", "training loop"):
        own = figures[name]
        time = own["seconds"]["median"] / own["images"] * own["peak_operations_per_s"]
        of_step = step["seconds"]["median"] / step["images"] * step["peak_operations_per_s"]
        assert own["of_step"] == pytest.approx(time / of_step)


@pytest.mark.medium
def test_results_say_where_they_come_from(made):
    place, results = made
    assert (results["experiment"], results["category"]) == ("nsa_logistic", "nut")
    assert results["config"]["method"] == "tiny" and results["config"]["data"]["synthesis"] == place
    assert "8 simulated devices" in results["device"] and results["versions"]["jax"] == jax.__version__
    assert results["image"] == [SIZE, SIZE, 3] and (results["batch"], results["dtype"]) == (BATCH, "float32")
    assert f"--config.data.synthesis={place}" in results["command"] and "--output" not in results["command"]
    assert set(results["compile_s"]) == {"training step", "inference"} and min(results["compile_s"].values()) > 0
    assert results["memory"]["peak"]["of"] == "process" and results["memory"]["peak"]["bytes"] > 2**20
    assert results["memory"]["training step"]["temp"] > 0


@pytest.mark.medium
def test_the_table_shows_what_was_measured(made, tmp_path, capsys):
    results = made[1]
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results | {"category": name}))
    assert command(report.main, tmp_path / "a.json", tmp_path / "b.json") == 0
    table = capsys.readouterr().out
    rows = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in table.splitlines()}
    assert table.splitlines()[0] == "| | nsa_logistic, a | nsa_logistic, b |"
    assert list(rows)[2:] == ["device", "versions", "images", "matrix-product peak", *FIGURES,
                              "compilation", "peak memory", "date", "commit", "command"]  # fmt: skip
    first, second = rows["training loop"]
    assert first == second and first.endswith(" % of the step alone") and "% of the peak" in first
    synthesis = rows["device synthesis"][0]
    assert synthesis.endswith(" % of the step's time") and "peak" not in synthesis
    assert all(cell.startswith("`python -m jaxad.benchmark --config experiments/") for cell in rows["command"])
    assert "--config.data.root=DIR" in rows["command"][0]


@pytest.mark.medium
def test_the_table_goes_into_a_section_of_the_readme(made, tmp_path):
    (tmp_path / "tiny.json").write_text(json.dumps(made[1]))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark:start -->\nold\n<!-- benchmark:end -->\nafter\n")
    assert command(report.main, tmp_path / "tiny.json", "--readme", readme, "--section", "benchmark") == 0
    expected = report.benchmarks([made[1]])
    assert readme.read_text() == f"before\n<!-- benchmark:start -->\n{expected}<!-- benchmark:end -->\nafter\n"


@pytest.mark.medium
def test_a_method_without_training_says_so(root, tmp_path):
    given = ["--config", f"{BASELINE}:nut", f"--config.data.root={root}", f"--config.data.size={SIZE}", "--repeats=1"]
    results = run(tmp_path / "made.json", given)
    for name in FIGURES[:4]:
        assert results["figures"][name]["reason"] == "baseline_mean is not trained"
    for name in FIGURES[4:]:  # its work has no layers
        assert results["figures"][name]["images_per_s"]["median"] > 0 and results["figures"][name]["fraction"] is None
    assert "| training step | n/a: baseline_mean is not trained |" in report.benchmarks([results])


@pytest.mark.slow
def test_pytorch_is_timed_beside_where_it_is_installed(root, tmp_path, monkeypatch):
    """By a stand-in: the calls' arguments, their figures, and that two files, one of them without, make one table."""
    asked = {}

    def calls(**given):
        asked.update(given)
        return {"training step": lambda: None, "inference": lambda: None}

    monkeypatch.setitem(methods.METHODS, "nsa", tiny.create)
    monkeypatch.setattr(benchmark.pytorch_peer, "installed", lambda: True)
    monkeypatch.setattr(benchmark.pytorch_peer, "calls", calls)
    results = run(tmp_path / "made.json", arguments(root, method="nsa"))
    assert asked == {"batch": BATCH, "size": SIZE, "scored": SIZE, "scored_batch": 8, "dtype": "float32"}
    assert list(results["figures"]) == [*FIGURES, "PyTorch: training step", "PyTorch: inference"]
    for name in ("training step", "inference"):
        ours, theirs = (results["figures"][key] for key in (name, f"PyTorch: {name}"))
        assert theirs["operations_per_image"] == ours["operations_per_image"] and theirs["of_ours"] > 0
    without = results | {"figures": {name: results["figures"][name] for name in FIGURES}}
    table = report.benchmarks([without, results])
    assert "| PyTorch: inference | – | " in table and table.count(" times jaxad's time |") == 2


@pytest.mark.slow
def test_what_there_is_no_data_for_is_missing(tmp_path, capsys):
    write_parts(tmp_path, train=4)
    given = arguments(tmp_path, data__root=tmp_path / "nut" / "train" / "good", epochs=1)
    assert command(benchmark.main, *given) == 0
    printed = capsys.readouterr().out
    assert "| evaluation | n/a: there are no test images |" in printed
    assert "| training loop | n/a: a training of 1 calls is too short to be timed |" in printed


def test_a_figure_by_hand():
    made = benchmark.figure([4.0, 1.0, 3.0, 2.0, 5.0], [10.0, 30.0, 20.0], images=6, operations=8)
    assert made == {
        "images": 6, "repeats": 5,
        "seconds": {"lower": 2.0, "median": 3.0, "upper": 4.0},
        "images_per_s": {"lower": 1.5, "median": 2.0, "upper": 3.0},
        "operations_per_image": 8, "peak_operations_per_s": 20.0, "fraction": 8 * 2.0 / 20.0,
    }  # fmt: skip
    assert benchmark.figure([1.0], [1.0], images=1, operations=0)["fraction"] is None


class Clock:
    """A clock that only moves when it is told to; the peak is 4 operations in whatever a second is then."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, []
        monkeypatch.setattr(benchmark.time, "perf_counter", lambda: self.now)
        self.yardstick = object.__new__(benchmark.Yardstick)
        self.yardstick._repeats, self.yardstick._product = REPEATS, (lambda: self.work("peak", 2.0), 8, 1)

    def work(self, name, seconds):
        self.now += seconds
        self.order.append(name)


def test_work_and_peak_are_timed_in_turn_after_the_first_runs(monkeypatch):
    clock = Clock(monkeypatch)
    times = iter([100.0, 50.0, 3.0, 5.0, 4.0])
    made = clock.yardstick.measure(lambda: clock.work("work", next(times)), images=1, operations=2)
    assert clock.order == ["work", "work"] + 3 * ["peak", "work"]
    assert made["seconds"]["median"] == 4.0 and made["peak_operations_per_s"] == 4.0 and made["fraction"] == 2 / 4 / 4


def test_long_work_is_sampled_less_often(monkeypatch):
    clock = Clock(monkeypatch)
    made = clock.yardstick.measure(lambda: clock.work("work", benchmark._ENOUGH_S), images=1, operations=None)
    assert made["repeats"] == 1


def test_the_loop_is_timed_without_its_first_calls_and_without_a_halt(monkeypatch):
    clock = Clock(monkeypatch)
    times = [9.0, 9.0, *[1.0, 2.0, 3.0], *[0.5, 0.5, 0.5], *[1.0, 1.0, 1.0], 99.0]
    made = clock.yardstick.measure_loop((clock.work("call", s) for s in times), images=6, operations=1)
    # The first peak after the loop waits for what the loop has begun, and is not counted.
    assert clock.order == 3 * ["peak"] + 11 * ["call"] + 4 * ["peak"]
    assert made["repeats"] == 3 and made["seconds"]["median"] == 1.0 and made["images_per_s"]["median"] == 6.0
    long = (clock.work("call", benchmark._ENOUGH_S) for _ in range(99))
    assert clock.yardstick.measure_loop(long, images=6, operations=1)["seconds"]["median"] == benchmark._ENOUGH_S
    short = clock.yardstick.measure_loop(iter([None, None]), images=6, operations=1)
    assert short["reason"] == "a training of 2 calls is too short to be timed"


def test_calls_are_waited_for_in_order(monkeypatch):
    """One call is under way while the next is handed over, and none is left at the end."""
    order, numbers = [], iter(range(3))
    waited = lambda made: made is not None and order.append(("waited", made))  # noqa: E731
    monkeypatch.setattr(jax, "block_until_ready", waited)

    def call():
        order.append(("called", number := next(numbers)))
        return number

    benchmark.seconds(call, 3)
    assert order == [("called", 0), ("called", 1), ("waited", 0), ("called", 2), ("waited", 1), ("waited", 2)]


def test_the_peak_counts_all_devices():
    """Matrices of each device are as large as the numbers say, and the fastest side is taken."""
    found = benchmark.Yardstick(benchmark.devices.make_mesh(), np.dtype(np.float32), 1)
    call, operations, _ = found._product
    product = call()
    side = product.shape[-1]
    assert product.shape == (8, side, side) and side in (32, 64) and operations == 8 * 2 * side**3
    first = np.random.default_rng(0).standard_normal((side, side), np.float32)
    np.testing.assert_allclose(product[7], first @ first, rtol=1e-4, atol=1e-4)
    assert found.peak() > 0


def test_help(capsys):
    assert command(benchmark.main, "--help") == 0
    assert "--repeats N" in capsys.readouterr().out


@pytest.mark.parametrize("given, words", [
    (["--repeats=0"], "--repeats must be a whole number from 1 on, not '0'"),
    (["--repeats=two"], "--repeats must be a whole number from 1 on, not 'two'"),
    (["--config.bathc=8"], "did you mean config.batch?"),
    (["--workdir=W"], "unknown argument '--workdir=W'"),
    (["--output=."], "Is a directory"),
    (["--config.batch=9"], "config.batch is 9; it must be a multiple of the 8 devices"),
    (["--config.dtype=float8"], "config.dtype must be one of"),
])  # fmt: skip
def test_mistakes_are_one_sentence(root, capsys, given, words):
    name = "tiny" if "dtype" not in given[0] else "nsa"
    assert words in refusal(capsys, benchmark.main, *arguments(root, method=name), *given)


def test_a_file_that_is_no_benchmark_is_refused(tmp_path, capsys):
    for name, text in (("results.json", "{}"), ("list.json", "[]"), ("broken.json", "{"), ("missing.json", None),
                       ("columns.json", '{"columns": {}, "average": {}, "settings": {}}')):  # fmt: skip
        if text is not None:
            (tmp_path / name).write_text(text)
        said = refusal(capsys, report.main, tmp_path / name)
        assert said.startswith(f"{tmp_path / name} is not what python -m jaxad.benchmark --output or ")


def test_training_operations_do_not_depend_on_the_devices(root):
    """The step of eight devices has as many as that of the whole batch on one."""
    method = tiny.make()
    batch = {"image": np.zeros((BATCH, SIZE, SIZE, 3), np.uint8), "label": np.zeros((BATCH, SIZE, SIZE), np.float32)}
    batch["index"] = np.arange(BATCH, dtype=np.int32)
    state = benchmark.training.init_state(method, benchmark.training.optax.sgd(0.1), batch["image"][0], seed=0)
    assert benchmark.training_operations(method, state, batch) == BATCH * TRAINING
    assert flops.forward(method.score, {"params": state.params, "batch_stats": state.batch_stats}, {},
                         np.zeros((1, SIZE, SIZE, 3), np.float32)) == FORWARD  # fmt: skip


@pytest.mark.medium
def test_the_memory_of_the_process_that_started_this_one_is_not_counted():
    program = "from jaxad import benchmark; print(benchmark.peak_memory()['bytes'])"
    large = np.ones(2**27)  # 1 GiB, of which the system counts every page
    del large
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < 2**29
