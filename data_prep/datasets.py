"""Which videos of a dataset train and which are tested: lists, a cache and what is to be done where they disagree."""

import shutil
from pathlib import Path
from typing import Any

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.splits import (
    TEST,
    VALIDATION,
    copies_across,
    make_split,
    make_tags,
    match_names,
    read_lists,
    write_lists,
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
            which is kept in `made_in`/splits and used again.
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
    warnings = []
    if lists:
        about["split"] = lists.name if lists.is_file() else number
        tags = match_names(read_lists(lists, number), cache.videos)
        tags = {name: tag for name, tag in tags.items() if test or tag != TEST}
        missing = sorted(name for name, tag in tags.items() if tag and name not in cache.videos)
        if missing:
            sentence = f"{cache.folder} lacks {len(missing)} videos of the lists: {', '.join(missing[:10])}"
            if not allow_missing:
                raise UserError(f"{sentence}; extract them, or train without them by --allow_missing")
            warnings.append(f"{sentence}; they are left out")
            about["missing"] = {"videos": len(missing), "first": missing[:10]}
            about["split"] = f"{about['split']} without {len(missing)} missing videos"
        tags = {name: tag for name, tag in tags.items() if name in cache.videos}
        if VALIDATION in tags.values():
            about["validation"] = lists.name
    else:
        tags = {name: tag for name, tag in _made(made_in, list(cache.videos), seed).items() if test or tag != TEST}
    split = make_split(tags, validation, seed)
    copies = copies_across(split, {name: video.file_sha256 for name, video in cache.videos.items()})
    if copies:
        sentence = f"{len(copies)} videos have the same bytes as a held-out one, such as {copies[0][0]}"
        if duplicates == "error":
            raise UserError(f"{sentence}; --duplicates=allow keeps them, drop_train leaves them out")
        dropped = {name for name, _ in copies} if duplicates == "drop_train" else set()
        if dropped:
            about["split"] = f"{about['split']} without {len(dropped)} copies"
        split = {subset: [name for name in videos if name not in dropped] for subset, videos in split.items()}
        about["duplicates"] = {"videos": len(copies), "policy": duplicates, "first": copies[:10]}
        what = "left out" if dropped else "kept, as officially; --duplicates=drop_train leaves them out"
        warnings.append(f"{sentence}; {what}")
    return split, about, warnings


def _made(folder: Path, videos: list[str], seed: int) -> dict[str, int]:
    """The tags in `folder`/splits, which is made if it is not there: all lists or none, however this ends."""
    made, part = folder / "splits", folder / ".splits"
    if not made.exists():
        shutil.rmtree(part, ignore_errors=True)
        write_lists(part, make_tags(sorted(videos), seed))
        part.rename(made)
    return read_lists(made)
