"""Who trains, validates, is tested: official lists, seeded splits, validation videos held out by source film."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from action_attention.errors import UserError

VALIDATIONS = ("source", "tutorial", "none")
UNUSED, TRAIN, TEST, VALIDATION = 0, 1, 2, 3  # the official lists know the first three
SUBSETS = ("unused", "train", "test", "validation")  # by tag
VALIDATION_FOLDS = 7  # one seventh of the training videos validates
TEST_FOLDS = 3  # one third is tested, near HMDB-51's 30 of 100
TUTORIAL_VALIDATION = 1130 / 1530
_LIST_LINE = re.compile(r"([^\r\n]+?)\s+([012])\s*")


def read_lists(path: Path, number: int = 1) -> dict[str, int]:
    """Tags (`UNUSED`, `TRAIN`, `TEST`, `VALIDATION`) of all videos `<class>/<file>` of one split.

    Args:
        path: folder of lists `<class>_test_split<number>.txt` with lines `<file name> <tag>`, or a CSV file with the
            columns `video` (`<class>/<file>`) and `subset` (one of `SUBSETS`); further columns are for its readers.
        number: which of the lists; a CSV file holds one split.

    Raises:
        UserError: there are no such lists, a line is not of that form, or a video stands there twice.
    """
    path = Path(path)
    tags = {}
    for place, name, tag in _read_csv(path) if path.suffix.lower() == ".csv" else _read_official(path, number):
        if name in tags:
            raise UserError(f"{place}: {name} stands there for the second time; a video belongs to one subset")
        tags[name] = tag
    return tags


def _read_official(folder: Path, number: int) -> Iterator[tuple[str, str, int]]:
    suffix = f"_test_split{number}.txt"
    lists = sorted(folder.glob(f"*{suffix}"))
    if not lists:
        raise UserError(
            f"{folder} holds no lists <class>{suffix}; give the folder of the official lists, a .csv, or no --splits"
        )
    for path in lists:
        for line_number, line in enumerate(re.split("\r\n|\r|\n", _read_text(path)), 1):
            match = _LIST_LINE.fullmatch(line)
            place = f"{path}, line {line_number}"
            if match:
                yield place, f"{path.name.removesuffix(suffix)}/{match[1]}", int(match[2])
            elif line.strip():
                raise UserError(f"{place}: expected '<file name> <0, 1 or 2>', found {line!r}")


def _read_csv(path: Path) -> Iterator[tuple[str, str, int]]:
    try:
        rows = csv.DictReader(io.StringIO(_read_text(path, "utf-8-sig"), newline=""))
        if not {"video", "subset"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: its first line must name the columns video and subset, found {rows.fieldnames}")
        for row in rows:
            name, subset = row["video"] or "", row["subset"]
            place = f"{path}, line {rows.line_num}"
            if not re.fullmatch("[^/]+/[^/]+", name):
                raise UserError(f"{place}: expected <class>/<file> as video, found {name!r}")
            if subset not in SUBSETS:
                raise UserError(f"{place}: the subset of {name!r} is {subset!r}, not one of {', '.join(SUBSETS)}")
            yield place, name, SUBSETS.index(subset)
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num + 1} is no line of a CSV file ({error}); mend it") from error


def _read_text(path: Path, encoding: str = "utf-8") -> str:
    """A file's text with its line ends as they are, because names may hold what else counts as one."""
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def match_names(tags: dict[str, int], videos: Collection[str]) -> dict[str, int]:
    """Tags under the names that `videos` have.

    Copies of HMDB-51 write `@` for `#` and `&` (J-HMDB does), or are of another file type. What is not there under the
    listed name goes by the name without these, where that leaves no doubt; the other names stay as they are.
    """

    def by_plain_name(names: Collection[str]) -> dict[str, str]:
        plain, doubtful = dict[str, str](), set[str]()
        for name in names:
            key = re.sub("[#&]", "@", name).rpartition(".")[0]
            doubtful |= {key} & plain.keys()
            plain[key] = name
        return {key: name for key, name in plain.items() if key not in doubtful}

    there = by_plain_name([name for name in videos if name not in tags])
    renamed = {name: there.get(key, name) for key, name in by_plain_name(tags.keys() - set(videos)).items()}
    return {renamed.get(name, name): tag for name, tag in tags.items()}


def write_lists(folder: Path, tags: dict[str, int], number: int = 1) -> None:
    """Writes tags in the official format, one list a class.

    Raises UserError, and writes nothing, if a name cannot stand in a line of that format.
    """
    for name, tag in tags.items():
        match = _LIST_LINE.fullmatch(f"{name.split('/')[1]} {tag} ")
        if not match or match[1] != name.split("/")[1]:
            raise UserError(f"{name!r} cannot stand in a list of videos; rename it, or give a split as a CSV file")
    folder.mkdir(parents=True, exist_ok=True)
    for class_name in {name.split("/")[0] for name in tags}:
        lines = [
            f"{name.split('/')[1]} {tag} \n" for name, tag in sorted(tags.items()) if name.split("/")[0] == class_name
        ]
        (folder / f"{class_name}_test_split{number}.txt").write_text("".join(lines), encoding="utf-8")


def make_tags(videos: list[str], seed: int) -> dict[str, int]:
    """A seeded split into TRAIN and TEST, stratified by class, clips of one source on one side."""
    train, test = next(_folds(videos, TEST_FOLDS, seed))
    return dict.fromkeys(train, TRAIN) | dict.fromkeys(test, TEST)


def make_split(tags: dict[str, int], validation: str, seed: int) -> dict[str, list[str]]:
    """Lists of videos under `train`, `validation` and `test`.

    Args:
        tags: of all videos; unused ones go nowhere.
        validation: `source` holds a seventh of the training videos out, all clips of a source film together; `tutorial`
            takes 1,130 of 1,530 *test* videos, as the tutorial did: what is chosen on them flatters the rest; `none`.
            Where the tags name validation videos, they are it, and only `source`, the default, goes with that.
        seed: of the choice.

    Raises:
        UserError: no training videos, two choices of validation videos, or too few films to divide.
    """
    train = sorted(name for name, tag in tags.items() if tag == TRAIN)
    test = sorted(name for name, tag in tags.items() if tag == TEST)
    if not train:
        raise UserError("the split has no training videos; see the tags in its lists (1 train, 2 test, 0 unused)")
    held_out = [name for name, tag in tags.items() if tag == VALIDATION]
    if held_out and validation != "source":
        raise UserError(f"the split names its validation videos, so --validation={validation} cannot be had with it")
    if validation == "source" and not held_out:
        train, held_out = next(_folds(train, VALIDATION_FOLDS, seed))
    elif validation == "tutorial":
        labels = [name.split("/")[0] for name in test]
        held_out, test = train_test_split(test, train_size=TUTORIAL_VALIDATION, stratify=labels, random_state=seed)
    return {"train": train, "validation": sorted(held_out), "test": sorted(test)}


def copies_across(split: dict[str, list[str]], sha256: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of videos with the same bytes in two subsets; the second one's subset is the later one of `split`."""
    pairs, later = [], dict[str, str]()
    for videos in reversed(split.values()):
        pairs += [(name, later[sha256[name]]) for name in videos if sha256[name] in later]
        later |= {sha256[name]: name for name in videos}
    return sorted(pairs)


def validation_folds(split: dict[str, list[str]], folds: int, seed: int) -> list[tuple[list[str], list[str]]]:
    """Pairs of training and validation videos, so that each of `train` and `validation` validates once.

    All clips of a source film are in one fold. There are fewer `folds` where a class has fewer videos. The test videos
    are in none. Raises UserError if there are too few films to divide.
    """
    return list(_folds(sorted(split["train"] + split["validation"]), folds, seed))


def source_of(video: str) -> str:
    """The film that a clip `<class>/<film>_<class>_...` was cut from; the whole name where it does not tell."""
    class_name, file_name = video.split("/")
    film, found, _ = file_name.rpartition(f"_{class_name}_")
    return film if found else video


def _folds(videos: list[str], folds: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Splits off each `folds`-th of the videos in turn, stratified by class, whole sources at a time."""
    classes = [name.split("/")[0] for name in videos]
    sources = [source_of(name) for name in videos]
    most = min(*np.unique(classes, return_counts=True)[1], len(set(sources)))
    if most < 2:
        raise UserError("one class has a single video, or all come from one film: nothing to divide; add videos")
    splitter = StratifiedGroupKFold(min(folds, most), shuffle=True, random_state=seed)
    for kept, held_out in splitter.split(videos, classes, sources):
        yield [videos[index] for index in kept], [videos[index] for index in held_out]
