"""From frames to videos: each frame of a video votes once, the video's class is the mode; accuracies with intervals."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score

from action_attention.settings import VOTES


@keras.saving.register_keras_serializable("action_attention")
class FrameAccuracy(keras.metrics.Mean):
    """Share of real frames whose largest logit is the label; `y_true` `(B, T)` with `PADDING`, `y_pred` `(B, T, C)`."""

    def __init__(self, name: str = "frame_top1", **kwargs: Any):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        right = ops.equal(ops.cast(y_true, "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))
        super().update_state(ops.cast(right, "float32"), sample_weight=ops.cast(y_true >= 0, "float32"))


@dataclass
class VideoPrediction:
    """What a model says of one video.

    `probabilities` `(frames, C)` and `attention` `(frames, F, F)` hold every sampled frame once: a frame that stands in
    several clips has their mean. `clips` holds each clip's frame probabilities, `loss` its mean cross-entropy per clip;
    a prediction that was read back from files has neither. `label` and `loss` are None where the true class is unknown.
    """

    name: str
    label: int | None
    probabilities: np.ndarray
    attention: np.ndarray
    clips: list[np.ndarray] = field(default_factory=list)
    loss: float | None = None


def rank_classes(probabilities: np.ndarray, vote: str = "mode") -> np.ndarray:
    """Classes from likeliest to least likely, `(C,)`, given those of frames, `(frames, C)`.

    `mode` ranks by the number of frames that a class wins, ties by summed probability; `mean` by summed probability.
    """
    if vote not in VOTES:
        raise ValueError(f"vote must be one of {VOTES}. Received: vote={vote!r}")
    summed = probabilities.sum(axis=0)
    wins = np.bincount(probabilities.argmax(axis=1), minlength=len(summed)) if vote == "mode" else np.zeros(len(summed))
    return np.lexsort((-summed, -wins))


def running_votes(probabilities: np.ndarray, vote: str = "mode") -> Iterator[tuple[np.ndarray, int]]:
    """How the vote stands after each frame: every class's share of it, `(C,)`, and the leading class.

    Shares are of the frames that a class won so far (`mode`), or its mean probability so far (`mean`); the class that
    leads after the last frame is the first that `rank_classes` names.
    """
    summed, wins = np.zeros(probabilities.shape[1]), np.zeros(probabilities.shape[1])
    for count, frame in enumerate(probabilities, 1):
        summed += frame
        wins[frame.argmax()] += 1
        votes = wins if vote == "mode" else summed
        yield votes / count, int(np.lexsort((-summed, -votes))[0])


def interval95(right: int, count: int) -> list[float]:
    """Wilson's 95 % interval of an accuracy of `right` out of `count`."""
    interval = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def mean_interval95(values: np.ndarray) -> list[float] | None:
    """The 95 % interval of the mean of `values` by Student's t; None for a single value, which tells no spread."""
    if len(values) < 2:
        return None
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [float(values.mean() - margin), float(values.mean() + margin)]


def percent(share: float) -> int:
    """Whole percents, never rounded up: 49.9 is below a threshold of 50."""
    return math.floor(100 * share + 1e-9)


def summarize(predictions: list[VideoPrediction], classes: list[str], vote: str = "mode") -> dict:
    """Accuracies of frames, clips and videos, top 5, macro F1, per class and confusion counts (rows: true class)."""
    labels = np.array([prediction.label for prediction in predictions])
    rankings = np.array([rank_classes(prediction.probabilities, vote) for prediction in predictions])
    right = rankings[:, 0] == labels
    frames = [prediction.probabilities.argmax(axis=1) == prediction.label for prediction in predictions]
    clips = [rank_classes(clip, vote)[0] == prediction.label for prediction in predictions for clip in prediction.clips]
    present = np.unique(labels)
    return {
        "videos": len(labels),
        "vote": vote,
        "video_top1": float(right.mean()),
        "video_top1_ci95": interval95(int(right.sum()), len(right)),
        "video_top5": float((rankings[:, :5] == labels[:, None]).any(axis=1).mean()),
        "clip_top1": float(np.mean(clips)),
        "frame_top1": float(np.concatenate(frames).mean()),
        "macro_f1": float(f1_score(labels, rankings[:, 0], labels=present, average="macro", zero_division=0)),
        "cross_entropy": float(np.mean([prediction.loss for prediction in predictions])),
        "per_class": {
            classes[label]: {"accuracy": float(right[labels == label].mean()), "videos": int((labels == label).sum())}
            for label in present
        },
        "confusion": confusion_matrix(labels, rankings[:, 0], labels=range(len(classes))).tolist(),
    }
