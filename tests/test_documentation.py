"""Every figure of the documentation comes from a file, and every table is what the files and the code give."""

import json
import re
import shutil

import pytest

from docs import keys, pictures
from docs import tables as documentation
from jaxad import config_keys
from jaxad.errors import UserError
from tests.parts import ROOT

PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
FILES = sorted(documentation.RESULTS.rglob("*.json"))
RUNS = [file for file in FILES if file.name == "results.json"]
NAMES = [str(file.relative_to(documentation.RESULTS)) for file in FILES]


def outside(page):
    """The lines of a page that no command writes."""
    text = re.sub(r"<!-- (\w+):start -->.*?<!-- \1:end -->", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()


@pytest.mark.parametrize("page", documentation.SECTIONS)
def test_tables_are_what_the_files_and_the_code_give(page):
    assert documentation.rendered(page) == (ROOT / page).read_text(), "run python3 -m docs.tables"


def test_files_are_what_their_checksums_say():
    kept = (documentation.RESULTS / documentation.CHECKSUMS).read_text()
    assert documentation.checksums() == kept, "run python3 -m docs.tables"


@pytest.mark.parametrize("page", PAGES)
def test_no_figure_stands_outside_the_tables(page):
    for line in outside(page):
        assert not re.search(r"(?<![\d.])\d{2,3}\.\d(?![\d.])", line), line


def test_every_section_is_made():
    for page in PAGES:
        sections = re.findall(r"<!-- (\w+):start -->", (ROOT / page).read_text())
        assert set(sections) - {"test"} == documentation.SECTIONS.get(page, {}).keys(), page


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_files_say_where_they_come_from_and_name_no_folder(file):
    """A log of a training lies beside the results that do."""
    origin = file.with_name("results.json") if file.name == "history.json" else file
    held = json.loads(origin.read_text())
    assert held["device"] and re.fullmatch(r"\d{4}-\d\d-\d\d", held["date"]) and held["commit"]
    assert held["command"].startswith("python -m jaxad.")
    assert not re.search(r"[\" =]/\w", file.read_text())


@pytest.mark.parametrize("file", RUNS, ids=[name for name in NAMES if name.endswith("results.json")])
def test_another_digit_in_a_file_is_found(file, tmp_path):
    """What the two tests above compare is no more the same."""
    copy = shutil.copytree(documentation.RESULTS, tmp_path / "results")
    changed = copy / file.relative_to(documentation.RESULTS)
    held = json.loads(changed.read_text())
    held["pixel"]["auroc"] -= 0.01  # seen in the mean of several seeds too
    changed.write_text(json.dumps(held, indent=1) + "\n")
    assert documentation.rendered("docs/results.md", copy) != documentation.rendered("docs/results.md")
    assert documentation.checksums(copy) != documentation.checksums()


def test_a_key_without_a_meaning_and_a_meaning_without_a_key_are_found(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"config\.seed of \w+ is not explained"):
        patch.delitem(config_keys.GENERAL.meanings, "seed")
        keys.table("")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no experiment has sede"):
        patch.setitem(config_keys.GENERAL.meanings, "sede", "nothing")
        keys.table("")


def write_workdir(folder, **changes):
    typed = f"--config /home/me/e.py:bottle --workdir {folder} --config.data.root /data"
    made = {"command": f"python -m jaxad.train {typed}"}
    results = json.loads(RUNS[0].read_text()) | made | {"trained": [dict(made)], "evaluated": {"command": None}}
    results["config"]["data"]["root"] = "/data"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results | changes))
    return folder


def test_results_are_taken_in_without_what_belongs_to_a_machine(tmp_path):
    kept = tmp_path / "kept"
    for name in (None, None, "again"):  # the same once more changes nothing
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        documentation.keep(write_workdir(tmp_path / "w"), name, results=kept)
    files = sorted(kept.rglob("*.*json"))
    release = "jax_" + ".".join(json.loads(RUNS[0].read_text())["versions"]["jax"].split(".")[:2])
    assert [str(file.relative_to(kept)) for file in files] == [
        f"{release}/nsa_logistic/cap/{name}/results.json" for name in ("again", "seed0")
    ]
    held = json.loads(files[0].read_text())
    command = "python -m jaxad.train --config experiments/e.py:bottle --config.data.root=DIR"
    assert held["command"] == held["trained"][0]["command"] == command and held["config"]["data"]["root"] == "DIR"
    assert not re.search(r"[\" =]/\w", files[0].read_text())


def test_the_log_of_a_training_is_kept_and_drawn(tmp_path):
    rows = [
        {"step": 10, "loss_global": -0.123456789, "projection_spread": 0.5, "seconds": 1.0},
        {"step": 20, "synthetic_pixel_auroc": 0.75, "seconds": 2.0},
    ]
    workdir = write_workdir(tmp_path / "w")
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documentation.keep(workdir, history=True, results=tmp_path / "kept")
    [file] = (tmp_path / "kept").rglob("history.json")
    found = json.loads(file.read_text())
    assert found == [rows[0] | {"loss_global": -0.12346}, rows[1]] and (file.parent / "results.json").is_file()
    panels = {axes.get_ylabel(): axes.lines for axes in pictures.training_curves({"one": found, "two": []}).axes}
    assert [len(lines) for lines in panels.values()] == [2] * 6
    assert panels["global loss"][0].get_xydata().tolist() == [[10, -0.12346]]
    assert panels["pixel AUROC, synthetic"][0].get_xydata().tolist() == [[20, 0.75]]


def test_other_results_of_the_same_name_and_several_runs_are_refused(tmp_path):
    kept = tmp_path / "kept"
    documentation.keep(write_workdir(tmp_path / "runs/a"), results=kept)
    with pytest.raises(UserError, match="holds other results; choose another --name"):
        documentation.keep(write_workdir(tmp_path / "runs/b", date="2026-01-01"), results=kept)
    with pytest.raises(UserError, match="the results of 2 runs; name the workdir of one"):
        documentation.keep(tmp_path / "runs", results=kept)
