"""Who trains, validates, is tested: official lists, seeded splits, validation videos held out by source film."""

import re
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from action_attention.errors import UserError

VALIDATIONS = ("source", "tutorial", "none")
UNUSED, TRAIN, TEST = 0, 1, 2
VALIDATION_FOLDS = 7  # one seventh of the training videos validates
TEST_FOLDS = 3  # one third is tested, near HMDB-51's 30 of 100
TUTORIAL_VALIDATION = 1130 / 1530


def read_lists(folder: Path, number: int) -> dict[str, int]:
    """Tags (`UNUSED`, `TRAIN`, `TEST`) of all videos `<class>/<file>` from lists `<class>_test_split<number>.txt`.

    A line is `<file name> <tag>`. Raises UserError if there are no lists for that number or a line is not of that form.
    """
    suffix = f"_test_split{number}.txt"
    lists = sorted(Path(folder).glob(f"*{suffix}"))
    if not lists:
        raise UserError(
            f"{folder} holds no lists <class>{suffix}; give the folder of the official lists, or no --splits"
        )
    tags = {}
    for path in lists:
        class_name = path.name.removesuffix(suffix)
        for number_of_line, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = re.fullmatch(r"(.+?)\s+([012])\s*", line)
            if match:
                tags[f"{class_name}/{match[1]}"] = int(match[2])
            elif line.strip():
                raise UserError(f"{path}, line {number_of_line}: expected '<file name> <0, 1 or 2>', found {line!r}")
    return tags


def write_lists(folder: Path, tags: dict[str, int], number: int = 1) -> None:
    """Writes tags in the official format, one list a class."""
    folder.mkdir(parents=True, exist_ok=True)
    for class_name in {name.split("/")[0] for name in tags}:
        lines = [
            f"{name.split('/')[1]} {tag} \n" for name, tag in sorted(tags.items()) if name.split("/")[0] == class_name
        ]
        (folder / f"{class_name}_test_split{number}.txt").write_text("".join(lines), encoding="utf-8")


def make_tags(videos: list[str], seed: int) -> dict[str, int]:
    """A seeded split into TRAIN and TEST, stratified by class, clips of one source on one side."""
    train, test = _fold(videos, TEST_FOLDS, seed)
    return dict.fromkeys(train, TRAIN) | dict.fromkeys(test, TEST)


def make_split(tags: dict[str, int], validation: str, seed: int) -> dict[str, list[str]]:
    """Lists of videos under `train`, `validation` and `test`.

    Args:
        tags: of all videos; unused ones go nowhere.
        validation: `source` holds a seventh of the training videos out, all clips of a source film together; `tutorial`
            takes 1,130 of 1,530 *test* videos, as the tutorial did: what is chosen on them flatters the rest; `none`.
        seed: of the choice.
    """
    train = sorted(name for name, tag in tags.items() if tag == TRAIN)
    test = sorted(name for name, tag in tags.items() if tag == TEST)
    if not train:
        raise UserError("the split has no training videos; see the tags in its lists (1 train, 2 test, 0 unused)")
    held_out = []
    if validation == "source":
        train, held_out = _fold(train, VALIDATION_FOLDS, seed)
    elif validation == "tutorial":
        labels = [name.split("/")[0] for name in test]
        held_out, test = train_test_split(test, train_size=TUTORIAL_VALIDATION, stratify=labels, random_state=seed)
    return {"train": train, "validation": sorted(held_out), "test": sorted(test)}


def source_of(video: str) -> str:
    """The film that a clip `<class>/<film>_<class>_...` was cut from; the whole name where it does not tell."""
    class_name, file_name = video.split("/")
    film, found, _ = file_name.rpartition(f"_{class_name}_")
    return film if found else video


def _fold(videos: list[str], folds: int, seed: int) -> tuple[list[str], list[str]]:
    """Splits off about one `folds`-th of the videos, stratified by class, whole sources at a time."""
    classes = [name.split("/")[0] for name in videos]
    sources = [source_of(name) for name in videos]
    most = min(*np.unique(classes, return_counts=True)[1], len(set(sources)))
    if most < 2:
        raise UserError("one class has a single video, or all come from one film: nothing to divide; add videos")
    splitter = StratifiedGroupKFold(min(folds, most), shuffle=True, random_state=seed)
    kept, held_out = next(splitter.split(videos, classes, sources))
    return [videos[index] for index in kept], [videos[index] for index in held_out]
