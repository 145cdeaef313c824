"""Attentive pooling: the modern control, as frozen video encoders are probed (V-JEPA, Bardes et al. 2024, in small)."""

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from action_attention.models.attention import CENTRE_PRIOR, MOTION_PRIOR, make_prior
from action_attention.models.base import ActionModel, ModelSettings
from action_attention.models.locations import at_each, flatten_locations, to_maps
from action_attention.registry import register_model
from action_attention.settings import setting


@dataclass(frozen=True)
class AttentivePoolSettings(ModelSettings):
    queries: int = setting(8, "number of learned queries, M; each is a head with its own values", low=1, high=1024)
    value_units: int = setting(64, "size of each head's values", low=1, high=65536)
    motion_prior: bool = MOTION_PRIOR
    centre_prior: bool = CENTRE_PRIOR

    @property
    def takes_motion(self) -> bool:
        return self.motion_prior


class AttentivePooling(keras.layers.Layer):
    """M learned queries over all locations of all real frames of a clip; no recurrence.

        a_m = softmax over (t, i) of q_m . x_{t,i};  v_m = V_m sum_{t,i} a_{m,t,i} x_{t,i};  hidden = relu([v_1, ...])

    One vector for the whole clip, given for each of its frames `(B, T, M * value_units)`. The map of a frame is the
    heads' mean, scaled to sum 1: where in this frame they look, not how much of the clip it is to them.
    """

    def __init__(self, settings: AttentivePoolSettings, options: dict[str, Any], **kwargs: Any):
        super().__init__(dtype=options["dtype"], **kwargs)
        self.queries, self.value_units = settings.queries, settings.value_units
        self.to_scores = keras.layers.Dense(settings.queries, use_bias=False, name="queries", **options)
        self.dropout = keras.layers.Dropout(settings.dropout, dtype=self.dtype_policy, name="core_dropout")
        self.decay = options["kernel_regularizer"]
        self.prior = make_prior(settings, options)

    def build(self, features_shape: tuple, mask_shape: tuple | None = None, motion_shape: tuple | None = None) -> None:
        channels = features_shape[-1]
        self.to_scores.build((None, channels))
        limit = math.sqrt(6 / (channels + self.value_units))  # Glorot's, of each head's own matrix
        self.values = self.add_weight(
            shape=(self.queries, channels, self.value_units), name="values", regularizer=self.decay,
            initializer=keras.initializers.RandomUniform(-limit, limit),
        )  # fmt: skip
        self.bias = self.add_weight(shape=(self.queries, self.value_units), initializer="zeros", name="bias")
        if self.prior:
            self.prior.build(features_shape)

    def call(self, features: Any, mask: Any, motion: Any = None, training: bool | None = None) -> tuple[Any, Any]:
        frames, cube = features.shape[1], flatten_locations(features)
        locations = cube.shape[2]
        scores = ops.cast(at_each(self.to_scores, cube), "float32")  # (B, T, L, M)
        if self.prior:
            scores = scores + ops.cast(self.prior(features, motion), "float32")[..., None]
        scores = ops.where(mask[:, :, None, None], scores, -1e9)
        weights = ops.softmax(ops.reshape(scores, (-1, frames * locations, self.queries)), axis=1)
        flat = ops.reshape(cube, (-1, frames * locations, cube.shape[3]))
        glimpses = ops.matmul(ops.cast(ops.swapaxes(weights, 1, 2), flat.dtype), flat)  # (B, M, D)
        glimpses = self.dropout(glimpses, training=training)
        values = ops.relu(ops.einsum("bmd,mdv->bmv", glimpses, self.values) + self.bias)
        vector = ops.reshape(values, (-1, 1, self.queries * self.value_units))
        maps = ops.mean(ops.reshape(weights, (-1, frames, locations, self.queries)), axis=3)
        total = ops.sum(maps, axis=2, keepdims=True)
        maps = maps / ops.where(total > 0, total, 1.0)  # of padded frames all is zero
        return ops.repeat(vector, frames, axis=1), to_maps(maps, mask, features.shape[2:4])


@register_model("attentive_pool", AttentivePoolSettings)
class AttentivePool(ActionModel):
    """One decision for a clip, by queries over all that is in it."""

    def make_core(self, settings: AttentivePoolSettings, options: dict[str, Any]) -> AttentivePooling:
        return AttentivePooling(settings, options, name="core")
