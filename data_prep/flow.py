"""Optical flow between sampled frames, as pictures for a network, and where something moves against the camera.

Flow is DIS (Kroeger et al. 2016, arXiv 1603.03590), preset medium, as in OpenCV; its pictures are those of Gkioxari and
Malik 2015 (arXiv 1411.6031). The camera's part of it is an affine motion, fitted robustly to the whole field and taken
away (as trajectories do it: Wang & Schmid 2013).
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

LONGER_SIDE = 320  # pixels that flow is computed at: that of HMDB-51's clips; larger frames are made smaller
STEP = 4  # of those vectors that are looked at, every so many count for the camera
ROUNDS = 8  # of reweighted least squares; the fit stands still after five or six
PICTURE_SCALE, PICTURE_ZERO = 16, 128
# what a cache says of such pictures, before what the backbone does with them
PICTURES = (
    f"DIS medium flow to the next sampled frame, longer side at most {LONGER_SIDE}, [x, y, length] * {PICTURE_SCALE} + "
    f"{PICTURE_ZERO}"
)
NEAR = 0.05  # pixels: a residual that is the flow's own error, even where half of the field has none


class MotionMaps:
    """Camera-compensated motion energy of a video's locations, frame by frame.

    m_{t,i} is the mean length, over location i's cell, of the flow from sampled frame t to t+1 minus the camera's, in
    percent of the frame's longer side. The last frame has the map before it; a video of one frame has zeros.

    Args:
        grid: rows and columns of locations, as a cube has them.
        keep: the maps, for `all`; a stream without end has no use for it.

    Attributes:
        flow: from the frame before to the last one, in x and y, pixels of frames made no larger than `LONGER_SIDE`,
            float32 `(height, width, 2)`; None until there are two. Frames that DIS cannot divide have none: zeros.
    """

    def __init__(self, grid: tuple[int, int], keep: bool = True):
        self.grid, self.keep, self._maps = grid, keep, list[np.ndarray]()
        self.flow: np.ndarray | None = None
        self._before: Any = None
        self._dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def add(self, frame: np.ndarray) -> np.ndarray | None:
        """Takes the next sampled frame, RGB uint8 `(height, width, 3)`, of the file's own size and aspect ratio; gives
        the map of the one before, `(rows, columns)`, if there is one."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        scale = LONGER_SIDE / max(grey.shape)
        if scale < 1:
            size = tuple(max(16, round(scale * side)) for side in grey.shape[::-1])
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        before, self._before = self._before, grey
        if before is None:
            return None
        self.flow, of_grid = np.zeros((*grey.shape, 2), np.float32), np.zeros(self.grid, np.float32)
        if min(grey.shape) >= 16:  # else DIS cannot divide them into patches
            self.flow = self._dis.calc(before, grey, None)
            of_grid = self._map(self.flow)
        if self.keep:
            self._maps.append(of_grid)
        return of_grid

    def _map(self, flow: np.ndarray) -> np.ndarray:
        moved = against_camera(flow[::2, ::2])  # DIS knows no more than every other
        length = 100 / max(flow.shape) * np.hypot(moved[..., 0], moved[..., 1])
        return cv2.resize(length, self.grid[::-1], interpolation=cv2.INTER_AREA)

    def all(self) -> np.ndarray:
        """Of every frame that was added, float16 `(n, rows, columns)`."""
        frames = len(self._maps) + (self._before is not None)
        maps = [*self._maps, *self._maps[-1:]] or [np.zeros(self.grid)] * frames
        return np.array(maps, np.float16).reshape(frames, *self.grid)


def network_pictures(frames: Iterable[np.ndarray], stream: str, motion: MotionMaps) -> Iterator[np.ndarray]:
    """What a network sees of each frame of a stream (`features.STREAMS`); `motion` has the maps of them all then."""
    if stream == "flow":
        yield from flow_pictures(frames, motion)
        return
    for frame in frames:
        motion.add(frame)
        yield frame


def flow_pictures(frames: Iterable[np.ndarray], motion: MotionMaps) -> Iterator[np.ndarray]:
    """The flow from each frame to the next as a picture, uint8 `(height, width, 3)`; `motion` has their maps then.

    The last frame has the picture before it, a frame alone that of no motion. Frames are read one ahead.
    """
    picture = None
    for frame in frames:
        motion.add(frame)
        if motion.flow is None:  # of the first
            picture = np.full_like(frame, PICTURE_ZERO)
        else:
            picture = flow_picture(motion.flow)
            yield picture
    if picture is not None:
        yield picture


def flow_picture(flow: np.ndarray) -> np.ndarray:
    """Flow `(height, width, 2)` in pixels as uint8 `(height, width, 3)`: x, y and length, each between -8 and 8."""
    three = np.dstack([flow, np.hypot(flow[..., 0], flow[..., 1])])
    return np.clip(np.rint(PICTURE_SCALE * three + PICTURE_ZERO), 0, 255).astype(np.uint8)


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
