"""The models: clips of feature cubes in, every frame's class and where it looked out. Importing this registers them.

A model is one file: its settings (a frozen dataclass), a core, and `@register_model`. Symbols of the papers: `F` x `F`
the locations of the feature cube (`H` x `W` here, since maps need not be square; `L` when they are in one row), `D` its
channels, `T` frames of a clip, `U` units. Forward passes use `keras.ops` only, so any backend runs them.
"""

from action_attention.models import alstm, conv_alstm, pooled_lstm, softmax  # noqa: F401 - they register themselves
from action_attention.models.base import ActionModel, build_model

__all__ = ["ActionModel", "build_model"]
