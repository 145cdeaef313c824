"""A run: its directory, the names of the files there, and reading them back. Nothing else knows these names.

`run.json` (settings, classes, features, versions, best epoch), `split.json` (videos by subset), `flags.txt`,
`model.keras` (the best model), `last_state.npz` and `history.json` (for `--resume`), `logs` (TensorBoard) and
`eval/<subset>/` with `metrics.json`, `predictions.csv`, `frames.npz` and pictures.
"""

import csv
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from action_attention.clips import class_names
from action_attention.errors import UserError
from action_attention.features import FeatureCache, write_json
from action_attention.metrics import VideoPrediction
from action_attention.models import ActionModel
from action_attention.models.upgrade import load_keras
from action_attention.registry import Config, model_names

FILES = ("run.json", "split.json", "flags.txt", "model.keras", "last_state.npz", "history.json", "logs")
SUBSETS = ("train", "validation", "test")
SCHEMA_VERSION = 1  # of run.json; one that is not said is 1


@dataclass
class Run:
    """A run directory. `about` is the content of `run.json`, `split` the names of videos by subset.

    `Run(folder)` only names its files; `Run.open(folder)` reads one that is there.
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    model_name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.json_file, self.split_file, self.flags_file = (self.folder / name for name in FILES[:3])
        self.model_file, self.state_file, self.history_file, self.logs = (self.folder / name for name in FILES[3:])

    @classmethod
    def open(cls, folder: Path, *, of_frames: bool = True, finished: bool = False) -> "Run":
        """Raises UserError if there is no run, if a newer version made it, with `of_frames` if its model decides on
        whole videos, and with `finished` if its training has not come to its end."""
        run = cls(Path(folder))
        try:
            run.about, run.split = (json.loads(path.read_text()) for path in (run.json_file, run.split_file))
            run.model_name, schema = run.about["config"]["model"], run.about.get("schema_version", 1)
            best = run.about.get("best", {"epoch": 0})
        except OSError as error:
            raise UserError(f"{folder} holds no training run ({error}); make one with `make train`") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: run.json or split.json is damaged ({error}); train again elsewhere") from error
        if schema > SCHEMA_VERSION:
            raise UserError(
                f"{folder} is a run of schema {schema}, this version reads up to {SCHEMA_VERSION}; use the version "
                f"that made it: {run.made_by}"
            )
        if of_frames and best["epoch"] is None:
            raise UserError(
                f"{folder} is a run of {run.model_name}, which decides on whole videos and says nothing of their "
                "frames: it was evaluated as it was made, and `python -m experiments.table` shows it"
            )
        if finished and "best" not in run.about:
            raise UserError(f"{folder} is in training or was stopped in it; go on with --resume, then evaluate it")
        return run

    def evaluation(self, subset: str) -> Path:
        """The folder of what was predicted for a subset."""
        return self.folder / "eval" / subset

    @property
    def exists(self) -> bool:
        return self.json_file.exists() or self.state_file.exists()

    @property
    def classes(self) -> list[str]:
        return self.about["classes"]

    @property
    def features(self) -> dict[str, Any]:
        """What made the features that it was trained on (`features.SETTINGS`)."""
        return self.about["cache"]["settings"]

    @property
    def config(self) -> Config:
        """Its model and settings; what an older version did not write down has its default.

        Raises UserError if no module registered the model.
        """
        if self.model_name not in model_names():
            raise UserError(
                f"{self.folder} is a run of {self.model_name}, which is not among the models here "
                f"({', '.join(model_names())}); --import=MODULE brings the module that registers it"
            )
        return Config.read(self.about["config"])

    @property
    def made_by(self) -> str:
        """The versions that made it, for a sentence about one that cannot be read."""
        versions = [f"{package} {number}" for package, number in self.about.get("versions", {}).items()]
        return ", ".join([f"git {self.about.get('git', 'unknown')[:12]}", *versions])

    def history(self) -> list[dict[str, Any]]:
        """What was measured in each epoch."""
        return json.loads(self.history_file.read_text())

    def model(self) -> ActionModel:
        """Its best model. Raises UserError if there is none yet, it cannot be read, or it is not the run's."""
        path, config = self.model_file, self.config
        if not path.is_file():
            raise UserError(f"{self.folder} holds no model.keras yet; let at least one epoch of `make train` finish")
        try:
            model = load_keras(path)
        except Exception as error:  # Keras raises whatever its parts raise
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{path} cannot be read as a model of this version, with Keras {version('keras')} ({reason}); it was "
                f"made by {self.made_by}: use that, or train again"
            ) from error
        there = model.get_config() if isinstance(model, ActionModel) else {}
        wanted = {"name": config.model, "classes": len(self.classes)}
        wanted |= {key: value for key, value in self.about["config"].items() if key in there}
        for key, value in wanted.items():
            if there.get(key) != value:
                raise UserError(
                    f"{path} is not this run's model: it has {key}={there.get(key)}, run.json says {key}={value}; put "
                    "back the file that belongs here, or train again"
                )
        model.compile(jit_compile=False)
        return model

    def metrics(self, subset: str = "test") -> dict[str, Any]:
        """What `evaluate` measured. Raises UserError if the subset has not been evaluated."""
        path = self.evaluation(subset) / "metrics.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with `make eval RUN_DIR={self.folder}`")
        return json.loads(path.read_text())

    def predictions(self, subset: str = "test") -> list[VideoPrediction]:
        """What `evaluate` predicted, read back from `predictions.csv` and `frames.npz`, in their order; float32.

        Raises UserError if the subset has not been evaluated, or the two files do not fit together.
        """
        folder, remedy = self.evaluation(subset), f'`make eval RUN_DIR={self.folder} ARGS="--subset={subset}"`'
        if not (folder / "frames.npz").is_file():
            raise UserError(
                f"{folder} holds no frames.npz, where an evaluation keeps each frame; make it with {remedy}"
            )
        try:
            with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
                rows = [
                    (row["video"], self.classes.index(row["label"]), int(row["frames"])) for row in csv.DictReader(file)
                ]
            with (folder / "frames.npz").open("rb") as frames, np.load(frames, allow_pickle=False) as arrays:
                attention, probabilities = arrays["attention"], arrays["probabilities"]
            ends = np.cumsum([frames for *_, frames in rows])
            expected = (ends[-1], len(self.classes))
            if probabilities.shape != expected or attention.shape[:1] != expected[:1] or attention.ndim != 3:
                raise ValueError(f"{expected[0]} frames of {expected[1]} classes expected, not {probabilities.shape}")
        except Exception as error:  # NumPy raises whatever its parts raise
            raise UserError(
                f"the files in {folder} do not fit together ({error}); make them again with {remedy}"
            ) from error
        parts = zip(rows, np.split(probabilities, ends[:-1]), np.split(attention, ends[:-1]), strict=True)
        return [VideoPrediction(name, label, of_class, where) for (name, label, _), of_class, where in parts]

    def write(self) -> None:
        """Writes `run.json` and `split.json`."""
        with self.writing():
            write_json(self.split_file, self.split)
            write_json(self.json_file, self.about)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns what a full or broken disk raises into a UserError."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            # TensorFlow says it in several lines, the first after the name of an operation in braces
            reason = error.strerror if isinstance(error, OSError) else error.message.splitlines()[0].split("}} ")[-1]
            raise UserError(
                f"{self.folder} cannot be written to ({reason}); what it holds of the epochs before is whole: make "
                "room, then the same command with --resume goes on"
            ) from error


def describe(config: dict[str, Any], cache: FeatureCache, split: dict[str, list[str]]) -> dict[str, Any]:
    """What `run.json` says of any run: its settings, classes, features and videos, versions, machine, git revision."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "classes": class_names(split["train"]),
        "cache": {"folder": str(cache.folder.absolute()), "fingerprint": cache.fingerprint, "settings": cache.settings},
        "videos": {subset: len(videos) for subset, videos in split.items()},
        "git": revision or "unknown",
        "versions": {package: version(package) for package in ("tensorflow", "keras", "numpy", "scikit-learn")},
        "machine": f"{platform.machine()}, {platform.platform()}",
    }


def state_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Everything that the next epoch depends on, by path: weights, seeds of dropout, optimizer.

    Keras numbers what has no name of its own by how many this process made before; that number is left out, and what is
    then called alike within the model is numbered. Seeds have no path, so theirs is their layer's.
    """
    seeds = {
        id(generator.state): f"{layer.path or layer.name}/seed"
        for layer in model._flatten_layers()
        if (generator := getattr(layer, "seed_generator", None))
    }
    metrics = {id(variable) for variable in model.metrics_variables}
    named: dict[str, keras.Variable] = {}
    for variable in [*model.variables, *model.optimizer.variables]:
        if id(variable) not in metrics:
            path = re.sub(r"_\d+(?=/|$)", "", seeds.get(id(variable), variable.path))
            alike = sum(there.partition("#")[0] == path for there in named)
            named[f"{path}#{alike}" if alike else path] = variable
    return named
