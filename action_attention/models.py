"""ALSTM, ConvALSTM and the controls: clips of feature cubes in, every frame's class and where it looked out."""

import math

import keras
from keras import ops

from action_attention.layers import AttentionConvLSTM, AttentionLSTM, MeanPooling, sqrt_l2, with_motion

MODEL_NAMES = ("alstm", "conv_alstm", "avg_lstm", "max_lstm", "softmax")
NORMALIZATIONS = ("none", "sqrt_l2")
MOTIONS = ("none", "difference")
HEADS = ("flatten", "conv", "pool")
CONV_HEAD_FILTERS = 64


class ActionModel(keras.Model):
    """A core layer (features, mask -> hidden, attention), dropout, and one classifier for every frame.

    Args:
        classes: C, number of classes.
        lstm_units: U, LSTM units or ConvLSTM filters.
        dropout: rate at every fully connected layer.
        weight_decay: omega; adds `omega * sum |w|^2` over all kernels.
        normalize: `none`, or `sqrt_l2` (`layers.sqrt_l2`) for the features.
        motion: `none`, or `difference` to append how much each cube differs from the one before it.
        channel_dropout: rate at which whole channels of a clip's features are dropped, the same ones in all its frames
            and locations (spatial dropout, Tompson et al. 2015, arXiv 1411.4280).
        head: how hidden maps become what the classifier sees (ConvALSTM; hidden vectors go there as they are):
            `flatten`, the mean over locations (`pool`), or a 3x3 convolution and then flattened (`conv`).
        initial: where ConvALSTM's states start, at `zeros` or at convolutions of the `clip`'s mean cube, as ALSTM's do.
        cells: recurrent cells on top of each other; the attention reads the uppermost. Nothing to `softmax`.
        rescale: weigh ConvALSTM's cube by attention of mean 1 in place of attention of sum 1.
        ablate: what is taken away from the LSTM models (`layers.AttentionLSTM`).
        glimpse: of ALSTM and its average control: `whole`, or `quarters`, which keep where it comes from.

    Call arguments:
        inputs: `{"features": (B, T, F, F, D) float, "mask": (B, T) bool}`; the mask is true for real frames.

    Returns:
        `{"logits": (B, T, C), "attention": (B, T, F, F)}`, float32; the maps of padded frames are zero.
    """

    def __init__(
        self,
        classes,
        lstm_units=512,
        dropout=0.5,
        weight_decay=0.0,
        normalize="none",
        motion="none",
        channel_dropout=0.0,
        head="flatten",
        cells=1,
        initial="zeros",
        rescale=False,
        ablate="none",
        glimpse="whole",
        **kwargs,
    ):
        super().__init__(**kwargs)
        for value, allowed in ((normalize, NORMALIZATIONS), (motion, MOTIONS), (head, HEADS)):
            if value not in allowed:
                raise ValueError(f"one of {', '.join(allowed)} is expected. Received: {value!r}")
        self._settings = {
            "classes": classes, "lstm_units": lstm_units, "dropout": dropout, "weight_decay": weight_decay,
            "normalize": normalize, "motion": motion, "channel_dropout": channel_dropout, "head": head, "cells": cells,
            "initial": initial, "rescale": rescale, "ablate": ablate, "glimpse": glimpse,
        }  # fmt: skip
        self.channel_dropout = keras.layers.SpatialDropout3D(
            channel_dropout, data_format="channels_last", dtype=self.dtype_policy
        )
        self.core = self.make_core(lstm_units, dropout, weight_decay, cells, dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        decay = keras.regularizers.L2(weight_decay) if weight_decay else None
        # float32 under mixed precision too: the loss is a logarithm of these
        self.classifier = keras.layers.Dense(classes, kernel_regularizer=decay, dtype="float32", name="classifier")
        if head == "conv":
            self.head = keras.layers.Conv2D(
                CONV_HEAD_FILTERS, 3, activation="relu", kernel_regularizer=decay, dtype=self.dtype_policy, name="head"
            )

    def make_core(self, lstm_units, dropout, weight_decay, cells, dtype):
        """The layer that this model consists of."""
        raise AttributeError(f"{type(self).__name__} defines no core")

    def call(self, inputs, training=None):
        features, mask = inputs["features"], inputs["mask"]
        if self._settings["normalize"] == "sqrt_l2":
            features = sqrt_l2(features)
        if self._settings["motion"] == "difference":
            features = with_motion(features)
        features = self.channel_dropout(features, training=training)
        hidden, attention = self.core(features, mask, training=training)
        if len(hidden.shape) == 5:
            hidden = self._vectors(hidden, training)
        return {"logits": self.classifier(self.dropout(hidden, training=training)), "attention": attention}

    def _vectors(self, maps, training):
        """Hidden maps `(B, T, F, F, U)` as the vectors of frames that the classifier sees, `(B, T, size)`."""
        if self._settings["head"] == "pool":
            return ops.mean(maps, axis=(2, 3))
        frames = maps.shape[1]
        if self._settings["head"] == "conv":
            maps = self.head(self.dropout(ops.reshape(maps, (-1, *maps.shape[2:])), training=training))
        return ops.reshape(maps, (-1, frames, math.prod(maps.shape[-3:])))

    def get_config(self):
        return {**super().get_config(), **self._settings}


@keras.saving.register_keras_serializable("action_attention")
class ALSTM(ActionModel):
    """Soft attention, then an LSTM (Sharma et al. 2016, arXiv 1511.04119)."""

    pooling = "attention"

    def make_core(self, lstm_units, dropout, weight_decay, cells, dtype):
        own = {key: self._settings[key] for key in ("ablate", "glimpse")}
        return AttentionLSTM(lstm_units, dropout, weight_decay, self.pooling, cells, **own, dtype=dtype)


@keras.saving.register_keras_serializable("action_attention")
class ConvALSTM(ActionModel):
    """Attention and LSTM kept convolutional (VideoLSTM's appearance part, Li et al. 2018, arXiv 1607.01794)."""

    def make_core(self, lstm_units, dropout, weight_decay, cells, dtype):
        own = {key: self._settings[key] for key in ("initial", "rescale")}
        return AttentionConvLSTM(lstm_units, weight_decay, cells, **own, dropout=dropout, dtype=dtype)


@keras.saving.register_keras_serializable("action_attention")
class AverageLSTM(ALSTM):
    """Control: ALSTM whose attention is uniform."""

    pooling = "mean"


@keras.saving.register_keras_serializable("action_attention")
class MaxLSTM(ALSTM):
    """Control: ALSTM whose glimpse is the maximum over locations of each channel."""

    pooling = "max"


@keras.saving.register_keras_serializable("action_attention")
class SoftmaxRegression(ActionModel):
    """Control: every frame classified by itself, from its mean over locations."""

    def make_core(self, lstm_units, dropout, weight_decay, cells, dtype):
        return MeanPooling(dtype=dtype)


_MODELS = dict(zip(MODEL_NAMES, (ALSTM, ConvALSTM, AverageLSTM, MaxLSTM, SoftmaxRegression), strict=True))


def build_model(name, classes, lstm_units=512, dropout=0.5, weight_decay=0.0, *, cube_shape=(7, 7, 512), **settings):
    """A model by its name (`MODEL_NAMES`), with its variables made; `settings` are `ActionModel`'s further ones.

    Raises ValueError for an unknown name or setting.

    Example:

        model = build_model("alstm", classes=51)
        outputs = model({"features": features, "mask": mask})    # (B, 30, 7, 7, 512), (B, 30)
        outputs["logits"], outputs["attention"]                  # (B, 30, 51), (B, 30, 7, 7)
    """
    if name not in _MODELS:
        raise ValueError(f"the models are {', '.join(MODEL_NAMES)}. Received: name={name!r}")
    model = _MODELS[name](classes, lstm_units, dropout, weight_decay, name=name, **settings)
    model({"features": ops.zeros((1, 1, *cube_shape)), "mask": ops.ones((1, 1), "bool")})  # no weight depends on T
    return model
