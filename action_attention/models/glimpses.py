"""How a frame's weighed locations become one vector, the glimpse z_t.

A glimpse's `over(cube, frame_means, drop)` does for all frames at once what does not depend on the recurrence, and
returns `glance(t, weights)`: frame t's glimpse `(B, size)`, given the weights `(B, N, L)` of its locations by N heads.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from action_attention.models.locations import quarters

Glance = Callable[[int, Any], Any]


class Glimpse(keras.layers.Layer):
    """Base of all glimpses; `size` is known once it is built, given `(B, T, H, W, D)`."""

    def build(self, features_shape: tuple) -> None:
        self.size = features_shape[-1]

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Glance:
        """Args: the cube `(B, T, L, D)`, its mean over locations `(B, T, D)`, the dropout of this call."""
        raise AttributeError(f"{type(self).__name__} defines no over")


class Whole(Glimpse):
    """z_t = sum_i c_{t,i} X_{t,i} (Sharma et al. 2016, arXiv 1511.04119, eq. 5), of one head after the other."""

    def __init__(self, heads: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, features_shape: tuple) -> None:
        self.size = self.heads * features_shape[-1]

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Glance:
        return lambda t, weights: ops.reshape(ops.matmul(weights, cube[:, t]), (-1, self.size))


class Quarters(Glimpse):
    """Keeps where it comes from: z_t = mlp_z of five such sums, over the whole map and over each of its quarters.

    The dropped inputs of mlp_z are drawn for each clip.
    """

    def __init__(self, units: int, options: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.size, self.options = units, options

    def build(self, features_shape: tuple) -> None:
        _, _, height, width, channels = features_shape
        self.regions = quarters(height, width)
        self.from_regions = keras.layers.Dense(self.size, name="mlp_z", **self.options)
        self.from_regions.build((None, len(self.regions) * channels))

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Glance:
        kept = drop(ops.ones_like(cube[:, 0, : len(self.regions)]))  # (B, 5, D)
        regions = ops.cast(self.regions, cube.dtype)

        def glance(t: int, weights: Any) -> Any:
            parts = ops.matmul(weights * regions, cube[:, t]) * kept
            return self.from_regions(ops.reshape(parts, (-1, math.prod(parts.shape[1:]))))

        return glance


class BesideMean(Glimpse):
    """Another glimpse, and the frame's mean after it: what attention leaves out is still there."""

    def __init__(self, glimpse: Glimpse, **kwargs: Any):
        super().__init__(**kwargs)
        self.glimpse = glimpse

    def build(self, features_shape: tuple) -> None:
        self.glimpse.build(features_shape)
        self.size = self.glimpse.size + features_shape[-1]

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Glance:
        glance = self.glimpse.over(cube, frame_means, drop)
        return lambda t, weights: ops.concatenate([glance(t, weights), frame_means[:, t]], axis=-1)


class Mean(Glimpse):
    """The frame's mean: what `Whole` is under uniform weights, computed once."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Glance:
        return lambda t, weights: frame_means[:, t]


class Maximum(Glimpse):
    """The maximum over locations of each channel, whatever the weights."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Glance:
        maxima = ops.max(cube, axis=2)
        return lambda t, weights: maxima[:, t]
