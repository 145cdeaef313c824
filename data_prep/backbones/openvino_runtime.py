"""Networks run by OpenVINO (optional extra): on most processors faster than TensorFlow at the same precision."""

import contextlib
import importlib
import sys
import tempfile
from types import ModuleType
from typing import Any

import keras
import numpy as np

from action_attention.errors import UserError
from data_prep.backbones.base import Network

LIBRARIES = {"openvino": ("OpenVINO", "'openvino>=2025.0'"), "nncf": ("NNCF", "'nncf>=3.0'")}
# in int8, of the little that is not quantised: bfloat16 is no faster there, and not on every processor
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


def library(module: str, what: str) -> ModuleType:
    """OpenVINO or NNCF. Raises UserError, which says `what` needs it, where it is not installed."""
    # without it neither tells its maker, unasked, that it is used
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    name, package = LIBRARIES[module]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs {name} ({error}): pip install {package}") from error


def graph_of(model: keras.Model) -> Any:
    """A Keras network as OpenVINO has it, for batches of any size. Raises UserError without OpenVINO."""
    openvino = library("openvino", "--runtime=openvino")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        model.export(folder, verbose=False)
        return openvino.convert_model(folder)


class OpenVinoNetwork:
    """A `Network` of `base.py`: a graph of OpenVINO with the shapes of the network `like`, computing in `precision`.

    A batch's size is part of what is compiled, so every other one costs seconds.
    """

    def __init__(self, graph: Any, like: Network, precision: str):
        self.graph, self._settings = graph, {"INFERENCE_PRECISION_HINT": HINTS[precision]}
        self.input_shape, self.output_shape = like.input_shape, like.output_shape
        self._compiled: dict[int, Any] = {}

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        if len(x) not in self._compiled:
            self.graph.reshape(list(x.shape))
            openvino = library("openvino", "the network")
            self._compiled[len(x)] = openvino.compile_model(self.graph, "CPU", self._settings)
        return next(iter(self._compiled[len(x)](x).values()))

    def get_weights(self) -> list[np.ndarray]:
        return [op.data for op in self.graph.get_ops() if op.get_type_name() == "Constant"]
