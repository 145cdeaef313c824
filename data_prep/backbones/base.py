"""What a backbone is: a frozen network with its preprocessing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import data_prep.quiet_tensorflow  # isort: skip  # noqa: F401 - before Keras
import keras
import numpy as np


class Network(Protocol):
    """What a backbone needs of a network; every Keras model has it."""

    input_shape: Any
    output_shape: Any

    def predict_on_batch(self, x: np.ndarray) -> Any: ...
    def get_weights(self) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Backbone:
    """A network that turns frames into cubes, and all that a feature cache says of it.

    `model` maps RGB frames, uint8 `(batch, size, size, 3)`, to cubes, float16 `(batch, height, width, channels)`. The
    first word of `name` is what `--backbone` calls it. `preprocessing` is for people, but caches must agree on it.
    """

    name: str
    model: Network
    preprocessing: str
    weights: str
    weights_sha256: str
    precision: str
    runtime: str = "tensorflow"

    @property
    def input_size(self) -> int:
        """Side of the square that frames are resized to, pixels."""
        return self.model.input_shape[1]

    @property
    def cube_shape(self) -> tuple[int, int, int]:
        """A frame's features: height, width, channels."""
        return self.model.output_shape[1:]

    def unrounded(self) -> keras.Model:
        """The network without the float16 at its end, which two runtimes round differently. Raises TypeError if it is
        no Keras network."""
        if not isinstance(self.model, keras.Model):
            raise TypeError(f"{self.name} is no Keras network")
        last = self.model.operations[-1]
        return keras.Model(self.model.input, last.input if last.name.startswith("cast") else last.output)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Cubes of a batch of frames, float16 `(batch, height, width, channels)`."""
        return np.asarray(self.model.predict_on_batch(frames))


class Preprocessing(keras.layers.Layer):
    """A function of frames as a layer, so that its constants are made in each graph: an export to ONNX would take those
    that a graph finds outside for inputs."""

    def __init__(self, function: Callable):
        super().__init__(dtype="float32", name="preprocessing")
        self.function = function

    def call(self, frames: Any) -> Any:
        return self.function(frames)


def frozen_model(
    trunk: Callable[[keras.KerasTensor], keras.Model],
    size: int,
    preprocess: Callable,
    tensors: list[np.ndarray],
    precision: str,
) -> keras.Model:
    """The `model` of a `Backbone`: its preprocessing, and the network that `trunk` puts behind it."""
    frames = keras.Input((size, size, 3), dtype="uint8")
    preprocessed, previous = Preprocessing(preprocess)(keras.ops.cast(frames, "float32")), keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    network = trunk(preprocessed)
    keras.config.set_dtype_policy(previous)
    network.set_weights(tensors)
    return compiled(frames, network.output)


def compiled(frames: keras.KerasTensor, cubes: keras.KerasTensor) -> keras.Model:
    """A `Network` from its frames to its cubes, whatever their type."""
    model = keras.Model(frames, keras.ops.cast(cubes, "float16"))  # here it is faster than in NumPy
    model.compile(jit_compile=False)  # XLA is slower than oneDNN's convolutions on CPUs
    return model
