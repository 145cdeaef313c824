"""A Keras network run by OpenVINO (optional extra): on most processors faster than TensorFlow at the same precision."""

import contextlib
import importlib
import tempfile
from typing import Any

import keras
import numpy as np

from action_attention.errors import UserError

HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoNetwork:
    """A `Network` of `base.py`: the float32 network `model`, computing in `precision`.

    A batch's size is part of what is compiled, so every other one costs seconds. Raises UserError without OpenVINO.
    """

    def __init__(self, model: keras.Model, precision: str):
        try:
            self._openvino = importlib.import_module("openvino")
        except ImportError as error:
            raise UserError(f"--runtime=openvino needs OpenVINO ({error}): pip install 'openvino>=2025.0'") from error
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            model.export(folder, verbose=False)
            self._model = self._openvino.convert_model(folder)
        self._keras, self._hint = model, HINTS[precision]
        self.input_shape, self.output_shape = model.input_shape, model.output_shape
        self._compiled: dict[int, Any] = {}

    def predict_on_batch(self, x: np.ndarray) -> np.ndarray:
        if len(x) not in self._compiled:
            self._model.reshape(list(x.shape))
            settings = {"INFERENCE_PRECISION_HINT": self._hint}
            self._compiled[len(x)] = self._openvino.compile_model(self._model, "CPU", settings)
        return next(iter(self._compiled[len(x)](x).values()))

    def get_weights(self) -> list[np.ndarray]:
        return self._keras.get_weights()
