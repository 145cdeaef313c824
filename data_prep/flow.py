"""Optical flow between sampled frames, and where something moves against the camera.

Flow is DIS (Kroeger et al. 2016, arXiv 1603.03590), preset medium, as in OpenCV. The camera's part of it is an affine
motion, fitted robustly to the whole field and taken away (as trajectories do it: Wang & Schmid 2013).
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

LONGER_SIDE = 320  # pixels that flow is computed at: that of HMDB-51's clips; larger frames are made smaller
STEP = 4  # of those vectors that are looked at, every so many count for the camera
ROUNDS = 8  # of reweighted least squares; the fit stands still after five or six
NEAR = 0.05  # pixels: a residual that is the flow's own error, even where half of the field has none


class MotionMaps:
    """Camera-compensated motion energy of a video's locations, frame by frame.

    m_{t,i} is the mean length, over location i's cell, of the flow from sampled frame t to t+1 minus the camera's, in
    percent of the frame's longer side. The last frame has the map before it; a video of one frame has zeros.

    Args:
        grid: rows and columns of locations, as a cube has them.
    """

    def __init__(self, grid: tuple[int, int]):
        self.grid, self._maps = grid, list[np.ndarray]()
        self._before: Any = None
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def add(self, frame: np.ndarray) -> None:
        """The next sampled frame, RGB uint8 `(height, width, 3)`, of the file's own size and aspect ratio."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        scale = LONGER_SIDE / max(grey.shape)
        if scale < 1:
            size = tuple(max(16, round(scale * side)) for side in grey.shape[::-1])
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        before, self._before = self._before, grey
        if before is not None:
            self._maps.append(self._map(before, grey))

    def _map(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        if min(before.shape) < 16:  # which DIS cannot divide into patches
            return np.zeros(self.grid, np.float32)
        moved = against_camera(self._flow.calc(before, after, None)[::2, ::2])  # DIS knows no more than every other
        length = 100 / max(before.shape) * np.hypot(moved[..., 0], moved[..., 1])
        return cv2.resize(length, self.grid[::-1], interpolation=cv2.INTER_AREA)

    def all(self) -> np.ndarray:
        """Of every frame that was added, float16 `(n, rows, columns)`."""
        frames = len(self._maps) + (self._before is not None)
        maps = [*self._maps, *self._maps[-1:]] or [np.zeros(self.grid)] * frames
        return np.array(maps, np.float16).reshape(frames, *self.grid)


def motion_maps(frames: Iterable[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
    """The maps of a whole video, float16 `(n, rows, columns)`."""
    maps = MotionMaps(grid)
    for frame in frames:
        maps.add(frame)
    return maps.all()


def against_camera(flow: np.ndarray) -> np.ndarray:
    """Flow `(height, width, 2)` in pixels minus the affine motion that most of it follows.

    Iteratively reweighted least squares with Geman and McClure's weights, from the median flow on; their scale is the
    median residual. Two fifths of the field may move together in another way, and count for nothing.
    """
    affine = _affine(*flow.shape[:2])
    points, vectors = affine[::STEP, ::STEP].reshape(-1, 3), flow[::STEP, ::STEP].reshape(-1, 2)
    camera = np.zeros((3, 2), np.float32)
    camera[0] = np.median(vectors, axis=0)
    for _ in range(ROUNDS):
        apart = np.linalg.norm(vectors - points @ camera, axis=1)
        weights = (1 + (apart / max(NEAR, np.median(apart))) ** 2) ** -2
        weighed = points.T * weights
        camera = np.linalg.solve(weighed @ points + 1e-6 * np.eye(3, dtype=np.float32), weighed @ vectors)
    return flow - affine @ camera.astype(np.float32)


@lru_cache(maxsize=4)
def _affine(height: int, width: int) -> np.ndarray:
    """1, x and y of every vector, float32 `(height, width, 3)`."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([np.ones_like(rows), columns / width - 0.5, rows / height - 0.5], axis=-1)
