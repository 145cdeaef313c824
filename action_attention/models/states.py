"""What recurrent models carry from frame to frame, and where it starts."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from action_attention.models.locations import clip_mean


class RecurrentCore(keras.layers.Layer):
    """Base of the cores that go from frame to frame, through a whole clip or a stream piece by piece."""

    def first_states(self, features: Any, mask: Any, flow: Any = None, training: bool | None = None) -> Any:
        """States before the first frame, lists of tensors `(B, ...)`, given a clip: arguments as of `call`."""
        raise AttributeError(f"{type(self).__name__} defines no first_states")

    def go_on(
        self, features: Any, mask: Any, states: Any, motion: Any = None, flow: Any = None, training: bool | None = None
    ) -> tuple[Any, Any, Any]:
        """What `call` returns of these frames, and the states after them."""
        raise AttributeError(f"{type(self).__name__} defines no go_on")

    def call(
        self, features: Any, mask: Any, motion: Any = None, flow: Any = None, training: bool | None = None
    ) -> tuple[Any, Any]:
        states = self.first_states(features, mask, flow, training)
        hidden, attention, _ = self.go_on(features, mask, states, motion, flow, training)
        return hidden, attention


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
        """States `[[h, c], ...]` of the cells, `(B, U)` or `(B, L, U)`, for frames `(B, T, D)` or `(B, T, L, D)`."""
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
