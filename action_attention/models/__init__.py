"""The models: clips of feature cubes in, every frame's class and where it looked out. Importing this registers them.

A model is one file: its settings (a frozen dataclass), a core, and `@register_model`. Symbols of the papers: `F` x `F`
the locations of the feature cube (`H` x `W` here, since maps need not be square; `L` when they are in one row), `D` its
channels, `T` frames of a clip, `U` units. Forward passes use `keras.ops` only, so any backend runs them.
"""

from importlib import import_module
from pkgutil import iter_modules

from action_attention.models.base import ActionModel, build_model

for _module in iter_modules(__path__):  # a new model is a new file here, and nothing else
    import_module(f"{__name__}.{_module.name}")

__all__ = ["ActionModel", "build_model"]
