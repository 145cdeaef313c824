"""`train`: a config, a feature cache and lists of videos -> a run directory."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorboard.plugins.hparams import api as hparams

from action_attention.clips import Clips, class_names
from action_attention.errors import UserError
from action_attention.evaluation import (
    RUN_SCHEMA_VERSION,
    confusion_png,
    draw_gallery,
    made_by,
    predict_videos,
    read_run,
)
from action_attention.features import FeatureCache, write_json
from action_attention.files import locked
from action_attention.losses import AttentionPenalty, FrameCrossEntropy
from action_attention.metrics import FrameAccuracy, summarize
from action_attention.models import build_model

SCHEDULES = ("constant", "cosine")
PICTURE_EPOCHS = 5  # pictures for TensorBoard after the first epoch and then every so many


class DivergedError(UserError):
    """The loss or a weight is no longer a finite number."""


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters; the defaults are the tutorial's table (README, "Hyper-parameters") for ALSTM."""

    model: str
    clip_length: int = 30
    clip_stride: int | None = None  # None: clips do not overlap
    batch_size: int = 16
    lstm_units: int = 512
    dropout: float = 0.5
    attention_penalty: float = 0.0
    weight_decay: float = 0.0
    normalize: str = "none"
    motion: str = "none"
    channel_dropout: float = 0.0
    head: str = "flatten"
    cells: int = 1
    initial: str = "zeros"
    rescale: bool = False
    ablate: str = "none"
    glimpse: str = "whole"
    mirror: bool = False
    learning_rate: float = 1e-4
    schedule: str = "constant"
    epochs: int = 100
    patience: int = 5
    seed: int = 0
    vote: str = "mode"
    mixed_precision: bool = False

    @classmethod
    def for_model(cls, model: str, **overrides) -> "TrainConfig":
        """The table's values for `model`, except those given and not None."""
        table = {
            "alstm": {"attention_penalty": 0.5},
            # an epoch is long, and few are needed
            "conv_alstm": {"lstm_units": 256, "epochs": 20, "patience": 3},
        }
        given = {key: value for key, value in overrides.items() if value is not None}
        for key, default in (("head", "flatten"), ("initial", "zeros"), ("rescale", False)):
            if given.get(key, default) != default and model != "conv_alstm":
                raise UserError(f"--{key}={given[key]} is for conv_alstm; {model} has hidden vectors, not maps")
        if given.get("cells", 1) != 1 and model == "softmax":
            raise UserError(f"--cells={given['cells']} is for the recurrent models; softmax has no cell")
        if given.get("ablate", "none") != "none" and model in ("conv_alstm", "softmax"):
            raise UserError(f"--ablate={given['ablate']} is for alstm, avg_lstm and max_lstm, not for {model}")
        if given.get("glimpse", "whole") != "whole" and model not in ("alstm", "avg_lstm"):
            raise UserError(f"--glimpse={given['glimpse']} is for alstm and avg_lstm, not for {model}")
        return cls(model, **{**table.get(model, {}), **given})


def train(
    config: TrainConfig,
    cache: FeatureCache,
    split: dict[str, list[str]],
    run_dir: Path,
    *,
    about: dict | None = None,
    read_frames=None,
    callbacks: list[keras.callbacks.Callback] | None = None,
    resume: bool = False,
    verbose: int = 0,
) -> dict:
    """Trains a model and fills a run directory.

    Args:
        config: hyper-parameters.
        cache: features of all videos of the split.
        split: lists of videos `<class>/<file>` under `train`, `validation` and `test`. Early stopping and the choice of
            the best epoch look at `validation`; if it is empty, all epochs are run and the last is kept. `test` is only
            written down.
        run_dir: the run directory.
        about: further entries of `run.json`, such as the names of dataset and split.
        read_frames: name of a video -> its sampled frames (uint8 RGB) or None; for the pictures in TensorBoard.
        callbacks: further ones, called after an epoch's state is written.
        resume: go on from the last finished epoch of the run that is there.
        verbose: Keras' progress bar, 0 or 1.

    Returns:
        the content of `run.json`.

    Raises:
        UserError: the run directory holds a run and `resume` is not asked for, that run is another one or another
            process is at it, its state cannot be read, or what is made cannot be written.
        DivergedError: a loss is not finite.
    """
    classes = class_names(split["train"])
    unknown = set(class_names([name for videos in split.values() for name in videos])) - set(classes)
    if unknown:
        raise UserError(f"the split has no training videos of {', '.join(sorted(unknown))}, which it tests; mend it")
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    run = {**describe(asdict(config), cache, split), **(about or {})}
    with locked(run_dir, f"another training is at work in {run_dir}; wait, or give another --run_dir"):
        if (run_dir / "run.json").exists() or (run_dir / "last_state.npz").exists():
            _check_resumable(run_dir, run, split, resume)
        training = Clips(cache, split["train"], classes, config.clip_length, config.clip_stride)
        validation = Clips(cache, split["validation"], classes, config.clip_length, config.clip_stride)
        # what is saved carries weights only, no optimizer and no losses: it loads without the training code
        state = RunState(run_dir, config, new_model(config, len(classes)), validate=bool(split["validation"]))
        model = new_model(config, len(classes))
        compile_model(model, config, training.steps(config.batch_size))
        with writing(run_dir):
            first_epoch = state.restore(model)
        if not state.finished(first_epoch):
            with writing(run_dir):
                write_json(run_dir / "split.json", split)
                write_json(run_dir / "run.json", run)
                writers = open_logs(run_dir / "logs", first_epoch, config, validate=state.validate)
            callbacks = [Curves(writers), state, *(callbacks or [])]
            if state.validate:
                callbacks.insert(0, VideoValidation(writers["validation"], config, validation, classes, read_frames))
            logging.info(
                "%s: %d training clips of %d videos, %d validation videos, %d classes, features %s",
                config.model, len(training), len(split["train"]), len(split["validation"]), len(classes),
                "in memory" if training.in_memory else "streamed from the cache",
            )  # fmt: skip
            model.fit(
                training.shuffled_batches(
                    config.batch_size, config.seed, range(first_epoch, config.epochs), mirror=config.mirror
                ),
                initial_epoch=first_epoch,
                epochs=config.epochs,
                steps_per_epoch=training.steps(config.batch_size),
                callbacks=callbacks,
                shuffle=False,  # the batches come shuffled
                verbose=verbose,
            )
        run |= {"best": state.best, "epochs": len(state.history), "seconds": state.seconds}
        with writing(run_dir):
            write_json(run_dir / "run.json", run)
    return run


def new_model(config: TrainConfig, classes: int) -> keras.Model:
    """A model with a config's hyper-parameters."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if config.mixed_precision else "float32")
    try:
        return build_model(
            config.model, classes, config.lstm_units, config.dropout, config.weight_decay,
            normalize=config.normalize, motion=config.motion, channel_dropout=config.channel_dropout,
            head=config.head, cells=config.cells, initial=config.initial, rescale=config.rescale, ablate=config.ablate,
            glimpse=config.glimpse,
        )  # fmt: skip
    finally:
        keras.config.set_dtype_policy(previous)


def choose_threads(model: str) -> None:
    """How many threads TensorFlow gives an operation of this model's training; before TensorFlow's first operation.

    ALSTM's products are small: on two cores, sharing each between both takes twice the time of both, a core each does
    not, and its step (T 18, B 16) is 1.4 times as fast so. Of more cores nothing is known: TensorFlow chooses.
    """
    if model != "conv_alstm" and len(os.sched_getaffinity(0)) <= 2:
        tf.config.threading.set_intra_op_parallelism_threads(1)


def compile_model(model: keras.Model, config: TrainConfig, steps: int) -> None:
    """Gives a model its optimizer and losses, so that it can `fit` batches of `Clips`, `steps` of them an epoch."""
    rate = config.learning_rate
    if config.schedule == "cosine":  # from the learning rate to zero over all epochs (Loshchilov & Hutter 2017)
        rate = keras.optimizers.schedules.CosineDecay(rate, config.epochs * steps)
    model.compile(
        keras.optimizers.Adam(rate),
        loss={"logits": FrameCrossEntropy(), "attention": AttentionPenalty(config.attention_penalty)},
        metrics={"logits": [FrameAccuracy()]},
        jit_compile=False,  # on CPUs XLA makes the unrolled ConvLSTM several times slower
    )


def open_logs(
    folder: Path, first_epoch: int, config: TrainConfig, validate: bool
) -> dict[str, tf.summary.SummaryWriter]:
    """TensorBoard's writers for `train` and, with `validate`, `validation`, with the hyper-parameters in them.

    What a stopped run wrote of epochs that are done again is removed, so that every epoch stands there once.
    """
    for path in folder.glob("*/events.out.tfevents.*"):
        size = 0
        # epochs are in order, and a killed process leaves half a record at the end
        for event in tf.data.TFRecordDataset(str(path)).ignore_errors().as_numpy_iterator():
            if tf.compat.v1.Event.FromString(event).step >= first_epoch:
                break
            size += len(event) + 16  # the record's length and two checksums
        os.truncate(path, size)
    sides = ("train", "validation")[: 1 + validate]
    writers = {side: tf.summary.create_file_writer(str(folder / side)) for side in sides}
    if validate and first_epoch == 0:
        with writers["validation"].as_default():
            hparams.hparams({key: value for key, value in asdict(config).items() if value is not None})
    return writers


class Curves(keras.callbacks.Callback):
    """Writes each epoch's numbers for TensorBoard, named as Keras' own callback names them.

    They are on disk before the epoch's state is: Keras' callback keeps them in memory for up to two minutes, and a kill
    would leave a hole in the curves.
    """

    def __init__(self, writers: dict[str, tf.summary.SummaryWriter]):
        super().__init__()
        self.writers = writers

    def on_epoch_end(self, epoch, logs=None):
        numbers = {**logs, "learning_rate": float(self.model.optimizer.learning_rate)}
        for name, value in numbers.items():
            with self.writers["validation" if name.startswith("val_") else "train"].as_default(epoch):
                tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value)
        for writer in self.writers.values():
            writer.flush()


class VideoValidation(keras.callbacks.Callback):
    """Adds accuracies of the validation videos to the epoch's logs, and to TensorBoard the confusion matrix and the
    gaze over real frames of a few videos."""

    def __init__(self, writer: tf.summary.SummaryWriter, config: TrainConfig, clips: Clips, classes, read_frames):
        super().__init__()
        self.writer, self.config, self.clips, self.classes = writer, config, clips, classes
        self.read_frames = read_frames

    def on_epoch_end(self, epoch, logs=None):
        predictions = predict_videos(self.model, self.clips, self.config.batch_size)
        metrics = summarize(predictions, self.classes, self.config.vote)
        for key in ("video_top1", "clip_top1", "frame_top1", "cross_entropy"):
            logs[f"val_{key}"] = metrics[key]
        if epoch % PICTURE_EPOCHS:
            return
        with self.writer.as_default(epoch):
            confusion = confusion_png(np.array(metrics["confusion"]), self.classes)
            tf.summary.image("confusion", tf.image.decode_png(confusion, channels=3)[None])
            picture = draw_gallery(predictions, self.classes, self.config.vote, self.read_frames)
            if picture is not None:
                tf.summary.image("attention", picture[None])


class RunState(keras.callbacks.Callback):
    """Keeps the best model, the last state and the history; stops after `patience` epochs without a better one.

    Better is a higher video accuracy on the validation videos, on a tie a lower cross-entropy. Without validation the
    last epoch counts as the best. An epoch counts when `last_state.npz` has its name; what was written before that is
    done again, what comes after it (`_settle`) is made up for by `restore`.
    """

    def __init__(self, run_dir: Path, config: TrainConfig, best_model: keras.Model, validate: bool):
        super().__init__()
        self.run_dir, self.config, self.best_model, self.validate = run_dir, config, best_model, validate
        self.history, self.best, self.seconds = [], None, 0.0

    def restore(self, model: keras.Model) -> int:
        """Puts the last finished epoch's state into a freshly built model; returns the next epoch's number.

        Raises UserError if the state is damaged or of another version.
        """
        model.optimizer.build(model.trainable_variables)
        path, variables = self.run_dir / "last_state.npz", _state_variables(model)
        if path.is_file():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                    kept = json.loads(str(saved["progress"]))
                    arrays = [saved[name] for name in saved.files if name != "progress"]
                self.history, self.best, self.seconds = kept["history"], kept["best"], kept["seconds"]
                if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
                    raise ValueError("it has other variables than the model")
            except Exception as error:  # NumPy raises whatever its parts raise
                raise UserError(
                    f"{path} is damaged or of another version ({error}); train again with another --run_dir, or use "
                    f"the version that made it: {made_by(read_run(self.run_dir)[0])}"
                ) from error
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
            self._settle()
        for part in [*self.run_dir.glob("*.part"), *self.run_dir.glob("*.part.*")]:
            part.unlink()
        return len(self.history)

    def finished(self, epoch: int) -> bool:
        waited = epoch - 1 - self.best["epoch"] if self.best else 0
        return epoch >= self.config.epochs or (self.validate and waited >= self.config.patience)

    def on_train_begin(self, logs=None):
        self._started = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        # the loss is the mean since the epoch's start, so it is not finite from the first such step on
        if not np.isfinite(logs["loss"]):
            raise self._diverged(f"the loss is {logs['loss']} in epoch {self._epoch}, step {batch}")

    def on_epoch_end(self, epoch, logs=None):
        logs = {key: float(value) for key, value in logs.items()}
        arrays = {f"variable_{i:03}": np.array(v) for i, v in enumerate(_state_variables(self.model))}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._diverged(f"the last step of epoch {epoch} left weights that are not finite")
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        self.history.append({"epoch": epoch, "seconds": self.seconds, **logs})
        score = (logs["val_video_top1"], -logs["val_cross_entropy"]) if self.validate else (epoch, 0)
        better = self.best is None or score > tuple(self.best["score"])
        if better:
            self.best = {"epoch": epoch, "score": score, **logs}
        progress = {"history": self.history, "best": self.best, "seconds": self.seconds}
        part = self.run_dir / "last_state.part.npz"
        with writing(self.run_dir):
            try:
                if better:
                    self.best_model.set_weights(self.model.get_weights())
                    self.best_model.save(self._next_model)
                np.savez(part, progress=np.array(json.dumps(progress)), **arrays)
                part.replace(self.run_dir / "last_state.npz")
            except OSError:
                part.unlink(missing_ok=True)
                self._next_model.unlink(missing_ok=True)
                raise
            self._settle()
        shown = ("loss", "logits_frame_top1", "val_video_top1", "val_cross_entropy")
        logging.info("epoch %d: %s", epoch, ", ".join(f"{key} {logs[key]:.4f}" for key in shown if key in logs))
        if self.finished(epoch + 1):
            self.model.stop_training = True

    @property
    def _next_model(self) -> Path:
        """The best model until the state that says so is written; its epoch tells it from one that was cut off."""
        return self.run_dir / f"model-{self.best['epoch']}.part.keras"

    def _settle(self) -> None:
        """Brings `model.keras` and `history.json` in line with the state."""
        if self._next_model.exists():
            self._next_model.replace(self.run_dir / "model.keras")
        write_json(self.run_dir / "history.json", self.history)

    def _diverged(self, what: str) -> DivergedError:
        kept = f"keeps the state of epoch {len(self.history) - 1}" if self.history else "holds no state yet"
        return DivergedError(f"{what}; {self.run_dir} {kept}, train anew with a smaller --learning_rate")


def _state_variables(model: keras.Model) -> list[keras.Variable]:
    """Everything that the next epoch depends on: weights, seeds of dropout, optimizer."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in metrics]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what a full or broken disk raises into a UserError."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        # TensorFlow says it in several lines, the first after the name of an operation in braces
        reason = error.strerror if isinstance(error, OSError) else error.message.splitlines()[0].rpartition("}} ")[2]
        raise UserError(
            f"{folder} cannot be written to ({reason}); what it holds of the epochs before is whole: make room, then "
            "the same command with --resume goes on"
        ) from error


def _check_resumable(run_dir: Path, run: dict, split: dict[str, list[str]], resume: bool) -> None:
    if not resume:
        raise UserError(f"{run_dir} already holds a run; give another --run_dir, or --resume to go on with this one")
    there, videos = read_run(run_dir)
    unknown = there["config"].keys() - run["config"].keys()
    if unknown:
        raise UserError(
            f"{run_dir} has settings that this version does not know ({', '.join(sorted(unknown))}); resume it with "
            f"the version that made it ({made_by(there)}), or give another --run_dir"
        )
    config = asdict(TrainConfig(**there["config"]))  # with the defaults of what a run of an older version does not say
    free = ("patience",) if config["schedule"] == "cosine" else ("epochs", "patience")
    for key, value in run["config"].items():
        if key not in free and config[key] != value:
            raise UserError(
                f"{run_dir} was trained with {key}={config[key]}, now {key}={value} is asked for; "
                "resume with the same settings, or give another --run_dir"
            )
    if there["cache"]["fingerprint"] != run["cache"]["fingerprint"]:
        raise UserError(
            f"{run_dir} was trained on other features than {run['cache']['folder']}; give it the same cache"
        )
    for subset, names in split.items():
        if videos[subset] != names:
            changed = len(set(videos[subset]) ^ set(names))
            raise UserError(
                f"{run_dir} has other {subset} videos than are asked for now ({changed} differ); resume with the same "
                "--splits, --split and --validation, or give another --run_dir"
            )


def describe(config: dict, cache: FeatureCache, split: dict[str, list[str]]) -> dict:
    """What `run.json` says of any run: its settings, classes, features and videos, versions, machine, git revision."""
    git = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "schema_version": RUN_SCHEMA_VERSION,
        "config": config,
        "classes": class_names(split["train"]),
        "cache": {"folder": str(cache.folder.absolute()), "fingerprint": cache.fingerprint, "settings": cache.settings},
        "videos": {subset: len(videos) for subset, videos in split.items()},
        "git": revision or "unknown",
        "versions": {package: version(package) for package in ("tensorflow", "keras", "numpy", "scikit-learn")},
        "machine": f"{platform.machine()}, {platform.platform()}",
    }
