"""`train`: a config, a feature cache and lists of videos -> a run directory."""

import json
import math
import os
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from tensorboard.plugins.hparams import api as hparams

from action_attention.clips import Clips, check_flow, class_names
from action_attention.devices import OnDevices, equal_shares, strategy_on
from action_attention.errors import UserError
from action_attention.evaluation import ReadFrames, confusion_png, draw_cards, predict_videos
from action_attention.features import FeatureCache, write_json
from action_attention.files import locked
from action_attention.loss import losses
from action_attention.memory import check_address_space, check_memory, enough_memory, weight_shapes
from action_attention.metrics import FrameAccuracy, summarize
from action_attention.model_file import new_model
from action_attention.models import ActionModel
from action_attention.registry import Config, all_settings, find_model, renamed
from action_attention.runs import Run, describe, from_one, state_variables
from action_attention.untrusted import parse_json, read_npz

PICTURE_EPOCHS = 5  # pictures for TensorBoard after the first epoch and then every so many
# what a state says beside its arrays, as `untrusted.complaint` takes it
PROGRESS = {
    "history": [{str: float}], "seconds": float,
    "best": {"epoch": int, "score": [float, float], "val_video_top1?": float, "val_cross_entropy?": float},
}  # fmt: skip


class DivergedError(UserError):
    """The loss or a weight is no longer a finite number."""


def train(
    config: Config,
    cache: FeatureCache,
    split: dict[str, list[str]],
    run_dir: Path,
    *,
    about: dict[str, Any] | None = None,
    read_frames: ReadFrames | None = None,
    callbacks: list[keras.callbacks.Callback] | None = None,
    resume: bool = False,
    devices: list[str] | None = None,
) -> dict[str, Any]:
    """Trains a model and fills a run directory.

    Args:
        config: the model and all settings.
        cache: features of all videos of the split.
        split: lists of videos `<class>/<file>` under `train`, `validation` and `test`. Early stopping and the choice of
            the best epoch look at `validation`; if it is empty, all epochs are run and the last is kept. `test` is only
            written down.
        run_dir: the run directory.
        about: further entries of `run.json`, such as the names of dataset and split.
        read_frames: name of a video -> its sampled frames (uint8 RGB) or None; for the pictures in TensorBoard.
        callbacks: further ones, called after an epoch's state is written.
        resume: go on from the last finished epoch of the run that is there.
        devices: names of several devices that share every batch (`devices.find_devices`); without, there is one.

    Returns:
        the content of `run.json`.

    Raises:
        UserError: the run directory holds a run and `resume` is not asked for, that run is another one or another
            process is at it, its state cannot be read, what is made cannot be written, or memory is too small.
        DivergedError: a loss is not finite.
    """
    classes, options = class_names(split["train"]), config.training
    unknown = set(class_names([name for videos in split.values() for name in videos])) - set(classes)
    if unknown:
        raise UserError(
            f"the split has no training videos of {', '.join(sorted(unknown))}, although it tests them; correct it"
        )
    check_flow(config.settings, cache)
    _check_memory(config, cache, split["train"], len(classes))
    keras.utils.set_random_seed(options.seed)
    tf.config.experimental.enable_op_determinism()
    about = {**(about or {}), "devices": len(devices or [1])}
    run = Run(Path(run_dir), {**describe(config.flat(), cache, split), **about}, split)
    with (
        locked(run.folder, f"another training is at work in {run_dir}; wait, or give another --run_dir"),
        enough_memory(f"{config.model} was trained in {run_dir}"),
        cache.reading(),
    ):
        if run.exists:
            _check_resumable(run, resume)
        cut: dict[str, Any] = {
            "stride": options.clip_stride, "motion": config.settings.takes_motion, "flow": config.settings.takes_flow
        }  # fmt: skip
        training = Clips(cache, split["train"], classes, options.clip_length, mirror=options.mirror, **cut)
        steps = training.steps(options.batch_size)
        options = replace(options, epochs=max(options.epochs, math.ceil(options.min_steps / steps)))
        config = replace(config, training=options)
        validation = Clips(cache, split["validation"], classes, options.clip_length, **cut)
        # what is saved carries weights only, no optimizer and no losses: it loads without the training code
        state = RunState(run, config, new_model(config, len(classes), *cache.cube_shapes))
        with strategy_on(*devices).scope() if devices else nullcontext():
            model: keras.Model = new_model(config, len(classes), *cache.cube_shapes)
            if devices:
                model = OnDevices(model, state.best_model)
            compile_model(model, config, steps)
            with run.writing():
                first_epoch = state.restore(model)
        if not state.finished(first_epoch):
            run.write()
            with run.writing():
                writers = open_logs(run.logs, first_epoch, config, validate=state.validate)
            callbacks = [Curves(run, writers), state, *(callbacks or [])]
            if state.validate:
                validated = VideoValidation(run, writers["validation"], config, validation, classes, read_frames)
                callbacks.insert(0, validated)
            logging.info(
                "%s: %d training clips of %d videos, %d validation videos, %d classes, features %s",
                config.model, len(training), len(split["train"]), len(split["validation"]), len(classes),
                "in memory" if training.in_memory else "streamed from the cache",
            )  # fmt: skip
            epochs = range(first_epoch, options.epochs)
            batches = training.shuffled_batches(options.batch_size, options.seed, epochs)
            model.fit(
                equal_shares(batches, len(devices)) if devices else batches,
                initial_epoch=first_epoch,
                epochs=options.epochs,
                steps_per_epoch=steps,
                callbacks=callbacks,
                shuffle=False,  # the batches come shuffled
                verbose=0,
            )
        run.about |= {"best": state.best, "epochs": len(state.history), "seconds": state.seconds}
        run.write()
    return run.about


def choose_threads(model: str) -> None:
    """How many threads TensorFlow gives an operation of this model's training; before TensorFlow's first operation.

    ALSTM's products are small: on two cores, sharing each between both takes twice the time of both, a core each does
    not, and its step (T 18, B 16) is 1.4 times as fast so. Of more cores nothing is known: TensorFlow chooses.
    """
    if find_model(model).build.small_operations and len(os.sched_getaffinity(0)) <= 2:
        tf.config.threading.set_intra_op_parallelism_threads(1)


def compile_model(model: keras.Model, config: Config, steps: int) -> None:
    """Gives a model its optimizer and losses, so that it can `fit` batches of `Clips`, `steps` of them an epoch."""
    rate = config.training.learning_rate
    if (
        config.training.schedule == "cosine"
    ):  # from the learning rate to zero over all epochs (Loshchilov & Hutter 2017)
        rate = keras.optimizers.schedules.CosineDecay(rate, config.training.epochs * steps)
    model.compile(
        keras.optimizers.Adam(rate, name="adam"),
        loss=losses(config.training.attention_penalty),
        metrics={"logits": [FrameAccuracy()]},
        jit_compile=False,  # on CPUs XLA makes the unrolled ConvLSTM several times slower
    )


def open_logs(folder: Path, first_epoch: int, config: Config, validate: bool) -> dict[str, tf.summary.SummaryWriter]:
    """TensorBoard's writers for `train` and, with `validate`, `validation`, with the hyper-parameters in them.

    What a stopped run wrote of epochs that are done again is removed, so that every epoch stands there once.
    """
    for path in folder.glob("*/events.out.tfevents.*"):
        os.truncate(path, _size_until(path, first_epoch + 1 if first_epoch else 0))
    sides = ("train", "validation")[: 1 + validate]
    writers = {side: tf.summary.create_file_writer(str(folder / side)) for side in sides}
    if first_epoch == 0:
        run = folder.absolute().parent  # in HParams, a row is called as the run
        settings = {key: value for key, value in config.flat().items() if value is not None}
        with writers[sides[-1]].as_default():
            hparams.hparams(settings, trial_id=f"{run.name} ({run.parent})")
    return writers


class Curves(keras.callbacks.Callback):
    """Writes each epoch's numbers for TensorBoard, named as Keras' own callback names them.

    They are on disk before the epoch's state is: Keras' callback keeps them in memory for up to two minutes, and a kill
    would leave a hole in the curves.
    """

    def __init__(self, run: Run, writers: dict[str, tf.summary.SummaryWriter]):
        super().__init__()
        self.run, self.writers = run, writers

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        numbers = {**logs, "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))}
        with self.run.writing():
            for name, value in numbers.items():
                with self.writers["validation" if name.startswith("val_") else "train"].as_default(epoch + 1):
                    tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value)
            for writer in self.writers.values():
                writer.flush()


class VideoValidation(keras.callbacks.Callback):
    """Adds accuracies of the validation videos to the epoch's logs, and to TensorBoard the confusion matrix and the
    gaze over real frames of a few videos."""

    def __init__(
        self, run: Run, writer: tf.summary.SummaryWriter, config: Config, clips: Clips, classes: list[str],
        read_frames: ReadFrames | None,
    ):  # fmt: skip
        super().__init__()
        self.run, self.writer, self.config, self.clips, self.classes = run, writer, config, clips, classes
        self.read_frames = read_frames

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        predictions = predict_videos(self.model, self.clips, self.config.training.batch_size)
        metrics = summarize(predictions, self.classes, self.config.training.vote)
        for key in ("video_top1", "clip_top1", "frame_top1", "cross_entropy"):
            logs[f"val_{key}"] = metrics[key]
        if epoch % PICTURE_EPOCHS:
            return
        with self.run.writing(), self.writer.as_default(epoch + 1):
            confusion = confusion_png(np.array(metrics["confusion"]), self.classes)
            tf.summary.image("confusion", tf.image.decode_png(confusion, channels=3)[None])
            if find_model(self.config.model).build.has_attention:
                cards = draw_cards(predictions, self.classes, self.config.training.vote, self.read_frames)
                for name, picture in cards.items():
                    tf.summary.image(f"attention/{name}", picture[None])


class RunState(keras.callbacks.Callback):
    """Keeps the best model, the last state and the history; stops after `patience` epochs without a better one.

    Better is a higher video accuracy on the validation videos, on a tie a lower cross-entropy. Without validation the
    last epoch counts as the best. An epoch counts when `last_state.npz` has its name; what was written before that is
    done again, what comes after it (`_settle`) is made up for by `restore`.
    """

    def __init__(self, run: Run, config: Config, best_model: ActionModel):
        super().__init__()
        self.run, self.training, self.best_model = run, config.training, best_model
        self.validate = bool(run.split["validation"])
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0

    def restore(self, model: keras.Model) -> int:
        """Puts the last finished epoch's state into a freshly built model; returns the next epoch's number.

        Raises UserError if the state is damaged or of another version.
        """
        model.optimizer.build(model.trainable_variables)
        path, variables = self.run.state_file, state_variables(model)
        if path.is_file():
            try:
                arrays = read_npz(path, lambda arrays: _check_state(arrays, variables))
                kept = parse_json(str(arrays["progress"]), PROGRESS)
                self.history, self.best, self.seconds = kept["history"], kept["best"], kept["seconds"]
            except Exception as error:  # NumPy raises whatever its parts raise
                raise UserError(
                    f"{path} is damaged or of another version ({error}); train again with another --run_dir, or use "
                    f"the version that made it: {Run.open(self.run.folder).made_by}"
                ) from error
            for name, variable in variables.items():
                variable.assign(arrays[name])
            self._settle()
            if from_one(self.history) != self.history:
                self.history, self.best["epoch"] = from_one(self.history), self.best["epoch"] + 1
        for part in [*self.run.folder.glob("*.part"), *self.run.folder.glob("*.part.*")]:
            part.unlink()
        return len(self.history)

    def finished(self, epoch: int) -> bool:
        """Whether training ends after so many epochs."""
        waited = epoch - self.best["epoch"] if self.best else 0
        return epoch >= self.training.epochs or (self.validate and waited >= self.training.patience)

    def on_train_begin(self, logs: Any = None) -> None:
        self._started = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # the loss is the mean since the epoch's start, so it is not finite from the first such step on
        if not np.isfinite(logs["loss"]):
            raise self._diverged(f"the loss is {logs['loss']} in epoch {self._epoch + 1}, step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = {key: float(value) for key, value in logs.items()}
        arrays: dict[str, Any] = {name: np.array(variable) for name, variable in state_variables(self.model).items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._diverged(f"the last step of epoch {epoch + 1} left weights that are not finite")
        now = time.monotonic()
        self.seconds, self._started = self.seconds + now - self._started, now
        self.history.append({"epoch": epoch + 1, "seconds": self.seconds, **logs})
        score = (logs["val_video_top1"], -logs["val_cross_entropy"]) if self.validate else (epoch, 0)
        better = not self.best or score > tuple(self.best["score"])
        if better:
            self.best = {"epoch": epoch + 1, "score": score, **logs}
        progress = {"history": self.history, "best": self.best, "seconds": self.seconds}
        part = self.run.state_file.with_suffix(".part.npz")
        with self.run.writing():
            try:
                if better:
                    self.best_model.set_weights(self.model.get_weights())
                    self.best_model.save(self._next_model)
                np.savez(part, progress=np.array(json.dumps(progress)), **arrays)
                part.replace(self.run.state_file)
            except OSError:
                part.unlink(missing_ok=True)
                self._next_model.unlink(missing_ok=True)
                raise
            self._settle()
        if self.finished(epoch + 1):
            self.model.stop_training = True

    @property
    def _next_model(self) -> Path:
        """The best model until the state that says so is written; its epoch tells it from one that was cut off."""
        return self.run.folder / f"model-{self.best['epoch']}.part.keras"

    def _settle(self) -> None:
        """Brings `model.keras` and `history.json` in line with the state; a calibration is of the model before."""
        if self._next_model.exists():
            self.run.calibration_file.unlink(missing_ok=True)
            self._next_model.replace(self.run.model_file)
        write_json(self.run.history_file, self.history)

    def _diverged(self, what: str) -> DivergedError:
        kept = f"keeps the state of epoch {len(self.history)}" if self.history else "holds no state yet"
        return DivergedError(f"{what}; {self.run.folder} {kept}, train anew with a smaller --learning_rate")


def _check_state(arrays: dict[str, tuple], variables: dict[str, keras.Variable]) -> None:
    """Raises ValueError unless arrays, by their shapes and types, are a model's variables and `progress`."""
    if any(name.startswith("variable_") for name in arrays):
        raise ValueError("its arrays have no names, as those of version 0.1")
    there = {name: (shape, str(dtype)) for name, (shape, dtype) in arrays.items() if name != "progress"}
    wanted = {name: (tuple(variable.shape), variable.dtype) for name, variable in variables.items()}
    if wrong := [name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name)]:
        raise ValueError(f"it and the model differ in {', '.join(sorted(wrong)[:3])}")


def _size_until(path: Path, epoch: int) -> int:
    """Bytes of an events file before its first record of that epoch, from 1, or a later one, or that is damaged.

    Epochs are in order, and a killed process leaves half a record at the end.
    """
    size, end = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:  # a record is its length, a checksum of that, its bytes, a checksum
            record = size + 16 + int.from_bytes(head[:8], "little")
            if record > end:
                break
            try:
                event = tf.compat.v1.Event.FromString(file.read(record - size - 16))
            except DecodeError:
                break
            if event.step >= epoch:
                break
            size = record
            file.seek(size)
    return size


def _check_memory(config: Config, cache: FeatureCache, videos: list[str], classes: int) -> None:
    """Raises UserError if there is too little for this training."""
    check_address_space()
    length, stride = config.training.clip_length, config.training.clip_stride or config.training.clip_length
    frames = [cache.videos[name].frames for name in videos if name in cache.videos]
    if frames:
        weights = weight_shapes(lambda: new_model(config, classes), *cache.cube_shapes)
        clips = sum(1 + max(0, -(-(of_video - length) // stride)) for of_video in frames)
        check_memory(config, weights, cache.cube_shapes, clips, trained=True)


def _check_resumable(run: Run, resume: bool) -> None:
    """Raises UserError unless the run that is there is the one that is asked for."""
    run_dir, asked = run.folder, run.about
    if not resume:
        raise UserError(f"{run_dir} already holds a run; give another --run_dir, or --resume to go on with this one")
    there = Run.open(run_dir)
    unknown = renamed(there.about["config"]).keys() - all_settings().keys() - {"model"}
    if unknown:
        raise UserError(
            f"{run_dir} has settings that this version does not know ({', '.join(sorted(unknown))}); resume it with "
            f"the version that made it ({there.made_by}), or give another --run_dir"
        )
    settings = there.config.flat()
    free = ("patience",) if settings["schedule"] == "cosine" else ("epochs", "patience")
    for key, value in asked["config"].items():
        if key not in free and settings.get(key) != value:
            raise UserError(
                f"{run_dir} was trained with {key}={settings.get(key)}, now {key}={value} is asked for; "
                "resume with the same settings, or give another --run_dir"
            )
    made = [
        [each.get("fingerprint"), each.get("flow", {}).get("fingerprint")]
        for each in (there.about["cache"], asked["cache"])
    ]
    if made[0] != made[1]:
        raise UserError(
            f"{run_dir} was trained on other features than {asked['cache']['folder']}; give it the same cache"
        )
    for subset, names in run.split.items():
        if (listed := there.split.get(subset, [])) != names:
            changed = len(set(listed) ^ set(names))
            raise UserError(
                f"{run_dir} has other {subset} videos than are asked for now ({changed} differ); resume with the same "
                "--splits, --split and --validation, or give another --run_dir"
            )
        before, now = (about["cache"].get("files", {}).get(subset) for about in (there.about, asked))
        if before and now and before != now:
            raise UserError(
                f"{run_dir} was trained on other files of the {subset} videos than {asked['cache']['folder']} holds; "
                "give it the same cache"
            )
