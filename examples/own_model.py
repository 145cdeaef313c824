"""A model and a backbone of your own. `--import=own_model` brings both to every program, from this folder:

python -m data_prep.extract --import=own_model --backbone=tiles --videos DIR --features DIR
python -m experiments.train --import=own_model --model=sharp_pool --sharpness=4 --features DIR --run_dir DIR
"""

from dataclasses import dataclass

import action_attention as aa  # isort: skip - before Keras
import keras
from keras import ops

from action_attention.models.locations import flatten_locations, to_maps


@dataclass(frozen=True)
class SharpSettings(aa.ModelSettings):
    sharpness: float = aa.setting(2.0, "factor of the scores: 0 is average pooling", low=0, search=(1.0, 2.0, 4.0))


class SharpCore(keras.layers.Layer):
    """No memory: each frame's locations, weighed by a learned score of their own features."""

    def __init__(self, sharpness, options):
        super().__init__(name="core", dtype=options["dtype"])
        self.sharpness = sharpness
        self.to_scores = keras.layers.Dense(1, use_bias=False, name="score", **options)

    def build(self, features_shape, mask_shape=None):
        self.to_scores.build((None, features_shape[-1]))

    def call(self, features, mask, training=None):
        cube = flatten_locations(features)  # (B, T, L, D)
        weights = ops.softmax(self.sharpness * self.to_scores(cube)[..., 0])  # (B, T, L)
        return ops.sum(weights[..., None] * cube, axis=2), to_maps(weights, mask, features.shape[2:4])


@aa.register_model("sharp_pool", SharpSettings)
class SharpPool(aa.ActionModel):
    def make_core(self, settings, options):
        return SharpCore(settings.sharpness, options)


@aa.register_backbone("tiles")
def tiles(weights, precision):
    """The mean colours of 5 x 6 tiles through a fixed random layer: cubes of 5 x 6 x 24, in no time."""
    frames = keras.Input((60, 60, 3), dtype="uint8")
    colours = keras.layers.AveragePooling2D((12, 10))(keras.layers.Rescaling(1 / 255)(frames))
    channels = keras.layers.Dense(24, "relu", kernel_initializer=keras.initializers.RandomNormal(seed=0))(colours)
    return aa.Backbone(
        name="tiles mean",  # its first word is what --backbone calls it
        model=keras.Model(frames, ops.cast(channels, "float16")),
        preprocessing="RGB / 255",
        weights="random",
        weights_sha256="0" * 64,
        precision="float32",
    )
