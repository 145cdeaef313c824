"""A trained run -> what it says of each video, accuracies with intervals, and their files in the run directory."""

import csv
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
from matplotlib.figure import Figure
from scipy.special import log_softmax

from action_attention.boxes import TUNING_VIDEOS, localize_boxes
from action_attention.clips import Clips, check_flow
from action_attention.errors import UserError
from action_attention.features import FeatureCache, with_stream, write_json
from action_attention.files import written_whole
from action_attention.heatmaps import relative_entropy
from action_attention.localization import Actor, localize
from action_attention.memory import check_address_space, check_memory, enough_memory
from action_attention.metrics import VideoPrediction, rank_classes, summarize
from action_attention.overlays import draw_overlays, gallery
from action_attention.runs import Run, files_digest

GALLERY_VIDEOS = 6
CARD_WIDTH = 350  # pixels of a picture in TensorBoard; a wider one is shown smaller, and its text cannot be read
CARD_FRAMES = (0.3, 0.7)  # where in the video
ReadFrames = Callable[[str], np.ndarray | None]


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


def evaluate(
    run_dir: Path,
    cache: FeatureCache,
    subset: str = "test",
    vote: str | None = None,
    read_frames: ReadFrames | None = None,
    read_actor: Callable[[str], Actor | None] | None = None,
    heatmap: str = "absolute",
    shuffle_flow: bool = False,
) -> dict[str, Any]:
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
        heatmap: one of `heatmaps.HEATMAPS`, for `attention.png`.
        shuffle_flow: a control: each video gets the optical flow of another one, frame floor(k n' / n) of its n' frames
            for frame k of n, by `localization.permute`; the folder is `eval/<subset>_shuffled_flow/` then.

    Returns:
        the content of `metrics.json`.

    Raises:
        UserError: the run, the cache and the subset do not fit together.
    """
    check_address_space()
    run = Run.open(run_dir, finished=True)
    model, config, names = run.model(), run.config, run.split.get(subset)
    _check_features(run, cache)
    if not names:
        raise UserError(f"{run_dir} has no {subset} videos")
    made_with, now = run.about["cache"].get("files", {}).get(subset), files_digest(cache, names)
    if made_with and now and made_with != now:
        raise UserError(
            f"{cache.folder} holds different files under the names of the {subset} videos than {run_dir} was made "
            "with; give --features the cache that it was trained on, or one of the same files"
        )
    folder = run.evaluation(f"{subset}_shuffled_flow" if shuffle_flow else subset)
    if shuffle_flow and not cache.flow:
        raise UserError(f"{run_dir} takes no optical flow that could be shuffled")

    def predict(names: list[str]) -> list[VideoPrediction]:
        settings, length = config.settings, config.training.clip_length
        takes = {"motion": settings.takes_motion, "flow": settings.takes_flow}
        clips = Clips(cache, names, run.classes, length, config.training.clip_stride, in_memory=False, **takes)
        if shuffle_flow and cache.flow:
            clips.shuffle_flow(cache.flow)
        weights = [tuple(weight.shape) for weight in model.weights]
        check_memory(config, weights, cache.cube_shapes, len(clips), trained=False)
        with cache.reading(), enough_memory(f"{run_dir} was evaluated"):
            return predict_videos(model, clips, config.training.batch_size)

    predictions = predict(names)
    metrics = {
        **{key: run.about.get(key) for key in ("dataset", "split", "validation")},
        "subset": folder.name,
        "model": config.model,
        "seed": config.training.seed,
        "weights": run.features["weights"],
        "learned": model.learned(),
        **summarize(predictions, run.classes, vote or config.training.vote),
        "entropy": float(np.mean([relative_entropy(prediction.attention).mean() for prediction in predictions])),
    }
    if read_actor:
        read_motion, read_actor = cache.read_motion if cache.has_motion else None, lru_cache(None)(read_actor)
        metrics["localization"] = localize(predictions, run.classes, read_actor, read_motion)
        of_training = predict(run.split["train"][:: -(-len(run.split["train"]) // TUNING_VIDEOS)])
        metrics["localization"]["boxes"] = localize_boxes(predictions, of_training, read_actor, read_motion)
    write_evaluation(folder, metrics, predictions, run.classes, read_frames, heatmap)
    return metrics


def _check_features(run: Run, cache: FeatureCache) -> None:
    """Raises UserError unless a cache, and the flow beside it, were made as those that the run was trained on."""
    check_flow(run.config.settings, cache)
    streams = [(cache, run.features), *([(cache.flow, run.flow_features or {})] if cache.flow else [])]
    for of_stream, made in streams:
        there = with_stream(of_stream.settings)
        for key, value in with_stream(made).items():
            if key != "weights" and there.get(key) != value:
                raise UserError(
                    f"{of_stream.folder} has {key}={there.get(key)}, but {run.folder} was trained with {key}={value}; "
                    "give the cache that it was trained on, or one that was extracted alike"
                )


def write_evaluation(
    folder: Path,
    metrics: dict[str, Any],
    predictions: list[VideoPrediction],
    classes: list[str],
    read_frames: ReadFrames | None = None,
    heatmap: str = "absolute",
) -> None:
    """The files of `eval/<subset>/`, which `Run.metrics` and `Run.predictions` read."""
    folder.mkdir(parents=True, exist_ok=True)
    frames_path = folder / "frames.npz"
    frames_path.unlink(missing_ok=True)  # it comes last: where it is, all files are of one evaluation
    write_json(folder / "metrics.json", metrics)
    _write_predictions(folder / "predictions.csv", predictions, classes, metrics["vote"])
    (folder / "confusion.png").write_bytes(confusion_png(np.array(metrics["confusion"]), classes))
    picture = draw_gallery(predictions, classes, metrics["vote"], read_frames, heatmap)
    if picture is not None:
        png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
        (folder / "attention.png").write_bytes(png.tobytes())
    _write_frames(frames_path, predictions)


def draw_gallery(
    predictions: list[VideoPrediction],
    classes: list[str],
    vote: str,
    read_frames: ReadFrames | None,
    heatmap: str = "absolute",
) -> np.ndarray | None:
    """Annotated overlays of the first video of each of GALLERY_VIDEOS classes; None if their frames cannot be had."""
    rows = _gallery_rows(predictions, read_frames)
    return gallery(rows, classes, vote, heatmap=heatmap) if rows else None


def draw_cards(
    predictions: list[VideoPrediction], classes: list[str], vote: str, read_frames: ReadFrames | None
) -> dict[str, np.ndarray]:
    """Class -> overlays of its video in `draw_gallery`, one below the other, RGB uint8, as wide as TensorBoard's cards.

    Empty if the frames cannot be had.
    """
    cards = {}
    for prediction, frames in _gallery_rows(predictions, read_frames):
        assert prediction.label is not None
        chosen = [round(share * (len(frames) - 1)) for share in CARD_FRAMES]
        drawn = draw_overlays(frames, prediction, classes, vote, width=CARD_WIDTH, only=chosen)
        cards[classes[prediction.label]] = np.concatenate(list(drawn))
    return cards


def _gallery_rows(
    predictions: list[VideoPrediction], read_frames: ReadFrames | None
) -> list[tuple[VideoPrediction, np.ndarray]]:
    """The first video of each of GALLERY_VIDEOS classes, with its frames; none if they cannot be had.

    Which videos depends on their order and classes only, so that it is the same ones in every epoch.
    """
    first_of_class = {each.label: each for each in reversed(predictions) if each.label is not None}
    chosen = [first_of_class[label] for label in sorted(first_of_class)]
    step = max(1, len(chosen) // GALLERY_VIDEOS)
    rows = []
    for prediction in chosen[::step][:GALLERY_VIDEOS]:
        frames = read_frames(prediction.name) if read_frames else None
        if frames is None or len(frames) != len(prediction.attention):
            return []
        rows.append((prediction, frames))
    return rows


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
            assert prediction.label is not None
            votes = (prediction.probabilities.argmax(axis=1) == best).mean()
            probability = prediction.probabilities[:, best].mean()
            writer.writerow([
                prediction.name, classes[prediction.label], classes[best], int(best == prediction.label),
                f"{votes:.4f}", f"{probability:.4f}", len(prediction.probabilities),
                " ".join(classes[index] for index in ranking[:5]),
            ])  # fmt: skip


def _write_frames(path: Path, predictions: list[VideoPrediction]) -> None:
    """Attention `(N, F, F)` and probabilities `(N, C)`, float32, of all videos' frames in the order of the rows."""
    arrays: dict[str, Any] = {
        key: np.concatenate([getattr(prediction, key) for prediction in predictions]).astype(np.float32)
        for key in ("attention", "probabilities")
    }
    with written_whole(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)
