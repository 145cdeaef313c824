"""Any frozen network of timm (in PyTorch) and keras-hub, by name; both are optional extras.

A network of tokens gives the map of its patches, normalised as the library normalises them; its class and register
tokens are left out. Size, mean and scale of the input are the library's own.
"""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

from action_attention.errors import UserError
from data_prep.backbones.base import Backbone, compiled
from data_prep.backbones.weights import check_file, random_weights, weights_sha256


def build_timm(name: str, weights: str = "imagenet", precision: str = "auto") -> Backbone:
    """`timm:NAME`, such as vit_small_patch14_dinov2. Raises UserError."""
    timm, precision = _library("timm", "timm"), "float32" if precision == "auto" else precision
    import torch  # noqa: PLC0415 - timm needs it

    if weights not in ("imagenet", "random"):
        check_file(weights, "a checkpoint of the network")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=weights == "imagenet").train(False)
        if weights not in ("imagenet", "random"):
            timm.models.load_checkpoint(model, weights, weights_only=True)
        network = TimmNetwork(model, timm.data.resolve_model_data_config(model), precision)
    except Exception as error:  # timm and its hub raise what they like
        raise _unavailable(f"timm's {name}", weights, error) from error
    mean, std = (tuple(round(float(value), 4) for value in values) for values in (network.mean, network.std))
    return Backbone(
        name=f"timm:{name} last map",
        model=network,
        preprocessing=f"RGB uint8 -> (RGB / 255 - {mean}) / {std}",
        weights=Path(weights).name,
        weights_sha256=weights_sha256(network.get_weights()),
        precision=precision,
    )


class TimmNetwork:
    """A `Network` of `base.py`: `model`, of timm, with its data config."""

    def __init__(self, model: Any, config: dict[str, Any], precision: str):
        import torch  # noqa: PLC0415

        self._torch, self._dtype = torch, getattr(torch, precision)
        self._model = model.to(self._dtype)
        self.mean, self.std = (torch.tensor(config[key]).reshape(3) for key in ("mean", "std"))
        size = config["input_size"][-1]
        self.input_shape = (None, size, size, 3)
        self.output_shape = (None, *self.predict_on_batch(np.zeros((1, size, size, 3), np.uint8)).shape[1:])

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            frames = (self._torch.from_numpy(x).float() / 255 - self.mean) / self.std
            (cubes,) = self._model.forward_intermediates(
                frames.permute(0, 3, 1, 2).to(self._dtype), [-1], norm=True, output_fmt="NCHW", intermediates_only=True
            )
            return cubes.permute(0, 2, 3, 1).half().numpy()

    def get_weights(self) -> list[np.ndarray]:
        return [tensor.float().numpy() for tensor in self._model.state_dict().values()]


def build_keras_hub(preset: str, weights: str = "imagenet", precision: str = "auto") -> Backbone:
    """`keras_hub:PRESET`, the name of a preset or the folder of one. Raises UserError."""
    hub, precision = _library("keras_hub", "keras-hub"), "float32" if precision == "auto" else precision
    if weights not in ("imagenet", "random"):
        raise UserError(f"--weights={weights}: weights of keras-hub come with a preset; name its folder: "
                        "--backbone=keras_hub:FOLDER")  # fmt: skip
    try:
        network = hub.models.Backbone.from_preset(preset, load_weights=weights == "imagenet", dtype=precision)
        converter = hub.layers.ImageConverter.from_preset(preset)
    except Exception as error:  # keras-hub raises what it likes
        raise _unavailable(f"keras-hub's {preset}", weights, error) from error
    if weights == "random":
        network.set_weights(random_weights(network))
    size, scale, offset = converter.image_size[0], converter.scale, converter.offset
    frames = keras.Input((size, size, 3), dtype="uint8")
    scaled = keras.ops.cast(frames, "float32") * (1 if scale is None else scale) + (0 if offset is None else offset)
    maps = network(scaled)
    if len(maps.shape) == 3:
        side = math.isqrt(maps.shape[1])
        maps = keras.ops.reshape(maps[:, -(side**2) :], (-1, side, side, maps.shape[2]))
    return Backbone(
        name=f"keras_hub:{preset} last map",
        model=compiled(frames, maps),
        preprocessing=f"RGB uint8 -> RGB * {scale} + {offset}",
        weights=weights,
        weights_sha256=weights_sha256(network.get_weights()),
        precision=precision,
    )


LIBRARIES = {"timm": build_timm, "keras_hub": build_keras_hub}


def _library(module: str, package: str) -> ModuleType:
    # of PyTorch for GPUs: a compiler that nobody asks here, and that crashes where TensorFlow's was loaded before it
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"--backbone={module}:... needs {package} ({error}): pip install {package}") from error


def _unavailable(what: str, weights: str, error: Exception) -> UserError:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return UserError(
        f"{what} with --weights={weights} could not be obtained ({reason}); see its name, or give other weights"
    )
