"""A trained run -> what it says of each video, accuracies with intervals, and their files in the run directory."""

import csv
import io
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import keras
import numpy as np
from matplotlib.figure import Figure
from scipy.special import log_softmax

from action_attention import models  # registers the classes that a saved model names
from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.features import FeatureCache, write_json
from action_attention.localization import localize
from action_attention.metrics import VideoPrediction, rank_classes, summarize
from action_attention.overlays import gallery

SUBSETS = ("train", "validation", "test")
GALLERY_VIDEOS = 6
RUN_SCHEMA_VERSION = 1  # of run.json; one that is not said is 1


def predict_videos(model: keras.Model, clips: Clips, batch_size: int) -> list[VideoPrediction]:
    """What the model says of each video of `clips`, in their order; every frame counts once, padded frames nowhere."""
    outputs = model.predict(clips.batches(batch_size), verbose=0)
    logs = log_softmax(outputs["logits"].astype(np.float64), axis=-1)
    of_video: dict[str, list[int]] = {name: [] for name in clips.videos}
    for index, clip in enumerate(clips.clips):
        of_video[clip.video].append(index)
    predictions = []
    for name, indices in of_video.items():
        frames, label = clips.video_frames[name], clips.labels[name]
        probabilities = np.zeros((frames, logs.shape[-1]))
        attention = np.zeros((frames, *outputs["attention"].shape[2:]))
        seen = np.zeros(frames)
        of_clips, losses = [], []
        for index in indices:
            clip = clips.clips[index]
            span = slice(clip.start, clip.start + clip.frames)
            of_clips.append(np.exp(logs[index, : clip.frames]))
            if label is not None:
                losses.append(-logs[index, : clip.frames, label].mean())
            probabilities[span] += of_clips[-1]
            attention[span] += outputs["attention"][index, : clip.frames]
            seen[span] += 1
        probabilities /= seen[:, None]
        attention /= seen[:, None, None]
        loss = float(np.mean(losses)) if losses else None
        predictions.append(VideoPrediction(name, label, probabilities, attention, of_clips, loss))
    return predictions


def read_run(run_dir: Path, *, of_frames: bool = True, finished: bool = False) -> tuple[dict, dict[str, list[str]]]:
    """`run.json` and the lists of videos by subset.

    Raises UserError if there is no run, if a newer version made it, with `of_frames` if its model decides on whole
    videos, and with `finished` if its training has not come to its end.
    """
    try:
        run, split = (json.loads((run_dir / name).read_text()) for name in ("run.json", "split.json"))
        model, schema = run["config"]["model"], run.get("schema_version", 1)
    except OSError as error:
        raise UserError(f"{run_dir} holds no training run ({error}); make one with `make train`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run_dir}: run.json or split.json is damaged ({error}); train again elsewhere") from error
    if schema > RUN_SCHEMA_VERSION:
        raise UserError(
            f"{run_dir} is a run of schema {schema}, this version reads up to {RUN_SCHEMA_VERSION}; use the version "
            f"that made it: {made_by(run)}"
        )
    if of_frames and model not in models.MODEL_NAMES:
        raise UserError(
            f"{run_dir} is a run of {model}, which decides on whole videos and says nothing of their frames: it was "
            "evaluated as it was made, and `python -m experiments.table` shows it"
        )
    if finished and "best" not in run:
        raise UserError(f"{run_dir} is in training or was stopped in it; go on with --resume, then evaluate it")
    return run, split


def made_by(run: dict) -> str:
    """The versions that made a run, for a sentence about one that cannot be read."""
    versions = [f"{package} {number}" for package, number in run.get("versions", {}).items()]
    return ", ".join([f"git {run.get('git', 'unknown')[:12]}", *versions])


def load_model(run_dir: Path) -> keras.Model:
    """A run's best model. Raises UserError if there is none yet, it cannot be read, or it is not the run's."""
    run, _ = read_run(run_dir)
    path = run_dir / "model.keras"
    if not path.is_file():
        raise UserError(f"{run_dir} holds no model.keras yet; let at least one epoch of `make train` finish")
    try:
        # safe mode: nothing in the file is run as code
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{path} cannot be read as a model of this version, with Keras {version('keras')} ({reason}); it was made "
            f"by {made_by(run)}: use that, or train again"
        ) from error
    settings = model.get_config() if isinstance(model, models.ActionModel) else {}
    wanted = {"name": run["config"]["model"], "classes": len(run["classes"])}
    wanted |= {key: value for key, value in run["config"].items() if key in settings}
    for key, value in wanted.items():
        if settings.get(key) != value:
            raise UserError(
                f"{path} is not this run's model: it has {key}={settings.get(key)}, run.json says {key}={value}; put "
                "back the file that belongs here, or train again"
            )
    model.compile(jit_compile=False)
    return model


def evaluate(
    run_dir: Path, cache: FeatureCache, subset: str = "test", vote: str | None = None, read_frames=None, read_actor=None
) -> dict:
    """Evaluates a run's best model and writes `eval/<subset>/` into the run directory.

    Args:
        run_dir: the run directory.
        cache: features made as those that the model was trained on.
        subset: `train`, `validation` or `test`.
        vote: `mode` or `mean`; None for the one that the run was trained with.
        read_frames: name of a video -> its sampled frames, uint8 `(frames, height, width, 3)`, or None where they
            cannot be had; used for `attention.png`.
        read_actor: name of a video -> the `localization.Actor` in its sampled frames, or None where it is not
            annotated; used for the metrics under `localization`.

    Returns:
        the content of `metrics.json`.

    Raises:
        UserError: the run, the cache and the subset do not fit together.
    """
    run, split = read_run(run_dir, finished=True)
    model = load_model(run_dir)
    for key, value in run["cache"]["settings"].items():
        if key != "weights" and cache.settings.get(key) != value:
            raise UserError(
                f"{cache.folder} has {key}={cache.settings.get(key)}, but {run_dir} was trained with {key}={value}; "
                "give --features the cache that it was trained on, or one that was extracted alike"
            )
    if not split[subset]:
        raise UserError(f"{run_dir} has no {subset} videos")
    config = run["config"]
    clips = Clips(cache, split[subset], run["classes"], config["clip_length"], config["clip_stride"], in_memory=False)
    predictions = predict_videos(model, clips, config["batch_size"])
    metrics = {
        "dataset": run["dataset"],
        "split": run["split"],
        "validation": run["validation"],
        "subset": subset,
        "model": config["model"],
        "seed": config["seed"],
        "weights": run["cache"]["settings"]["weights"],
        **summarize(predictions, run["classes"], vote or config["vote"]),
    }
    if read_actor:
        metrics["localization"] = localize(predictions, run["classes"], read_actor)
    output = run_dir / "eval" / subset
    output.mkdir(parents=True, exist_ok=True)
    frames_path = output / "frames.npz"
    frames_path.unlink(missing_ok=True)  # it comes last: where it is, all files are of one evaluation
    write_json(output / "metrics.json", metrics)
    _write_predictions(output / "predictions.csv", predictions, run["classes"], metrics["vote"])
    (output / "confusion.png").write_bytes(confusion_png(np.array(metrics["confusion"]), run["classes"]))
    picture = draw_gallery(predictions, run["classes"], metrics["vote"], read_frames)
    if picture is not None:
        (output / "attention.png").write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])
    _write_frames(frames_path, predictions)
    return metrics


def read_predictions(run_dir: Path, subset: str = "test") -> list[VideoPrediction]:
    """What `evaluate` predicted, read back from `predictions.csv` and `frames.npz`, in their order; float32.

    Raises:
        UserError: the subset has not been evaluated, or the two files do not fit together.
    """
    run, _ = read_run(run_dir)
    folder, remedy = run_dir / "eval" / subset, f'`make eval RUN_DIR={run_dir} ARGS="--subset={subset}"`'
    if not (folder / "frames.npz").is_file():
        raise UserError(f"{folder} holds no frames.npz, where an evaluation keeps each frame; make it with {remedy}")
    try:
        with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = [
                (row["video"], run["classes"].index(row["label"]), int(row["frames"])) for row in csv.DictReader(file)
            ]
        with (folder / "frames.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            attention, probabilities = arrays["attention"], arrays["probabilities"]
        ends = np.cumsum([frames for *_, frames in rows])
        expected = (ends[-1], len(run["classes"]))
        if probabilities.shape != expected or attention.shape[:1] != expected[:1] or attention.ndim != 3:
            raise ValueError(f"{expected[0]} frames of {expected[1]} classes expected, not {probabilities.shape}")
    except Exception as error:  # NumPy raises whatever its parts raise
        raise UserError(
            f"the files in {folder} do not fit together ({error}); make them again with {remedy}"
        ) from error
    parts = zip(rows, np.split(probabilities, ends[:-1]), np.split(attention, ends[:-1]), strict=True)
    return [VideoPrediction(name, label, of_class, where) for (name, label, _), of_class, where in parts]


def draw_gallery(predictions: list[VideoPrediction], classes: list[str], vote: str, read_frames) -> np.ndarray | None:
    """Annotated overlays of the first video of each of GALLERY_VIDEOS classes; None if their frames cannot be had.

    Which videos depends on their order and classes only, so that it is the same ones in every epoch.
    """
    first_of_class = {prediction.label: prediction for prediction in reversed(predictions)}
    chosen = [first_of_class[label] for label in sorted(first_of_class)]
    step = max(1, len(chosen) // GALLERY_VIDEOS)
    rows = []
    for prediction in chosen[::step][:GALLERY_VIDEOS] if read_frames else []:
        frames = read_frames(prediction.name)
        if frames is None or len(frames) != len(prediction.attention):
            return None
        rows.append((prediction, frames))
    return gallery(rows, classes, vote) if rows else None


def confusion_png(confusion: np.ndarray, classes: list[str]) -> bytes:
    """The confusion matrix (rows: true class; shares of the row) as a PNG file's bytes."""
    side = 2.5 + 0.3 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize=7, color=colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _write_predictions(path: Path, predictions: list[VideoPrediction], classes: list[str], vote: str) -> None:
    """One row a video; `votes` is the share of frames won and `probability` the mean probability of the prediction."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "label", "predicted", "right", "votes", "probability", "frames", "top5"])
        for prediction in predictions:
            ranking = rank_classes(prediction.probabilities, vote)
            best = ranking[0]
            votes = (prediction.probabilities.argmax(axis=1) == best).mean()
            probability = prediction.probabilities[:, best].mean()
            writer.writerow([
                prediction.name, classes[prediction.label], classes[best], int(best == prediction.label),
                f"{votes:.4f}", f"{probability:.4f}", len(prediction.probabilities),
                " ".join(classes[index] for index in ranking[:5]),
            ])  # fmt: skip


def _write_frames(path: Path, predictions: list[VideoPrediction]) -> None:
    """Attention `(N, F, F)` and probabilities `(N, C)`, float32, of all videos' frames in the order of the rows."""
    part = path.with_suffix(".npz.part")
    with part.open("wb") as file:
        np.savez(file, **{
            key: np.concatenate([getattr(prediction, key) for prediction in predictions]).astype(np.float32)
            for key in ("attention", "probabilities")
        })  # fmt: skip
    part.replace(path)
