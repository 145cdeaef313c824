"""How a frame's locations are weighed.

An attention's `over(cube, frame_means, drop, prior)` does for all frames at once what does not depend on the
recurrence, and returns `look(t, hidden)`: the weights `(B, N, L)` of frame t's locations by N heads, given h_{t-1}.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from action_attention.models.locations import at_each, flatten_locations
from action_attention.settings import setting

Look = Callable[[int, Any], Any]
MOTION_PRIOR = setting(False, "add to each location's score how much moves there")
CENTRE_PRIOR = setting(False, "add to each location's score how near the middle it is")


class Attention(keras.layers.Layer):
    """Base of all attentions; a subclass that has weights makes them in `build`, given `(B, T, H, W, D)`."""

    heads = 1

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any], prior: Any = None) -> Look:
        """Args: the cube `(B, T, L, D)`, its mean over locations `(B, T, D)`, the dropout of this call, and what
        `Prior` adds to the scores, `(B, T, L)`, or None."""
        raise AttributeError(f"{type(self).__name__} defines no over")


class Prior(keras.layers.Layer):
    """What is added to the scores before anything is learned: look where something moves, and at the middle.

        gamma log(EPSILON + m_{t,i} / mean_j m_{t,j}) - delta |i - middle|^2 / (2 sigma^2)

    With `motion`, m are motion maps `(B, T, H, W)`; where nothing moves, that term is zero. With `centre`, sigma is
    SIGMA of seven locations. gamma and delta are learned, from 1: then the softmax of the prior weighs locations by
    their motion, by a Gaussian around the middle, or by the product of both.
    """

    EPSILON = 0.05
    SIGMA = 1.5

    def __init__(self, motion: bool, centre: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.motion, self.centre = motion, centre

    def build(self, features_shape: tuple, motion_shape: tuple | None = None) -> None:
        if self.motion:
            self.gamma = self.add_weight(shape=(), initializer="ones", name="gamma")
        if self.centre:
            _, _, height, width, _ = features_shape
            rows, columns = ((np.arange(size) + 0.5 - size / 2) * 7 / (self.SIGMA * size) for size in (height, width))
            self.distances = (rows[:, None] ** 2 + columns**2).reshape(-1) / 2
            self.delta = self.add_weight(shape=(), initializer="ones", name="delta")

    def call(self, features: Any, motion: Any = None) -> Any:
        """For features `(B, T, H, W, D)`: `(B, T, L)`."""
        scores = ops.zeros_like(flatten_locations(features)[..., 0], dtype="float32")
        if self.motion:
            motion = ops.reshape(ops.cast(motion, "float32"), (-1, *scores.shape[1:]))
            mean = ops.mean(motion, axis=2, keepdims=True)
            ratio = ops.where(mean > 0, motion / ops.maximum(mean, 1e-12), 1.0 - self.EPSILON)
            scores = scores + ops.cast(self.gamma, "float32") * ops.log(self.EPSILON + ratio)
        if self.centre:
            scores = scores - ops.cast(self.delta, "float32") * ops.cast(self.distances, "float32")
        return ops.cast(scores, self.compute_dtype)


def make_prior(settings: Any, options: dict[str, Any]) -> Prior | None:
    """As the settings `motion_prior`, `centre_prior` and `scores` have it."""
    if not (settings.takes_motion or settings.centre_prior):
        return None
    return Prior(settings.takes_motion, settings.centre_prior, name="prior", dtype=options["dtype"])


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

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any], prior: Any = None) -> Look:
        from_frames = self.from_frame(drop(frame_means))
        # (B, T, U), ones when not training: dropout inside the recurrence, drawn for all frames at once
        keep_hidden, keep_mixed = drop(ops.ones_like(from_frames)), drop(ops.ones_like(from_frames))

        def look(t: int, hidden: Any) -> Any:
            mixed = ops.tanh(from_frames[:, t] + self.from_hidden(hidden * keep_hidden[:, t]))
            scores = self.to_scores(mixed * keep_mixed[:, t])
            return ops.softmax(scores if prior is None else scores + prior[:, t])[:, None]

        return look


class LocationScores(Attention):
    """A score for each location, from its own features and the hidden state, a vector (Sharma's released code) or a
    map (VideoLSTM, Li et al. 2018, arXiv 1607.01794).

        s_{t,i} = (1/tau) w . tanh(W_x x_{t,i} + W_h h_{t-1} + b);  c_t = softmax(s_t) over all locations

    A Dense layer over the last axis is a 1x1 convolution. Each of `heads` heads has a w of its own; `temperature` is
    tau, 0 for one that is learned, from 1.
    """

    def __init__(
        self, units: int, options: dict[str, Any], heads: int = 1, temperature: float = 1.0, hidden_units: int = 0,
        **kwargs: Any,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.heads, self.temperature, self.units, self.hidden_units = heads, temperature, units, hidden_units or units
        self.from_frame = keras.layers.Dense(units, name="conv_x", **options)
        self.from_hidden = keras.layers.Dense(units, use_bias=False, name="conv_h", **options)
        self.to_scores = keras.layers.Dense(heads, use_bias=False, name="conv_score", **options)

    def build(self, features_shape: tuple) -> None:
        self.from_frame.build((None, features_shape[-1]))
        self.from_hidden.build((None, self.hidden_units))
        self.to_scores.build((None, self.units))
        if not self.temperature:
            self.log_temperature = self.add_weight(shape=(), initializer="zeros", name="log_temperature")

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any], prior: Any = None) -> Look:
        from_frames = at_each(self.from_frame, cube)

        def look(t: int, hidden: Any) -> Any:
            from_hidden = self.from_hidden(hidden if len(hidden.shape) == 3 else hidden[:, None])
            scores = ops.swapaxes(self.to_scores(ops.tanh(from_frames[:, t] + from_hidden)), 1, 2)  # (B, N, L)
            if not self.temperature:
                scores = scores * ops.cast(ops.exp(-self.log_temperature), scores.dtype)
            elif self.temperature != 1:
                scores = scores / self.temperature
            return ops.softmax(scores if prior is None else scores + prior[:, t, None])

        return look


class PriorOnly(Attention):
    """Looks where the prior does, whatever is there: c_t = softmax((1/tau) prior); `temperature` is tau."""

    def __init__(self, temperature: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = temperature

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any], prior: Any = None) -> Look:
        weights = ops.softmax(prior / self.temperature)
        return lambda t, hidden: weights[:, t, None]


class Uniform(Attention):
    """Control: every location weighs the same."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any], prior: Any = None) -> Look:
        weights = ops.full_like(cube[:, 0, None, :, 0], 1 / cube.shape[2])
        return lambda t, hidden: weights


class MaximumShare(Attention):
    """Of maximum pooling: the share of channels whose maximum lies at a location."""

    def over(self, cube: Any, frame_means: Any, drop: Callable[[Any], Any], prior: Any = None) -> Look:
        at_maximum = ops.cast(ops.equal(cube, ops.max(cube, axis=2, keepdims=True)), cube.dtype)
        weights = ops.mean(at_maximum / ops.sum(at_maximum, axis=2, keepdims=True), axis=3)
        return lambda t, hidden: weights[:, t, None]
