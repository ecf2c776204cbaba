"""The numbers that the papers print for the experiments of this project, from ``published.json``.

Percent, as printed, each with its paper, table and column. What a paper prints behind ± is kept with its kind, since
the papers mean different things by it; `standard_error` brings them to the one that means and differences need.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple


class Value(NamedTuple):
    """A published mean and its standard error, both in percent; None where the paper prints no error."""

    mean: float
    error: float | None


class Column(NamedTuple):
    """A column of a paper's table."""

    experiments: tuple[str, ...]  # the names in our results that it stands for
    metric: str  # "image.auroc", "pixel.auroc" or "pixel.aupro"
    paper: str
    table: str
    column: str
    runs: int | None  # seeds that a mean is over; None: not stated
    error: str | None  # what stands behind ± of a category: a kind of `standard_error`
    average_error: str | None  # and of an average
    values: dict[str, tuple[float, float | None]]  # by category, as printed
    averages: dict[str, tuple[float, float | None]]  # of "texture", "object" and "all", as printed


@functools.cache
def _content() -> dict:
    return json.loads(resources.files("jaxad.reporting").joinpath("published.json").read_text(encoding="utf-8"))


@functools.cache
def columns() -> tuple[Column, ...]:
    """Every published column."""
    return tuple(Column(**row | {"experiments": tuple(row["experiments"])}) for row in _content()["columns"])


@functools.cache
def test_set_sizes() -> dict[str, tuple[int, int]]:
    """Good and defective test images of each category that the published numbers are of."""
    return {category: tuple(counts) for category, counts in _content()["test_images"].items()}


@functools.cache
def synthetic_anomalies() -> dict[str, list[float]]:
    """The rows of CutPaste's Table 6 by the names that it gives its models: its seven columns and their average.

    Image AUROC in percent; the paper does not say of which categories.
    """
    return _content()["synthetic_anomalies"]["rows"]


def standard_error(printed: float | None, kind: str | None, runs: int | None) -> float | None:
    """The standard error of a mean over `runs` seeds from what a paper prints behind ±, by its kind.

    - "sample standard deviation": the root of the mean squared deviation, with runs - 1; divided by sqrt(runs).
      (NSA's tables call it standard error, but their program computes this.)
    - "standard error": as printed (CutPaste).
    - "mean of standard errors": the mean over categories of their standard errors (CutPaste's averages). As printed:
      an upper bound of the average's own standard error, reached only if all categories erred together.
    - "not stated": as printed (DLA).
    """
    if printed is None:
        return None
    return printed / math.sqrt(runs) if kind == "sample standard deviation" else printed


def other_score(experiment: str, values: Mapping[str, Any]) -> list[str]:
    """In what the score of a run is not the one of the paper that its experiment is called after, as KEY=VALUE.

    Args:
      experiment: Its name in our results, of an ensemble of its detectors too.
      values: Of its config, by dotted key. A key that it lacks, as an older one may, makes no difference.
    """

    def same(value: Any, own: Any) -> bool:
        if isinstance(value, str) and isinstance(own, str):  # of lists in a text the order says nothing
            value, own = (sorted(part.strip() for part in text.split(",")) for text in (value, own))
        return value == own

    member = experiment.partition(", ensemble of")[0]
    for row in _content()["scores"]:
        if member in row["experiments"]:
            return [f"{key}={values[key]}" for key, own in row["values"].items() if not same(values.get(key, own), own)]
    return []


def name_of(experiment: str, values: Mapping[str, Any]) -> str:
    """What ``published.json`` calls a run: its experiment, with ``, KEY=VALUE`` of the config where that has a column.

    Nothing is published of a run by another score, whose name says in what it differs.

    Args:
      experiment: Its name in our results.
      values: Of its config, by dotted key.
    """
    if other := other_score(experiment, values):
        return ", ".join([experiment, *other])
    names = {name for column in columns() for name in column.experiments if name.startswith(f"{experiment}, ")}
    return next((name for name in sorted(names) if _has(values, name.removeprefix(f"{experiment}, "))), experiment)


def _has(values: Mapping[str, Any], setting: str) -> bool:
    key, _, value = setting.partition("=")
    return str(values.get(key)) == value


def find(experiment: str, metric: str) -> list[Column]:
    """The published columns of an experiment; several where they are of different categories."""
    return [column for column in columns() if experiment in column.experiments and column.metric == metric]


def value(experiment: str, metric: str, category: str) -> Value | None:
    """What is published of one category; None where nothing is."""
    for column in find(experiment, metric):
        if category in column.values:
            mean, printed = column.values[category]
            return Value(mean, standard_error(printed, column.error, column.runs))
    return None


def average(experiment: str, metric: str, categories: Sequence[str], *, name: str | None) -> Value | None:
    """What is published of the average over some categories.

    Args:
      experiment: Its name in our results.
      metric: As in `Column`.
      categories: Over which to average.
      name: "texture", "object" or "all" where these are all of them: then the average that the paper prints is
        taken, if it prints one. Otherwise the categories' own numbers are averaged, of k independent ones with
        standard error sqrt(sum of their squared standard errors) / k.

    Returns:
      None where a category is not published.
    """
    for column in find(experiment, metric):
        if name in column.averages:
            mean, printed = column.averages[name]
            return Value(mean, standard_error(printed, column.average_error, column.runs))
    values = [value(experiment, metric, category) for category in categories]
    if not values or None in values:
        return None
    errors = [each.error for each in values]
    error = None if None in errors else math.hypot(*errors) / len(errors)
    return Value(sum(each.mean for each in values) / len(values), error)
