"""Where the action is, as a box in each frame, cut out of the attention, and how well boxes fit those of the actor.

Boxes are x0, y0, x1, y1 in shares of the frame's width and height, the origin at its upper left. A tube is the boxes of
a video's frames; its IoU with the truth is the mean over the frames with an actor.
"""

from collections.abc import Callable

import cv2
import numpy as np
from scipy.ndimage import median_filter, uniform_filter1d

from action_attention.errors import UserError
from action_attention.localization import Actor, motion_controls
from action_attention.metrics import VideoPrediction, mean_interval95

SIDE = 224  # rows and columns that a map is enlarged to
FRAMES = 5  # that a map is averaged over, and a box's sides are the medians of
TAUS = (  # sharp maps take small ones
    0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9,
)  # fmt: skip
TUNING_VIDEOS = 100  # training videos that tau is chosen on, at most
CORLOC = (0.2, 0.3, 0.5)
VIDEO_MAP = (0.2, 0.5)


def action_boxes(maps: np.ndarray, tau: float) -> np.ndarray:
    """Boxes `(n, 4)` of attention maps `(n, rows, columns)` of successive frames.

    Maps are averaged over FRAMES frames, enlarged bilinearly and divided by their maximum; a box holds what is at least
    `tau` and connected with the maximum. Each side then is the median of FRAMES frames.
    """
    smooth = uniform_filter1d(np.asarray(maps, np.float32), FRAMES, axis=0, mode="nearest")
    boxes = np.array([_box(cv2.resize(each, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR), tau) for each in smooth])
    return median_filter(boxes, (FRAMES, 1), mode="nearest") / SIDE


def _box(large: np.ndarray, tau: float) -> list[int]:
    row, column = divmod(int(large.argmax()), SIDE)
    kept = (large >= tau * large[row, column]).astype(np.uint8)
    *_, (left, top, width, height) = cv2.floodFill(kept, None, (column, row), 2, flags=8)  # 8-connected
    return [left, top, left + width, top + height]


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `(..., 4)`, pair by pair; 0 for boxes without area."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(np.clip(each[..., 2:] - each[..., :2], 0, None), axis=-1) for each in (boxes, others)]
    union = areas[0] + areas[1] - both
    return np.divide(both, union, out=np.zeros_like(union), where=union > 0)


def grid_boxes(truth: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Of each box `(n, 4)`, the box of whole cells of a grid (rows, columns) that fits it best: what maps can reach."""
    rows, columns = (np.array([(a, b) for a in range(n) for b in range(a + 1, n + 1)]) / n for n in grid)
    y, x = (each.ravel() for each in np.meshgrid(range(len(rows)), range(len(columns)), indexing="ij"))
    all_boxes = np.column_stack([columns[x, 0], rows[y, 0], columns[x, 1], rows[y, 1]])
    return all_boxes[box_iou(truth[:, None], all_boxes[None]).argmax(axis=1)]


def average_precision(scores: np.ndarray, right: np.ndarray, positives: int) -> float:
    """Mean over `positives` of the precision at each right detection, ranked by score; one not found counts 0."""
    hits = right[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].sum() / positives)


class _Video:
    """One annotated video: its maps by name and the frames in which there is an actor, with the boxes there."""

    def __init__(self, prediction: VideoPrediction, truth: np.ndarray, motion: np.ndarray | None):
        self.prediction, self.shown = prediction, truth.any(axis=1)
        self.truth = truth[self.shown]
        self.maps = {"attention": prediction.attention, **(motion_controls(motion) if motion is not None else {})}

    def iou(self, boxes: np.ndarray) -> float:
        """Of a box for each frame, or one for all."""
        return float(box_iou(boxes[self.shown] if boxes.ndim > 1 else boxes, self.truth).mean())


def _fixed_boxes(tuned: list[_Video]) -> dict[str, np.ndarray]:
    """The boxes that look at nothing, alike in all frames."""
    of_training = np.concatenate([each.truth for each in tuned])
    half = np.median(of_training[:, 2:] - of_training[:, :2], axis=0) / 2
    return {
        "whole_frame": np.array([0.0, 0, 1, 1]),
        "centred_box": np.concatenate([0.5 - half, 0.5 + half]),
        "training_box": np.median(of_training, axis=0),
    }


def localize_boxes(
    predictions: list[VideoPrediction],
    training: list[VideoPrediction],
    read_actor: Callable[[str], Actor | None],
    read_motion: Callable[[str], np.ndarray | None] | None = None,
) -> dict | None:
    """Tube IoU, CorLoc and video-mAP of attention, of maps that took no learning, and of boxes that look at nothing.

    Maps: `attention`, `motion` and `motion_centre` (`localization.motion_controls`), each with the tau of TAUS that has
    the highest tube IoU on the training videos. Boxes: `whole_frame`; `centred_box`, of the median width and height of
    the boxes in training videos; `training_box`, of their median sides; `oracle`, of whole cells, the best in each
    frame. CorLoc is the share of videos whose tube IoU is at least so much; video-mAP has one tube a video and class,
    scored by the class's mean probability. Paired 95 % intervals (Student's t over videos) are of attention above
    `training_box`.

    Args:
        predictions: labelled videos with their attention.
        training: the same of training videos, for tau and the boxes of the training.
        read_actor: name of a video -> the actor in its frames, or None where it is not annotated.
        read_motion: name of a video -> its frames' motion maps, or None where they are not known.

    Returns None if no training video is annotated.
    """

    def videos(of: list[VideoPrediction]) -> list[_Video]:
        actors = [(each, read_actor(each.name)) for each in of]
        found = [(each, actor.boxes) for each, actor in actors if actor is not None and actor.boxes is not None]
        read = read_motion or (lambda name: None)
        return [_Video(each, boxes, read(each.name)) for each, boxes in found if boxes.any()]

    tuned, judged = videos(training), videos(predictions)
    if not tuned:
        return None
    if not judged:
        raise UserError("no actor is annotated in any of these videos; give the annotations of this dataset")
    names = [name for name in judged[0].maps if all(name in video.maps for video in tuned + judged)]
    taus = {
        name: max(TAUS, key=lambda tau: np.mean([each.iou(action_boxes(each.maps[name], tau)) for each in tuned]))
        for name in names
    }
    grid = judged[0].prediction.attention.shape[1:]
    ious = {name: [each.iou(action_boxes(each.maps[name], taus[name])) for each in judged] for name in names}
    ious |= {name: [each.iou(box) for each in judged] for name, box in _fixed_boxes(tuned).items()}
    ious["oracle"] = [float(box_iou(grid_boxes(each.truth, grid), each.truth).mean()) for each in judged]
    figures = _figures({name: np.array(values) for name, values in ious.items()}, judged)
    return {"videos": len(judged), "training_videos": len(tuned), "tau": taus, **figures}


def _figures(ious: dict[str, np.ndarray], judged: list[_Video]) -> dict:
    """Tube IoU, CorLoc and video-mAP of what has a tube IoU with each video."""
    labels = np.array([each.prediction.label for each in judged])
    scores = np.stack([each.prediction.probabilities.mean(axis=0) for each in judged])

    def means(values: dict[str, np.ndarray]) -> dict:
        above = mean_interval95(values["attention"].astype(float) - values["training_box"])
        return {**{name: float(each.mean()) for name, each in values.items()}, "above_training_box_ci95": above}

    def mean_ap(right: np.ndarray) -> float:
        return float(np.mean([
            average_precision(scores[:, label], right & (labels == label), int((labels == label).sum()))
            for label in np.unique(labels)
        ]))  # fmt: skip

    def at_least(least: float) -> dict[str, np.ndarray]:
        return {name: values >= least for name, values in ious.items()}

    return {
        "tube_iou": means(ious),
        **{f"corloc_{least:g}": means(at_least(least)) for least in CORLOC},
        **{
            f"video_map_{least:g}": {name: mean_ap(right) for name, right in at_least(least).items()}
            for least in VIDEO_MAP
        },
    }
