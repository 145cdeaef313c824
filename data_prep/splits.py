"""Who trains, validates, is tested: official lists, seeded splits, validation videos held out by recording."""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from action_attention.errors import UserError
from action_attention.files import check_name

VALIDATIONS = ("source", "tutorial", "none")
UNUSED, TRAIN, TEST, VALIDATION = 0, 1, 2, 3  # the official lists know the first three
SUBSETS = ("unused", "train", "test", "validation")  # by tag
VALIDATION_FOLDS = 7  # one seventh of the training videos validates
TEST_FOLDS = 3  # one third is tested, near HMDB-51's 30 of 100
TUTORIAL_VALIDATION = 1130 / 1530
NEARLY_ALL = 0.9
LISTED_CLASSES = 12  # a line each
THIN = 2  # training videos of a class, up to which a warning names it
_LIST_LINE = re.compile(r"([^\r\n]+?)\s+([012])\s*")
_UCF101 = re.compile(r"(.+_g\d+)_c\d+", re.DOTALL)
_CAMERA = re.compile(r"[A-Z0-9_]{1,5}\d{4}")  # IMG_0001, DSC00001, GX010001, C0001
_COUNTED = re.compile(r"(.*?)[\s_.-]*(?:[\s_.-][A-Za-z])?(?:(?<!\d)\d{1,5}|\(\d{1,5}\))", re.DOTALL)
_Value = TypeVar("_Value")


def read_lists(path: Path, number: int = 1) -> dict[str, int]:
    """Tags (`UNUSED`, `TRAIN`, `TEST`, `VALIDATION`) of all videos `<class>/<file>` of one split.

    Args:
        path: folder of lists `<class>_test_split<number>.txt` with lines `<file name> <tag>`, or a CSV file with the
            columns `video` (`<class>/<file>`) and `subset` (one of `SUBSETS`), and maybe `group` (`read_groups`);
            further columns are for its readers.
        number: which of the lists; a CSV file holds one split.

    Raises:
        UserError: there are no such lists, a line is not of that form, or a video stands there twice.
    """
    path = Path(path)
    tags = {}
    for place, name, tag in _read_csv(path) if path.suffix.lower() == ".csv" else _read_official(path, number):
        if name in tags:
            raise UserError(f"{place}: {name} is listed twice; a video belongs to one subset")
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
                name = f"{path.name.removesuffix(suffix)}/{match[1]}"
                _check_name(place, name)
                yield place, name, int(match[2])
            elif line.strip():
                raise UserError(f"{place}: expected '<file name> <0, 1 or 2>', found {line!r}")


def _read_csv(path: Path) -> Iterator[tuple[str, str, int]]:
    for place, row in _csv_rows(path):
        name, subset = row["video"] or "", row["subset"]
        _check_name(place, name)
        if subset not in SUBSETS:
            raise UserError(f"{place}: the subset of {name!r} is {subset!r}, not one of {', '.join(SUBSETS)}")
        yield place, name, SUBSETS.index(subset)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str | None]]]:
    """The rows of a CSV file with the columns `video` and `subset`, each with its place for messages."""
    try:
        rows = csv.DictReader(io.StringIO(_read_text(path, "utf-8-sig"), newline=""))
        if not {"video", "subset"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: its first line must name the columns video and subset, found {rows.fieldnames}")
        for row in rows:
            yield f"{path}, line {rows.line_num}", row
    except csv.Error as error:
        raise UserError(
            f"{path}, line {rows.line_num + 1} is not a line of a CSV file ({error}); correct it"
        ) from error


def read_groups(path: Path) -> dict[str, str]:
    """The column `group` of a CSV file that `read_lists` takes: videos of one recording have one text in common.

    Where it is empty, the video is a group by itself. There are no groups in a file without that column, or in lists.
    """
    if Path(path).suffix.lower() != ".csv":
        return {}
    rows = [row for _, row in _csv_rows(Path(path)) if "group" in row]
    return {row["video"] or "": (row["group"] or "").strip() or row["video"] or "" for row in rows}


def write_csv(path: Path, tags: dict[str, int], groups: dict[str, str]) -> None:
    """Writes a split with its groups as `read_lists` and `read_groups` take it, as a whole or not at all."""
    part = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "subset", "group"])
        writer.writerows([name, SUBSETS[tag], groups[name]] for name, tag in sorted(tags.items()))
    part.replace(path)


def _check_name(place: str, name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _read_text(path: Path, encoding: str = "utf-8") -> str:
    """A file's text with its line ends as they are, because names may hold what else counts as one."""
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def match_names(tags: dict[str, _Value], videos: Collection[str]) -> dict[str, _Value]:
    """Tags, or groups, under the names that `videos` have.

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


def make_tags(videos: list[str], seed: int, groups: dict[str, str] | None = None) -> dict[str, int]:
    """A seeded split into TRAIN and TEST, stratified by class, each group of `groups` (`name_groups`) on one side.

    Raises UserError if there is nothing to divide.
    """
    train, test = _hold_out(videos, TEST_FOLDS, seed, groups or name_groups(videos))
    return dict.fromkeys(train, TRAIN) | dict.fromkeys(test, TEST)


def make_split(
    tags: dict[str, int], validation: str, seed: int, groups: dict[str, str] | None = None
) -> dict[str, list[str]]:
    """Lists of videos under `train`, `validation` and `test`.

    Args:
        tags: of all videos; unused ones go nowhere.
        validation: `source` holds a seventh of the training videos out, all videos of a recording together; `tutorial`
            takes 1,130 of 1,530 *test* videos, as the tutorial did: what is chosen on them flatters the rest; `none`.
            Where the tags name validation videos, they are it, and only `source`, the default, goes with that.
        seed: of the choice.
        groups: the recording of each video; None to guess by `name_groups`.

    Raises:
        UserError: no training videos, two choices of validation videos, or too few recordings to divide.
    """
    train = sorted(name for name, tag in tags.items() if tag == TRAIN)
    test = sorted(name for name, tag in tags.items() if tag == TEST)
    if not train:
        raise UserError("the split has no training videos; see the tags in its lists (1 train, 2 test, 0 unused)")
    held_out = [name for name, tag in tags.items() if tag == VALIDATION]
    if held_out and validation != "source":
        raise UserError(f"the split names its validation videos, so --validation={validation} cannot be used with it")
    if validation == "source" and not held_out:
        train, held_out = _hold_out(train, VALIDATION_FOLDS, seed, groups or name_groups(tags))
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


def groups_across(split: dict[str, list[str]], groups: Mapping[str, Hashable]) -> list[tuple[str, str]]:
    """For each group on both sides, training and held out, the first video of either side."""
    sides: tuple[dict, dict] = {}, {}
    for subset, videos in split.items():
        for name in videos:
            sides[subset != "train"].setdefault(groups.get(name, name), name)
    return [(name, sides[1][group]) for group, name in sides[0].items() if group in sides[1]]


def validation_folds(
    split: dict[str, list[str]], folds: int, seed: int, groups: dict[str, str] | None = None
) -> list[tuple[list[str], list[str]]]:
    """Pairs of training and validation videos, so that each of `train` and `validation` validates once.

    All videos of a recording, as `make_split` takes them, are in one fold, and none of a class that is a single one.
    There are fewer `folds` where a class has fewer videos. The test videos are in none. Raises UserError if there are
    too few recordings to divide.
    """
    videos = sorted(split["train"] + split["validation"])
    return list(_folds(videos, folds, seed, groups or name_groups(videos)))


def source_of(video: str) -> str:
    """The film that a clip `<class>/<film>_<class>_...` was cut from; the whole name where it does not tell."""
    class_name, file_name = video.split("/")
    film, found, _ = file_name.rpartition(f"_{class_name}_")
    return film if found else video


def name_groups(videos: Collection[str]) -> dict[str, str]:
    """The recording that each video `<class>/<file>` was cut from, guessed by its name.

    Names of HMDB-51's form tell the film (`source_of`), UCF-101's what stands before `_c<number>`, all others are cut
    before a counter of up to five digits at their end, maybe with one letter before or brackets around it (`anna_1`,
    `anna (2)` and `anna_c3` are `anna`), except for a camera's own names (`IMG_0001`). Where these others would make
    nine tenths or more of a class one recording, its names say nothing and the whole name of each such video counts.
    """
    guessed, counted = dict[str, str](), dict[str, dict[str, str]]()
    for video in videos:
        class_name, file_name = video.split("/")
        stem = PurePosixPath(file_name).stem
        if of_ucf101 := _UCF101.fullmatch(stem):
            guessed[video] = of_ucf101[1]
        elif has_film(video):
            guessed[video] = source_of(video)
        else:
            match = None if _CAMERA.fullmatch(stem) else _COUNTED.fullmatch(stem)
            counted.setdefault(class_name, {})[video] = (match[1] if match else stem) or video
    sizes = Counter(video.split("/")[0] for video in videos)
    for class_name, of_class in counted.items():
        (_, largest), *_ = Counter(of_class.values()).most_common(1)
        tells = largest < NEARLY_ALL * sizes[class_name]
        guessed |= of_class if tells else {video: video for video in of_class}
    return {video: guessed[video] for video in videos}


def has_film(video: str) -> bool:
    """Whether a name is of HMDB-51's form."""
    return source_of(video) != video


def single_recordings(videos: Collection[str], groups: dict[str, str]) -> dict[str, str]:
    """The classes whose videos are all of one group -> that group: they cannot be divided."""
    of_class: dict[str, set[str]] = {}
    for name in videos:
        of_class.setdefault(name.split("/")[0], set()).add(groups[name])
    return {class_name: min(found) for class_name, found in sorted(of_class.items()) if len(found) == 1}


def counts(split: dict[str, list[str]]) -> list[str]:
    """Videos by class and subset, lines for people: one a class, or one in all beyond `LISTED_CLASSES`."""
    of_class = count_classes(split)
    subsets = [subset for subset, videos in split.items() if videos]
    total = ", ".join(f"{len(split[subset])} {subset}" for subset in subsets)
    lines = [f"videos: {total}; {len(of_class)} classes"]
    if len(of_class) <= LISTED_CLASSES:
        width = max(map(len, of_class), default=0)
        for class_name, number in of_class.items():
            shown = ", ".join(f"{number[subset]:{len(str(len(split[subset])))}} {subset}" for subset in subsets)
            lines.append(f"  {class_name:{width}}  {shown}")
        return lines
    ranges = []
    for subset in subsets:
        numbers = [number[subset] for number in of_class.values()]
        ranges.append(f"{min(numbers)}..{max(numbers)} {subset}")
    smallest = sorted(of_class, key=lambda class_name: of_class[class_name].total())[:3]
    named = ", ".join(f"{class_name} {of_class[class_name].total()}" for class_name in smallest)
    return [f"{lines[0]}, each {', '.join(ranges)}; the smallest: {named}"]


def thin_classes(split: dict[str, list[str]]) -> list[str]:
    """Sentences about classes that have too few videos to be learned, or none to be judged by."""
    of_class, sentences = count_classes(split), []
    thin = [f"{name} ({number['train']})" for name, number in of_class.items() if number["train"] <= THIN]
    if thin:
        sentences.append(f"{THIN} or fewer training videos of {', '.join(thin)}; add videos")
    for subset in ("validation", "test"):
        without = [name for name, number in of_class.items() if not number[subset]]
        if split[subset] and without:
            sentences.append(f"no {subset} videos of {', '.join(without)}; {subset} accuracy says nothing of them")
    return sentences


def count_classes(split: dict[str, list[str]]) -> dict[str, Counter[str]]:
    """class -> number of videos by subset, classes in order."""
    of_class: dict[str, Counter[str]] = {}
    for subset, videos in split.items():
        for name in videos:
            of_class.setdefault(name.split("/")[0], Counter())[subset] += 1
    return dict(sorted(of_class.items()))


def _hold_out(videos: list[str], folds: int, seed: int, groups: dict[str, str]) -> tuple[list[str], list[str]]:
    """The first of the folds that have most classes on both sides."""
    divided = _folds(videos, folds, seed, groups)
    if all(groups[name] == source_of(name) for name in videos):
        return next(divided)  # the only one that earlier versions knew: results and runs of theirs stay what they are
    return max(divided, key=lambda sides: sum(len({name.split("/")[0] for name in side}) for side in sides))


def _folds(videos: list[str], folds: int, seed: int, groups: dict[str, str]) -> Iterator[tuple[list[str], list[str]]]:
    """Splits off each `folds`-th of the videos in turn, stratified by class, whole groups at a time.

    A group that is all of a class stays: nobody could learn what is held out altogether.
    """
    classes, sources = [name.split("/")[0] for name in videos], [groups[name] for name in videos]
    number, stay = Counter(classes), single_recordings(videos, groups)
    if single := sorted(class_name for class_name in number if number[class_name] == 1):
        raise UserError(
            f"nothing to divide: {', '.join(single)} has a single video here; add videos of it, remove its folder, or "
            "hold no validation videos out (--validation=none; of the SVM --C=1)"
        )
    if set(stay.values()) == set(sources):
        named = ", ".join(f"{class_name} ({group})" for class_name, group in stay.items())
        raise UserError(
            f"nothing to divide: the videos of each class all come from one film or recording, {named}; add videos of "
            "others, or say by a CSV file with the column group (--splits) what belongs together"
        )
    most = min(*number.values(), len(set(sources)))
    # shuffled here: before 1.8, scikit-learn shuffled the groups' counts of classes and not the groups
    order = np.random.RandomState(seed).permutation(sorted(set(sources)))
    places = {source: place for place, source in enumerate(order.tolist())}
    splitter = StratifiedGroupKFold(min(folds, most))
    for _, indices in splitter.split(videos, classes, [places[source] for source in sources]):
        if held_out := [videos[index] for index in indices if sources[index] not in stay.values()]:
            yield sorted(set(videos).difference(held_out)), held_out
