"""What a backbone is, and what those of `keras.applications` share: a frozen network with its preprocessing."""

import hashlib
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import data_prep.quiet  # isort: skip  # noqa: F401 - before Keras
import keras
import numpy as np

from action_attention.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A network that turns frames into cubes, and all that a feature cache says of it.

    `model` maps RGB frames, uint8 `(batch, size, size, 3)`, to cubes, float16 `(batch, height, width, channels)`. The
    first word of `name` is what `--backbone` calls it. `preprocessing` is for people, but caches must agree on it.
    """

    name: str
    model: keras.Model
    preprocessing: str
    weights: str
    weights_sha256: str
    precision: str

    @property
    def input_size(self) -> int:
        """Side of the square that frames are resized to, pixels."""
        return self.model.input_shape[1]

    @property
    def cube_shape(self) -> tuple[int, int, int]:
        """A frame's features: height, width, channels."""
        return self.model.output_shape[1:]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Cubes of a batch of frames, float16 `(batch, height, width, channels)`."""
        return np.asarray(self.model.predict_on_batch(frames))


def frozen_model(
    network: Callable[..., keras.Model], size: int, preprocess: Callable, tensors: list[np.ndarray], precision: str
) -> keras.Model:
    """The `model` of a `Backbone`: `network`, of `keras.applications`, without its top, behind its preprocessing."""
    frames = keras.Input((size, size, 3), dtype="uint8")
    preprocessed, previous = preprocess(keras.ops.cast(frames, "float32")), keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    trunk = network(include_top=False, weights=None, input_tensor=preprocessed)
    keras.config.set_dtype_policy(previous)
    trunk.set_weights(tensors)
    model = keras.Model(frames, keras.ops.cast(trunk.output, "float16"))  # here it is faster than in NumPy
    model.compile(jit_compile=False)  # XLA is slower than oneDNN's convolutions on CPUs
    return model


def weights_sha256(tensors: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.asarray(tensor, np.float32).tobytes() for tensor in tensors)).hexdigest()


def random_weights(trunk: keras.Model) -> list[np.ndarray]:
    """He-normal kernels from a fixed seed; what is no kernel stays as it is (biases 0, batch variances 1)."""
    random, tensors = np.random.default_rng(0), []
    for variable in trunk.weights:
        shape, initial = variable.shape, variable.numpy()
        drawn = random.standard_normal(shape, np.float32)
        if "kernel" in variable.name:
            fan_in = np.prod(shape[:2] if len(shape) == 4 and shape[-1] == 1 else shape[:-1])  # 1: one for each channel
            tensors.append((drawn * np.sqrt(2 / fan_in)).astype(np.float32))
        else:  # zeros with the sign of what is drawn, since checksums of VGG16's random weights are in caches
            tensors.append(np.where(initial, initial, 0 * drawn))
    return tensors


def read_weights(trunk: keras.Model, weights: str, name: str) -> list[np.ndarray]:
    """The tensors of a file that fits `trunk`, the network `name`, exactly. Raises UserError."""
    if not Path(weights).is_file():
        raise UserError(f"--weights={weights} is not a file; give imagenet, random or a Keras weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of layers that it leaves as they are
            trunk.load_weights(weights)
    except (ValueError, OSError, KeyError, Warning) as error:
        raise UserError(f"{weights} holds no weights of {name} without its top ({error})") from error
    return trunk.get_weights()


def download(network: Callable[..., keras.Model], size: int) -> list[np.ndarray]:
    """ImageNet's tensors by Keras' own download, which raises what it likes."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a network that swallows packets must not hang the user
    try:
        return network(include_top=False, weights="imagenet", input_shape=(size, size, 3)).get_weights()
    finally:
        socket.setdefaulttimeout(timeout)
