"""What a long video shows, one action after the other: each frame's class in the frames around it, in runs.

1. The label of a frame is the answer to a window of `window` frames around it, found as the answer to a whole video is:
   the class that wins the vote, or none if its mean calibrated probability is below the calibration's threshold. At the
   ends of the video the window is moved inside it. With a window of the model's clip length, a label is of as many
   frames as the model was trained and calibrated on, and where clips follow each other without overlap it has one frame
   of each place in a clip: what a model says early or late in its clips does not make the labels flicker.
2. Runs of one label shorter than `minimum` seconds go to the longer neighbour, the shortest runs first.
3. Each run is then asked as a whole, as a video is; neighbours with the same answer are one segment.

So a video with a single segment has the video's own answer and confidence there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from action_attention.calibration import calibrated
from action_attention.metrics import rank_classes

MINIMUM = 1.0  # seconds; hardly any clip of an action in HMDB-51 is shorter
NONE = -1  # label of frames that no class is said of
Run = tuple[int, int, int]  # label, first frame, frame after the last


@dataclass(frozen=True)
class Segment:
    """From `start` to `end`, in seconds; `action` is None where the model is not sure of its best guess, whose
    `confidence` it is then."""

    start: float
    end: float
    action: str | None
    confidence: float


def segments(
    probabilities: np.ndarray,
    classes: Sequence[str],
    times: Sequence[float],
    duration: float,
    *,
    vote: str = "mode",
    window: int = 30,
    minimum: float = MINIMUM,
    calibration: dict[str, Any] | None = None,
) -> list[Segment]:
    """The segments of one video, in order, without gaps, from 0 to `duration`.

    Args:
        probabilities: of each sampled frame, `(frames, C)`, as the model gives them.
        classes: class names by id.
        times: of the frames, in seconds, ascending.
        duration: of the video, in seconds.
        vote: `mode` or `mean`.
        window: frames that decide on each frame's label.
        minimum: seconds below which a run is a flicker.
        calibration: `Run.calibration()`; without it every segment has an action.
    """
    sure = calibrated(probabilities, calibration["temperature"]) if calibration else probabilities
    threshold = calibration["threshold"] if calibration else 0.0

    def answer(run: Run) -> tuple[int, float]:
        """Its class, or NONE, and the confidence."""
        best = rank_classes(probabilities[run[1] : run[2]], vote)[0]
        confidence = float(sure[run[1] : run[2], best].mean())
        return int(best) if confidence >= threshold else NONE, confidence

    labels = window_labels(probabilities, sure, threshold, vote, window)
    runs, before = merge_runs(labels, math.ceil(minimum * len(labels) / duration)), 0
    while len(runs) != before:
        before = len(runs)
        runs = _joined([(answer(run)[0], *run[1:]) for run in runs])
    starts = [0.0, *(times[first] for _, first, _ in runs[1:]), duration]
    return [
        Segment(start, end, None if run[0] == NONE else classes[run[0]], answer(run)[1])
        for run, (start, end) in zip(runs, pairwise(starts), strict=True)
    ]


def window_labels(
    probabilities: np.ndarray, sure: np.ndarray, threshold: float, vote: str = "mode", window: int = 30
) -> np.ndarray:
    """Of each frame, `(frames,)`, the class that wins the window around it, or NONE.

    Frame k's window is the `window` frames from min(max(k - window // 2, 0), frames - window) on, or all if there are
    fewer. `probabilities` `(frames, C)` vote, and `sure`, the calibrated ones, is compared to the threshold.
    """
    frames, classes = probabilities.shape
    window = min(window, frames)
    first = np.clip(np.arange(frames) - window // 2, 0, frames - window)

    def sums(values: np.ndarray) -> np.ndarray:
        running = np.concatenate([np.zeros((1, classes)), np.cumsum(values, axis=0, dtype=float)])
        return running[first + window] - running[first]

    score = sums(probabilities)
    if vote == "mode":  # the summed probability, here below 1, decides between classes that win as many frames
        score = sums(np.eye(classes)[probabilities.argmax(axis=1)]) + score / (window + 1)
    labels = score.argmax(axis=1)
    confidence = sums(sure)[np.arange(frames), labels] / window
    return np.where(confidence >= threshold - 1e-9, labels, NONE)  # rounding of running sums


def merge_runs(labels: np.ndarray, minimum: int) -> list[Run]:
    """Runs of equal labels, each of at least `minimum` frames, or one.

    The shortest run goes first, of equals the earliest: its longer neighbour takes it, of equals the one before.
    """
    ends = [*np.flatnonzero(np.diff(labels)) + 1, len(labels)]
    runs = [(int(labels[first]), int(first), int(end)) for first, end in zip([0, *ends], ends, strict=False)]
    for length in range(1, minimum):
        kept: list[Run] = []
        rest = runs[::-1]
        while rest:
            label, first, end = rest.pop()
            if kept and kept[-1][0] == label:
                kept[-1] = (label, kept[-1][1], end)
            elif end - first > length or not (kept or rest):
                kept.append((label, first, end))
            elif kept and (not rest or kept[-1][2] - kept[-1][1] >= rest[-1][2] - rest[-1][1]):
                kept[-1] = (*kept[-1][:2], end)
            else:
                rest[-1] = (rest[-1][0], first, rest[-1][2])
        runs = kept
    return runs


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbours with the same label as one."""
    groups = [list(group) for _, group in groupby(runs, key=lambda run: run[0])]
    return [(group[0][0], group[0][1], group[-1][2]) for group in groups]
