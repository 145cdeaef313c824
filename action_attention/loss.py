"""The loss of a clip, in the paper's unit whatever the batch size:

    loss = mean_{B,T} CE  +  (lambda / T) * mean_B sum_i (1 - sum_t c_{t,i})^2  +  omega * sum over kernels of |w|^2

T is the number of *real* frames of each clip: padded ones, whose label is `PADDING`, count nowhere. Both classes return
one value per clip, which Keras averages over the batch; the last term is the layers' `kernel_regularizer`.
"""

from typing import Any

import keras
from keras import ops

PADDING = -1


def losses(attention_penalty: float = 0.0) -> dict[str, keras.losses.Loss]:
    """What a model is compiled with, for batches of `Clips`; `attention_penalty` is lambda."""
    return {"logits": FrameCrossEntropy(), "attention": AttentionPenalty(attention_penalty)}


@keras.saving.register_keras_serializable("action_attention")
class FrameCrossEntropy(keras.losses.Loss):
    """Cross-entropy of every real frame, averaged over a clip's real frames; 0 for a clip without any.

    Call arguments:
        y_true: `(B, T)` class of each frame, `PADDING` for padded ones.
        y_pred: `(B, T, C)` logits.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        real = ops.cast(y_true >= 0, y_pred.dtype)
        labels = ops.cast(ops.maximum(y_true, 0), "int32")
        frames = ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
        return ops.sum(frames * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1)


@keras.saving.register_keras_serializable("action_attention")
class AttentionPenalty(keras.losses.Loss):
    """Doubly stochastic attention (Xu et al. 2015, arXiv 1502.03044, eq. 14): over a clip, look everywhere about once.

    Args:
        weight: lambda.

    Call arguments:
        y_true: `(B, T)` mask of real frames.
        y_pred: `(B, T, F, F)` attention, zero for padded frames.
    """

    def __init__(self, weight: float, name: str = "attention_penalty", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.weight = weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        real_frames = ops.sum(ops.cast(y_true, y_pred.dtype), axis=1)
        looked = ops.sum(y_pred, axis=1)
        return self.weight / real_frames * ops.sum(ops.square(1 - looked), axis=(1, 2))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}
