"""Backbones by name: those that are registered, and every network of `keras.applications`."""

from difflib import get_close_matches

import numpy as np

from action_attention.errors import UserError
from action_attention.registry import registered_backbones
from data_prep.backbones import applications, vgg16  # noqa: F401 - registers itself
from data_prep.backbones.base import Backbone

__all__ = ["Backbone", "build_backbone"]


def build_backbone(name: str = "vgg16", weights: str = "imagenet", precision: str = "auto") -> Backbone:
    """A backbone with its weights and preprocessing.

    Args:
        name: of a registered backbone, in whatever case, or of a network of `keras.applications`, as Keras spells it.
        weights: `imagenet`, `random` (seeded; for tests and dry runs) or a file that Keras' `load_weights` reads.
        precision: `float32`, `bfloat16`, or `auto`: what the backbone says is best here.

    Raises:
        UserError: there is no such backbone, or its weights cannot be had or are not what they claim to be.
    """
    builders = {registered.lower(): build for registered, build in registered_backbones().items()}
    if build := builders.get(name.lower()):
        backbone = build(weights, precision)
    elif name in applications.NAMES:
        backbone = applications.build(name, weights, precision)
    else:
        raise UserError(
            f"there is no backbone {name}; there are {', '.join(builders)} and the networks of keras.applications, "
            f"such as {', '.join(get_close_matches(name, applications.NAMES, 3, 0))}; --import=MODULE brings your own"
        )
    if backbone.name.split(" ")[0].lower() != name.lower():
        raise UserError(
            f"the backbone {name} calls itself {backbone.name!r}; a cache finds its backbone again by the first word "
            f"of that, so it must be {name}"
        )
    if not all(np.isfinite(tensor).all() for tensor in backbone.model.get_weights()):
        raise UserError(f"the weights of {backbone.name} hold NaN or infinity; give other ones with --weights")
    return backbone
