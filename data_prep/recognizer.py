"""A trained run to ask: a video file or frames in, its classes and where the model looked out.

    run = action_attention.load("runs/first")  # or the name of a pretrained model
    result = run.predict("clip.mp4")           # or frames, uint8 (n, height, width, 3), with their fps
    result.answer, result.confidence, result.top5, result.probabilities, result.attention, result.overlay("out.mp4")

A file goes through the extraction that made the run's features, into a temporary feature cache on disk, and is decoded
a second time for the overlay, so that memory does not grow with its length.
"""

import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from action_attention.boxes import action_boxes
from action_attention.calibration import calibrated
from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.evaluation import predict_videos
from action_attention.features import ArrayFeatures, FeatureCache, with_stream
from action_attention.metrics import VideoPrediction, rank_classes
from action_attention.overlays import LONGEST, draw_overlays, write_video
from action_attention.runs import Run, pretrained_folder
from action_attention.segments import Segment, segments
from data_prep.backbones import Backbone, build_backbone
from data_prep.extract import extract
from data_prep.flow import MotionMaps, network_pictures
from data_prep.pipeline import VideoEnd, cache_settings, in_background
from data_prep.sample import CLASSES
from data_prep.videos import VideoReader, resize, sampled

GIF_WIDTH = 360  # pixels; a GIF takes ten times the bytes of an MP4
BATCH = 32
CAMERA = "is a camera; give `experiments.predict` its name, --video=camera:0, or its frames to `data_prep.live`"
NO_BOXES = (
    "this model gives no boxes: their threshold is chosen by `make eval`, given annotations of where the actor is in "
    "training videos"
)
CARTOONS = "this model was trained on drawn cartoons (the sample dataset); what it says of real video means nothing"


@dataclass
class Result:
    """What a model says of a video.

    Attributes:
        prediction: of every sampled frame.
        classes: class names by id.
        vote: how the frames decide.
        fps: sampled frames per second.
        read: gives the sampled frames, RGB uint8; those of a file with at most LONGEST pixels on their longer side.
        sha256: of the file; empty for frames.
        times: of the sampled frames, in seconds; none for evenly spaced ones.
        window: frames around each one that decide on its action in `segments`: the model's clip length.
        calibration: `Run.calibration()`.
        box_tau: `Run.box_tau`.
    """

    prediction: VideoPrediction
    classes: list[str]
    vote: str
    fps: float
    read: Callable[[], Iterable[np.ndarray]]
    sha256: str = ""
    times: Sequence[float] = ()
    window: int = 30
    calibration: dict[str, Any] | None = None
    box_tau: float | None = None

    def __post_init__(self) -> None:
        self.times = self.times or [number / self.fps for number in range(len(self.probabilities))]

    @property
    def boxes(self) -> np.ndarray | None:
        """Where the action is in each sampled frame, cut out of the attention: `(frames, 4)`, x0, y0, x1, y1 in shares
        of its width and height; None for a run that was not evaluated with annotations, which its threshold is from."""
        return None if self.box_tau is None else action_boxes(self.attention, self.box_tau)

    @property
    def probabilities(self) -> np.ndarray:
        """Of each sampled frame, `(frames, C)`, as the model gives them, calibrated or not."""
        return self.prediction.probabilities

    @property
    def calibrated(self) -> np.ndarray:
        """`probabilities` at the calibration's temperature, or as they are without a calibration."""
        if not self.calibration:
            return self.probabilities
        return calibrated(self.probabilities, self.calibration["temperature"])

    @property
    def attention(self) -> np.ndarray:
        """Of each sampled frame, `(frames, H, W)`; a map's sum is 1."""
        return self.prediction.attention

    @property
    def top5(self) -> list[dict[str, Any]]:
        """The likeliest classes: `class`, `votes` (share of frames won) and `probability` (mean over frames).

        Where the run has a calibration, probabilities are calibrated; the order is that of `eval`, which votes with
        what the model itself says.
        """
        wins, means = self.probabilities.argmax(axis=1), self.calibrated.mean(axis=0)
        return [
            {"class": self.classes[index], "votes": float((wins == index).mean()), "probability": float(means[index])}
            for index in rank_classes(self.probabilities, self.vote)[:5]
        ]

    @property
    def confidence(self) -> float:
        """The winning class's probability, mean over frames: calibrated, or the model's own without a calibration."""
        return self.top5[0]["probability"]

    @property
    def answer(self) -> str | None:
        """The winning class; None if the calibrated confidence is below the calibration's threshold."""
        unsure = self.calibration and self.confidence < self.calibration["threshold"]
        return None if unsure else self.top5[0]["class"]

    @property
    def segments(self) -> list[Segment]:
        """What is shown, one action after the other, in seconds; a video with a single one has its `answer` there."""
        return segments(
            self.probabilities, self.classes, self.times, len(self.probabilities) / self.fps,
            vote=self.vote, window=self.window, calibration=self.calibration,
        )  # fmt: skip

    def labelled(self, label: str | None) -> "Result":
        """The same with the true class, so that overlays show what is right. Raises UserError for an unknown class."""
        if label not in (None, *self.classes):
            raise UserError(f"the model knows no class {label}; its classes are {', '.join(self.classes)}")
        known = None if label is None else self.classes.index(label)
        return replace(self, prediction=replace(self.prediction, label=known))

    def overlay(
        self,
        path: str | Path,
        progress: Callable[[Iterable], Iterable] = iter,
        heatmap: str = "absolute",
        *,
        boxes: bool = False,
    ) -> Path:
        """Draws what the model says and where it looks over the frames, into an `.mp4` or `.gif`.

        `heatmap` is one of `heatmaps.HEATMAPS`; `boxes` draws `boxes` too. Raises UserError for another heatmap, or if
        there are no boxes.
        """
        if boxes and self.box_tau is None:
            raise UserError(NO_BOXES)
        path = Path(path)
        width = GIF_WIDTH if path.suffix == ".gif" else None
        shown: dict[str, Any] = {"width": width, "heatmap": heatmap, "boxes": self.boxes if boxes else None}
        shown["calibrated"] = self.calibrated
        if len(parts := self.segments) > 1:
            shown |= {"segments": parts, "times": self.times}
        frames = in_background(frame for frame in self.read())  # decoded while others are drawn
        drawn = draw_overlays(frames, self.prediction, self.classes, self.vote, **shown)
        write_video(path, progress(drawn), self.fps)
        return path


class Recognizer:
    """A run's model with the backbone that its features came from.

    Args:
        run: the run.
        weights: of the backbone, as for `build_backbone`; None for those that the run names.
        network: the backbone of all streams, if there is one already.

    Raises UserError if the model or its calibration cannot be read, or features as the run's cannot be made.
    """

    def __init__(self, run: Run, weights: str | None = None, network: Backbone | None = None):
        self.run, self.config, self.model = run, run.config, run.model()
        self.of_run: dict[str, Any] = {"calibration": run.calibration(), "box_tau": run.box_tau,
                                        "window": run.config.training.clip_length}  # fmt: skip
        self.fps = run.features["fps"]
        self.networks: dict[str, Backbone] = {}  # by stream
        for made in (run.features, *([run.flow_features] if run.flow_features else [])):
            stream, alike = with_stream(made)["stream"], ("backbone", "weights_sha256", "precision")
            if self.networks and all(made.get(key) == run.features.get(key) for key in alike):
                network = next(iter(self.networks.values()))
            self.networks[stream] = network or _build_backbone(run.folder, made, weights)
            for key, value in cache_settings(self.networks[stream], self.fps, stream).items():
                if key != "weights" and made.get(key) != value:
                    raise UserError(
                        f"{run.folder} was trained on features with {key}={made.get(key)}, but now they have "
                        f"{key}={value}; give the same --weights, or extract and train again with this version"
                    )

    @property
    def classes(self) -> list[str]:
        return self.run.classes

    def predict(
        self,
        video: str | Path | np.ndarray,
        fps: float | None = None,
        *,
        vote: str | None = None,
        scratch: Path | None = None,
    ) -> Result:
        """What the model says of a video.

        Args:
            video: a file, or RGB frames, uint8 `(n, height, width, 3)`.
            fps: frames per second of such frames; a file has its own.
            vote: `mode` or `mean`; None for the one that the run was trained with.
            scratch: folder for the temporary features of a file; None for the system's.

        Raises:
            UserError: the video cannot be used.
        """
        vote = vote or self.config.training.vote
        if isinstance(video, np.ndarray):
            return self._predict_frames(video, fps, vote)
        check_video(video)
        path = _named(Path(video))
        above = path.parent.name
        name = f"{'video' if above in ('', '..') else above}/{path.name}"
        # A folder may have none above it, so a link stands for it; not in `scratch`: a run's folder may hold no links.
        with (
            tempfile.TemporaryDirectory(prefix=".features-", dir=scratch) as folder,
            tempfile.TemporaryDirectory() as root,
        ):
            (Path(root) / name).parent.symlink_to(path.parent)
            caches, ends = [], list[VideoEnd]()
            for stream, network in self.networks.items():
                there = Path(folder) / stream
                extract(Path(root), there, network, fps=self.fps, stream=stream, names=[name], on_end=ends.append)
                caches.append(FeatureCache(there))
            cache = caches[0]
            try:
                if name in cache.rejects:
                    raise UserError(
                        f"{path} cannot be used ({cache.rejects[name]}); give a video that FFmpeg can decode"
                    )
                if len(caches) > 1:
                    cache.pair(caches[1])
                about, prediction = cache.videos[name], self._predict(cache, name)
            finally:
                for each in caches:
                    each.close()

        def read() -> Iterable[np.ndarray]:
            return VideoReader(path, self.fps, longest=LONGEST)

        of_file = about.sampled_fps, read, about.file_sha256, ends[0].times
        return Result(prediction, self.classes, vote, *of_file, **self.of_run)

    def _predict_frames(self, frames: np.ndarray, fps: float | None, vote: str) -> Result:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise UserError(f"frames must be uint8 (n, height, width, 3), RGB. Received: {frames.dtype} {frames.shape}")
        if not fps or fps <= 0:
            raise UserError(f"frames need their rate: predict(frames, fps=30). Received: fps={fps!r}")
        kept = list(sampled((number / fps for number in range(len(frames))), self.fps))
        name, features = "frames/given", []
        for stream, network in self.networks.items():
            motion, cubes = MotionMaps(network.cube_shape[:2]), []
            pictures = network_pictures((frames[number] for number in kept), stream, motion)
            while batch := [resize(picture, network.input_size) for picture in islice(pictures, BATCH)]:
                padded = np.stack(batch + batch[-1:] * (BATCH - len(batch)))  # one shape: it is traced once
                cubes.append(network(padded)[: len(batch)])
            features.append({name: np.concatenate(cubes)})
        prediction = self._predict(ArrayFeatures(features[0], {name: motion.all()}, *features[1:]), name)
        rate = len(kept) / (len(frames) / fps)

        times = [number / fps for number in kept]
        return Result(
            prediction, self.classes, vote, rate, lambda: (frames[number] for number in kept), "", times, **self.of_run
        )

    def _predict(self, features: FeatureCache | ArrayFeatures, name: str) -> VideoPrediction:
        training = self.config.training
        clips = Clips(
            features, [name], self.classes, training.clip_length, training.clip_stride, in_memory=False,
            labelled=False, motion=self.config.settings.takes_motion, flow=self.config.settings.takes_flow,
        )  # fmt: skip
        (prediction,) = predict_videos(self.model, clips, training.batch_size)
        return prediction


def load(run_dir: str | Path, weights: str | None = None) -> Recognizer:
    """A trained run by its directory, a package (folder, `.zip`, `hf://owner/name`) or a pretrained model by its name,
    ready to `predict`.

    A path that exists is taken before a pretrained model of that name. Raises UserError if there is neither, or it
    cannot be read.
    """
    folder = Path(run_dir)
    if folder.name == str(run_dir) and not os.path.exists(run_dir):  # noqa: PTH110 - False for a name too long
        folder = pretrained_folder(folder.name)
    run = Run.open(folder, pretrained=True)
    if of_cartoons(run):
        logging.warning(CARTOONS)
    return Recognizer(run, weights)


def of_cartoons(run: Run) -> bool:
    """Whether it was trained on the sample dataset."""
    return run.about.get("dataset") == "sample" and set(run.classes) <= set(CLASSES)


def check_video(video: Any) -> None:
    """Raises UserError, which begins with what was given, unless it is the path of a file."""
    text = str(video)
    if isinstance(video, int):
        raise UserError(f"{text} {CAMERA}")
    if not isinstance(video, str | Path):
        raise UserError(
            f"a {type(video).__name__} is not a video; predict takes one file, or the frames of one as a NumPy array"
        )
    try:
        if not Path(text).is_file():
            raise UserError(f"{text} {_what_it_is(text)}")
    except OSError as error:
        raise UserError(f"{text} cannot be read ({error.strerror}); give a video file") from error


def _what_it_is(video: str) -> str:
    """Of what is no file, with what to do."""
    if re.fullmatch(r"(camera:)?\d+|camera:.*|/dev/video\d+", video):
        return CAMERA
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", video):
        return "is an address; predict takes a file on this machine: save the video to one first"
    if video and Path(video).is_dir():
        return "is a folder; predict takes one video file: give one that is in it"
    several = re.split(r"[\s,;]+", video)
    if len(several) > 1 and all(Path(each).is_file() for each in several):
        return f"is a list of {len(several)} files; predict takes one: call it once for each"
    if glob.has_magic(video):
        found = sorted(glob.glob(video))  # noqa: PTH207 - of any folder
        matches = f"{len(found)} files, such as {found[0]}" if found else "no file"
        return f"is a pattern that matches {matches}; predict takes one video file: give its name"
    return "is not a file; give a video file"


def _named(path: Path) -> Path:
    """The absolute path of a file whose name a cache can hold. Raises UserError."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of {os.fsencode(path)!r} is not UTF-8; rename the file or its folder") from None
    return path.absolute()


def _build_backbone(folder: Path, features: dict[str, Any], weights: str | None) -> Backbone:
    name, weights = features["backbone"].split()[0], weights or features["weights"]
    if weights not in ("imagenet", "random") and not Path(weights).is_file():
        raise UserError(f"{folder} was trained on features of {name} with {features['weights']}, and {weights} "
                        "is not a file here; give the same weights with --weights=FILE")  # fmt: skip
    return build_backbone(features["backbone"], weights, features["precision"])
