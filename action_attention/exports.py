"""A model as files that other programs run: SavedModel, ONNX or LiteRT, each with what they must know to use it inside.

What is written is what Keras computes: each file is run once before it gets its name.
"""

import contextlib
import importlib
import io
import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import keras
import numpy as np
import tensorflow as tf
from keras import ops

from action_attention.errors import UserError, first_line
from action_attention.files import new_folder
from action_attention.models import ActionModel

FILES = {"saved_model": "", "onnx": "model.onnx", "litert": "model.tflite"}  # in the folder of an export
ABOUT = "action_attention.json"  # in a LiteRT file's archive, and in the folder `assets.extra` of a SavedModel
ONNX_KEY = "action_attention"  # of the same text among an ONNX file's metadata_props
NEEDED = {"onnx": ("tf2onnx", "onnx", "onnxruntime")}  # beside what this package needs itself
TOLERANCE = 1e-4  # of logits, against Keras, as a share of the largest where that is above 1
OF_FRAMES_TOLERANCE = 2e-3  # behind a backbone, whose cubes may be rounded to the next number of float16
OUTPUTS = ("logits", "attention")
SEEN = {"features": "frames"}  # what a network in front sees in place of a model's input
Specs = dict[str, keras.InputSpec]


class OfFrames(keras.Model):
    """A model of one clip's frames: the backbones in front of a model of their features.

    Args:
        model: the model of features.
        networks: for its inputs `features` and, where it takes it, `flow`, the Keras network that makes them of frames.

    Call arguments:
        inputs: `{"frames": (T, size, size, 3) uint8, "mask": (T,) bool}`, frames in RGB, and where the model takes
            them `"motion": (T, H, W)` and `"flow": (T, size, size, 3) uint8`, the optical flow's pictures.

    Returns `{"logits": (T, C), "attention": (T, H, W)}`.
    """

    def __init__(self, model: ActionModel, networks: dict[str, keras.Model]):
        super().__init__(name=model.name)
        self.model, self.networks = model, networks

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = dict(inputs)
        for name, network in self.networks.items():
            cubes = network(given.pop(SEEN.get(name, name)), training=False)  # of float16, as feature caches hold them
            given[name] = ops.cast(cubes, "float32")
        outputs = self.model({name: value[None] for name, value in given.items()}, training=False)
        return {name: outputs[name][0] for name in OUTPUTS}


def in_float32(model: ActionModel) -> ActionModel:
    """The same weights in a model that computes in float32, whatever it was trained in: what ONNX and LiteRT want."""
    shapes = model.get_build_config()["input_shape"]
    exact = type(model).from_config({**model.get_config(), "dtype": "float32"})
    exact({name: ops.zeros(shape, "bool" if name == "mask" else "float32") for name, shape in shapes.items()})
    exact.set_weights(model.get_weights())
    return exact


def inputs_of(model: ActionModel, frames: int, networks: dict[str, keras.Model] | None = None) -> Specs:
    """What an exported model is called with: any number of clips of `frames` frames; with `networks`, one clip.

    Loops over frames are unrolled, so the number of frames is a constant of the file.
    """
    specs: Specs = {}
    clips = () if networks else (None,)
    for of_model, (_, _, *values) in model.get_build_config()["input_shape"].items():
        if networks and of_model in networks:
            name, dtype, of_frame = SEEN.get(of_model, of_model), "uint8", networks[of_model].input_shape[1:]
        else:
            name, dtype, of_frame = of_model, "bool" if of_model == "mask" else "float32", values
        specs[name] = keras.InputSpec(shape=(*clips, frames, *of_frame), dtype=dtype, name=name)
    return specs


def write(model: keras.Model, specs: Specs, kind: str, about: dict[str, Any], folder: Path) -> Path:
    """Writes a model that takes `specs`, with `about`, JSON, inside, into a new or empty folder; returns the path.

    Raises UserError, and leaves nothing, if the folder holds something or cannot be written to, what the format needs
    is not installed, or the format cannot hold the model.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"an export to {kind} needs Keras on TensorFlow; leave KERAS_BACKEND out")
    for package in NEEDED.get(kind, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"an export to {kind} needs {package} ({error}): pip install {' '.join(NEEDED[kind])}"
                            ) from error  # fmt: skip
    with new_folder(folder) as part:
        path, example = part / FILES[kind], _example(specs)
        wanted = model(example)
        try:
            with _quiet():
                KINDS[kind](model, specs, json.dumps(about, indent=2), path)
                found = RUNNERS[kind](path)({name: values.numpy() for name, values in example.items()})
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the converters raise whatever their parts raise
            raise UserError(
                f"{kind} cannot hold this {model.name} ({first_line(error)}); take another --format"
            ) from error
        logits = np.asarray(wanted["logits"])
        apart = float(np.abs(np.asarray(found["logits"]) - logits).max() / max(1, np.abs(logits).max()))
        if not apart <= (TOLERANCE if isinstance(model, ActionModel) else OF_FRAMES_TOLERANCE):
            raise UserError(
                f"{kind} does not compute this {model.name} as Keras does (its logits are {apart:.1g} apart); take "
                "another --format"
            )
    return folder / FILES[kind]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the converters' progress and advice from the terminal."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("tensorflow", "tf2onnx"))}
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        for logger, level in loggers.items():
            logger.setLevel(level)


def _write_saved_model(model: keras.Model, specs: Specs, about: str, path: Path) -> None:
    _write_graph(model, specs, path)
    (path / "assets.extra").mkdir()  # which TensorFlow leaves to whoever made the model
    (path / "assets.extra" / ABOUT).write_text(about)


def _write_graph(model: keras.Model, specs: Specs, path: Path) -> None:
    archive = keras.export.ExportArchive()  # model.export() would write each weight twice
    archive.add_endpoint("serve", model.__call__, [specs])
    archive.write_out(path, verbose=False)


def _write_onnx(model: keras.Model, specs: Specs, about: str, path: Path) -> None:
    onnx = importlib.import_module("onnx")
    model.export(path, format="onnx", verbose=False, input_signature=[specs])
    file = onnx.load(path)
    file.metadata_props.add(key=ONNX_KEY, value=about)
    onnx.save(file, path)


def _write_litert(model: keras.Model, specs: Specs, about: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _write_graph(model, specs, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]  # LiteRT alone runs no other
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:  # behind the model, as LiteRT's own metadata has its files
        archive.writestr(ABOUT, about)


KINDS: dict[str, Callable] = {"saved_model": _write_saved_model, "onnx": _write_onnx, "litert": _write_litert}


def read_about(path: Path) -> dict[str, Any]:
    """What was written into an export as `about`, given its path."""
    if path.is_dir():
        return json.loads((path / "assets.extra" / ABOUT).read_text())
    if path.suffix == ".onnx":
        properties = importlib.import_module("onnx").load(path, load_external_data=False).metadata_props
        return json.loads(next(each.value for each in properties if each.key == ONNX_KEY))
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(ABOUT))


def _run_saved_model(path: Path) -> Callable:
    loaded = tf.saved_model.load(path)
    return lambda inputs: loaded.signatures["serving_default"](**inputs)


def _run_onnx(path: Path) -> Callable:
    session = importlib.import_module("onnxruntime").InferenceSession(path)
    return lambda inputs: dict(zip(OUTPUTS, session.run(OUTPUTS, inputs), strict=True))


def _run_litert(path: Path) -> Callable:
    plain = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # which announce themselves
    interpreter = tf.lite.Interpreter(str(path), experimental_op_resolver_type=plain)
    return lambda inputs: interpreter.get_signature_runner()(**inputs)


RUNNERS: dict[str, Callable] = {"saved_model": _run_saved_model, "onnx": _run_onnx, "litert": _run_litert}


def _example(specs: Specs) -> dict[str, Any]:
    """Two clips of noise, or one of frames."""
    draw, inputs = np.random.default_rng(0), {}
    for name, spec in specs.items():
        shape = tuple(size or 2 for size in spec.shape)
        values = draw.integers(0, 256, shape) if spec.dtype == "uint8" else draw.random(shape)
        inputs[name] = tf.constant((values if name != "mask" else np.ones(shape)).astype(spec.dtype))
    return inputs
