"""A network's map made coarser: `--grid=7` for maps of 14x14 or 16x16 locations."""

import numpy as np

from action_attention.errors import UserError
from data_prep.backbones.base import Network


class PooledNetwork:
    """A `Network` of `base.py` whose cubes are means over a grid of `grid` by `grid` cells, which overlap where the map
    cannot be divided evenly. Raises UserError if the map is smaller."""

    def __init__(self, network: Network, grid: int):
        batch, height, width, channels = network.output_shape
        if not 0 < grid <= min(height, width):
            raise UserError(f"--grid={grid} does not fit the backbone's map of {height}x{width} locations")
        self._network, self._rows, self._columns = network, _cells(height, grid), _cells(width, grid)
        self.input_shape, self.output_shape = network.input_shape, (batch, grid, grid, channels)

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        cubes = np.asarray(self._network.predict_on_batch(x), np.float32)
        rows = np.tensordot(cubes, self._rows, (1, 1))  # (batch, width, channels, grid)
        return np.tensordot(rows, self._columns, (1, 1)).transpose(0, 2, 3, 1).astype(np.float16)

    def get_weights(self) -> list[np.ndarray]:
        return self._network.get_weights()


def _cells(size: int, grid: int) -> np.ndarray:
    """The weight of each location in each cell's mean, `(grid, size)`."""
    weights = np.zeros((grid, size), np.float32)
    for cell in range(grid):
        first, end = cell * size // grid, -(-(cell + 1) * size // grid)
        weights[cell, first:end] = 1 / (end - first)
    return weights
