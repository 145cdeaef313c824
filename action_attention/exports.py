"""A model as files that other programs run: SavedModel, ONNX or LiteRT, each with what they must know to use it inside.

What is written is what Keras computes: each file is run once before it gets its name. Its text `about` is JSON: in an
ONNX file among the metadata_props, in a SavedModel in its folder `assets.extra`, in a LiteRT file in a zip archive
behind the model, where LiteRT's own metadata has its files.
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

SUFFIXES = {"saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
PARTS = ("clip", "step")
ABOUT = "action_attention.json"  # the file's name
ONNX_KEY = "action_attention"
NEEDED = {"onnx": ("onnx", "onnxruntime", "tf2onnx")}  # beside what this package needs itself
TOLERANCE = 1e-4  # of outputs, against Keras, as a share of the largest where that is above 1
OF_FRAMES_TOLERANCE = 1e-3  # behind a backbone, whose rounding errors add up
FRAMES = {"features": "frames"}  # what a network in front sees in place of a model's input
STATE = "state_"
MEANINGS = {
    "features": "the backbone's cubes of sampled frames",
    "frames": "sampled frames, RGB, resized to the square bilinearly whatever their aspect ratio",
    "mask": "true for real frames, which come first; a shorter clip repeats its last frame and has zeros in motion",
    "motion": "how far each location moves until the next sampled frame against the camera, in percent of the frame's "
    "longer side; the last frame has the map before it (data_prep/flow.py, MotionMaps)",
    "flow": "the same of the optical flow's pictures to the next sampled frame (data_prep/flow.py, flow_pictures)",
    "logits": "of each frame's classes; their softmax to the power of 1/temperature, scaled to sum 1, is calibrated",
    "attention": "how much each location weighs; a real frame's sum is 1",
    STATE: "carried from frame to frame: initial gives the first ones, step takes them and gives the next",
}
Specs = dict[str, keras.InputSpec]


class Exported(keras.Model):
    """What one file computes.

    Args:
        model: the model, in float32.
        part: `clip`, a call of the model; `initial` and `step`, a stream's, with states named `state_0`, ...
        networks: backbones in front, by the model's input that they make, `features` or `flow`.

    Call arguments:
        inputs: as the model takes them, but for `step` no mask, for `initial` no motion maps, and with `networks` no
            batch axis, and `frames`, and `flow` if it is taken, are RGB pictures, uint8 `(T, size, size, 3)`.

    Returns what the model does by name, and the states after it: `state_0`, ..., of step `next_state_0`, ...; with
    `networks` without the batch axis, but for the states.
    """

    def __init__(self, model: ActionModel, part: str = "clip", networks: dict[str, keras.Model] | None = None):
        super().__init__(name=f"{model.name}_{part}")
        self.model, self.part, self.networks = model, part, networks or {}
        self._pack: Callable[[list], Any] = list

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in inputs.items() if not name.startswith(STATE)}
        states = [inputs[f"{STATE}{number}"] for number in range(len(inputs) - len(given))]
        for name, network in self.networks.items():
            given[name] = ops.cast(network(given.pop(FRAMES.get(name, name)), training=False), "float32")
        if self.networks:
            given = {name: value[None] for name, value in given.items()}
        outputs, after = self._outputs(given, states)
        outputs = {name: values[0] if self.networks else values for name, values in outputs.items()}
        prefix = f"next_{STATE}" if self.part == "step" else STATE  # an ONNX graph has each name once
        return outputs | {f"{prefix}{number}": state for number, state in enumerate(keras.tree.flatten(after))}

    def _outputs(self, given: dict[str, Any], states: list) -> tuple[dict[str, Any], Any]:
        if self.part == "clip":
            outputs = self.model(given, training=False)
            return {name: outputs[name] for name in ("logits", "attention")}, []
        if self.part == "initial":
            if self.model.settings.takes_motion:  # which no first state depends on
                given["motion"] = ops.zeros_like(given["features"][..., 0])
            return {}, self.model.first_states(given)
        given["mask"] = ops.ones_like(given["features"][:, :, 0, 0, 0], dtype="bool")
        return self.model.step(given, self._pack(states))

    def inputs(self, frames: int) -> Specs:
        """What the file takes, of clips or windows of so many frames: loops over frames are unrolled, so their number
        is a constant of the file. There may be any number of clips, but for `networks`, which make one."""
        specs: Specs = {}
        clips, frames = () if self.networks else (None,), 1 if self.part == "step" else frames
        dropped = {"initial": "motion", "step": "mask"}.get(self.part)
        for name, (_, _, *values) in self.model.get_build_config()["input_shape"].items():
            if name in self.networks:
                size = self.networks[name].input_shape[1:]
                seen = FRAMES.get(name, name)
                specs[seen] = keras.InputSpec(shape=(frames, *size), dtype="uint8", name=seen)
            elif name != dropped:
                dtype = "bool" if name == "mask" else "float32"
                specs[name] = keras.InputSpec(shape=(*clips, frames, *values), dtype=dtype, name=name)
        return specs | self._states() if self.part == "step" else specs

    def _states(self) -> Specs:
        shapes = self.model.get_build_config()["input_shape"]
        first = self.model.first_states(
            {name: ops.ones(shape, "bool" if name == "mask" else "float32") for name, shape in shapes.items()}
        )
        self._pack = lambda states: keras.tree.pack_sequence_as(first, states)
        clips = (1,) if self.networks else (None,)
        return {
            f"{STATE}{number}": keras.InputSpec(
                shape=(*clips, *state.shape[1:]), dtype="float32", name=f"{STATE}{number}"
            )
            for number, state in enumerate(keras.tree.flatten(first))
        }


def in_float32(model: ActionModel) -> ActionModel:
    """The same weights in a model that computes in float32, whatever it was trained in: what ONNX and LiteRT want."""
    shapes = model.get_build_config()["input_shape"]
    exact = type(model).from_config({**model.get_config(), "dtype": "float32"})
    exact({name: ops.zeros(shape, "bool" if name == "mask" else "float32") for name, shape in shapes.items()})
    exact.set_weights(model.get_weights())
    return exact


def write(
    model: ActionModel, part: str, networks: dict[str, keras.Model] | None, frames: int, kind: str,
    about: dict[str, Any], folder: Path,
) -> None:  # fmt: skip
    """Writes a model's clip, or `initial` and `step`, with `about` inside, into a new or empty folder.

    Raises UserError, and leaves nothing, if the folder holds something or cannot be written to, what the format needs
    is not installed, the format cannot hold the model, or the model takes no stream.
    """
    if part == "step" and not model.is_recurrent:
        raise UserError(f"{model.name} keeps no state between frames, so it has no step; leave out --part=step")
    for package in NEEDED.get(kind, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            packages = " ".join(NEEDED[kind])
            raise UserError(f"--format={kind} needs {package} ({error}): pip install {packages}") from error
    with new_folder(folder) as new:
        for each, name in {"clip": {"clip": "model"}, "step": {"initial": "initial", "step": "step"}}[part].items():
            path = new if (kind, part) == ("saved_model", "clip") else new / f"{name}{SUFFIXES[kind]}"
            _write_checked(Exported(model, each, networks), frames, kind, {**about, "part": each}, path)


def _write_checked(model: Exported, frames: int, kind: str, about: dict[str, Any], path: Path) -> None:
    specs = model.inputs(frames)
    example = _example(specs)
    wanted = {name: np.asarray(values) for name, values in model(example).items()}
    shapes = {name: values.shape if model.networks else (None, *values.shape[1:]) for name, values in wanted.items()}
    about |= {
        "frames": frames,
        "inputs": {name: _described(name, spec.shape, spec.dtype) for name, spec in specs.items()},
        "outputs": {name: _described(name, shape, "float32") for name, shape in shapes.items()},
    }
    what = f"the {model.part} of {model.model.name}"
    try:
        with _quiet():
            WRITERS[kind](model, specs, json.dumps(about, indent=2), path)
            found = RUNNERS[kind](path)({name: values.numpy() for name, values in example.items()})
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the converters raise whatever their parts raise
        sentence = f"--format={kind} cannot hold {what} ({first_line(error)}); take another format"
        raise UserError(sentence) from error
    apart = max(
        float(np.abs(np.asarray(found[name]) - values).max() / max(1, np.abs(values).max()))
        for name, values in wanted.items()
    )
    if not apart <= (OF_FRAMES_TOLERANCE if model.networks else TOLERANCE):
        raise UserError(
            f"--format={kind} does not compute {what} as Keras does (outputs {apart:.1g} apart); take another format"
        )


def _described(name: str, shape: tuple, dtype: str) -> dict[str, Any]:
    meaning = MEANINGS[STATE if STATE in name else name]
    return {"shape": list(shape), "dtype": dtype, "meaning": meaning}


def _example(specs: Specs) -> dict[str, Any]:
    """Two clips of noise, or one of frames."""
    draw, inputs = np.random.default_rng(0), {}
    for name, spec in specs.items():
        shape = tuple(size or 2 for size in spec.shape)
        values = draw.integers(0, 256, shape) if spec.dtype == "uint8" else draw.random(shape)
        inputs[name] = tf.constant((values if name != "mask" else np.ones(shape)).astype(spec.dtype))
    return inputs


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
    (path / "assets.extra").mkdir()
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
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, about)


def _run_saved_model(path: Path) -> Callable:
    loaded = tf.saved_model.load(path)
    return lambda inputs: loaded.signatures["serving_default"](**inputs)


def _run_onnx(path: Path) -> Callable:
    session = importlib.import_module("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _run_litert(path: Path) -> Callable:
    plain = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # which announce themselves
    interpreter = tf.lite.Interpreter(str(path), experimental_op_resolver_type=plain)
    return lambda inputs: interpreter.get_signature_runner()(**inputs)


WRITERS: dict[str, Callable] = {"saved_model": _write_saved_model, "onnx": _write_onnx, "litert": _write_litert}
RUNNERS: dict[str, Callable] = {"saved_model": _run_saved_model, "onnx": _run_onnx, "litert": _run_litert}


def read_about(path: Path) -> dict[str, Any]:
    """The `about` of a file that `write` wrote, or of a SavedModel's folder."""
    if path.is_dir():
        return json.loads((path / "assets.extra" / ABOUT).read_text())
    if path.suffix == SUFFIXES["onnx"]:
        properties = importlib.import_module("onnx").load(path).metadata_props
        return json.loads(next(each.value for each in properties if each.key == ONNX_KEY))
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(ABOUT))
