"""Attention, then how what it sees changes over a clip: rank pooling, and a linear classifier."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from action_attention.models.alstm import ALSTMSettings
from action_attention.models.attention import CENTRE_PRIOR, MOTION_PRIOR, make_prior
from action_attention.models.base import ActionModel, ModelSettings
from action_attention.models.locations import at_each, clip_mean, flatten_locations, to_maps
from action_attention.registry import register_model
from action_attention.settings import but, setting

APART = 2  # frames from one to the other of which a change is taken, as in P-CNN


@dataclass(frozen=True)
class RankPoolSettings(ModelSettings):
    motion_prior: bool = MOTION_PRIOR
    centre_prior: bool = CENTRE_PRIOR
    heads: int = but(ALSTMSettings, "heads")
    temperature: float = setting(1.0, "tau, which divides the scores: below 1 maps are sharper", low=1e-3)

    @property
    def takes_motion(self) -> bool:
        return self.motion_prior


class RankPooling(keras.layers.Layer):
    """One vector for a clip, of what is seen in its n real frames and how that changes, given for each of them.

        c_t = softmax over i of (w . x_{t,i} + prior_{t,i}) / tau;  g_t = sum_i c_{t,i} x_{t,i};  m_t = mean_i x_{t,i}
        hidden = [mean_t s_t, max_t d_t, min_t d_t for s in (m, g), sum_t (2 t - n - 1) g_t],  d_t = s_{t+2} - s_t

    Each part is scaled to a mean square of 1. The extremes of changes are P-CNN's (Cheron et al. 2015, arXiv
    1506.03607). The last part is rank pooling (Fernando et al. 2015, arXiv 1512.01848) in the closed form of dynamic
    images (Bilen et al. 2016, CVPR): it says in which order things were seen. The w of a single head starts at zero,
    so that it looks where the prior does; several have a w and a g each, drawn at random, and the map is their mean.
    """

    def __init__(self, settings: RankPoolSettings, options: dict[str, Any], **kwargs: Any):
        super().__init__(dtype=options["dtype"], **kwargs)
        self.heads, self.temperature, self.prior = settings.heads, settings.temperature, make_prior(settings, options)
        start = "zeros" if settings.heads == 1 else "glorot_uniform"
        self.to_scores = keras.layers.Dense(
            settings.heads, use_bias=False, kernel_initializer=start, name="scores", **options
        )

    def build(self, features_shape: tuple, mask_shape: tuple | None = None, motion_shape: tuple | None = None) -> None:
        self.to_scores.build((None, features_shape[-1]))
        if self.prior:
            self.prior.build(features_shape)

    def call(self, features: Any, mask: Any, motion: Any = None, training: bool | None = None) -> tuple[Any, Any]:
        cube = flatten_locations(features)
        scores = ops.swapaxes(at_each(self.to_scores, cube), 2, 3)  # (B, T, heads, L)
        if self.prior:
            scores = scores + self.prior(features, motion)[:, :, None]
        weights = ops.softmax(scores / self.temperature)
        glimpses = ops.reshape(ops.matmul(weights, cube), (-1, cube.shape[1], self.heads * cube.shape[3]))
        both = ops.mean(cube, axis=2), glimpses
        parts = [part for seen in both for part in (clip_mean(seen, mask), *extremes(seen, mask))]
        vector = ops.concatenate([unit_scale(part) for part in (*parts, rank(glimpses, mask))], axis=-1)
        maps = to_maps(ops.mean(weights, axis=2), mask, features.shape[2:4])
        return ops.repeat(vector[:, None], cube.shape[1], axis=1), maps


def extremes(frames: Any, mask: Any) -> tuple[Any, Any]:
    """Largest and smallest change within `APART` real frames, `(B, T, D)` -> `(B, D)`; zero in a shorter clip."""
    if frames.shape[1] <= APART:
        return ops.zeros_like(frames[:, 0]), ops.zeros_like(frames[:, 0])
    changes, real = frames[:, APART:] - frames[:, :-APART], mask[:, APART:, None]
    some = ops.any(real, axis=1)
    largest, smallest = (
        ops.where(some, reduce(ops.where(real, changes, bound), axis=1), 0.0)
        for reduce, bound in ((ops.max, -1e4), (ops.min, 1e4))
    )
    return largest, smallest


def rank(frames: Any, mask: Any) -> Any:
    """The real frames' sum, weighed by 2 t - n - 1, from -(n - 1) to n - 1: `(B, T, D)` -> `(B, D)`."""
    real = ops.cast(mask, frames.dtype)[..., None]
    at = ops.cast(np.arange(1, frames.shape[1] + 1)[:, None], frames.dtype)
    return ops.sum(frames * real * (2 * at - ops.sum(real, axis=1, keepdims=True) - 1), axis=1)


def unit_scale(vectors: Any) -> Any:
    """`(B, D)`, each of mean square 1, or zero."""
    return vectors * ops.rsqrt(ops.mean(ops.square(vectors), axis=-1, keepdims=True) + 1e-6)


@register_model("rank_pool", RankPoolSettings)
class RankPool(ActionModel):
    """One decision for a clip, of where it looks and how what is there changes; no recurrence."""

    # of thousands of inputs a few hundred videos set only some directions: a random start would stay in the others
    classifier_start = "zeros"

    def make_core(self, settings: RankPoolSettings, options: dict[str, Any]) -> RankPooling:
        return RankPooling(settings, options, name="core")
