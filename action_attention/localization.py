"""Is the attention on the actor? Pointing accuracy and attention mass, beside maps that took no learning to look.

The attention's rows and columns divide a frame into equal cells. Frames without an annotated actor do not count.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from action_attention.errors import UserError
from action_attention.metrics import VideoPrediction, mean_interval95

CONTROLS = ("uniform", "centre", "motion", "motion_centre", "permuted")
CENTRE_SIGMA = 1.5  # cells of the grid


@dataclass(frozen=True)
class Actor:
    """Where the actor is in each of n frames, seen from the attention's locations; all zero where there is none.

    Both `(n, rows, columns)`: `cells` is the share of each cell's area that the actor covers, `centres` whether the
    cell's centre lies on the actor (a share if the mask gives shares). A `grid` is the number of rows and columns.
    `boxes` `(n, 4)` are the tight boxes around the actor, x0, y0, x1, y1 in shares of the frame, or None if they are
    not known.
    """

    cells: np.ndarray
    centres: np.ndarray
    boxes: np.ndarray | None = None

    @classmethod
    def from_masks(cls, masks: np.ndarray, grid: tuple[int, int]) -> "Actor":
        """From masks `(n, height, width)` of any resolution: bool, or the share of each pixel covered, 0..1."""
        axes = list(zip(grid, masks.shape[1:], strict=True))
        rows, columns = (_overlap(np.arange(size), np.arange(1, size + 1), cells, size) for cells, size in axes)
        at_rows, at_columns = (_centres(*axis).astype(int) for axis in axes)
        sides = [
            _tight(np.asarray(masks.any(axis=axis))) / masks.shape[3 - axis] for axis in (1, 2)
        ]  # of columns, of rows
        boxes = np.stack([side[:, end] for end in (0, 1) for side in sides], axis=1)
        return cls(rows.T @ masks @ columns, masks[:, at_rows[:, None], at_columns].astype(float), boxes)

    @classmethod
    def from_boxes(cls, boxes: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> "Actor":
        """From boxes `(n, 4)` of x0, y0, x1, y1 (the last two exclusive) in frames of `size` (width, height) pixels."""
        (left, top, right, bottom), (width, height) = boxes.T, size
        rows, columns = _overlap(top, bottom, grid[0], height), _overlap(left, right, grid[1], width)
        y, x = _centres(grid[0], height), _centres(grid[1], width)
        in_rows = (top[:, None] <= y) & (y < bottom[:, None])
        in_columns = (left[:, None] <= x) & (x < right[:, None])
        shares = np.clip(boxes / np.array([width, height, width, height]), 0, 1)
        in_cells = (in_rows[:, :, None] & in_columns[:, None]).astype(float)
        return cls(rows[:, :, None] * columns[:, None], in_cells, shares)


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


def motion_controls(motion: np.ndarray) -> dict[str, np.ndarray]:
    """Attention maps of motion maps `(n, rows, columns)`, which are not negative: each frame's sum to 1.

    `motion`: proportional to the motion; a frame in which nothing moves is uniform. `motion_centre`: that times a
    Gaussian of CENTRE_SIGMA cells about the centre of the frame, so that a still frame is the Gaussian.
    """
    motion = motion.astype(float)
    motion[~motion.any(axis=(1, 2))] = 1
    rows, columns = (
        np.exp(-((np.arange(cells) - (cells - 1) / 2) ** 2) / (2 * CENTRE_SIGMA**2)) for cells in motion.shape[1:]
    )
    maps = {"motion": motion, "motion_centre": motion * (rows[:, None] * columns)}
    return {name: each / each.sum(axis=(1, 2), keepdims=True) for name, each in maps.items()}


def permute(labels: Mapping[str, int | None]) -> dict[str, str]:
    """Another video for each, names to classes: none its own, each given once, and of another class where that can be.

    It depends on the videos only: sorted by class and name, each gets the one that stands as many places further as the
    largest class has videos, beginning again at the end. Empty for a single video, which has no other.
    """
    ordered = sorted(labels, key=lambda name: (labels[name] or 0, name))
    largest = max(Counter(labels.values()).values(), default=0)
    step = largest if largest < len(ordered) else 1
    others = ordered[step:] + ordered[:step]
    return {own: other for own, other in zip(ordered, others, strict=True) if own != other}


def localize(
    predictions: list[VideoPrediction],
    classes: list[str],
    read_actor: Callable[[str], Actor | None],
    read_motion: Callable[[str], np.ndarray | None] | None = None,
) -> dict:
    """Pointing accuracy and mass of videos: each is the mean of its frames, and every video counts once.

    Beside the attention stand controls, scored alike. The 95 % intervals (Student's t over videos) are of the attention
    and, pairwise, of how far it is above each control:

    - `uniform`: uniform attention; `centre`: all attention at the centre of the frame;
    - `motion`, `motion_centre`: the maps of `motion_controls`, if those of all videos that are scored are known. What
      finds the actor no better than these learned nothing about looking that the motion does not say;
    - `permuted`: the attention of another video (`permute`) in place of this one's, frame floor(k n' / n) of its n'
      frames for frame k of n. What scores as high with it was learned of all scenes, not seen in this one. Not there if
      there is a single video.

    Args:
        predictions: labelled videos with their attention; all of them take part in `permute`.
        classes: names of the classes.
        read_actor: name of a video -> the actor in its frames, or None where it is not annotated.
        read_motion: name of a video -> its frames' motion maps `(n, rows, columns)`, or None where they are not known.

    Raises:
        UserError: no actor is annotated in any of the videos.
    """
    of_name = {prediction.name: prediction for prediction in predictions}
    others = permute({name: prediction.label for name, prediction in of_name.items()})
    scored, known, without, frames = [], [], [], 0
    for prediction in predictions:
        actor = read_actor(prediction.name)
        shown = np.asarray(actor.cells.any(axis=(1, 2)) if actor else False)
        if actor is None or not shown.any():
            without.append(prediction.name)
            continue
        actor = Actor(actor.cells[shown], actor.centres[shown])
        other = of_name.get(others.get(prediction.name, ""))
        maps = {"attention": prediction.attention}
        maps |= _control_maps(prediction, other, read_motion(prediction.name) if read_motion else None)
        scored.append({name: locate(each[shown], actor).mean(axis=0) for name, each in maps.items()})
        known.append(prediction.label)
        frames += int(shown.sum())
    if not scored:
        raise UserError("no actor is annotated in any of these videos; give the annotations of this dataset")
    names = ["attention", *(name for name in CONTROLS if all(name in of_video for of_video in scored))]
    scores = np.array([[of_video[name] for name in names] for of_video in scored])  # (videos, names, 2)
    labels = np.array(known)
    return {
        "videos": len(scores),
        "without_annotation": without,
        "frames": frames,
        "frames_without_annotation": sum(len(prediction.attention) for prediction in predictions) - frames,
        "pointing": _summarize(scores[..., 0], names),
        "mass": _summarize(scores[..., 1], names),
        "per_class": {
            classes[label]: {
                "videos": int((labels == label).sum()),
                "pointing": _means(scores[labels == label, :, 0], names),
                "mass": _means(scores[labels == label, :, 1], names),
            }
            for label in np.unique(labels)
        },
    }


def _control_maps(
    prediction: VideoPrediction, other: VideoPrediction | None, motion: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Maps `(n, rows, columns)` of the controls of `localize` that can be had for a video."""
    count, rows, columns = prediction.attention.shape
    uniform, centre = np.full((count, rows, columns), 1 / (rows * columns)), np.zeros((count, rows, columns))
    centre[:, rows // 2, columns // 2] = 1
    maps = {"uniform": uniform, "centre": centre}
    if motion is not None:
        maps |= motion_controls(motion)
    if other:
        maps["permuted"] = other.attention[np.arange(count) * len(other.attention) // count]
    return maps


def _means(scores: np.ndarray, names: list[str]) -> dict:
    return dict(zip(names, scores.mean(axis=0).tolist(), strict=True))


def _summarize(scores: np.ndarray, names: list[str]) -> dict:
    attention, *controls = scores.T
    above = {
        f"above_{name}_ci95": mean_interval95(attention - control)
        for name, control in zip(names[1:], controls, strict=True)
    }
    return {**_means(scores, names), "attention_ci95": mean_interval95(attention), **above}


def _tight(seen: np.ndarray) -> np.ndarray:
    """First and one after the last of what is true in each row of `(n, size)`, `(n, 2)`; zeros where nothing is."""
    ends = np.stack([seen.argmax(axis=1), seen.shape[1] - seen[:, ::-1].argmax(axis=1)], axis=1)
    return ends * np.any(seen, axis=1, keepdims=True)


def _centres(cells: int, size: int) -> np.ndarray:
    """Where the centres of `cells` equal cells lie on an axis of `size` pixels."""
    return (np.arange(cells) + 0.5) * size / cells


def _overlap(low: np.ndarray, high: np.ndarray, cells: int, size: int) -> np.ndarray:
    """The share of each of `cells` equal cells of an axis of `size` pixels that lies in [low, high), `(n, cells)`."""
    edges = np.arange(cells + 1) * size / cells
    covered = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return covered.clip(0) * cells / size
