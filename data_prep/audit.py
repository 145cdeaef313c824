"""Checks a split before anything is trained on it: what stands on both sides, clips that are too short, counts.

    python -m data_prep.audit --videos DIR --splits DIR [--split 1] [--output audit.json]

Near duplicates are found by a perceptual hash of each sampled frame (pHash: signs of the lowest 16x16 frequencies of
the grey frame, 256 bits). The distance of two videos is the median, over the frames of the shorter one, of the share of
bits in which the frame differs from the most similar frame of the other: trimming and other frame rates change little.
The thresholds were measured on J-HMDB (928 videos of 336 films), percentiles of that distance:

| pairs | 1st | 50th | 99th | largest |
|---|---|---|---|---|
| 60 videos, re-encoded, shrunk to 128x96, stretched, brightened or at 25 frames/s | 0.00 | 0.01 | 0.05 | 0.05 |
| the same trimmed at an odd frame or to a half | 0.00 | 0.03 | 0.23 | 0.24 |
| 1,937 pairs of the same film | 0.02 | 0.44 | 0.51 | 0.53 |
| 8,000 pairs of different films (smallest 0.36) | 0.41 | 0.46 | 0.52 | 0.57 |

Up to `COPY` it is the same recording, up to `SAME_SHOT` at least the same shot, or a trimmed copy with much motion.
Cropped copies lie between 0.16 and 0.35 and are found in part, mirrored ones are not.
"""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.features import write_json
from action_attention.files import file_sha256
from data_prep import program
from data_prep.splits import SUBSETS, TRAIN, UNUSED, copies_across, match_names, read_lists, source_of
from data_prep.videos import UnusableVideoError, VideoReader, list_videos

COPY, SAME_SHOT = 0.1, 0.25
HASH_SIDE = 16


def audit(videos: Path, tags: dict[str, int], fps: float = 15.0, clip_length: int = 30) -> dict:
    """What is worth knowing of a split before training on it.

    Args:
        videos: folder of class folders of video files.
        tags: of videos `<class>/<file>`, as `read_lists` returns them.
        fps: sampled frames per second.
        clip_length: sampled frames; videos with fewer are padded in training.

    Returns:
        the content of `audit.json`, all of it plain values.
    """
    there = list_videos(videos)
    tags = match_names(tags, there)
    used = {name for name, tag in tags.items() if tag != UNUSED}
    sha256, hashes, unreadable = {}, {}, {}
    for name in tqdm(sorted(used & set(there)), unit="video", disable=None, dynamic_ncols=True):
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
    films = [Counter(map(source_of, names)) for names in (train, held_out)]
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
        "films_on_both_sides": {film: [films[0][film], films[1][film]] for film in sorted(films[0].keys() & films[1])},
        "too_short": {name: len(of_video) for name, of_video in hashes.items() if len(of_video) < clip_length},
        "fps": fps,
        "clip_length": clip_length,
    }  # fmt: skip


def near_duplicates(
    hashes: dict[str, np.ndarray], train: list[str], held_out: list[str]
) -> list[tuple[str, str, float]]:
    """Pairs (training video, held-out video, distance) at a distance of at most `SAME_SHOT`, the nearest first.

    `hashes` holds each video's frame hashes, bool `(frames, 256)`.
    """
    # with bits as +1 and -1 the share of different bits is (1 - product / bits) / 2: one matrix product a video
    signs = {name: 2 * hashes[name].astype(np.float32) - 1 for name in {*train, *held_out}}
    training = np.concatenate([signs[name] for name in train])
    starts = np.cumsum([0, *(len(signs[name]) for name in train)])
    pairs = []
    for name in held_out:
        products = signs[name] @ training.T
        nearest = np.maximum.reduceat(products.max(axis=0), starts[:-1])
        for index in np.flatnonzero(nearest >= (1 - 2 * SAME_SHOT) * HASH_SIDE**2):
            between = (1 - products[:, starts[index] : starts[index + 1]] / HASH_SIDE**2) / 2
            distance = float(np.median(between.min(axis=int(between.shape[0] <= between.shape[1]))))
            if distance <= SAME_SHOT:
                pairs.append((train[index], name, round(distance, 3)))
    return sorted(pairs, key=lambda pair: (pair[2], pair))


def frame_hash(frame: np.ndarray) -> np.ndarray:
    """Perceptual hash of an RGB frame, bool `(256,)`."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (4 * HASH_SIDE, 4 * HASH_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:HASH_SIDE, :HASH_SIDE].ravel()
    return low > np.median(low[1:])  # the first is the mean brightness


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
    flags.DEFINE_integer("split", 1, "which of the lists", lower_bound=1)
    flags.DEFINE_string("output", "audit.json", "file for everything that was found")
    flags.DEFINE_float("fps", 15.0, "sampled frames per second", lower_bound=0.1)
    flags.DEFINE_integer("clip_length", 30, "sampled frames per clip", lower_bound=1)


def main() -> None:
    args = flags.FLAGS
    found = audit(Path(args.videos), read_lists(Path(args.splits), args.split), args.fps, args.clip_length)
    write_json(Path(args.output), found)
    print(f"{summary(found)}\n{args.output} has all of it")


if __name__ == "__main__":
    program.run(main, define_flags)
