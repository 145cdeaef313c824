"""Any network of `keras.applications`: its last map, its own preprocessing and input size, its ImageNet weights."""

import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from action_attention.errors import UserError
from data_prep.backbones.base import Backbone, frozen_model
from data_prep.backbones.weights import download, random_weights, read_weights, weights_sha256

NAMES = tuple(name for name in dir(keras.applications) if name[0].isupper())


def build(name: str, weights: str = "imagenet", precision: str = "auto") -> Backbone:
    """The network that Keras calls `name`, without its top; float32 unless bfloat16 is asked for.

    Raises UserError: the weights cannot be had, or are not this network's.
    """
    network = getattr(keras.applications, name)
    size, module = _default_size(network), network.__module__.rpartition(".")[2]
    preprocess = getattr(keras.applications, module).preprocess_input

    def trunk(frames: keras.KerasTensor) -> keras.Model:
        return network(include_top=False, weights=None, input_tensor=frames)

    built = trunk(keras.Input((size, size, 3)))
    if weights == "imagenet":
        try:
            tensors = download(network, size)
        except Exception as error:  # Keras raises what it likes
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            raise UserError(
                f"{name}'s ImageNet weights could not be obtained ({reason}); give a file of them with --weights=FILE"
            ) from error
    else:
        tensors = _random_weights(built, preprocess) if weights == "random" else read_weights(built, weights, name)
    last_map = re.sub(r"_\d+$", "", built.layers[-1].name)  # Keras counts through a process what it names itself
    precision = "float32" if precision == "auto" else precision
    return Backbone(
        name=f"{name} {last_map}",
        model=frozen_model(trunk, size, preprocess, tensors, precision),
        preprocessing=f"RGB uint8 -> keras.applications.{module}.preprocess_input",
        weights=Path(weights).name,
        weights_sha256=weights_sha256(tensors),
        precision=precision,
    )


def _default_size(network: Callable[..., keras.Model]) -> int:
    """Side of the frames that the ImageNet weights are for: Keras tells it when it refuses another."""
    try:
        network(input_shape=(1, 1, 3))  # refused before anything is built
    except ValueError as error:
        refusal = str(error)
    # MobileNetV3 refuses only what is too small; its weights are for 224
    return 224 if "at least 32x32" in refusal else int(re.findall(r"should be \((\d+)", refusal)[0])


def _random_weights(trunk: keras.Model, preprocess: Callable) -> list[np.ndarray]:
    """Random tensors whose cubes float16 can hold: sums of residuals grow where batch statistics are not learned."""
    tensors = random_weights(trunk)
    trunk.set_weights(tensors)
    noise = np.random.default_rng(0).integers(0, 256, (1, *trunk.input_shape[1:])).astype(np.float32)
    spread = trunk.predict_on_batch(preprocess(noise)).std()
    first = next(tensor for tensor in tensors if tensor.ndim == 4)
    first *= 2.0 ** -max(0, np.round(np.log2(spread)))  # a power of 2, so that rounding elsewhere changes nothing
    return tensors
