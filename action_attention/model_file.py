"""Reads model files, those of version 0.1 too, and arrays of a pretrained model. Nothing in a file is run."""

import io
import math
import re
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from action_attention.files import check_plain
from action_attention.memory import free_memory, weight_shapes
from action_attention.models import ActionModel, build_model
from action_attention.models.base import example_inputs
from action_attention.models.upgrade import OLD_MODULE, move_weights
from action_attention.registry import Config, renamed
from action_attention.untrusted import check_arrays, check_stored, complaint, parse_json, read_npz

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = [CONFIG, "metadata.json", WEIGHTS]
CONFIG_BYTES = 1 << 20
Shape = tuple[int, int, int]
CUBES = [(int, None), (int, None), int, int, int]
# what config.json says of a model of ours
ABOUT = {
    "module": str,
    "config": {"name": str, "classes": int, "dtype": (str, {"config": {"name": {"float32", "mixed_bfloat16"}}})},
    "build_config": {"input_shape": {"features": CUBES, "flow?": CUBES}},
}


def new_model(
    config: Config, classes: int, cube_shape: Shape | None = None, flow_shape: Shape | None = None
) -> ActionModel:
    """A model with a config's settings."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if config.training.mixed_precision else "float32")
    try:
        shapes = {"cube_shape": cube_shape, "flow_shape": flow_shape}
        return build_model(config.model, classes, **shapes, **vars(config.settings))
    finally:
        keras.config.set_dtype_policy(previous)


def by_path(variables: Iterable[keras.Variable], paths: dict[int, str] | None = None) -> dict[str, keras.Variable]:
    """Variables by their paths, or by `paths` of their `id`, in their order.

    Keras numbers what has no name of its own by how many this process made before; that number is left out, and what is
    then called alike is numbered.
    """
    named: dict[str, keras.Variable] = {}
    for variable in variables:
        path = re.sub(r"_\d+(?=/|$)", "", (paths or {}).get(id(variable), variable.path))
        alike = sum(there.partition("#")[0] == path for there in named)
        named[f"{path}#{alike}" if alike else path] = variable
    return named


def half_arrays(model: ActionModel) -> dict[str, np.ndarray]:
    """All weights in float16, by path, in the order of `model.weights`; `load_arrays` reads them back.

    Raises ValueError if one is too large for float16.
    """
    with np.errstate(over="ignore"):
        arrays = {name: np.array(weight, np.float16) for name, weight in by_path(model.weights).items()}
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"float16 cannot hold its {wrong[0]}")
    return arrays


def load_arrays(path: Path, config: Config, classes: int, *cube_shapes: Shape) -> ActionModel:
    """A model of `half_arrays`, not compiled; of flow's cubes too, if it takes flow.

    Raises ValueError, before it is made, if the file does not hold the weights of such a model.
    """
    _check_cube_shapes(*cube_shapes)
    wanted = weight_shapes(lambda: new_model(config, classes), *cube_shapes)

    def check(arrays: dict[str, tuple]) -> None:
        if list(arrays.values()) != [(shape, np.dtype(np.float16)) for shape in wanted]:
            numbers = sum(map(math.prod, wanted))
            raise ValueError(f"it does not hold the {numbers} weights, in float16, of the settings in run.json")

    arrays = read_npz(path, check)
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"its {wrong[0]} is not finite")
    model = new_model(config, classes, *cube_shapes)
    if differ := sorted(by_path(model.weights).keys() ^ arrays.keys()):
        raise ValueError(f"it and the model differ in {', '.join(differ[:3])}")
    for name, weight in by_path(model.weights).items():
        weight.assign(arrays[name])
    return model


def load_keras(path: Path) -> ActionModel:
    """A model of a `.keras` file, not compiled. Raises what `ModelFile` raises if it cannot be read."""
    return ModelFile(path).build()


class ModelFile:
    """A `.keras` file of a registered model. Keras reads its weights and nothing else, after it was seen what they are.

    Attributes:
        config: name, classes and settings of the model; empty if it is of another kind.

    Raises ValueError, or whatever its parts raise, if it cannot be read.
    """

    def __init__(self, path: Path):
        check_plain(path)
        with zipfile.ZipFile(path) as archive:
            check_stored(archive, path.stat().st_size)
            if sorted(archive.namelist()) != MEMBERS:
                raise ValueError(f"it does not hold {', '.join(MEMBERS)}")
            if archive.getinfo(CONFIG).file_size > CONFIG_BYTES:
                raise ValueError(f"its {CONFIG} is larger than {CONFIG_BYTES} bytes")
            about = parse_json(archive.read(CONFIG).decode(), {"registered_name?": (str, None)})
            self._weights = archive.read(WEIGHTS)
        self.config: dict[str, Any] = {}
        name = about.get("registered_name") or ""
        self._model = keras.saving.get_registered_object(name)
        if not (isinstance(self._model, type) and issubclass(self._model, ActionModel)):
            if ">" in name:  # of somebody's own module
                raise ValueError(f"there is no model {name} here")
            return
        if wrong := complaint(about, ABOUT):
            raise ValueError(wrong)
        shapes = about["build_config"]["input_shape"]
        self._config = renamed(about["config"])
        self._cube_shapes = [tuple(shapes[name][2:]) for name in ("features", "flow") if name in shapes]
        own = [field.name for field in fields(self._model.settings_class) if field.name in self._config]
        settings = self._model.settings_class(**{name: self._config[name] for name in own})
        self.config = {**asdict(settings), "name": self._config["name"], "classes": self._config["classes"]}
        with io.BytesIO(self._weights) as content:
            with h5py.File(content, "r+") as file:
                self._numbers = check_arrays(file)
                if about["module"] == OLD_MODULE:
                    move_weights(file, self._config)
            self._weights = content.getvalue()

    def build(self) -> ActionModel:
        """The model, not compiled. Raises ValueError, before it is made, if the file has too few weights for it."""
        if not self.config:
            raise ValueError("it is not a model that is registered here")
        _check_cube_shapes(*self._cube_shapes)
        needed = sum(map(math.prod, weight_shapes(self._make, *self._cube_shapes)))
        if needed > self._numbers:  # some files of version 0.1 hold more than they need
            raise ValueError(f"its settings are those of {needed} weights, it holds {self._numbers}")
        model = self._make()
        model(example_inputs(model.settings, *self._cube_shapes))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / WEIGHTS
            path.write_bytes(self._weights)
            model.load_weights(path)
        return model

    def _make(self) -> ActionModel:
        dtype = self._config["dtype"]
        return self._model.from_config(
            {**self._config, "dtype": dtype if isinstance(dtype, str) else dtype["config"]["name"]}
        )


def _check_cube_shapes(*cube_shapes: Shape) -> None:
    """Raises ValueError unless a core has the memory for such cubes."""
    # the largest that it makes of locations is the matrix of `locations.neighbourhoods`, as bool and as float32
    for shape in cube_shapes:
        if min(shape) < 1 or 45 * math.prod(shape[:2]) ** 2 > free_memory():
            raise ValueError(f"it is for cubes {shape}")
