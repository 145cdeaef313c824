"""Where a recurrence starts: hidden and cell state of each cell, from frames `(B, T, D)` or `(B, T, L, D)`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from action_attention.models.locations import clip_mean


class ClipStates(keras.layers.Layer):
    """h_0 = mlp_h(mean_t X_t), cell_0 = mlp_c(the same): a tanh layer for each state, over the last axis.

    Args:
        units: U.
        names: of the layers, h and c of the first cell, h and c of the second, ...
        options: of every layer with a kernel.
    """

    def __init__(self, units: int, names: list[str], options: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.mlps = [keras.layers.Dense(units, "tanh", name=name, **options) for name in names]

    def build(self, features_shape: tuple) -> None:
        for mlp in self.mlps:
            mlp.build((None, features_shape[-1]))

    def see(self, means: Any) -> Any:
        """What the layers see of the frames' mean."""
        return means

    def start(self, frames: Any, mask: Any, drop: Callable[[Any], Any]) -> list[list]:
        """States `[[h, c], ...]` of the cells, each `(B, U)` or `(B, L, U)`."""
        means = self.see(clip_mean(frames, mask))
        states = [mlp(drop(means)) for mlp in self.mlps]
        return [states[n : n + 2] for n in range(0, len(states), 2)]


class ZeroStates(keras.layers.Layer):
    """All states of `cells` cells are zero."""

    def __init__(self, units: int, cells: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.cells = units, cells

    def start(self, frames: Any, mask: Any, drop: Callable[[Any], Any]) -> list[list]:
        zeros = ops.zeros((ops.shape(frames)[0], *frames.shape[2:-1], self.units), frames.dtype)
        return [[zeros, zeros] for _ in range(self.cells)]
