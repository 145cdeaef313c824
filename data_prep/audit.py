"""Checks a split before anything is trained on it: what stands on both sides, clips that are too short, counts.

    python -m data_prep.audit --videos DIR --splits DIR [--split 1] [--output audit.json]

Near duplicates are found by perceptual hashes of the sampled frames; `data_prep/duplicates.py` says what its thresholds
`COPY` and `SAME_SHOT` were measured on.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.features import write_json
from action_attention.files import file_sha256
from data_prep import program
from data_prep.duplicates import COPY, SAME_SHOT, frame_hash, near_duplicates
from data_prep.splits import SUBSETS, TRAIN, UNUSED, copies_across, match_names, name_groups, read_groups, read_lists
from data_prep.terminal import say
from data_prep.videos import UnusableVideoError, VideoReader, list_videos


def audit(
    videos: Path, tags: dict[str, int], fps: float = 15.0, clip_length: int = 30, groups: dict[str, str] | None = None
) -> dict:
    """What is worth knowing of a split before training on it.

    Args:
        videos: folder of class folders of video files.
        tags: of videos `<class>/<file>`, as `read_lists` returns them.
        fps: sampled frames per second.
        clip_length: sampled frames; videos with fewer are padded in training.
        groups: the film or recording of each video (`read_groups`); None or empty to guess by `name_groups`.

    Returns:
        the content of `audit.json`, all of it plain values.
    """
    there = list_videos(videos)
    tags = match_names(tags, there)
    used = {name for name, tag in tags.items() if tag != UNUSED}
    sha256, hashes, unreadable = {}, {}, {}
    for name in tqdm(sorted(used & set(there)), unit=" videos", disable=None, dynamic_ncols=True):
        try:
            hashes[name] = np.stack([frame_hash(frame) for frame in VideoReader(videos / name, fps, size=None)])
            sha256[name] = file_sha256(videos / name)
        except UnusableVideoError as error:
            unreadable[name] = str(error)
    train = [name for name in hashes if tags[name] == TRAIN]
    held_out = [name for name in hashes if tags[name] != TRAIN]
    if not train or not held_out:
        raise UserError(f"{videos} has {len(train)} training and {len(held_out)} other videos of the split")
    exact = copies_across({"train": train, "held out": held_out}, sha256)
    near = [pair for pair in near_duplicates(hashes, train, held_out) if pair[:2] not in exact]
    film = match_names(groups, there) if groups else name_groups(hashes)
    films = [Counter(film[name] for name in names) for names in (train, held_out)]
    classes: dict[str, Counter[str]] = {}
    for name in hashes:
        classes.setdefault(name.split("/")[0], Counter())[SUBSETS[tags[name]]] += 1
    return {
        "videos": str(videos),
        "unused": len(tags) - len(used),
        "classes": classes,
        "missing": sorted(used.difference(there)),
        "unlisted": sorted(set(there) - tags.keys()),
        "unreadable": unreadable,
        "exact_duplicates": exact,
        "near_duplicates": [pair for pair in near if pair[2] <= COPY],
        "same_shot": [pair for pair in near if pair[2] > COPY],
        "films_on_both_sides": {name: [films[0][name], films[1][name]] for name in sorted(films[0].keys() & films[1])},
        "too_short": {name: len(of_video) for name, of_video in hashes.items() if len(of_video) < clip_length},
        "fps": fps,
        "clip_length": clip_length,
    }  # fmt: skip


def summary(found: dict) -> str:
    """`audit`'s findings for people: a line each, with the first examples."""
    number: Counter[str] = sum(map(Counter, found["classes"].values()), Counter())
    sizes = [sum(of_class.values()) for of_class in found["classes"].values()]
    counts = ", ".join(f"{number[subset]} {subset}" for subset in SUBSETS if number[subset])
    lines = [f"{found['videos']}: {counts} videos of {len(sizes)} classes, {min(sizes)} to {max(sizes)} a class; "
             f"{found['unused']} unused"]  # fmt: skip

    def tell(what: str, examples: list[str]) -> None:
        lines.append(f"{what}: {len(examples)}" + "".join(f"\n    {example}" for example in examples[:5]))

    def pairs(key: str) -> list[str]:
        return ["  ".join(map(str, pair)) for pair in found[key]]

    tell("the same bytes in training and held out", pairs("exact_duplicates"))
    tell(f"near duplicates in training and held out (distance up to {COPY})", pairs("near_duplicates"))
    tell(f"the same shot in training and held out (up to {SAME_SHOT})", pairs("same_shot"))
    films = found["films_on_both_sides"].items()
    tell("films in training and held out", [f"{film}: {train} and {other} videos" for film, (train, other) in films])
    short = sorted(found["too_short"].items(), key=lambda item: item[1])
    tell(f"videos shorter than a clip ({found['clip_length']} frames at {found['fps']:g} frames/s), padded in training",
         [f"{name}: {frames} frames" for name, frames in short])  # fmt: skip
    tell("listed, but not there", found["missing"])
    tell("there, but not listed", found["unlisted"])
    tell("not readable", [f"{name}: {reason}" for name, reason in found["unreadable"].items()])
    return "\n".join(lines)


def define_flags() -> None:
    flags.DEFINE_string("videos", None, "folder with one folder of video files per class", required=True)
    flags.DEFINE_string("splits", None, "folder of lists <class>_test_split<N>.txt or CSV file", required=True)
    flags.DEFINE_integer("split", 1, "number of the split", lower_bound=1)
    flags.DEFINE_string("output", "audit.json", "file for everything that was found")
    flags.DEFINE_float("fps", 15.0, "sampled frames per second", lower_bound=0.1)
    flags.DEFINE_integer("clip_length", 30, "sampled frames per clip", lower_bound=1)


def main() -> None:
    args = flags.FLAGS
    lists = Path(args.splits)
    tags = read_lists(lists, args.split)
    found = audit(Path(args.videos), tags, args.fps, args.clip_length, read_groups(lists))
    write_json(Path(args.output), found)
    say(f"{summary(found)}\n{args.output} has all of it")


if __name__ == "__main__":
    program.run(main, define_flags)
