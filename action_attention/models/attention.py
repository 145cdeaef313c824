"""How a frame's locations are weighed.

An attention's `over(cube, frame_means, drop)` does for all frames at once what does not depend on the recurrence, and
returns `look(t, hidden)`: the weights `(B, L)` of frame t's locations, given h_{t-1}.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Look = Callable[[int, Any], Any]


class Attention(keras.layers.Layer):
    """Base of all attentions; a subclass that has weights makes them in `build`, given `(B, T, H, W, D)`."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Look:
        """Args: the cube `(B, T, L, D)`, its mean over locations `(B, T, D)`, the dropout of this call."""
        raise AttributeError(f"{type(self).__name__} defines no over")


class MeanScores(Attention):
    """The tutorial's (Sharma et al. 2016, arXiv 1511.04119, eq. 4, with the frame's mean cube).

        s_t = mlp3(tanh(mlp1(mean_i X_{t,i}) + mlp2(h_{t-1})));  c_t = softmax(s_t)

    The dropped units of both hidden layers are drawn for each frame.
    """

    def __init__(self, units: int, options: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.options = units, options

    def build(self, features_shape: tuple) -> None:
        _, _, height, width, channels = features_shape
        self.from_frame = keras.layers.Dense(self.units, name="mlp1", **self.options)
        self.from_hidden = keras.layers.Dense(self.units, use_bias=False, name="mlp2", **self.options)
        self.to_scores = keras.layers.Dense(height * width, name="mlp3", **self.options)
        self.from_frame.build((None, channels))
        self.from_hidden.build((None, self.units))
        self.to_scores.build((None, self.units))

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Look:
        from_frames = self.from_frame(drop(frame_means))
        # (B, T, U), ones when not training: dropout inside the recurrence, drawn for all frames at once
        keep_hidden, keep_mixed = drop(ops.ones_like(from_frames)), drop(ops.ones_like(from_frames))

        def look(t: int, hidden: Any) -> Any:
            mixed = ops.tanh(from_frames[:, t] + self.from_hidden(hidden * keep_hidden[:, t]))
            return ops.softmax(self.to_scores(mixed * keep_mixed[:, t]))

        return look


class LocationScores(Attention):
    """A score for each location, from its features and the hidden map (VideoLSTM, Li et al. 2018, arXiv 1607.01794).

        s_t = w * tanh(W_x * X_t + W_h * h_{t-1} + b);  c_t = softmax(s_t) over all locations

    A Dense layer over the last axis is a 1x1 convolution.
    """

    def __init__(self, units: int, options: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units
        self.from_frame = keras.layers.Dense(units, name="conv_x", **options)
        self.from_hidden = keras.layers.Dense(units, use_bias=False, name="conv_h", **options)
        self.to_scores = keras.layers.Dense(1, use_bias=False, name="conv_score", **options)

    def build(self, features_shape: tuple) -> None:
        self.from_frame.build((None, features_shape[-1]))
        self.from_hidden.build((None, self.units))
        self.to_scores.build((None, self.units))

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Look:
        from_frames = self.from_frame(cube)

        def look(t: int, hidden: Any) -> Any:
            scores = self.to_scores(ops.tanh(from_frames[:, t] + self.from_hidden(hidden)))
            return ops.softmax(scores[..., 0])

        return look


class Uniform(Attention):
    """Control: every location weighs the same."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Look:
        weights = ops.full_like(cube[:, 0, :, 0], 1 / cube.shape[2])
        return lambda t, hidden: weights


class MaximumShare(Attention):
    """Of maximum pooling: the share of channels whose maximum lies at a location."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any]) -> Look:
        at_maximum = ops.cast(ops.equal(cube, ops.max(cube, axis=2, keepdims=True)), cube.dtype)
        weights = ops.mean(at_maximum / ops.sum(at_maximum, axis=2, keepdims=True), axis=3)
        return lambda t, hidden: weights[:, t]
