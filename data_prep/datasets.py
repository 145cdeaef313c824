"""Which videos of a dataset train and which are tested: lists, a cache and what is to be done where they disagree."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.duplicates import COPY, SAME_SHOT, alike, join
from data_prep.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    copies_across,
    groups_across,
    has_film,
    make_split,
    make_tags,
    match_names,
    name_groups,
    read_groups,
    read_lists,
    single_recordings,
    source_of,
    thin_classes,
    write_csv,
)

DUPLICATES = ("allow", "drop_train", "error")


def choose_split(
    cache: FeatureCache,
    lists: Path | None,
    number: int = 1,
    *,
    made_in: Path,
    seed: int = 0,
    validation: str = "source",
    test: bool = True,
    dataset: str | None = None,
    allow_missing: bool = False,
    duplicates: str = "allow",
) -> tuple[dict[str, list[str]], dict[str, Any], list[str]]:
    """The lists of videos by subset, what `run.json` says of them, and warnings, a sentence each.

    Args:
        cache: the features.
        lists: folder of official lists or a CSV file (`splits.read_lists`); None to make a split of the cache's videos,
            which is kept in `made_in`/splits.csv and used again.
        number: which of the lists.
        seed: of what is drawn.
        validation: as `splits.make_split` takes it.
        test: False leaves the test videos out from the start: the cache need not hold them.
        dataset: its name in tables; None for that of the folder above the videos.
        allow_missing: leave out videos that the cache lacks.
        duplicates: one of `DUPLICATES`, for training videos with the bytes of a held-out one.

    Raises:
        UserError: the lists cannot be used, the cache lacks videos, or there are copies and `duplicates` is `error`.
    """
    about: dict[str, Any] = {"dataset": dataset or Path(cache.source).parent.name}
    about |= {"split": "made", "validation": validation}
    warnings = list[str]()
    if lists:
        about["split"] = lists.name if lists.is_file() else number
    else:
        about["groups"], warnings = _make(cache, made_in, seed)
    groups, by = groups_of(lists, made_in, cache.videos)
    about.setdefault("groups", {"by": by})
    read_from = lists or made_lists(made_in)
    tags = match_names(read_lists(read_from, number if lists else 1), cache.videos)
    tags = {name: tag for name, tag in tags.items() if test or tag != TEST}
    warnings += _leave_out_missing(cache, tags, about, allow_missing)
    if VALIDATION in tags.values():
        about["validation"] = read_from.name
    split = make_split(tags, validation, seed, groups)
    if lists and by == "csv" and (across := groups_across(split, groups)):
        first, second = across[0]
        warnings.append(
            f"{len(across)} groups of {lists} are trained on and held out too, such as {groups[first]!r} with {first} "
            f"and {second}; accuracies on them flatter"
        )
    divided = [*split["train"], *split["validation"]] if lists else tags
    if not lists or about["validation"] == "source":
        whole = [f"{name} ({group})" for name, group in single_recordings(divided, groups).items()]
        if whole:
            warnings.append(f"all videos of {', '.join(whole)} are one recording and stay in training")
    split, of_copies = _decide_on_copies(cache, split, about, duplicates)
    return split, about, [*warnings, *of_copies, *thin_classes(split)]


def made_lists(folder: Path) -> Path:
    """Where a split that was made in `folder` is kept; earlier versions wrote a folder of lists."""
    earlier = folder / "splits"
    return earlier if earlier.is_dir() else folder / "splits.csv"


def groups_of(lists: Path | None, made_in: Path, videos: Collection[str]) -> tuple[dict[str, str], str]:
    """The group of each video as `choose_split` goes by, and what it is known by: `csv`, `names` or `hmdb51 names`."""
    path = lists or made_lists(made_in)
    if path.suffix.lower() == ".csv" and (groups := match_names(read_groups(path), videos)):
        return {name: groups.get(name, name) for name in videos}, "csv"
    if not lists:  # the lists of an earlier version, with which its runs go on
        return {name: source_of(name) for name in videos}, "hmdb51 names"
    return name_groups(videos), _kind(videos)


def recordings(cache: FeatureCache) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """The groups of a cache's videos for a split that is made, what `run.json` says of them, and warnings.

    Videos are together that are one recording by their names, have the same bytes or look alike, and chains of such.
    Where looks alone would put more than half of all videos together, which a fixed camera does, only copies count.
    Raises UserError if there are no videos.
    """
    videos = sorted(cache.videos)
    if not videos:
        raise UserError(f"{cache.folder} holds no video to make a split of; its rejects.json says why")
    by_name, warnings = name_groups(videos), list[str]()
    sha256 = {name: cache.videos[name].file_sha256 for name in videos}
    hashes = {name: of_video for name in videos if (of_video := cache.frame_hashes(name)) is not None}
    groups = join(by_name, sha256)
    largest = max(_largest(groups), len(videos) / 2)
    for limit in (SAME_SHOT, COPY):
        looks, number, shown = alike(hashes, limit, by_name)
        together = join(groups, looks)
        if _largest(together) <= largest:
            break
        if limit > COPY:
            warnings.append(
                "more than half of the videos look like one shot, as under a fixed camera, so only copies (up to "
                f"{COPY} of the bits differ) count as one recording; where it is one, say so by a CSV file with the "
                "column group"
            )
    if number:
        warnings.append(
            f"{number} pairs of videos look like the same recording, such as {' and '.join(shown[0])}; they stay on "
            "one side of the split"
        )
    without = len(videos) - len(hashes)
    if without:
        warnings.append(
            f"near duplicates were not looked for among {without} of {len(videos)} videos, because {cache.folder} was "
            "made before frames' hashes were kept; extract them again into another folder"
        )
    about: dict[str, Any] = {"by": _kind(videos), "groups": len(set(together.values())), "near_duplicates": shown}
    about |= {"near_duplicate_pairs": number, "up_to": limit, "videos_without_hashes": without}
    return together, about, warnings


def _leave_out_missing(
    cache: FeatureCache, tags: dict[str, int], about: dict[str, Any], allow_missing: bool
) -> list[str]:
    """Takes the videos that the cache lacks from `tags` and writes them into `about`; a warning if there are any.

    Raises UserError if some of them train or are tested and may not be missing.
    """
    absent = [name for name in tags if name not in cache.videos]
    missing = sorted(name for name in absent if tags[name])
    for name in absent:
        del tags[name]
    if not missing:
        return []
    sentence = f"{cache.folder} lacks {len(missing)} videos of the lists: {', '.join(missing[:10])}"
    if not allow_missing:
        raise UserError(f"{sentence}; extract them, or train without them by --allow_missing")
    about["missing"] = {"videos": len(missing), "first": missing[:10]}
    about["split"] = f"{about['split']} without {len(missing)} missing videos"
    return [f"{sentence}; they are left out"]


def _decide_on_copies(
    cache: FeatureCache, split: dict[str, list[str]], about: dict[str, Any], duplicates: str
) -> tuple[dict[str, list[str]], list[str]]:
    """The split by one of `DUPLICATES`, which is written into `about`, and a warning if there are copies.

    Raises UserError if there are copies and `duplicates` is `error`.
    """
    copies = copies_across(split, {name: video.file_sha256 for name, video in cache.videos.items()})
    if not copies:
        return split, []
    sentence = f"{len(copies)} videos have the same bytes as a held-out one, such as {copies[0][0]}"
    if duplicates == "error":
        raise UserError(f"{sentence}; --duplicates=allow keeps them, drop_train leaves them out")
    about["duplicates"] = {"videos": len(copies), "policy": duplicates, "first": copies[:10]}
    if duplicates == "allow":
        return split, [f"{sentence}; kept, as official lists have them; --duplicates=drop_train leaves them out"]
    dropped = {name for name, _ in copies}
    about["split"] = f"{about['split']} without {len(dropped)} copies"
    split = {subset: [name for name in videos if name not in dropped] for subset, videos in split.items()}
    return split, [f"{sentence}; left out"]


def _make(cache: FeatureCache, folder: Path, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Makes the split of `made_lists` where there is none; what `run.json` says of its groups, and warnings."""
    path = made_lists(folder)
    if path.is_dir():
        sentence = f"{path} was made by an earlier version, which went by names only; another folder gets another split"
        return {"by": "hmdb51 names"}, [sentence]
    groups, about, warnings = recordings(cache)
    if not path.exists():
        write_csv(path, make_tags(sorted(groups), seed, groups), groups)
        return about, warnings
    tags = read_lists(path)
    train = [name for name, tag in tags.items() if tag == TRAIN]
    across = groups_across({"train": train, "test": sorted(tags.keys() - set(train))}, groups)
    remedy = "give another folder to have a split made anew"
    if across:
        warnings = [f"{path} divides {len(across)} recordings, such as that of {' and '.join(across[0])}; {remedy}"]
    if new := sorted(groups.keys() - tags.keys()):
        warnings.append(f"{path} has {len(new)} videos of the features in no subset, such as {new[0]}; {remedy}")
    return about, warnings


def _largest(groups: dict[str, str]) -> int:
    return Counter(groups.values()).most_common(1)[0][1]


def _kind(videos: Collection[str]) -> str:
    return "hmdb51 names" if all(map(has_film, videos)) else "names"
