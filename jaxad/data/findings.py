"""What a survey of a folder says to its user: a sentence for each problem, with its files and what to do."""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jaxad.data import health, roi_finding
from jaxad.data.folder import GOOD
from jaxad.data.image import NO_IMAGES
from jaxad.data.survey import Look, Survey
from jaxad.errors import counted

ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")  # by importance
TRAIN, TEST = "train", "test"
_ASPECTS = 0.02  # the share by which the largest aspect ratio exceeds the smallest where they count as different


class Finding(NamedTuple):
    """A problem.

    Attributes:
      level: One of `LEVELS`: ``error`` where a training or its evaluation refuses the files.
      kind: What is drawn and counted under one name, such as ``copy``.
      problem: What is wrong, the first part of a sentence.
      advice: What to do, its last part.
      files: The paths that belong together, such as an image and its copy; one path each where none do.
    """

    level: str
    kind: str
    problem: str
    advice: str = ""
    files: tuple[tuple[str, ...], ...] = ()


def findings(survey: Survey) -> list[Finding]:
    """Every problem, the most important first."""
    refused = [Finding(ERROR, "refused", sentence) for sentence in survey.refusals]
    refused += [Finding(ERROR, "refused", sentence) for look in survey.looks for sentence in look.refusals]
    if survey.train is None:
        what = "no image was looked at, since which images there are depends on the error above"
        return [*refused, Finding(NOTE, "stopped", what, "correct it, and run the command again")]
    usable = [look for look in survey.looks if look.measures is not None]
    found = [*refused, *_exact(usable), *_near(usable), *_masks(usable), *_outliers(usable)]
    found += [*_mixtures(usable), *_background(survey), *_missing(survey), *_files(survey)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def _exact(looks: Sequence[Look]) -> Iterable[Finding]:
    by_digest = collections.defaultdict(list)
    for look in looks:
        by_digest[look.measures.digest].append(look)
    kinds: dict[str, list[tuple[str, ...]]] = collections.defaultdict(list)
    for group in by_digest.values():
        splits = {look.split for look in group}
        if len(group) > 1:
            between = TRAIN in splits and len(splits) > 1
            labels = len({look.defect == GOOD for look in group if look.split == TEST}) > 1
            kind = "seen" if between else "labels" if labels else TRAIN if splits == {TRAIN} else TEST
            kinds[kind].append(tuple(str(look.path) for look in group))
    texts = {
        "seen": ("images to test or to fit the threshold on are trained on too, pixel by pixel",
                 "remove them from one of the two: no figure measured with them holds for new images"),
        "labels": ("test images are there both as good and as defective", "keep the one whose label is right"),
        TRAIN: ("training images are there more than once, pixel by pixel",
                "keep one of each: a copy that is held out makes the threshold too low"),
        TEST: ("test images are there more than once, pixel by pixel", "keep one of each, since each counts by itself"),
    }  # fmt: skip
    for kind, (problem, advice) in texts.items():
        if files := kinds[kind]:
            level = NOTE if kind == TEST else WARNING
            yield Finding(level, "copy", f"{counted(len(files), 'group')} of {problem}", advice, tuple(files))


def _near(looks: Sequence[Look]) -> Iterable[Finding]:
    """Near-duplicates; those of the same pixels are told already."""
    training = [look for look in looks if look.split == TRAIN]
    known = [look.measures.thumbnail for look in training]
    how = "(encoded anew, resized, moved, or the same part photographed again)"
    texts = {
        True: (
            WARNING,
            f"what a training image shows {how}",
            "look at both: figures measured with copies are better than those of new parts, so remove them",
        ),
        False: (
            NOTE,
            f"what another training image shows {how}",
            "look at both: a threshold may be too low where one of two copies is held out, so keep one of each",
        ),
    }
    for others, (level, what, advice) in texts.items():
        images = [look for look in looks if look.split != TRAIN] if others else training
        thumbnails = [look.measures.thumbnail for look in images] if others else None
        pairs = [(images[copy.index], training[copy.other]) for copy in health.copies(thumbnails, known)]
        files = [_paths(pair) for pair in pairs if pair[0].measures.digest != pair[1].measures.digest]
        noun = "image to test or to fit the threshold on" if others else "training image"
        if files:
            plural = noun if len(files) == 1 else noun.replace("image", "images", 1)
            sentence = f"{len(files)} {plural} {'shows' if len(files) == 1 else 'show'} {what}"
            yield Finding(level, "near copy", sentence, advice, tuple(files))


def _masks(looks: Sequence[Look]) -> Iterable[Finding]:
    texts = {
        "empty": ("no pixel", "draw the defect, or move the image to the good ones"),
        "full": ("more than nine tenths of it", "invert the mask if the marked part is good"),
        "tiny": ("three pixels of it or fewer", "check that they are the defect and no slip of the pen"),
    }
    for what, (part, advice) in texts.items():
        if files := [_paths([look]) for look in looks if look.mask == what]:
            problem = f"{counted(len(files), 'defective image')} with a mask that marks {part}"
            yield Finding(WARNING, f"{what} mask", problem, advice, tuple(files))


def _outliers(looks: Sequence[Look]) -> Iterable[Finding]:
    training = [look.measures for look in looks if look.split == TRAIN]
    texts = {
        "blurred": "far less sharp than most training images",
        "dark": "far darker than most training images, by the mean or by pixels that are black",
        "bright": "far brighter than most training images, by the mean or by pixels that are white",
    }
    for split in (TRAIN, "other"):
        images = [look for look in looks if (look.split == TRAIN) == (split == TRAIN)]
        found = health.outliers([look.measures for look in images], training) if training and images else {}
        for what, indices in found.items():
            files = tuple(_paths([images[index]]) for index in indices)
            noun = counted(len(files), "training image" if split == TRAIN else "other image")
            sentence = f"{noun} {'is' if len(files) == 1 else 'are'} {texts[what]}"
            advice = "look at them, and remove what is no good photograph of a good part"
            if split != TRAIN:
                advice = "nothing to do if that is a defect; otherwise photograph them as the training images were"
            yield Finding(WARNING if split == TRAIN else NOTE, what, sentence, advice, files)


def _mixtures(looks: Sequence[Look]) -> Iterable[Finding]:
    def rare(key: Callable[[Look], object]) -> tuple[tuple[str, ...], ...]:
        """The images that are not as most are."""
        common = collections.Counter(key(look) for look in looks).most_common(1)[0][0]
        return tuple(_paths([look]) for look in looks if key(look) != common)

    if not looks:
        return
    aspects = [look.measures.width / look.measures.height for look in looks]
    if max(aspects) > min(aspects) * (1 + _ASPECTS):
        span = f"from {min(aspects):.2f} to {max(aspects):.2f}"
        what = f"the aspect ratios (width by height) of images differ, {span}, and a training brings all to one shape"
        yield Finding(NOTE, "aspect ratio", what, "crop them alike if a part is to look the same in all")
    elif files := rare(lambda look: (look.measures.width, look.measures.height)):
        what = f"{counted(len(files), 'image')} of another size than most, and a training brings all to one size"
        yield Finding(NOTE, "size", what, "nothing to do if the part is equally large in all", files)
    if files := rare(lambda look: look.measures.color):
        kind = "grey" if len(files) == sum(not look.measures.color for look in looks) else "in color"
        what = f"{counted(len(files), 'image')} {kind} among others that are not"
        yield Finding(NOTE, "color", what, "take all with one camera setting, or set config.data.channels=1", files)
    if files := rare(lambda look: look.bits):
        what = f"{counted(len(files), 'image')} of another bit depth than most"
        yield Finding(NOTE, "bit depth", what, "save all with the same depth", files)


def _background(survey: Survey) -> Iterable[Finding]:
    readable = all(look.measures is not None for look in survey.looks if look.split == TRAIN)
    mask = roi_finding.automatic(survey.train)[0] if readable and len(survey.train) else None
    if mask is not None:
        what = f"{100 * (1 - mask.mean()):.0f} % of the training images are a plain background"
        advice = "set config.data.roi=auto to train on and score the rest alone, or nothing if marks beside it matter"
        yield Finding(NOTE, "background", what, advice)


def _missing(survey: Survey) -> Iterable[Finding]:
    labels = set(survey.test.labels)
    if not labels:
        yield Finding(NOTE, "test", "there are no test images", "nothing to do, but nothing can be evaluated either")
    elif len(labels) == 1:
        what = "good" if 1 in labels else "defective"
        yield Finding(NOTE, "test", f"no test image is {what}", "add some; without them there is no AUROC")


def _files(survey: Survey) -> Iterable[Finding]:
    others = dict.fromkeys([*survey.train.others, *survey.test.others])
    if others:
        files = tuple((str(path),) for path in others)
        what = f"{counted(len(files), 'file')} passed over, since {NO_IMAGES}"
        yield Finding(NOTE, "passed over", what, "nothing to do if they are no data", files)
    if left := survey.train.left_out():
        named = ", ".join(f"'{name}' ({'cannot be read' if count is None else count})" for name, count in left.items())
        total = sum(count or 0 for count in left.values())
        level = WARNING if total > len(survey.train) else NOTE
        what = f"images beside the training images are not used, with their number in each folder: {named}"
        yield Finding(level, "left out", what, "to train on them, move them into the folder of the training images")


def _paths(looks: Iterable[Look]) -> tuple[str, ...]:
    return tuple(str(look.path) for look in looks)
