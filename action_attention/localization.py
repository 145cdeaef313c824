"""Is the attention on the actor? Pointing accuracy and attention mass, beside uniform attention and the frame's centre.

The attention's rows and columns divide a frame into equal cells. Frames without an annotated actor do not count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from action_attention.errors import UserError
from action_attention.metrics import VideoPrediction, mean_interval95

MAPS = ("attention", "uniform", "centre")


@dataclass(frozen=True)
class Actor:
    """Where the actor is in each of n frames, seen from the attention's locations; all zero where there is none.

    Both `(n, rows, columns)`: `cells` is the share of each cell's area that the actor covers, `centres` whether the
    cell's centre lies on the actor (a share if the mask gives shares). A `grid` is the number of rows and columns.
    """

    cells: np.ndarray
    centres: np.ndarray

    @classmethod
    def from_masks(cls, masks: np.ndarray, grid: tuple[int, int]) -> "Actor":
        """From masks `(n, height, width)` of any resolution: bool, or the share of each pixel covered, 0..1."""
        axes = list(zip(grid, masks.shape[1:], strict=True))
        rows, columns = (_overlap(np.arange(size), np.arange(1, size + 1), cells, size) for cells, size in axes)
        at_rows, at_columns = (_centres(*axis).astype(int) for axis in axes)
        return cls(rows.T @ masks @ columns, masks[:, at_rows[:, None], at_columns].astype(float))

    @classmethod
    def from_boxes(cls, boxes: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> "Actor":
        """From boxes `(n, 4)` of x0, y0, x1, y1 (the last two exclusive) in frames of `size` (width, height) pixels."""
        (left, top, right, bottom), (width, height) = boxes.T, size
        rows, columns = _overlap(top, bottom, grid[0], height), _overlap(left, right, grid[1], width)
        y, x = _centres(grid[0], height), _centres(grid[1], width)
        in_rows = (top[:, None] <= y) & (y < bottom[:, None])
        in_columns = (left[:, None] <= x) & (x < right[:, None])
        return cls(rows[:, :, None] * columns[:, None], (in_rows[:, :, None] & in_columns[:, None]).astype(float))


def locate(attention: np.ndarray, actor: Actor) -> np.ndarray:
    """Pointing hits and attention mass of each frame, `(n, 2)`, of maps `(n, rows, columns)`, or one for all frames.

    Hit: does the point that the map points at, the centre of its largest location's cell, lie on the actor? (Pointing
    game, Zhang et al. 2018, arXiv 1608.00507, with tolerance 0.) Where several locations tie, any point of their cells
    is meant, and the hit is the share of their area that the actor covers. Mass: sum over locations of attention times
    the share of the cell that the actor covers. So for uniform attention both are the actor's share of the frame.
    """
    largest = attention == attention.max(axis=(1, 2), keepdims=True)
    ties = largest.sum(axis=(1, 2), keepdims=True)
    hits = (largest / ties * np.where(ties > 1, actor.cells, actor.centres)).sum(axis=(1, 2))
    return np.stack([hits, (attention * actor.cells).sum(axis=(1, 2))], axis=1)


def localize(predictions: list[VideoPrediction], classes: list[str], read_actor: Callable[[str], Actor | None]) -> dict:
    """Pointing accuracy and mass of videos: each is the mean of its frames, and every video counts once.

    Beside the attention stand two baselines: uniform attention, and all attention at the centre of the frame. The 95 %
    intervals (Student's t over videos) are of the attention and, pairwise, of how far it is above each baseline.

    Raises:
        UserError: no actor is annotated in any of the videos.
    """
    scored, known, without, frames = [], [], [], 0
    for prediction in predictions:
        actor = read_actor(prediction.name)
        shown = actor.cells.any(axis=(1, 2)) if actor else np.array(False)
        if actor is None or not shown.any():
            without.append(prediction.name)
            continue
        actor = Actor(actor.cells[shown], actor.centres[shown])
        rows, columns = actor.cells.shape[1:]
        uniform, centre = np.full((1, rows, columns), 1 / (rows * columns)), np.zeros((1, rows, columns))
        centre[0, rows // 2, columns // 2] = 1
        maps = (prediction.attention[shown], uniform, centre)
        scored.append([locate(each, actor).mean(axis=0) for each in maps])
        known.append(prediction.label)
        frames += int(shown.sum())
    if not scored:
        raise UserError("no actor is annotated in any of these videos; give the annotations of this dataset")
    scores, labels = np.array(scored), np.array(known)  # (videos, MAPS, 2)
    return {
        "videos": len(scores),
        "without_annotation": without,
        "frames": frames,
        "frames_without_annotation": sum(len(prediction.attention) for prediction in predictions) - frames,
        "pointing": _summarize(scores[..., 0]),
        "mass": _summarize(scores[..., 1]),
        "per_class": {
            classes[label]: {
                "videos": int((labels == label).sum()),
                "pointing": _means(scores[labels == label, :, 0]),
                "mass": _means(scores[labels == label, :, 1]),
            }
            for label in np.unique(labels)
        },
    }


def _means(scores: np.ndarray) -> dict:
    return dict(zip(MAPS, scores.mean(axis=0).tolist(), strict=True))


def _summarize(scores: np.ndarray) -> dict:
    attention, uniform, centre = scores.T
    return {
        **_means(scores),
        "attention_ci95": mean_interval95(attention),
        "above_uniform_ci95": mean_interval95(attention - uniform),
        "above_centre_ci95": mean_interval95(attention - centre),
    }


def _centres(cells: int, size: int) -> np.ndarray:
    """Where the centres of `cells` equal cells lie on an axis of `size` pixels."""
    return (np.arange(cells) + 0.5) * size / cells


def _overlap(low: np.ndarray, high: np.ndarray, cells: int, size: int) -> np.ndarray:
    """The share of each of `cells` equal cells of an axis of `size` pixels that lies in [low, high), `(n, cells)`."""
    edges = np.arange(cells + 1) * size / cells
    covered = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return covered.clip(0) * cells / size
