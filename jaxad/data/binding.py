"""Binds a workdir to the training images: images.json, which holds the name, size and content of each.

A training that goes on with other images than it began with would be right for neither, and images that were trained
on could be held out. So the file is written when a training begins, and compared whenever it goes on.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxad import config as configs
from jaxad.data.record import Source
from jaxad.errors import UserError, counted, other_version
from jaxad.runtime import disk, processes

FILE = "images.json"
ADDED = "refit"  # begins the ids of images that `jaxad.refit` added
_SHOWN = 3  # names of images in a sentence
# What a training and its evaluation write, in the order of their removal: what says that something is complete comes
# first, and what refuses another training last. Predictions are the user's.
WRITTEN = (
    "results.json", "scores.csv", "report.html", "synthetic_anomalies.json", "synthetic_anomalies.png", "error.txt",
    "detector.json", "detector", "refit.npz",
    "synthetic.json", "checkpoints", "metrics.jsonl", "tensorboard", "samples.png", "provenance.json", FILE,
    "config.json",
)  # fmt: skip
_HARMLESS = ("error.txt", "provenance.json")  # may be there before config.json, of a training that failed early


def fingerprints(source: Source, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What `Source.fingerprint` tells of each record, by its id, in order; each process looks at its part.

    Args:
      source: The training images.
      known: What was found before, by id, so that known files of 16 bits are not decoded again.
    """
    mine = range(len(source))[processes.local_slice(len(source))]
    with ThreadPoolExecutor(2) as pool:  # reading, hashing and decoding release the GIL
        rows = list(pool.map(lambda index: source.fingerprint(index, known.get(source.ids[index])), mine))
    every = [row for part in processes.gather(rows) for row in part]
    return dict(zip(source.ids, every, strict=True))


def read(workdir: Path) -> dict[str, dict[str, Any]] | None:
    """The fingerprints in a workdir's images.json, by id and in order; None without the file.

    Raises:
      UserError: It cannot be read or is damaged.
    """
    path, remedy = Path(workdir) / FILE, f"restore it, or {advice(workdir)}"
    try:
        rows = disk.read_json(path, remedy)["images"]
        return {name: {**row, "sha256": row["sha256"]} for name, row in rows.items()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions", about=path) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise other_version(str(path), "it holds no digests of images", about=path) from error


def claim(workdir: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes images.json to a workdir, or checks that what it holds was made with the same images.

    While it holds neither a checkpoint nor a detector, nothing was made: an image that turned out to be damaged can be
    replaced.

    Raises:
      UserError: It was made with others (what differs is named), or does not say with which.
      OSError: The file cannot be written.
    """
    workdir = Path(workdir)
    if not (workdir / "detector.json").exists() and not any((workdir / "checkpoints").glob("*")):
        disk.write_json(workdir / FILE, {"images": found})
    elif (before := read(workdir)) is None:
        raise UserError(
            f"{workdir} does not say with which images it was made ({FILE} is missing); restore that file, or "
            f"{advice(workdir)}",
            about=workdir,
        )
    elif added := [name for name in before if name not in found and name.startswith(ADDED)]:
        raise UserError(
            f"jaxad.refit has added {counted(len(added), 'image')} to the detector in {workdir}, which a training "
            f"would forget; use it as it is, or {advice(workdir)}",
            about=workdir,
        )
    elif changes := differences(before, found):
        raise UserError(
            f"the training images are not those that {workdir} was made with: {changes}; restore them, or "
            f"{advice(workdir)}",
            about=workdir,
        )


def clear(workdir: Path) -> None:
    """Removes a training from its workdir, for one that begins anew; other files stay, and a folder without one.

    Predictions of the detector that goes stay too, since a user asked for them; a line says so.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        return
    for name in WRITTEN:
        disk.remove(workdir / name)
    for predictions in (workdir / "predictions", workdir):  # jaxad.predict writes to the first, unless told otherwise
        if (predictions / "predict.json").exists():
            what = "holds predictions of the detector that is deleted; they stay until jaxad.predict writes there again"
            print(f"{predictions} {what}", flush=True)


def refuse_foreign(workdir: Path) -> None:
    """Refuses a folder with files of the names that a training writes, or removes, which no training has written.

    Raises:
      UserError: It is such a folder.
    """
    workdir = Path(workdir)
    if (workdir / "config.json").exists():
        configs.refuse_foreign(workdir)
    elif foreign := [name for name in WRITTEN if name not in _HARMLESS and (workdir / name).exists()]:
        raise UserError(
            f"{workdir} holds {foreign[0]}, which no training has written there; choose another --workdir",
            about=workdir,
        )


def differences(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> str:
    """How two sets of fingerprints differ, in words; "" where they are the same in the same order."""
    content = {
        "changed": [name for name in before if name in now and before[name]["sha256"] != now[name]["sha256"]],
        "added": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
    }
    parts = [f"{len(names)} {what} ({_first(names)})" for what, names in content.items() if names]
    return ", ".join(parts) or ("" if list(before) == list(now) else "their order has changed")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more


def advice(workdir: Path) -> str:
    """What to do about a workdir of another config or other images, for the end of a sentence."""
    return (
        f"choose another --workdir, or train with --restart (from Python restart=True), which deletes the training in "
        f"{workdir} and begins it anew"
    )
