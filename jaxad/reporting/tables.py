"""Tables of results: as Markdown, as HTML, and in the papers' layout with the published numbers beside ours."""

import csv
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxad.config import recorded
from jaxad.data.folder import OBJECTS, TEXTURES
from jaxad.errors import UserError
from jaxad.reporting import published
from jaxad.reporting.html_report import CSS

METRICS = {"image.auroc": "Image AUROC, %", "pixel.auroc": "Pixel AUROC, %", "pixel.aupro": "AU-PRO, %"}
REPLICATES = 2000
LEVEL = 0.95
SCOPES = {  # the papers' averages: (title, categories) by the name that published.json has
    "texture": ("texture average", TEXTURES),
    "object": ("object average", OBJECTS),
    "all": ("average", TEXTURES + OBJECTS),
}
OTHER = " (another test set)"


class Table(NamedTuple):
    """A table of text."""

    heads: list[str]
    rows: list[list[str]]
    align: str  # "l" or "r" for each column
    title: str = ""
    notes: Sequence[str] = ()


class Measured(NamedTuple):
    """A metric of one category, or of an average over some, in [0, 1]."""

    seeds: tuple  # () for an average over categories with different seeds
    values: np.ndarray  # (n,) one for each seed, or the mean alone
    replicates: np.ndarray | None  # (REPLICATES,) of the bootstrap; None where there are several seeds or no scores


def markdown(tables: Sequence[Table]) -> str:
    """The tables one after the other, each below its title and above its notes where it has any."""

    def line(cells: Sequence[str]) -> str:
        escaped = [cell.replace("|", "\\|") for cell in cells]
        return "|" + "|".join(f" {cell} " if cell else " " for cell in escaped) + "|"

    parts = []
    for table in tables:
        lines = [f"**{table.title}**", ""] if table.title else []
        rule = "|" + "|".join({"l": "---", "r": "---:"}[side] for side in table.align) + "|"
        lines += [line(table.heads), rule, *map(line, table.rows)]
        lines += [text for note in table.notes for text in ("", note)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def page(tables: Sequence[Table]) -> str:
    """The tables as one HTML page that loads nothing from elsewhere."""

    def text(cell: str) -> str:
        return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(cell))

    body = []
    for table in tables:

        def row(cells: Sequence[str], tag: str, table: Table = table) -> str:
            sides = {"l": "", "r": " class=number"}
            return "".join(
                f"<{tag}{sides[side]}>{text(cell)}</{tag}>" for cell, side in zip(cells, table.align, strict=True)
            )

        body.append(f"<h2>{text(table.title)}</h2>" if table.title else "")
        body.append(f"<div class=scroll><table><thead><tr>{row(table.heads, 'th')}</tr></thead><tbody>")
        body += [f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows]
        body.append("</tbody></table></div>" + "".join(f"<p class=soft>{text(note)}</p>" for note in table.notes))
    style = CSS + ".number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\n"
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>jaxad: results</title><style>{style}</style></head>\n<body><h1>Results</h1>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _wins(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(defective images, good images): 1 where the defective one outscores the good one, 1/2 where they tie, or 0."""
    defective, good = scores[labels == 1, None], scores[labels == 0]
    return (defective > good) + 0.5 * (defective == good)


def bootstrap_auroc(
    rng: np.random.Generator, labels: np.ndarray, scores: np.ndarray, *, replicates: int = REPLICATES
) -> np.ndarray:
    """AUROC of test sets resampled from one, stratified: as many good and as many defective images, with replacement.

    With K[i, j] = 1 where defective image i outscores good image j, 1/2 where they tie, 0 otherwise, and with how
    often a replicate drew each image as weights v and w, its AUROC is v K w / (sum v sum w).

    Args:
      rng: Draws the replicates.
      labels: (n,) 0 good, 1 defective; at least one of each.
      scores: (n,) higher is more anomalous.
      replicates: How many.

    Returns:
      float64 (replicates,), in [0, 1].
    """
    wins = _wins(labels, scores)
    v, w = (rng.multinomial(n, np.full(n, 1 / n), size=replicates) for n in wins.shape)
    return np.einsum("bj,bj->b", v @ wins, w) / wins.size


def interval(replicates: np.ndarray, *, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval: the (1 - level) / 2 and (1 + level) / 2 quantiles of the replicates."""
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def read_scores(path: Path, *, auroc: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and scores (n,) of the test images, from the scores.csv beside a results.json; None without this file.

    Raises:
      UserError: The file is not what `jaxad.evaluate` writes, or its image AUROC is not `auroc`.
    """
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [(int(row["label"]), float(row["score"])) for row in csv.DictReader(file)]
        labels, scores = np.array(rows).T
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run python -m jaxad.evaluate again", about=path) from error
    wins = _wins(labels, scores)
    if not wins.size or abs(wins.mean() - auroc) > 1e-6:
        raise UserError(
            f"{path} and the results.json beside it are of two evaluations; run python -m jaxad.evaluate", about=path
        )
    return labels, scores


def measure(group: Sequence[dict], metric: str) -> Measured | None:
    """A metric of runs that differ in the seed alone; None where one of them has no value.

    Of a single run's image AUROC it draws the bootstrap's replicates, with a generator of the category's own, so that
    averages over categories resample their test sets independently.
    """
    level, name = metric.split(".")
    values = [entry[level][name] for entry in group]
    if None in values:
        return None
    seeds, replicates = tuple(entry["seed"] for entry in group), None
    if len(group) == 1 and metric == "image.auroc":
        (entry,) = group
        found = read_scores(entry["path"].with_name("scores.csv"), auroc=values[0])
        if found is not None:
            rng = np.random.default_rng([0, *str(entry["category"]).encode()])
            replicates = bootstrap_auroc(rng, *found)
    return Measured(seeds, np.array(values), replicates)


def average(parts: Sequence[Measured]) -> Measured:
    """The mean over categories: seed by seed where all have the same seeds, replicate by replicate where all have one.

    Otherwise nothing is known of its error: there is only the mean of the categories' means.
    """
    if all(len(part.values) == 1 for part in parts):
        replicates = (
            None if any(part.replicates is None for part in parts) else np.mean([p.replicates for p in parts], 0)
        )
        return Measured(parts[0].seeds, np.mean([part.values for part in parts], axis=0), replicates)
    if len({part.seeds for part in parts}) == 1:
        return Measured(parts[0].seeds, np.mean([part.values for part in parts], axis=0), None)
    return Measured((), np.array([np.mean([part.values.mean() for part in parts])]), None)


def standard_error(measured: Measured) -> float | None:
    """The sample standard deviation over n seeds divided by sqrt(n), in percent; None of fewer than two."""
    n = len(measured.values)
    return float(100 * np.std(measured.values, ddof=1) / math.sqrt(n)) if n > 1 else None


def ours(measured: Measured | None) -> str:
    """Mean ± standard error in percent, or of one run [the bootstrap's interval]; n/a where there is no number."""
    if measured is None:
        return "n/a"
    mean, error = f"{100 * measured.values.mean():.1f}", standard_error(measured)
    if error is not None:
        return f"{mean} ± {error:.1f}"
    if not measured.seeds:
        return f"{mean} ± n/a"
    if measured.replicates is None:
        return f"{mean} [n/a]"
    return "{} [{:.1f}, {:.1f}]".format(mean, *(100 * end for end in interval(measured.replicates)))


def compare(measured: Measured | None, value: published.Value | None) -> list[str]:
    """The published number, ours minus it, and whether this is at most twice its standard error.

    Both errors are of independent runs: the standard error of the difference is sqrt(ours^2 + theirs^2). Where one of
    them is unknown, so is the answer.
    """
    if value is None:
        return ["–", "–", "–"]
    shown = f"{value.mean:.1f}" + ("" if value.error is None else f" ± {value.error:.1f}")
    if measured is None:
        return [shown, "n/a", "n/a"]
    error, difference = standard_error(measured), 100 * float(measured.values.mean()) - value.mean
    text = f"{round(difference, 1) + 0.0:+.1f}"  # + 0.0: no -0.0
    if error is None or value.error is None:
        return [shown, text, "n/a"]
    error = math.hypot(error, value.error)
    # The mean of seeds that are all alike is rounded in the last bit.
    return [shown, f"{text} ± {error:.1f}", "yes" if abs(difference) <= 2 * error + 1e-9 else "no"]


def row_of(entry: dict) -> str:
    """The row that a result stands in: its category, marked where its test set is not the published one.

    A test set is taken for the published one by its numbers of good and of defective images.
    """
    category, counts = str(entry["category"]), entry.get("counts", {})
    expected = published.test_set_sizes().get(category)
    same = expected is None or expected == (counts.get("good"), counts.get("defective"))
    return category if same else category + OTHER


def paper(columns: Mapping[str, Sequence[list[dict]]]) -> list[Table]:
    """A table for each metric in the papers' layout.

    A row for each category, textures first, then objects, then averages over these, then all other test sets; a
    column for each experiment, and beside it what the paper has, the difference, and whether it is within two standard
    errors, wherever something is published of a row.

    Args:
      columns: By title, for each category a group of runs that differ in the seed alone, as results.json holds them
        and with their "path".

    Raises:
      UserError: A scores.csv does not belong to its results.json or cannot be read.
    """
    named = {title: {row_of(group[0]): group for group in groups} for title, groups in columns.items()}
    present = {row for groups in named.values() for row in groups}
    return [_paper_table(named, present, metric) for metric in METRICS]


def summary(named: Sequence[tuple[str, Sequence[dict]]]) -> Table:
    """A row for each group of runs that differ in the seed alone, with its name: our metrics beside the published ones.

    Nothing is published of a test set that is not the paper's; without any published number there is no column for
    them.
    """
    heads, rows = ["experiment", "category", "epochs"], []
    for metric in METRICS:
        heads += [METRICS[metric].removesuffix(", %"), "published"]
    for name, group in named:
        row = [name, str(group[0]["category"]), str(group[0]["config"].get("epochs") or "–")]
        for metric in METRICS:
            measured = measure(group, metric)
            cell = "n/a" if measured is None else ours(measured).split(" [")[0]
            row += [cell, compare(None, published.value(_published_name(group[0]), metric, row_of(group[0])))[0]]
        rows.append(row)
    if all(cell == "–" for row in rows for cell in row[4::2]):
        heads, *rows = ([*row[:3], *row[3::2]] for row in (heads, *rows))
    return Table(heads, rows, "ll" + "r" * (len(heads) - 2))


def published_table(experiments: Sequence[str], category: str) -> Table:
    """What the papers print of experiments: a category, and the average over all of them."""
    heads, rows = ["experiment", "source"], []
    for metric in METRICS:
        title = METRICS[metric].removesuffix(", %")
        heads += [f"{title}, {category}", f"{title}, average"]
    for name in experiments:
        found = [column for metric in METRICS for column in published.find(name, metric)]
        found = [column for column in found if category in column.values or "all" in column.averages]
        row = [name, ", ".join(dict.fromkeys([found[0].paper, *(column.table for column in found)]))]
        for metric in METRICS:
            average = published.average(name, metric, (), name="all")
            row += [compare(None, value)[0] for value in (published.value(name, metric, category), average)]
        rows.append(row)
    kept = [i for i, head in enumerate(heads) if i < 2 or any(row[i] != "–" for row in rows)]
    rows = [[row[i] for i in kept] for row in rows]
    note = "±: standard error of the mean over the paper's runs, printed there or computed from its spread."
    return Table([heads[i] for i in kept], rows, "ll" + "r" * (len(kept) - 2), notes=[note])


def _paper_table(named: Mapping[str, Mapping[str, list[dict]]], present: set[str], metric: str) -> Table:
    order = [category for category in TEXTURES + OBJECTS if category in present]
    scopes = [name for name, (_, all_) in SCOPES.items() if any(len(set(all_) & set(g)) > 1 for g in named.values())]
    others = sorted(present - set(order))
    rows = [[name] for name in [*order, *(SCOPES[scope][0] for scope in scopes), *others]]
    heads, own, sources = ["category"], [], []
    for title, groups in named.items():
        measured = {row: measure(group, metric) for row, group in groups.items()}
        experiment = _published_name(next(iter(groups.values()))[0])
        cells = [_category_cells(measured, experiment, metric, row) for row in order]
        cells += [_average_cells(measured, experiment, metric, scope) for scope in scopes]
        cells += [_category_cells(measured, experiment, metric, row) for row in others]
        counts = sorted({len(group) for group in groups.values()})
        runs = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        if len(counts) > 1:
            for cell, row in zip(cells, order + [""] * len(scopes) + others, strict=True):
                cell[0] += f" (n = {len(groups[row])})" if row in groups else ""
        heads.append(f"{title} ({runs} {'run' if counts[-1] == 1 else 'runs'})")
        width = 1
        if any(cell[1] != "–" for cell in cells):
            heads += ["published", "difference", "within 2 s.e."]
            found = published.find(experiment, metric)
            sources += [
                _source(title, column) for column in found if not column.values or groups.keys() & column.values
            ]
            width = 4
        own += [cell[0] for cell in cells]
        for row, cell in zip(rows, cells, strict=True):
            row += cell[:width]
    return Table(heads, rows, "l" + "r" * (len(heads) - 1), METRICS[metric], [*_notes(rows, own, metric), *sources])


def _published_name(entry: dict) -> str:
    return published.name_of(str(entry["experiment"]), recorded(entry["config"]))


def _category_cells(measured: Mapping[str, Measured | None], experiment: str, metric: str, row: str) -> list[str]:
    if row not in measured:
        return ["–"] * 4
    value = published.value(experiment, metric, row)
    return [ours(measured[row]), *compare(measured[row], value)]


def _average_cells(measured: Mapping[str, Measured | None], experiment: str, metric: str, scope: str) -> list[str]:
    """The average over the categories of a scope that have a number, and how many these are if not all."""
    categories = SCOPES[scope][1]
    there = [category for category in categories if measured.get(category) is not None]
    if not there:
        return ["–"] * 4
    whole = len(there) == len(categories)
    mean = average([measured[category] for category in there])
    value = published.average(experiment, metric, there, name=scope if whole else None)
    label = "" if whole else f" ({len(there)} of {len(categories)})"
    return [ours(mean) + label, *compare(mean, value)]


def _source(title: str, column: published.Column) -> str:
    error = column.error or column.average_error
    said = {
        None: "no error is printed",
        "sample standard deviation": f"the printed ± is the standard deviation over {column.runs} runs, here divided "
        "by its root",
        "standard error": f"± is the standard error over {column.runs} runs, for averages the mean of those of the "
        "categories",
        "not stated": f"± is as printed, over {column.runs} runs; the paper does not say what it is",
    }[error]
    return f"Published beside {title}: {column.paper}, {column.table}, {column.column}; {said}."


def _notes(rows: Sequence[Sequence[str]], own: Sequence[str], metric: str) -> list[str]:
    """Explains what the cells of a table hold, `own` being those of our results, and nothing else."""
    notes = []
    if any(" ± " in cell for cell in own):
        notes.append("Ours: mean ± standard error over n runs that differ in the seed alone.")
    if any("± n/a" in cell for cell in own):
        notes.append("± n/a: the categories were not run with the same seeds.")
    if any(re.search(r"\[\d", cell) for cell in own):
        notes.append(
            f"[a, b]: {100 * LEVEL:.0f} % bootstrap interval of a single run over its test images, good and defective "
            f"ones resampled apart, {REPLICATES} times. It says nothing of other seeds."
        )
    if any("[n/a]" in cell for cell in own):
        what = "scores.csv is missing" if metric == "image.auroc" else "no pixel's score is kept"
        notes.append(f"[n/a]: no interval of a single run, since {what}.")
    if any(cell in ("yes", "no") for row in rows for cell in row):
        notes.append("Within 2 s.e.: the difference is at most twice its standard error, which stands behind it.")
    if any(row[0].endswith(OTHER) for row in rows):
        notes.append(f"{OTHER.strip()}: not as many good and defective images as in the published test set.")
    return notes
