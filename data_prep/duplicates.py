"""Near duplicates of videos, by a perceptual hash of each sampled frame.

The hash of a frame (pHash) is the signs of the lowest 16x16 frequencies of the grey frame, 256 bits. The distance of
two videos is the median, over the frames of the shorter one, of the share of bits in which the frame differs from the
most similar frame of the other: trimming and other frame rates change little. The thresholds were measured on J-HMDB
(928 videos of 336 films), percentiles of that distance of frames of 224x224 pixels, as the network sees them; frames of
the files' own size, as the audit sees them, differ by 0.02 at most:

| pairs | 1st | 50th | 99th | largest |
|---|---|---|---|---|
| 60 videos, re-encoded, shrunk to 128x96, stretched, brightened or at 25 frames/s | 0.00 | 0.01 | 0.08 | 0.10 |
| the same without 7 frames, and their first and second half | 0.00 | 0.01 | 0.16 | 0.26 |
| first half and second half of the same | 0.04 | 0.20 | 0.45 | 0.45 |
| 1,937 pairs of the same film | 0.02 | 0.44 | 0.51 | 0.53 |
| 8,000 pairs of different films (smallest 0.35) | 0.41 | 0.46 | 0.52 | 0.55 |

Up to `COPY` it is the same recording, up to `SAME_SHOT` at least the same shot, or a trimmed copy with much motion.
Cropped copies lie between 0.16 and 0.35 and are found in part, mirrored ones are not. Of all 428,000 pairs of different
films one is below `SAME_SHOT`: one golf teacher's two films of one day. Actors of 40 videos before one background, as
a fixed camera sees them, are 0.19 to 0.32 apart (medians of four backgrounds), so that chains of pairs below
`SAME_SHOT` connect 27 to 40 of the 40, those below `COPY` 1 to 12.
"""

import math
from collections.abc import Hashable, Mapping

import cv2
import numpy as np

COPY, SAME_SHOT = 0.1, 0.25
HASH_SIDE = 16
MOST_FRAMES = 20_000  # whose hashes are compared, all with all
BLOCK_FRAMES = 1000
SHOWN_PAIRS = 10


def frame_hash(frame: np.ndarray) -> np.ndarray:
    """Perceptual hash of an RGB frame, bool `(256,)`."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (4 * HASH_SIDE, 4 * HASH_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:HASH_SIDE, :HASH_SIDE].ravel()
    return low > np.median(low[1:])  # the first is the mean brightness


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


def alike(
    hashes: dict[str, np.ndarray], limit: float = SAME_SHOT, known: Mapping[str, str] | None = None
) -> tuple[dict[str, int], int, list[tuple[str, str]]]:
    """Which of all videos, of whatever class, look like one recording.

    Two videos do if at least half of the frames of the shorter one differ by at most `limit` from a frame of the other.
    Frames without structure, such as black ones, are like no other. 20,000 frames take 2 s on two cores. Every n-th
    frame counts where there are more than `MOST_FRAMES` in all, or `BLOCK_FRAMES` of a video: of 180 trimmed videos of
    J-HMDB 99 % are found by every second frame, 96 % by every fourth, 86 % by every eighth.

    Args:
        hashes: each video's frame hashes, bool `(frames, 256)`.
        limit: share of different bits.
        known: groups of videos; pairs within one are no news.

    Returns:
        each video's recording, a number, which videos have in common that a chain of such pairs connects; how many
        pairs there are that were not known; the first `SHOWN_PAIRS` of those.
    """
    names = sorted(hashes)
    group = np.unique([(known or {}).get(name, name) for name in names], return_inverse=True)[1].reshape(-1)
    every = max(1, math.ceil(sum(map(len, hashes.values())) / MOST_FRAMES))
    kept = [hashes[name][:: max(every, math.ceil(len(hashes[name]) / BLOCK_FRAMES))] for name in names]
    lengths = np.array([len(of_video) for of_video in kept], int)
    starts = np.cumsum([0, *lengths])
    bits = np.concatenate([np.zeros((0, HASH_SIDE**2), bool), *kept])
    # the median sets half of the bits, unless most frequencies are nought
    structured = bits.mean(axis=1, keepdims=True) > 0.25
    signs = np.where(structured, 2 * bits.astype(np.float32) - 1, np.float32(0))
    recording, number, shown, first = np.arange(len(names)), 0, list[tuple[str, str]](), 0
    while first < len(names):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK_FRAMES, "right")) - 1)
        rows, columns = starts[first:last] - starts[first], starts[first:-1] - starts[first]
        near = signs[starts[first] : starts[last]] @ signs[starts[first] :].T >= (1 - 2 * limit) * HASH_SIDE**2
        of_rows = np.add.reduceat(np.logical_or.reduceat(near, columns, axis=1), rows, axis=0, dtype=int)
        of_columns = np.add.reduceat(np.logical_or.reduceat(near, rows, axis=0), columns, axis=1, dtype=int)
        ours, theirs = lengths[first:last, None], lengths[first:]
        pairs = np.triu(2 * np.where(ours <= theirs, of_rows, of_columns) >= np.minimum(ours, theirs), 1)
        for row in np.flatnonzero(pairs.any(axis=1)):
            others = first + np.flatnonzero(pairs[row])
            joined = recording[[first + row, *others]]
            recording[np.isin(recording, joined)] = joined.min()
            news = others[group[others] != group[first + row]]
            number += len(news)
            shown += [(names[first + row], names[other]) for other in news[: SHOWN_PAIRS - len(shown)]]
        first = last
    return dict(zip(names, recording.tolist(), strict=True)), number, shown


def join(names: dict[str, str], *others: Mapping[str, Hashable]) -> dict[str, str]:
    """The groups of `names` (video -> group), put together where videos have the same value in one of `others`.

    A group keeps the name that its first video has; `others` need not know all videos.
    """
    first_of = {name: name for name in names}  # of a video's group, as far as known

    def first(name: str) -> str:
        while first_of[name] != name:
            first_of[name] = name = first_of[first_of[name]]
        return name

    for values in (names, *others):
        seen = dict[Hashable, str]()
        for name in values:
            one, other = sorted((first(name), first(seen.setdefault(values[name], name))))
            first_of[other] = one
    return {name: names[first(name)] for name in names}
