"""The H x W locations of a cube in one row of L, and maps of weights made of such rows."""

from typing import Any

import numpy as np
from keras import ops


def flatten_locations(features: Any) -> Any:
    """`(B, T, H, W, D)` -> `(B, T, L, D)`."""
    batch, frames, height, width, channels = features.shape
    return ops.reshape(features, (-1 if batch is None else batch, frames, height * width, channels))


def at_each(layer: Any, cube: Any) -> Any:
    """A layer over the last axis of `(B, T, L, D)`: `(B, T, L, U)`.

    By way of rows, since TensorFlow 2.21 on oneDNN gets products of `(B, 1, L, D)` wrong, which Keras 3.12 makes of it.
    """
    rows = layer(ops.reshape(cube, (-1, cube.shape[-1])))
    return ops.reshape(rows, (-1, *cube.shape[1:-1], rows.shape[-1]))


def to_maps(weights: Any, mask: Any, size: tuple[int, int]) -> Any:
    """`(B, T, L)` weights of locations as float32 maps `(B, T, H, W)`, zero where a frame is padding."""
    weights = ops.cast(weights, "float32") * ops.cast(mask, "float32")[..., None]
    return ops.reshape(weights, (-1, weights.shape[1], *size))


def uniform_maps(features: Any, mask: Any) -> Any:
    """The maps of a model without attention: every location of a real frame weighs the same, `(B, T, H, W)`."""
    cube = flatten_locations(features)
    return to_maps(ops.full_like(cube[..., 0], 1 / cube.shape[2]), mask, features.shape[2:4])


def clip_mean(frames: Any, mask: Any) -> Any:
    """Mean of the real frames of each clip: `(B, T, ...)`, `(B, T)` -> `(B, ...)`."""
    real = ops.cast(mask, frames.dtype)
    real = ops.reshape(real, (-1, frames.shape[1], *[1] * (len(frames.shape) - 2)))
    return ops.sum(frames * real, axis=1) / ops.sum(real, axis=1)


def quarters(height: int, width: int) -> np.ndarray:
    """`(5, L)` weights that tell where a glimpse comes from: the whole map, and its four quarters.

    Quarters overlap where a side is odd. Each row has mean 1, so that a quarter's share of a glimpse is as large as the
    whole's (spatial pyramid, Lazebnik et al. 2006, CVPR).
    """
    rows, columns = (height + 1) // 2, (width + 1) // 2
    regions = np.zeros((5, height, width), "float32")
    regions[0] = 1
    for region, (row, column) in zip(regions[1:], np.ndindex(2, 2), strict=True):
        corner = region[row * (height - rows) :, column * (width - columns) :]
        corner[:rows, :columns] = height * width / (rows * columns)
    return regions.reshape(5, -1)


def neighbourhoods(height: int, width: int, size: int = 3) -> np.ndarray:
    """`(L * size*size, L)` matrix of 0 and 1: row `(p, k)` picks the location under tap k of a kernel centred on p.

    Rows of taps that fall off the map are zero, as same padding has it.
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    taps = np.arange(size) - size // 2
    down = rows[None, :] - rows[:, None]
    right = columns[None, :] - columns[:, None]
    picked = (down[:, None, None, :] == taps[:, None, None]) & (right[:, None, None, :] == taps[None, :, None])
    return picked.reshape(-1, height * width).astype("float32")
