"""A run: its directory, the names of the files there, and reading them back. Nothing else knows these names.

`run.json` (settings, classes, features, versions, best epoch), `split.json` (videos by subset), `flags.txt`,
`model.keras` (the best model), `last_state.npz` and `history.json` (for `--resume`), `logs` (TensorBoard),
`calibration.json` (how sure it may be) and `eval/<subset>/` with `metrics.json`, `predictions.csv`, `frames.npz` and
pictures. A pretrained model is a run that only predicts: `run.json`, `model.npz` (its weights in float16) in place of
`model.keras`, `calibration.json` and `card.md`; those that come with this software are in `PRETRAINED`.
"""

import csv
import hashlib
import json
import platform
import shutil
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from action_attention.calibration import LIMITS
from action_attention.clips import class_names
from action_attention.errors import UserError, first_line, remedy
from action_attention.features import FeatureCache, write_json
from action_attention.files import check_name, check_plain, check_tree
from action_attention.metrics import VideoPrediction
from action_attention.model_file import ModelFile, by_path, load_arrays
from action_attention.models import ActionModel
from action_attention.packages import PARTS, unpacked
from action_attention.registry import Config, model_names, renamed
from action_attention.schemas import ABOUT, CALIBRATION, FINISHED, HISTORY, MADE_BY, METRICS, OF_FRAMES, SPLIT
from action_attention.untrusted import complaint, read_json, read_npz

FILES = ("run.json", "split.json", "flags.txt", "model.keras", "last_state.npz", "history.json", "logs")
PRETRAINED = Path(__file__).parent / "pretrained"
SUBSETS = ("train", "validation", "test")
SCHEMA_VERSION = 2  # of run.json; one that is not said is 1, which counted epochs from 0


@dataclass
class Run:
    """A run directory. `about` is the content of `run.json`, `split` the names of videos by subset.

    `Run(folder)` only names its files; `Run.open(folder)` reads one that is there, or a package (`packages.py`).
    """

    folder: Path
    about: dict[str, Any] = field(default_factory=dict)
    split: dict[str, list[str]] = field(default_factory=dict)
    model_name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.json_file, self.split_file, self.flags_file = (self.folder / name for name in FILES[:3])
        self.model_file, self.state_file, self.history_file, self.logs = (self.folder / name for name in FILES[3:])
        self.arrays_file, self.calibration_file, self.card_file = (self.folder / name for name in PARTS[1:])

    @classmethod
    def open(cls, folder: Path, *, of_frames: bool = True, finished: bool = False, pretrained: bool = False) -> "Run":
        """Raises UserError if there is no run, if it is damaged or a newer version made it, with `of_frames` if its
        model decides on whole videos, with `finished` if its training has not come to its end, and unless `pretrained`
        if it is a pretrained model, which has no `split`."""
        run = cls(folder := Path(folder))
        if temporary := unpacked(folder):
            run = cls(temporary)
            run.folder = folder  # as it is called; its files are in the temporary one
            weakref.finalize(run, shutil.rmtree, temporary, ignore_errors=True)
        try:
            run.about = read_json(run.json_file, MADE_BY)
            run.split = {} if run.pretrained else read_json(run.split_file, SPLIT)
            check_tree(run.json_file.parent)
            schema = run.about.get("schema_version", 1)
            if schema <= SCHEMA_VERSION:
                run._check()
                best = run.about.get("best", {"epoch": None})
                if schema == 1 and best["epoch"] is not None:
                    run.about |= {"schema_version": SCHEMA_VERSION, "best": {**best, "epoch": best["epoch"] + 1}}
        except UserError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{folder} holds no training run ({reason}); make one with `make train`") from error
        except ValueError as error:
            raise UserError(f"{folder}: run.json or split.json is damaged ({error}); train again elsewhere") from error
        if schema > SCHEMA_VERSION:
            raise UserError(
                f"{folder} is a run of schema {schema}, this version reads up to {SCHEMA_VERSION}; use the version "
                f"that made it: {run.made_by}"
            )
        if run.pretrained and not pretrained:
            raise UserError(
                f"{folder} is a pretrained model, which can only predict: it has no lists of videos to train on, "
                "evaluate or report; make a run of your own with `make train`"
            )
        if of_frames and not run.of_frames:
            raise UserError(
                f"{folder} is a run of {run.model_name}, which decides on whole videos and not on their "
                "frames: it was evaluated as it was made, and `python -m experiments.table` shows it"
            )
        if finished and "best" not in run.about:
            raise UserError(f"{folder} is in training or was stopped in it; go on with --resume, then evaluate it")
        return run

    def _check(self) -> None:
        """Raises ValueError if `about` or `split` is not what the rest of this class relies on."""
        if wrong := complaint(self.about, ABOUT | (FINISHED if "best" in self.about else {})):
            raise ValueError(wrong)
        if not 0 < self.features["fps"] < np.inf:
            raise ValueError(f"cache.settings.fps is {self.features['fps']}")
        if self.pretrained and "cube_shape" not in self.about["cache"]:
            raise ValueError("cache.cube_shape is missing")
        for names in self.split.values():
            for name in names:
                check_name(name)
        self.model_name = self.about["config"]["model"]

    def evaluation(self, subset: str) -> Path:
        """The folder of what was predicted for a subset."""
        return self.folder / "eval" / subset

    @property
    def pretrained(self) -> bool:
        """Whether it is a model to predict with and nothing else."""
        return self.arrays_file.exists() and not self.model_file.exists()

    @property
    def exists(self) -> bool:
        return self.json_file.exists() or self.state_file.exists()

    @property
    def of_frames(self) -> bool:
        """Whether its model says something of each frame; an SVM decides on whole videos."""
        return self.about.get("of_frames", self.about.get("best", {"epoch": 0})["epoch"] is not None)

    @property
    def classes(self) -> list[str]:
        return self.about["classes"]

    @property
    def features(self) -> dict[str, Any]:
        """What made the features that it was trained on (`features.SETTINGS`)."""
        return self.about["cache"]["settings"]

    @property
    def flow_features(self) -> dict[str, Any] | None:
        """The same of the optical flow beside them; None where it was trained without."""
        return self.about["cache"].get("flow", {}).get("settings")

    @property
    def config(self) -> Config:
        """Its model and settings; what an older version did not write down has its default.

        Raises UserError if no module registered the model, or a setting cannot be.
        """
        if self.model_name == "fuse":
            raise UserError(
                f"{self.folder} fuses other runs ({self.about['config'].get('runs')}) and has no model of "
                "its own; give one of those runs"
            )
        if self.model_name not in model_names():
            raise UserError(
                f"{self.folder} is a run of {self.model_name}, which is not among the models here "
                f"({', '.join(model_names())}); --import=MODULE brings the module that registers it"
            )
        try:
            return Config.read(self.about["config"])
        except UserError as error:
            raise UserError(f"{self.folder}: run.json is damaged ({error}); train again elsewhere") from error

    @property
    def made_by(self) -> str:
        """The versions that made it, for a sentence about one that cannot be read."""
        versions = [f"{package} {number}" for package, number in self.about.get("versions", {}).items()]
        return ", ".join([f"git {self.about.get('git', 'unknown')[:12]}", *versions])

    def history(self) -> list[dict[str, Any]]:
        """What was measured in each epoch. Raises UserError if the file is damaged."""
        try:
            return from_one(read_json(self.history_file, HISTORY))
        except ValueError as error:
            raise UserError(f"{self.history_file} is damaged ({error}); train again elsewhere") from error

    def model(self) -> ActionModel:
        """Its best model. Raises UserError if there is none yet, it cannot be read, or it is not the run's."""
        path, config = self.model_file, self.config
        if self.pretrained:
            made = self.about["cache"]
            shapes = [(h, w, d) for h, w, d in (each["cube_shape"] for each in (made, made.get("flow")) if each)]
            with self._reading(self.arrays_file):
                model = load_arrays(self.arrays_file, config, len(self.classes), *shapes)
            model.compile(jit_compile=False)
            return model
        if not path.is_file():
            raise UserError(f"{self.folder} holds no model.keras yet; let at least one epoch of `make train` finish")
        with self._reading(path):
            file = ModelFile(path)
        wanted = {"name": config.model, "classes": len(self.classes), **asdict(config.settings)}
        made = renamed(file.config)
        for key, value in wanted.items():
            if (there := made.get(key)) != value:
                raise UserError(
                    f"{path} is not this run's model: it has {key}={there}, run.json says {key}={value}; put back the "
                    "file that belongs here, or train again"
                )
        with self._reading(path):
            model = file.build()
        model.compile(jit_compile=False)
        return model

    @contextmanager
    def _reading(self, path: Path) -> Iterator[None]:
        """Turns what is raised in reading a model file into a UserError."""
        try:
            yield
        except Exception as error:  # Keras raises whatever its parts raise
            again = "get the pretrained model again" if self.pretrained else "train again"
            raise UserError(
                f"{self.folder / path.name} cannot be read as a model of this version, with Keras {version('keras')} "
                f"({first_line(error)}); it was made by {self.made_by}: use that, or {again}"
            ) from error

    def calibration(self) -> dict[str, Any] | None:
        """What `calibration.calibrate` found; None if nobody asked. Raises UserError if the file is damaged."""
        if not self.calibration_file.exists():
            return None
        try:
            found = read_json(self.calibration_file, CALIBRATION)
            for name, (low, high) in {"temperature": LIMITS, "threshold": (0, 1)}.items():
                if not low <= found[name] <= high:
                    raise ValueError(f"{name} is {found[name]}, not from {low:g} to {high:g}")
        except ValueError as error:
            raise UserError(
                f"{self.folder / PARTS[2]} is damaged ({error}); make it again with `python -m experiments.calibrate "
                f"--run_dir={self.folder}`, or remove it"
            ) from error
        return found

    def metrics(self, subset: str = "test") -> dict[str, Any]:
        """What `evaluate` measured. Raises UserError if the subset has not been evaluated, or the file is damaged."""
        path, remedy = self.evaluation(subset) / "metrics.json", f"`make eval RUN_DIR={self.folder}`"
        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with {remedy}")
        try:
            return read_json(path, METRICS | dict.fromkeys(OF_FRAMES, float if self.of_frames else (float, None)))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); make it again with {remedy}") from error

    @property
    def box_tau(self) -> float | None:
        """The tau of `boxes.action_boxes` that `evaluate` chose for its attention; None if it saw no annotations."""
        if self.pretrained:
            return self.about.get("box_tau")
        if not (self.evaluation("test") / "metrics.json").is_file():
            return None
        boxes = self.metrics().get("localization", {}).get("boxes")
        return boxes["tau"]["attention"] if boxes else None

    def predictions(self, subset: str = "test") -> list[VideoPrediction]:
        """What `evaluate` predicted, read back from `predictions.csv` and `frames.npz`, in their order; float32.

        Raises UserError if the subset has not been evaluated, or the two files do not fit together.
        """
        folder, remedy = self.evaluation(subset), f'`make eval RUN_DIR={self.folder} ARGS="--subset={subset}"`'
        if not (folder / "frames.npz").is_file():
            raise UserError(
                f"{folder} holds no frames.npz, where an evaluation keeps each frame; make it with {remedy}"
            )

        def check(arrays: dict[str, tuple]) -> None:
            (shape, of_probabilities), (maps, of_maps) = arrays["probabilities"], arrays["attention"]
            expected = (ends[-1], len(self.classes))
            if shape != expected or maps[:1] != expected[:1] or len(maps) != 3:
                raise ValueError(f"{expected[0]} frames of {expected[1]} classes expected, not {shape}")
            if {of_probabilities.kind, of_maps.kind} != {"f"}:
                raise ValueError(f"numbers expected, not {of_probabilities} and {of_maps}")

        try:
            rows = [
                (row["video"], self.classes.index(row["label"]), int(row["frames"]))
                for row in _read_csv(folder / "predictions.csv")
            ]
            for name, _, frames in rows:
                check_name(name)
                if frames < 1:
                    raise ValueError(f"{name!r} has {frames} frames")
            if len({name for name, *_ in rows}) < len(rows):
                raise ValueError("a video stands in predictions.csv twice")
            ends = list(accumulate(frames for *_, frames in rows))
            arrays = read_npz(folder / "frames.npz", check)
            attention, probabilities = arrays["attention"], arrays["probabilities"]
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
            lines = [error.strerror or ""] if isinstance(error, OSError) else error.message.splitlines()
            reason = (lines or [type(error).__name__])[0].split("}} ")[-1]
            mend = remedy(error) if isinstance(error, OSError) else "make room"
            raise UserError(
                f"{self.folder} cannot be written to ({reason}); what it holds of the epochs before is whole: {mend}, "
                "then the same command with --resume goes on"
            ) from error


def describe(config: dict[str, Any], cache: FeatureCache, split: dict[str, list[str]]) -> dict[str, Any]:
    """What `run.json` says of any run: its settings, classes, features and videos, versions, machine, git revision."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "classes": class_names(split["train"]),
        "cache": {
            **_made(cache), **({"flow": _made(cache.flow)} if cache.flow else {}),
            "files": {subset: digest for subset, names in split.items() if (digest := files_digest(cache, names))},
        },
        "videos": {subset: len(videos) for subset, videos in split.items()},
        "git": revision or "unknown",
        "versions": {package: version(package) for package in ("tensorflow", "keras", "numpy", "scikit-learn")},
        "machine": f"{platform.machine()}, {platform.platform()}",
    }  # fmt: skip


def from_one(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history with its epochs counted from 1; schema 1 counted them from 0."""
    if not history or history[0].get("epoch") != 0:
        return history
    return [{**of_epoch, "epoch": number} for number, of_epoch in enumerate(history, 1)]


def _made(cache: FeatureCache) -> dict[str, Any]:
    return {
        "folder": str(cache.folder.absolute()), "fingerprint": cache.fingerprint, "settings": cache.settings,
        "cube_shape": list(cache.cube_shape),
    }  # fmt: skip


def pretrained_names() -> list[str]:
    """Of the models that this package brings."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/run.json"))


def pretrained_folder(name: str) -> Path:
    """The folder of a model that this package brings. Raises UserError, which lists them, for another name."""
    names = pretrained_names()
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "this installation has none"
        raise UserError(f"there is no pretrained model {name}: {there}; a run of your own is given by its directory")
    return PRETRAINED / name


def files_digest(cache: Any, names: list[str]) -> str | None:
    """sha256 over the names of some videos and their files' sha256; None where the cache does not know all of them."""
    files = [(name, getattr(cache.videos.get(name), "file_sha256", "")) for name in sorted(names)]
    if not files or not all(sha256 for _, sha256 in files):
        return None
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _read_csv(path: Path) -> list[dict[str, str]]:
    check_plain(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Everything that the next epoch depends on, by path: weights, seeds of dropout, optimizer.

    Seeds have no path, so theirs is their layer's.
    """
    seeds = {
        id(generator.state): f"{layer.path or layer.name}/seed"
        for layer in model._flatten_layers()
        if (generator := getattr(layer, "seed_generator", None))
    }
    metrics = {id(variable) for variable in model.metrics_variables}
    kept = [each for each in [*model.variables, *model.optimizer.variables] if id(each) not in metrics]
    return by_path(kept, seeds)
