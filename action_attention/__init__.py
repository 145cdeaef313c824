"""Recognise human actions in video with models that show where they look.

The public names, each imported when it is first used: `import action_attention` costs nothing. This is the front door:
`load` and the backbones live in `data_prep`, which the rest of this package knows nothing of.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_HOMES = {
    "ActionModel": "action_attention.models",
    "ArrayFeatures": "action_attention.features",
    "Backbone": "data_prep.backbones",
    "Clips": "action_attention.clips",
    "FeatureCache": "action_attention.features",
    "ModelSettings": "action_attention.models.base",
    "Training": "action_attention.settings",
    "UserError": "action_attention.errors",
    "build_backbone": "data_prep.backbones",
    "build_model": "action_attention.models",
    "load": "data_prep.recognizer",
    "losses": "action_attention.loss",
    "register_backbone": "action_attention.registry",
    "register_model": "action_attention.registry",
    "setting": "action_attention.settings",
}
__all__ = list(_HOMES)
try:
    __version__ = version("action_attention")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"action_attention has no {name}; it has {', '.join(_HOMES)}")
    import_module("data_prep.quiet_tensorflow")  # before Keras
    return getattr(import_module(_HOMES[name]), name)
